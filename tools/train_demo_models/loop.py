"""The training loop: weighted cross-entropy on the answer tokens, Muon and AdamW, warm-up and cosine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tools.train_demo_models.hints import Hints
from tools.train_demo_models.muon import Muon
from tools.train_demo_models.packing import Batch

_HINTS_RATE = 0.01
"""Learning rate of the side tasks' heads: they must keep up with the layers that they read."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a model learns."""

    steps: int
    learning_rate: float = 2e-3
    """Of AdamW."""
    matrix_rate: float = 0.02
    """Of Muon."""
    warmup: int = 60
    tokens: int = 4096
    """Tokens in a batch."""

    def rate(self, step: int) -> float:
        """Share of the learning rate at `step`: a linear warm-up, then half a cosine down to nearly zero."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


def loss_of(model: Any, batch: Batch, hints: Hints | None = None) -> Tensor:
    """Weighted mean of the negative log-likelihood of the targets (logits are taken only where there is one).

    With `hints`, their side tasks are added; the model must then compute attention eagerly.
    """
    out = model.model(
        input_ids=batch.ids,
        position_ids=batch.positions,
        attention_mask=_added(batch.mask),
        use_cache=False,
        output_hidden_states=hints is not None,
        output_attentions=hints is not None,
    )
    logits = model.lm_head(out.last_hidden_state[batch.rows, batch.columns])
    losses = functional.cross_entropy(logits, batch.tokens, reduction="none")
    loss = (losses * batch.weights).sum() / batch.weights.sum()
    return loss if hints is None else loss + hints(batch, out.hidden_states, out.attentions, model.lm_head)


def train(
    model: Any,
    next_loss: Callable[[], Tensor],
    schedule: Schedule,
    log: Callable[[str], None],
    hints: Hints | None = None,
) -> None:
    """Train `model` in place on whatever `next_loss` computes; `hints` learn along and are thrown away."""
    model.train()
    optimizers = _optimizers(model, schedule)
    if hints is not None:
        optimizers.append(torch.optim.AdamW(hints.parameters(), lr=_HINTS_RATE))
    schedulers = [torch.optim.lr_scheduler.LambdaLR(each, schedule.rate) for each in optimizers]
    started, recent = time.monotonic(), 0.0
    for step in range(1, schedule.steps + 1):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=_bfloat16_is_fast()):
            loss = next_loss()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        recent = loss.item() if step == 1 else 0.95 * recent + 0.05 * loss.item()
        if step % 25 == 0 or step == schedule.steps:
            log(f"step {step}/{schedule.steps} loss {recent:.4f} seconds {time.monotonic() - started:.0f}")
    model.eval()


def _added(mask: Tensor) -> Tensor:
    """The mask as numbers to add to attention scores: eager attention would add a boolean mask as zeros and ones."""
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)


def _bfloat16_is_fast() -> bool:
    """Whether this processor multiplies bfloat16 in hardware; on others torch emulates it."""
    return bool(torch.cpu._is_avx512_bf16_supported())


def _optimizers(model: Any, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, which learns in about half the steps; AdamW for all else."""
    inside = {id(weight) for weight in model.model.layers.parameters() if weight.dim() == 2}
    matrices = [weight for weight in model.parameters() if id(weight) in inside]
    others = [weight for weight in model.parameters() if id(weight) not in inside]
    return [
        Muon(matrices, lr=schedule.matrix_rate, decay=0.01),
        torch.optim.AdamW(others, lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
