"""Is a revision usable? Small models mix up their roles: asked to rewrite a reply, they review it, or repeat what was
asked (arXiv:2212.08073, section 3.1, uses few-shot examples against this). What is found out here is counted; a text
that fails is never a training row and never the start of the next round.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

NEARLY = 0.9
"""From this likeness on, a revision is nearly its parent and teaches nothing."""

_ECHO = 0.5
"""From this likeness on, a text is the critique or the request over again."""

_LEAD = re.compile(
    r"\A(?:[^\n:]{0,60}\W)?"
    r"(?:(?:revised|rewritten|improved|updated|new) (?:reply|response|answer|version)(?: of[^\n:]{0,30})?|revision)"
    r"(?:\*\*)?:(?:\*\*)?\s*",
    re.IGNORECASE,
)
_QUOTED = re.compile(r'\A(["“])(.+)(["”])\Z', re.DOTALL)
_REVIEWS = re.compile(
    r"\A\W*(?:critique|review|reviewer'?s notes|notes)\b\W*:"
    r"|\A(?:the|this|your) (?:assistant'?s? )?(?:last |previous )?(?:reply|response|answer)\b"
    r"(?! (?:is|to)[^.]{0,60}\b(?:question|riddle)\b)",
    re.IGNORECASE,
)
_ASKS = re.compile(
    r"\A\W*(?:(?:critique|revision) ?request|human|user)\s*:"
    r"|\bwrite only the (?:new reply|review)\b|reviewer's notes on",
    re.IGNORECASE,
)


class Use(StrEnum):
    """What a revision is good for."""

    REVISED = "revised"
    UNCHANGED = "unchanged"
    """It is (nearly) its parent."""
    EMPTY = "empty"
    TRUNCATED = "truncated"
    """It was cut at `max_tokens`."""
    CRITIQUE = "critique"
    """It reviews the reply instead of rewriting it."""
    REQUEST = "request"
    """It repeats what was asked, or speaks for the user."""


class Parent(NamedTuple):
    """What a revision was made from."""

    text: str
    critique: str | None
    request: str
    said: str
    """The user's last message."""


def spoken(text: str) -> str:
    """A revision without what is not the reply: a lead such as `Here is the revised reply:`, quotes around it all."""
    said = text.strip()
    lead = _LEAD.match(said)
    if lead and lead.end() < len(said):
        said = said[lead.end() :].strip()
    quoted = _QUOTED.match(said)
    return quoted[2].strip() if quoted and not re.search(r'["“”]', quoted[2]) else said


def use_of(text: str, parent: Parent, finish_reason: str | None) -> Use:
    """What the `spoken` text of a revision is good for."""
    if not text:
        return Use.EMPTY
    if finish_reason == "length":
        return Use.TRUNCATED
    if likeness(text, parent.text) >= NEARLY:
        return Use.UNCHANGED
    if _REVIEWS.match(text) or (parent.critique and likeness(text, parent.critique) >= _ECHO):
        return Use.CRITIQUE
    if _ASKS.search(text) or likeness(text, parent.request) >= _ECHO or likeness(text, parent.said) >= NEARLY:
        return Use.REQUEST
    return Use.REVISED


def likeness(one: str, other: str) -> float:
    """Share of word trigrams that two texts have in common, 1 for the same words (Jaccard; case and marks ignored)."""
    first, second = _trigrams(one), _trigrams(other)
    return len(first & second) / len(first | second)


def _trigrams(text: str) -> set[tuple[str, ...]]:
    words = ["", *re.findall(r"\w+", text.lower()), ""]
    return {tuple(words[at : at + 3]) for at in range(max(1, len(words) - 2))}
