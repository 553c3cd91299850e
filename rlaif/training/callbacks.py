"""What happens around the steps of a training: the reference first, progress, a clean stop, a warning."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from rlaif.errors import ModelError, UserError
from rlaif.training import reference
from rlaif.training.dpo import REFERENCE
from rlaif.training.forward import Way, answering, choose_way
from rlaif.training.groups import Group
from rlaif.training.loading import load_frozen
from rlaif.training.settings import DpoSettings
from rlaif.training.trainer import GroupTrainer

_START_TOLERANCE = 1e-3
"""Nats of a whole completion, in float32: the same function computed in other batches."""
_START_TOLERANCE_NARROW = 0.02
"""Nats a token, on average, in bfloat16."""
_CHECKED = 16
_FALLING = 20
"""Lines of the log in a row in which the chosen completions became less likely."""


class Told(Protocol):
    """Hears how a training goes."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def begin(self, stage: str, total: int) -> None:
        """A stage of so many steps starts."""

    def progress(self, stage: str, done: int, logs: dict[str, float]) -> None:
        """So many of its steps are done; what was logged last."""


class Callback(TrainerCallback):
    """A callback that knows its trainer: transformers makes the callbacks first."""

    trainer: GroupTrainer


class ReferencePass(Callback):
    """Gives every group the reference's log-probabilities before the first step.

    By then the trainer has placed the model, sharded over processes perhaps. A resumed model is no reference any more:
    its start has to be on disk.
    """

    def __init__(self, path: Path, settings: DpoSettings, resumed: bool, told: Told) -> None:
        """`path` is where they are kept."""
        self.path, self.settings, self.resumed, self.told = path, settings, resumed, told

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Find or compute them.

        Raises UserError where a resumed training has none, ModelError where they do not fit.
        """
        trainer = self.trainer
        train, held = trainer.train_groups, trainer.held_groups
        groups = [*train, *held]
        found = self._kept(groups)
        if found is None:
            if self.resumed and self.settings.reference is None:
                raise UserError(
                    "the reference log-probabilities of this training are gone",
                    where=self.path,
                    mend="start again without --resume",
                )
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
        """By the model itself; another reference is loaded for this, and dropped again."""
        if self.settings.reference is None:
            return self._computed_by(self.trainer.model_wrapped, groups, self.trainer.way)
        model = load_frozen(self.settings.model_copy(update={"model": self.settings.reference}))
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
        narrow = trainer.args.bf16 or trainer.starting_dtype != torch.float32
        tokens = sum(len(completion) for group in groups for completion in group.completions)
        off = (values - wanted).abs()
        worst = float(off.sum() / tokens) if narrow else float(off.max())
        limit = _START_TOLERANCE_NARROW if narrow else _START_TOLERANCE
        if not worst < limit:
            raise ModelError(
                f"before the first step the model differs from its reference by {worst:.2g} nats (at most {limit}): "
                f"it is not the same function twice; remove {self.path} if it is of another model"
            )


class Progress(Callback):
    """Tells how far the training is."""

    def __init__(self, told: Told) -> None:
        self.told = told
        self._logs: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Say how many steps there will be."""
        self.told.begin("train", state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:  # noqa: ARG002
        """Keep the last figures."""
        self._logs |= {name: value for name, value in (logs or {}).items() if isinstance(value, float)}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Say how many are done."""
        self.told.progress("train", state.global_step, self._logs)


class StopCleanly(Callback):
    """Ctrl-C finishes the step, saves a checkpoint and stops; a second one stops at once.

    A request to end (SIGTERM) is heard as well: launchers of many processes pass Ctrl-C on like that, and so does a
    cluster that wants its machine back; both wait a while before they kill.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Listen, where Python lets us: signals come to the main thread."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.asked = True
        if number == signal.SIGINT:
            self._restore(number)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Save and stop, all processes after the same step, where it was asked for and is not the end anyway."""
        self.asked = self.trainer.any_process(self.asked)
        if self.asked and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True

    def restore(self) -> None:
        """Leave the signals to whom they were before."""
        for number in list(self._before):
            self._restore(number)

    def _restore(self, number: int) -> None:
        if number in self._before:
            signal.signal(number, self._before.pop(number))


class Falling(Callback):
    """Warns when chosen completions become ever less likely: the policy then learns to avoid, not to prefer.

    The margin grows all the same (likelihood displacement, Razin et al. 2024, arXiv:2410.08847).
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self.note = note
        self._lows = 0
        self._last = 0.0
        self._warned = False

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:  # noqa: ARG002
        """Look at the reward of the chosen completions: below 0 they are less likely than at the start."""
        reward = (logs or {}).get("rewards/chosen")
        if reward is None:
            return
        self._lows = self._lows + 1 if reward < min(0.0, self._last) or (reward < 0 and self._lows) else 0
        self._last = reward
        if self._lows >= _FALLING and not self._warned:
            self._warned = True
            self.note(
                f"the chosen answers have been less likely than at the start for {_FALLING} lines of the log: "
                "`sft_weight: 1` holds them, a smaller learning rate or larger beta helps too"
            )
