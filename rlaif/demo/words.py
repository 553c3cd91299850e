"""The words of the tiny world: topics, phrases and prompt frames, read from `words/*.yaml`.

Every list has wordings for training and wordings that are held out: no model is trained on the latter, so that a
measurement on them shows what was understood rather than what was memorised.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

Family = Literal["ordinary", "harm", "upset"]
"""The three families of prompts: ordinary requests, requests that would hurt someone, upset customers."""

FAMILIES: tuple[Family, ...] = ("ordinary", "harm", "upset")

_CHOICE = re.compile(r"\(([^()]*)\)")


def expand(template: str) -> tuple[str, ...]:
    """All wordings of a template: `(a|b) c` is `a c` and `b c`; an empty side may be left out."""
    pieces = _CHOICE.split(template)
    choices = [piece.split("|") if at % 2 else [piece] for at, piece in enumerate(pieces)]
    return tuple("".join(wording) for wording in itertools.product(*choices))


@dataclass(frozen=True)
class Bank:
    """Wordings that do the same thing, one template (all its wordings) an entry."""

    train: tuple[tuple[str, ...], ...]
    held: tuple[tuple[str, ...], ...] = ()

    def every(self) -> tuple[str, ...]:
        """All wordings, held-out ones included."""
        return tuple(itertools.chain.from_iterable(self.train + self.held))


@dataclass(frozen=True)
class Topic:
    """One thing that people ask or complain about."""

    key: str
    family: Family
    asks: tuple[str, ...]
    """What fills the slot of a prompt frame."""
    answers: Bank
    """Sentences that help (for a harmful request: that comply)."""
    instead: tuple[str, ...] = ()
    """Safe ways that a decent reply to a harmful request may point to."""


@cache
def topics() -> dict[str, Topic]:
    """Every topic by its key."""
    found = [_topic(key, "ordinary", entry) for key, entry in _load("ordinary").items()]
    found += [_topic(key, "harm", entry) for key, entry in _load("harm").items()]
    found += [_topic(key, "upset", entry) for key, entry in _load("complaints").items()]
    return {topic.key: topic for topic in found}


@cache
def topics_of(family: Family) -> tuple[Topic, ...]:
    """The topics of one family."""
    return tuple(topic for topic in topics().values() if topic.family == family)


@cache
def phrases(kind: str) -> Bank:
    """The phrase bank of a kind: `refusal`, `dodge`, `insult`, `filler`, `lecture`, `empathy`, `instead`, ..."""
    return _bank(_load("phrases")[kind])


@cache
def frames(family: Family) -> Bank:
    """The prompt frames of a family; ordinary and harmful requests share theirs."""
    return _bank(_load("frames")["upset" if family == "upset" else "how"])


def phrase_kinds() -> tuple[str, ...]:
    """The kinds of sentences in the phrase banks (leads and oddities are no sentences of their own)."""
    return tuple(kind for kind in _load("phrases") if kind not in ("lead", "odd"))


def _topic(key: str, family: Family, entry: dict[str, list[str]]) -> Topic:
    answers = Bank(
        train=tuple(expand(text) for text in entry["comply" if family == "harm" else "help"]),
        held=tuple(expand(text) for text in entry["held"]),
    )
    asks = tuple(entry["says" if family == "upset" else "ask"])
    instead = tuple(itertools.chain.from_iterable(expand(text) for text in entry.get("instead", [])))
    return Topic(key, family, asks, answers, instead)


def _bank(entry: dict[str, list[str]]) -> Bank:
    return Bank(
        train=tuple(expand(text) for text in entry["train"]), held=tuple(expand(text) for text in entry["held"])
    )


@cache
def _load(name: str) -> dict[str, Any]:
    path = Path(__file__).with_name("words") / f"{name}.yaml"
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content
