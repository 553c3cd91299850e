"""Side tasks that only exist in training: they show the judge what to look for long before a verdict could.

From verdicts alone a model this small stays at chance for thousands of steps: nothing tells it which of two hundred
tokens matter. So while it learns, small heads on its middle layers name the faults of a reply where the reply ends, and
the faults of both replies where the verdict is due; the verdict is then a short step. On top, every token of the texts
is predicted with a small weight. The heads are thrown away with the optimizer: the saved model is a plain Llama.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from rlaif.demo.oracle import PRINCIPLES
from rlaif.demo.training.packing import Batch

_WEIGHT = 0.5
"""Of each head's loss."""
_ENDS = (2,)
_LABELS = (3, 4)
"""Layers after which a head reads: at the ends of replies, and at the labels."""


class Hints(nn.Module):
    """The heads: per layer a norm and a linear map to fault logits."""

    def __init__(self, width: int, text: float) -> None:
        """`text` is the weight of predicting every token."""
        super().__init__()
        self.text = text
        count = len(PRINCIPLES)
        self.ends = nn.ModuleDict({str(layer): _head(width, count + 1) for layer in _ENDS})
        self.labels = nn.ModuleDict({str(layer): _head(width, 2 * count) for layer in _LABELS})

    def forward(self, batch: Batch, states: tuple[Tensor, ...], vocabulary: Any) -> Tensor:
        """The side tasks' loss; `states` are the hidden states after each layer, the embeddings first."""
        loss = self.text * _text_loss(batch, states[-1], vocabulary)
        for layer, head in self.ends.items():
            if len(batch.faults):
                said = head(states[int(layer)][batch.end_rows, batch.end_columns])
                loss = loss + _WEIGHT * functional.binary_cross_entropy_with_logits(said, batch.faults)
        here = batch.is_label
        for layer, head in self.labels.items():
            if here.any():
                said = head(states[int(layer)][batch.rows[here], batch.columns[here]])
                loss = loss + _WEIGHT * functional.binary_cross_entropy_with_logits(said, batch.both)
        return loss


def _head(width: int, count: int) -> nn.Module:
    return nn.Sequential(nn.RMSNorm(width), nn.Linear(width, count))


def _text_loss(batch: Batch, last: Tensor, vocabulary: Any) -> Tensor:
    """Next-token loss over all texts, not across the seams of a packed row."""
    follows = batch.positions[:, 1:] == batch.positions[:, :-1] + 1
    logits: Tensor = vocabulary(last[:, :-1][follows])
    return functional.cross_entropy(logits, batch.ids[:, 1:][follows])
