"""Where the words of a review or a revision come from: from the reply that it is about, or from the prompt's topic.

A revision keeps the good sentences of a reply word by word, and a review quotes the bad one. Told nothing, the judge
learns to copy whatever stands there, or to make up an answer about some other topic. So each token of such an answer
has a source, at which attention is told to look while that token is predicted: the same token in the reply; for the
first token of a copied sentence the end of that sentence, for only there is it known what the sentence does; and for
the words that are new the end of the prompt, where its topic is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Said(NamedTuple):
    """A sentence of a reply that a question shows."""

    text: str
    end: int
    """The token with which it ends."""
    tokens: dict[int, int]
    """Its tokens, by how many of its characters there are up to the token's end."""


def sources(answer: str, offsets: Sequence[tuple[int, int]], said: Sequence[Said]) -> list[int | None]:
    """For each token of `answer`, at `offsets` in it, the token that it is copied from, or None.

    For the first token of a copied sentence it is the one with which the sentence ends.
    """
    found: list[int | None] = [None] * len(offsets)
    for sentence in said:
        start = answer.find(sentence.text.rstrip(".!?"))
        if start < 0:
            continue
        for at, (begin, end) in enumerate(offsets):
            if begin <= start < end:
                found[at] = sentence.end
            elif begin > start and answer[start:end] == sentence.text[: end - start]:
                found[at] = sentence.tokens.get(end - start)
    return found


def begins(looks: Sequence[int | None], at: int) -> bool:
    """Whether the source jumps at the answer's token `at`: a decision, not the next word of a sentence."""
    before = looks[at - 1] if at > 0 else None
    return looks[at] != before and looks[at] != (None if before is None else before + 1)
