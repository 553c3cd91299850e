"""Where the words of a review or a revision come from: from the reply that it is about, or from the prompt's topic.

A revision keeps the good sentences of a reply word by word, and a review quotes the bad one. Told nothing, the judge
learns to copy whatever stands there, or to make up an answer about some other topic. So each token of such an answer
has a source, at which attention is told to look while that token is predicted: the same token in the reply; for the
first token of a copied sentence the end of that sentence, for only there is it known what the sentence does; and for
the words that are new the end of the prompt, where its topic is known. Each kind of source has heads of its own: what a
head passes on from where it looks is one thing, the token there, the token with which a sentence began, or a topic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

Kind = Literal["copied", "begun", "new"]
"""What a token of an answer is: the next word of a copied sentence, the first word of one, or a word of its own."""


class Source(NamedTuple):
    """Where a token of an answer comes from."""

    kind: Kind
    at: int
    """The token to look at."""


class Said(NamedTuple):
    """A sentence of a reply that a question shows."""

    text: str
    end: int
    """The token with which it ends."""
    tokens: dict[int, int]
    """Its tokens, by how many of its characters there are up to the token's end."""


def sources(answer: str, offsets: Sequence[tuple[int, int]], said: Sequence[Said]) -> list[Source | None]:
    """Where each token of `answer`, at `offsets` in it, is copied from, or None for what is not."""
    found: list[Source | None] = [None] * len(offsets)
    for sentence in said:
        start = answer.find(sentence.text.rstrip(".!?"))
        if start < 0:
            continue
        for at, (begin, end) in enumerate(offsets):
            if begin <= start < end:
                found[at] = Source("begun", sentence.end)
            elif begin > start and answer[start:end] == sentence.text[: end - start] and end - start in sentence.tokens:
                found[at] = Source("copied", sentence.tokens[end - start])
    return found


def decides(found: Sequence[Source | None], at: int) -> bool:
    """Whether more than the next word is decided at the answer's token `at`: which sentence comes, and its beginning.

    The second word of a copied sentence counts too: several sentences may begin with the same first one.
    """
    kinds = [None if source is None else source.kind for source in found[max(0, at - 1) : at + 1]]
    return kinds[-1] == "begun" or kinds[0] != kinds[-1]
