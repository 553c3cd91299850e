"""The reference's part in a training: its log-probabilities come to the groups before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from rlaif.errors import ModelError
from rlaif.training import reference
from rlaif.training.arguments import narrow
from rlaif.training.callbacks import Callback, StopCleanly, StoppedError, Told
from rlaif.training.dpo import REFERENCE
from rlaif.training.fitting import require_fit
from rlaif.training.forward import Way, answering, choose_way
from rlaif.training.groups import Group
from rlaif.training.loading import load_frozen, weights_type
from rlaif.training.settings import DpoSettings

_START_TOLERANCE, _START_TOLERANCE_TOKEN = 1e-3, 2e-5
"""Nats of a whole completion, in float32, or of each of its tokens: the same function computed in other batches."""
_START_TOLERANCE_NARROW = 0.02
"""Nats a token, on average, in bfloat16."""
_CHECKED = 16


class ReferencePass(Callback):
    """Gives every group the reference's log-probabilities before the first step.

    By then the trainer has placed the model, sharded over processes perhaps. A resumed model is no reference any more:
    where nothing is kept, the start is loaded once more.
    """

    def __init__(self, path: Path, settings: DpoSettings, resumed: bool, stop: StopCleanly, told: Told) -> None:
        """`path` is where they are kept."""
        self.path, self.settings, self.resumed, self.stop, self.told = path, settings, resumed, stop, told

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Find or compute them.

        Raises UserError where they cannot be kept, ModelError where they do not fit, StoppedError on Ctrl-C.
        """
        trainer = self.trainer
        train, held = trainer.train_groups, trainer.held_groups
        groups = [*train, *held]
        found = self._kept(groups)
        if found is None:
            if trainer.is_world_process_zero():
                reference.require_writable(self.path)
            found = self._compute(groups)
        ready = reference.with_reference(groups, found, REFERENCE)
        train[:] = ready[: len(train)]
        held[:] = ready[len(train) :]
        if self.settings.reference is None and not self.resumed:
            self._check(found)

    def _kept(self, groups: list[Group]) -> list[list[float]] | None:
        """What the first process finds on its disk: all of them have to compute, or none."""
        found = reference.load(self.path, groups) if self.trainer.is_world_process_zero() else None
        if self.trainer.accelerator.num_processes == 1:
            return found
        (shared,) = broadcast_object_list([found])
        return shared  # type: ignore[no-any-return]

    def _compute(self, groups: list[Group]) -> list[list[float]]:
        """By the model itself where it is at its start; another one is loaded for this, and dropped again."""
        settings = self.settings
        if settings.reference is None and not self.resumed:
            return self._computed_by(self.trainer.model_wrapped, groups, self.trainer.way)
        if settings.reference is None:
            model = load_frozen(settings, weights_type(settings))  # as it was at the start
        else:
            dtype = torch.bfloat16 if narrow(settings) else torch.float32
            model = load_frozen(settings.model_copy(update={"model": settings.reference}), dtype)
            require_fit(model, groups, settings.reference)
        way = choose_way(model, self.trainer.train_groups, "logps")
        model = model.to(self.trainer.accelerator.device)
        with answering(model, way, "logps"), self.trainer.accelerator.autocast():
            return self._computed_by(model, groups, way)

    def _computed_by(self, model: Any, groups: list[Group], way: Way) -> list[list[float]]:
        trainer, done = self.trainer, 0
        self.told.begin("reference", len(groups))

        def told(more: int) -> None:
            nonlocal done
            done += more
            self.told.progress("reference", done, {})
            if trainer.any_process(self.stop.asked) and done < len(groups):
                raise StoppedError

        found = reference.compute(model, groups, way, trainer.tokens, trainer.accelerator, told)
        if trainer.is_world_process_zero():
            reference.keep(self.path, found)
        return found

    def _check(self, found: list[list[float]]) -> None:
        """At its start the policy is the reference: margins are 0 and the loss of DPO is ln 2.

        The model is asked as it is trained: dropout that is still on would be seen.
        """
        trainer = self.trainer
        groups = trainer.train_groups[:_CHECKED]
        trainer.model_wrapped.train()
        with torch.no_grad():
            values = trainer._values(trainer.model_wrapped, groups).cpu()
        wanted = torch.tensor([each for logps in found[: len(groups)] for each in logps])
        lengths = torch.tensor([len(completion) for group in groups for completion in group.completions])
        off = (values - wanted).abs()
        if trainer.args.bf16 or trainer.starting_dtype != torch.float32:
            worst, limit, of = float(off.sum() / lengths.sum()), _START_TOLERANCE_NARROW, "a token"
        else:
            limits = (_START_TOLERANCE_TOKEN * lengths).clamp(min=_START_TOLERANCE)
            at = int((off / limits).nan_to_num(nan=torch.inf).argmax())
            worst, limit, of = float(off[at]), float(limits[at]), f"over {int(lengths[at])} tokens"
        if not worst < limit:
            raise ModelError(
                f"before the first step the model differs from its reference by {worst:.2g} nats {of} (at most "
                f"{limit:.2g}): it is not the same function twice; remove {self.path} if it is of another model"
            )
