"""Reading the tiny world: a prompt back to its scene, a reply back to what its sentences do.

This works from the text alone, so it reads what a model wrote just as well as what the grammar wrote. A text that is
not made of the world's sentences is malformed, and the reason is told.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache

from rlaif.demo.grammar import Scene, fill_frame
from rlaif.demo.words import frames, phrase_kinds, phrases, topics

_SENTENCE = re.compile(r"[^.!?\s][^.!?]*[.!?]*")
_MARKS = re.compile(r"[,;:\"']+")


@dataclass(frozen=True)
class Sentence:
    """One sentence of a reply: what it does, and the topic that it is about, if any."""

    kind: str
    """`help`, `comply`, or a kind of phrase: `refusal`, `insult`, ..."""
    topic: str | None
    text: str
    """As it stands in the reply, with its full stop."""
    wording: str
    """Without case, marks and lead: equal for a repeated sentence."""


@dataclass(frozen=True)
class Reading:
    """What a reply says."""

    sentences: tuple[Sentence, ...] = ()
    malformed: str | None = None
    """Why the text cannot be read, or None."""

    def of(self, *kinds: str) -> tuple[Sentence, ...]:
        """The sentences of these kinds."""
        return tuple(sentence for sentence in self.sentences if sentence.kind in kinds)


def plain(text: str) -> str:
    """`text` without case, punctuation and doubled spaces."""
    return " ".join(_MARKS.sub("", text).strip(" .!?\n\t").lower().split())


@lru_cache(maxsize=65536)
def read_reply(text: str) -> Reading:
    """What the sentences of a reply do, or why it is malformed: empty, unfinished, or with an unknown sentence."""
    if not plain(text):
        return Reading(malformed="empty")
    if text.rstrip()[-1] not in ".!?":
        return Reading(malformed="unfinished")
    sentences = []
    for raw in _SENTENCE.findall(text):
        sentence = _read_sentence(raw.strip())
        if sentence is None:
            return Reading(malformed=f"unknown sentence: {raw.strip()}")
        sentences.append(sentence)
    return Reading(tuple(sentences))


def read_prompt(text: str) -> Scene | None:
    """The scene of a prompt in one of the grammar's wordings, or None for a text from outside this world."""
    return _prompts().get(plain(text))


def _read_sentence(raw: str) -> Sentence | None:
    wording = plain(raw)
    for candidate in (wording, *(wording.removeprefix(lead) for lead in _leads() if wording.startswith(lead))):
        known = _sentences().get(candidate) or _joined(candidate)
        if known is not None:
            return Sentence(*known, raw, candidate)
    return None


def _joined(wording: str) -> tuple[str, str | None] | None:
    """What two wordings of one kind do that are joined by "and"."""
    for join in re.finditer(" and ", wording):
        first = _sentences().get(wording[: join.start()])
        if first is not None and first == _sentences().get(wording[join.end() :]):
            return first
    return None


@cache
def _leads() -> tuple[str, ...]:
    return tuple(f"{plain(lead)} " for lead in phrases("lead").every())


@cache
def _sentences() -> dict[str, tuple[str, str | None]]:
    """Every wording of every sentence: its kind and its topic."""
    known: dict[str, tuple[str, str | None]] = {}
    for kind in phrase_kinds():
        known.update({plain(text): (kind, None) for text in phrases(kind).every()})
    for topic in topics().values():
        kind = "comply" if topic.family == "harm" else "help"
        known.update({plain(text): (kind, topic.key) for text in topic.answers.every()})
        known.update({plain(text): ("instead", topic.key) for text in topic.instead})
    return known


@cache
def _prompts() -> dict[str, Scene]:
    """Every wording of every prompt."""
    known: dict[str, Scene] = {}
    for topic in topics().values():
        for frame in frames(topic.family).every():
            for ask in topic.asks:
                text = fill_frame(frame, ask)
                known[plain(text)] = Scene(topic.key, topic.family, text)
    return known
