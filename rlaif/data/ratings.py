"""Several rated completions of one prompt as a pair: the best against the worst.

All completions of a row are measured by one measure, the one that most of them have. Ratings of single aspects go
before an overall score: a known fault of UltraFeedback wrote some overall scores of 1 as 10, the aspects are right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from rlaif.data.turns import UnreadableValueError, turns_of

_TEXTS = ("response", "text", "content", "completion", "output", "generated_text", "answer", "response_text", "summary")
_SCORES = ("fine-grained_score", "fine_grained_score", "overall_score", "rating", "score", "reward")
_RANKS = ("rank", "ranking")
"""1 is the best."""


class BestAndWorst(NamedTuple):
    """A pair out of several completions."""

    best: str
    worst: str
    scores: tuple[float, float]
    """Of the best and of the worst; a rank counts negative, as the higher score is the better one."""
    disputed: bool
    """Another measure of the same completions has another best one."""


Measure = Callable[[Mapping[str, object]], float | None]


def best_and_worst(completions: object) -> BestAndWorst:
    """The highest and the lowest rated completion, the first of equals.

    Raises UnreadableValueError where there are not two rated ones, or where all are rated the same.
    """
    if not isinstance(completions, list):
        raise UnreadableValueError("missing" if completions is None else "type")
    items = [(text, item) for item in completions if isinstance(item, dict) and (text := _text(item)) is not None]
    measured = {name: [measure(item) for _, item in items] for name, measure in _MEASURES.items()}
    name = max(measured, key=lambda each: sum(value is not None for value in measured[each]))  # the first of equals
    rated = [(value, text) for value, (text, _) in zip(measured[name], items, strict=True) if value is not None]
    if len(rated) < 2:
        raise UnreadableValueError("unrated")
    best = max(rated, key=lambda each: each[0])
    worst = min(rated, key=lambda each: each[0])
    if best[0] == worst[0]:
        raise UnreadableValueError("tied-ratings")
    disputed = any(_disputes(values, measured[name]) for values in measured.values())
    return BestAndWorst(best[1], worst[1], (best[0], worst[0]), disputed)


def _disputes(other: list[float | None], measure: list[float | None]) -> bool:
    """Whether a second measure puts none of the best completions of the first one at its top."""
    both = [(one, two) for one, two in zip(measure, other, strict=True) if one is not None and two is not None]
    if len(both) < 2:
        return False
    best, top = max(one for one, _ in both), max(two for _, two in both)
    return not any(one == best and two == top for one, two in both)


def _text(item: Mapping[str, object]) -> str | None:
    """The completion: plain, or the reply at the end of messages."""
    for name in _TEXTS:
        value = item.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, list) and value:
            turns = turns_of(value, "assistant", lambda _: None)
            return turns[-1].content if turns[-1].role == "assistant" else None
    return None


def _aspects(item: Mapping[str, object]) -> float | None:
    """The mean of the ratings of single aspects."""
    aspects = item.get("annotations")
    found = []
    for each in aspects.values() if isinstance(aspects, dict) else ():
        value = each.get("Rating", each.get("rating")) if isinstance(each, dict) else each
        number = number_of(value)
        if number is not None:
            found.append(number)
    return sum(found) / len(found) if found else None


def _score(name: str) -> Measure:
    return lambda item: number_of(item.get(name))


def _rank(name: str) -> Measure:
    def measure(item: Mapping[str, object]) -> float | None:
        number = number_of(item.get(name))
        return None if number is None else -number

    return measure


_MEASURES: dict[str, Measure] = {
    "annotations": _aspects,
    **{name: _score(name) for name in _SCORES},
    **{name: _rank(name) for name in _RANKS},
}
"""Nearest to what people meant first."""


def number_of(value: object) -> float | None:
    """A number; some files hold numbers as texts, `8/10`, and `N/A` where there is none.

    None too of what no float can hold.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        if isinstance(value, str) and value.count("/") == 1:
            part, whole = value.split("/")
            value = float(part) / float(whole)
        number = float(value)
    except (ValueError, OverflowError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) else None
