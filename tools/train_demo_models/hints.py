"""Side tasks that only exist in training: they show the judge what to look for long before a verdict could.

From verdicts alone a model this small stays near chance: nothing tells it which of two hundred tokens matter. So while
it learns, small heads on its layers say, in the order in which a verdict comes about: which topic the prompt and each
sentence is about; what each sentence does, and whether it strays from the prompt's topic; which faults a reply has,
where it ends; which faults both replies have, where the verdict is due. And one attention head a layer is told where
to look: from a sentence to the prompt if they share their topic (else to the first token),
from the end of a reply to its sentences, from the verdict to the reply that is worse. The verdict is then a short step.

On top, every token of the texts is predicted with a small weight. The heads are thrown away with the optimizer: the
saved model is a plain Llama.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from rlaif.demo.oracle import PRINCIPLES
from rlaif.demo.world import topics
from tools.train_demo_models.marks import REPLY_FLAGS, sentence_flags
from tools.train_demo_models.packing import BLANK, Asked, Batch

States = tuple[Tensor, ...]
"""Of every layer: hidden states (rows, length, width), the embeddings first, or attention (rows, heads, from, to)."""


class Hints(nn.Module):
    """The heads, one after each layer: a norm and a linear map to logits."""

    def __init__(self, width: int, text: float) -> None:
        """`text` is the weight of predicting every token."""
        super().__init__()
        self.text = text
        self.topics = _head(width, len(topics()))
        self.sentences = _head(width, sentence_flags())
        self.replies = _head(width, REPLY_FLAGS)
        self.labels = _head(width, 2 * len(PRINCIPLES))
        self.beginnings = _head(width, width)

    def forward(self, batch: Batch, states: States, attentions: States, vocabulary: Any) -> Tensor:
        """The side tasks' loss."""
        here = batch.is_label
        labels = Asked(batch.rows[here], batch.columns[here], batch.both)
        flags = functional.binary_cross_entropy_with_logits
        loss = self.text * _text_loss(batch, states[-1], vocabulary)
        loss = loss + _loss(self.topics, states[1], batch.topics, functional.cross_entropy)
        loss = loss + _loss(self.sentences, states[2], batch.sentences, flags)
        loss = loss + _loss(self.replies, states[3], batch.replies, flags)
        loss = loss + _loss(self.labels, states[4], labels, flags)
        loss = loss + 0.5 * self._beginnings_loss(batch, states[3], vocabulary)
        # Head 0 of the second layer is taken: it copies (see `copying`).
        loss = loss + _look(attentions[1][:, 1], batch.topic_looks)
        loss = loss + 0.5 * _look(attentions[2][:, 0], batch.reply_looks)
        loss = loss + 0.5 * _look(attentions[2][:, 2], batch.start_looks)
        for deep in (2, 3):
            loss = loss + 0.5 * _look(attentions[deep][:, 1], batch.copied_looks)
            loss = loss + 0.5 * _look(attentions[deep][:, 3], batch.new_looks)
        loss = loss + 0.5 * _look(attentions[3][:, 2], batch.begun_looks)
        return loss + 0.5 * _look(attentions[3][:, 0], batch.verdict_looks)

    def _beginnings_loss(self, batch: Batch, states: Tensor, vocabulary: Any) -> Tensor:
        """Where a sentence ends, with which token it began."""
        ends = batch.start_looks
        begun = batch.ids[ends.rows, ends.right] if len(ends.rows) else ends.right
        asked = Asked(ends.rows, ends.columns, begun)
        return _loss(nn.Sequential(self.beginnings, vocabulary), states, asked, functional.cross_entropy)


def _head(width: int, count: int) -> nn.Module:
    return nn.Sequential(nn.RMSNorm(width), nn.Linear(width, count))


def _loss(head: nn.Module, states: Tensor, asked: Asked, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The loss `of` what a head reads from the states (rows, length, width) where it is asked."""
    if not len(asked.rows):
        return states.new_zeros(())
    return of(head(states[asked.rows, asked.columns]), asked.right)


def _look(attention: Tensor, asked: Asked) -> Tensor:
    """Cross-entropy of where a head looks: `attention` (rows, from, to)."""
    if not len(asked.rows):
        return attention.new_zeros(())
    seen = attention[asked.rows, asked.columns, asked.right].float()
    return -seen.clamp_min(1e-30).log().mean()  # a larger bound would leave a head that is far off without a gradient


def _text_loss(batch: Batch, last: Tensor, vocabulary: Any) -> Tensor:
    """Next-token loss over all texts, not across the seams of a packed row."""
    follows = batch.positions[:, 1:] == batch.positions[:, :-1] + 1
    logits: Tensor = vocabulary(last[:, :-1][follows])
    return functional.cross_entropy(logits, batch.ids[:, 1:][follows], ignore_index=BLANK)
