"""Side tasks that only exist in training: they show the judge what to look for long before a verdict could.

From verdicts alone a model this small stays at chance for thousands of steps: nothing tells it which of two hundred
tokens matter. So while it learns, small heads on its layers say, in the order in which a verdict comes about: which
topic the prompt and each sentence is about; what each sentence does, and whether it strays from the prompt's topic;
which faults a reply has, where it ends; which faults both replies have, where the verdict is due. And one attention
head a layer is told where to look: from a sentence to the prompt if they share their topic (else to the first token),
from the end of a reply to its sentences, from the verdict to the reply that is worse. The verdict is then a short step.

On top, every token of the texts is predicted with a small weight. The heads are thrown away with the optimizer: the
saved model is a plain Llama.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from rlaif.demo.oracle import PRINCIPLES
from rlaif.demo.training.marks import REPLY_FLAGS, sentence_flags
from rlaif.demo.training.packing import BLANK, Batch, Flagged
from rlaif.demo.words import topics

_TOPICS, _SENTENCES, _REPLIES, _LABELS = (1,), (2,), (3,), (4,)
"""Layers after which a head reads."""

States = tuple[Tensor, ...]
"""Of every layer: hidden states (rows, length, width), the embeddings first, or attention (rows, heads, from, to)."""


class Hints(nn.Module):
    """The heads: per layer a norm and a linear map to logits."""

    def __init__(self, width: int, text: float) -> None:
        """`text` is the weight of predicting every token."""
        super().__init__()
        self.text = text
        self.topics = _heads(_TOPICS, width, len(topics()))
        self.sentences = _heads(_SENTENCES, width, sentence_flags())
        self.replies = _heads(_REPLIES, width, REPLY_FLAGS)
        self.labels = _heads(_LABELS, width, 2 * len(PRINCIPLES))

    def forward(self, batch: Batch, states: States, attentions: States, vocabulary: Any) -> Tensor:
        """The side tasks' loss."""
        here = batch.is_label
        labels = Flagged(batch.rows[here], batch.columns[here], batch.both)
        loss = self.text * _text_loss(batch, states[-1], vocabulary)
        loss = loss + _loss(self.topics, batch.topics, states, functional.cross_entropy)
        for heads, asked in ((self.sentences, batch.sentences), (self.replies, batch.replies), (self.labels, labels)):
            loss = loss + _loss(heads, asked, states, functional.binary_cross_entropy_with_logits)
        # Head 0 of the second layer is taken: it copies (see `copying`).
        loss = loss + _look(attentions[1][:, 1], batch.topic_looks)
        loss = loss + 0.5 * _look(attentions[2][:, 0], batch.reply_looks)
        return loss + 0.5 * _look(attentions[3][:, 0], batch.verdict_looks)


def _heads(layers: tuple[int, ...], width: int, count: int) -> nn.ModuleDict:
    return nn.ModuleDict({str(layer): nn.Sequential(nn.RMSNorm(width), nn.Linear(width, count)) for layer in layers})


def _loss(heads: nn.ModuleDict, asked: Flagged, states: States, of: Any) -> Tensor:
    total = states[0].new_zeros(())
    for layer, head in heads.items():
        if len(asked.rows):
            total = total + of(head(states[int(layer)][asked.rows, asked.columns]), asked.flags)
    return total


def _look(attention: Tensor, asked: Flagged) -> Tensor:
    """Cross-entropy of where a head looks: `attention` (rows, from, to)."""
    if not len(asked.rows):
        return attention.new_zeros(())
    seen = attention[asked.rows, asked.columns, asked.flags].float()
    return -seen.clamp_min(1e-30).log().mean()  # a larger bound would leave a head that is far off without a gradient


def _text_loss(batch: Batch, last: Tensor, vocabulary: Any) -> Tensor:
    """Next-token loss over all texts, not across the seams of a packed row."""
    follows = batch.positions[:, 1:] == batch.positions[:, :-1] + 1
    logits: Tensor = vocabulary(last[:, :-1][follows])
    return functional.cross_entropy(logits, batch.ids[:, 1:][follows], ignore_index=BLANK)
