"""Drawing a text token by token so that it depends on its question alone, not on its neighbours in the batch.

Adding Gumbel noise to log-probabilities and taking the largest is a draw from them (Gumbel 1954). The noise of every
row comes from a generator of its own, seeded by the question, so greedy decoding of the noisy scores samples every row
with its own temperature, top-p and seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from threading import Event
from typing import TYPE_CHECKING

from rlaif.inference.base import Question

if TYPE_CHECKING:
    import torch


class Draw:
    """A logits processor: noisy scores for rows with a temperature, untouched ones for the others."""

    def __init__(self, questions: Sequence[Question], device: torch.device) -> None:
        import torch

        self._drawn = [row for row, question in enumerate(questions) if question.sampling.temperature > 0]
        hot = [questions[row] for row in self._drawn]
        self._generators = [torch.Generator(device).manual_seed(seed_of(question)) for question in hot]
        self._heat = torch.tensor([[question.sampling.temperature] for question in hot], device=device)
        self._top_p = torch.tensor([[question.sampling.top_p] for question in hot], device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (batch, vocabulary) whose largest entry is the drawn token."""
        import torch

        del input_ids
        if not self._drawn:
            return scores
        kept = nucleus(scores[self._drawn].float() / self._heat, self._top_p)
        noise = torch.stack([torch.empty_like(row).exponential_(generator=own) for row, own in self._each(kept)])
        noisy = scores.float()
        noisy[self._drawn] = kept - noise.log()
        return noisy

    def _each(self, rows: torch.Tensor) -> list[tuple[torch.Tensor, torch.Generator]]:
        return list(zip(rows, self._generators, strict=True))


class Halt:
    """A stopping criterion: ends the generation when nobody waits for it any more."""

    def __init__(self, halted: Event) -> None:
        self._halted = halted

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        """One flag a row."""
        import torch

        del scores
        return torch.full((len(input_ids),), self._halted.is_set(), dtype=torch.bool, device=input_ids.device)


def nucleus(logits: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """`logits` (batch, vocabulary) with minus infinity outside the smallest set that holds `top_p` (batch, 1)."""
    if bool((top_p >= 1).all()):
        return logits
    ordered, places = logits.sort(dim=-1, descending=True)
    chances = ordered.softmax(dim=-1)
    before = chances.cumsum(dim=-1) - chances  # what more probable tokens hold already; 0 for the first, always kept
    beyond = before >= top_p
    return logits.masked_fill(beyond.scatter(-1, places, beyond), -float("inf"))


def seed_of(question: Question) -> int:
    """The seed of one question's noise: its own sampling seed and its id."""
    digest = hashlib.sha256(f"{question.sampling.seed}:{question.id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
