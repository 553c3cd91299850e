"""A model that learns: passes over groups in parts that fit into memory, its optimizer, its state on disk."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlaif.errors import ModelError
from rlaif.store import draft_of
from rlaif.training.batches import Batch, lay_out, split
from rlaif.training.forward import Kind, Way, compute
from rlaif.training.groups import Group

_WEIGHT, _OPTIMIZER = "weight/", "optimizer/"
_EPSILON = 1e-5
"""Of Adam. With 1e-8 the first steps, whose second moments are tiny, are larger (arXiv:2403.17031, detail 17)."""


class Computing(nn.Module):
    """A model whose call is `forward.compute`: what wraps it for several processes hooks into the whole call."""

    def __init__(self, model: Any, way: Way, kind: Kind) -> None:
        super().__init__()
        self.model, self.way, self.kind = model, way, kind

    def forward(self, batch: Batch) -> Tensor:
        """[tokens]: log-probabilities, or values."""
        return compute(self.model, batch, self.way, self.kind)


class Network:
    """A model with its optimizer, on its device, over one process or many."""

    def __init__(
        self, model: Any, way: Way, kind: Kind, accelerator: Any, *, tokens: int, max_grad_norm: float
    ) -> None:
        """`tokens` is what fits into memory at once."""
        self.accelerator, self.tokens, self._norm = accelerator, tokens, max_grad_norm
        self.model, self.way = model.to(accelerator.device), way
        self._computing: Any = Computing(model, way, kind)
        self.optimizer: Any = None
        self.rate = 0.0
        """The learning rate of the last optimizer step."""
        self._schedule: Any = None

    def prepare(self, rate: float, weight_decay: float, schedule: str, warmup: int, steps: int) -> None:
        """Make it trainable, for so many optimizer steps."""
        from transformers import get_scheduler

        trained = [each for each in self._computing.parameters() if each.requires_grad]
        # No decay of biases and norms, as transformers has it.
        groups = [
            {"params": [each for each in trained if each.ndim >= 2], "weight_decay": weight_decay},
            {"params": [each for each in trained if each.ndim < 2], "weight_decay": 0.0},
        ]
        made = torch.optim.AdamW([group for group in groups if group["params"]], lr=rate, eps=_EPSILON, fused=True)
        self._computing, self.optimizer = self.accelerator.prepare(self._computing, made)
        more = {"min_lr_rate": 0.1} if schedule == "cosine_with_min_lr" else None
        # Stepped by hand, once an optimizer step: accelerate's own would step once a process.
        self._schedule = get_scheduler(schedule, made, warmup, steps, scheduler_specific_kwargs=more)

    @torch.no_grad()
    def compute(self, groups: Sequence[Group]) -> Tensor:
        """[tokens], in the order of the groups and their completions, on the CPU; gradients off."""
        found: dict[int, Tensor] = {}
        with self._evaluating(), self.accelerator.autocast():
            for part in split(groups, self.tokens, self.way.layout):
                some = [groups[at] for at in part]
                sizes = [sum(map(len, group.completions)) for group in some]
                found |= zip(part, torch.split(self._values(some).float().cpu(), sizes), strict=True)
        return torch.cat([found[at] for at in range(len(groups))]) if groups else torch.zeros(0)

    def learn(self, groups: Sequence[Group], loss: Callable[[Tensor, Sequence[int]], Tensor]) -> float:
        """One optimizer step; returns the length of the gradient before it was cut.

        `loss` gets what the model computes for some of the groups, [tokens] on its device, and which they are; what it
        returns is added up over the parts. A process without groups takes part all the same, with a loss of 0.
        """
        self._computing.train()
        parts = split(groups, self.tokens, self.way.layout) if groups else []
        for at, part in enumerate(parts):
            with self._synchronised(last=at == len(parts) - 1):
                self.accelerator.backward(loss(self._values([groups[each] for each in part]), part))
        if not parts:
            nothing = Group("nothing", (0,), ((0,),))
            self.accelerator.backward(self._values([nothing]).sum() * 0.0)
        return self._step()

    def _step(self) -> float:
        trained = [each for group in self.optimizer.param_groups for each in group["params"]]
        most = self._norm if self._norm > 0 else float("inf")
        length = float(torch.nn.utils.clip_grad_norm_(trained, most))
        if not math.isfinite(length):
            mend = "start again with a lower `learning_rate`"
            raise ModelError(f"the gradient is {length}, and no step was taken with it: {mend}")
        self.rate = float(self._schedule.get_last_lr()[0])
        self.optimizer.step()
        self._schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return length

    def _values(self, groups: Sequence[Group]) -> Tensor:
        values: Tensor = self._computing(lay_out(groups, self.way.layout).to(self.accelerator.device))
        return values

    def _synchronised(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Processes exchange gradients once a step, with its last part."""
        if last or self.accelerator.num_processes == 1:
            return contextlib.nullcontext()
        return self.accelerator.no_sync(self._computing)  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        was = self._computing.training
        self._computing.eval()
        try:
            yield
        finally:
            self._computing.train(was)

    def save(self, path: Path) -> None:
        """Keep what is trained and the optimizer's memory, as safetensors."""
        from safetensors.torch import save_file

        tensors = {f"{_WEIGHT}{name}": each.detach().cpu().contiguous() for name, each in self._trained()}
        for at, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{_OPTIMIZER}{at}.{name}": torch.as_tensor(each).cpu() for name, each in state.items()}
        last = self._schedule.state_dict()
        with draft_of(path) as draft:
            save_file(tensors, draft, metadata={"steps": str(last["last_epoch"])})

    def restore(self, path: Path) -> None:
        """Go on from what was kept. Raises ModelError where it is of another model."""
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            steps = int(file.metadata()["steps"])
        with torch.no_grad():
            for name, each in self._trained():
                if found.get(f"{_WEIGHT}{name}", torch.empty(0)).shape != each.shape:
                    raise ModelError(f"{path} is of another model: it has no {name} of this shape")
                each.copy_(found[f"{_WEIGHT}{name}"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in found.items():
            if name.startswith(_OPTIMIZER):
                at, _, key = name.removeprefix(_OPTIMIZER).partition(".")
                state.setdefault(int(at), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self._schedule.last_epoch = steps
        self._schedule._step_count = steps + 1
        rates = [
            base * scale(steps) for base, scale in zip(self._schedule.base_lrs, self._schedule.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._schedule._last_lr = rates

    def _trained(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, each) for name, each in self.model.named_parameters() if each.requires_grad)
