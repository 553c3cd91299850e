"""What grades or rankings say about a pair, folded over the criteria into one comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rlaif.comparisons.fold import Comparison, Status, sigmoid


class Said(NamedTuple):
    """One criterion's word on a pair."""

    principle: str
    weight: float
    logit: float | None
    """Log-odds that the left sample is better; None where nothing readable was said."""
    answered: bool
    """Whether every question behind it has an answer."""
    evidence: tuple[str, ...]
    """Ids of those answers."""
    hard: bool = False
    """It comes from words, not from log-probabilities."""


def settle(left: str, right: str, said: Sequence[Said], *, margin: float) -> Comparison:
    """Average the criteria by weight. A missing answer leaves the pair without a label, as everywhere."""
    ids = tuple(dict.fromkeys(key for each in said for key in each.evidence))
    if not all(each.answered for each in said):
        return Comparison(left, right, Status.FAILED, judgements=ids)
    read = [(each, each.logit) for each in said if each.logit is not None]
    if not read:
        return Comparison(left, right, Status.UNPARSED, judgements=ids)
    logit = sum(each.weight * own for each, own in read) / sum(each.weight for each, _ in read)
    tie = abs(sigmoid(logit) - 0.5) < margin or logit == 0
    return Comparison(
        left,
        right,
        Status.TIE if tie else Status.LABELLED,
        logit=logit,
        hard=any(each.hard for each, _ in read),
        principles=tuple(each.principle for each, _ in read),
        judgements=ids,
    )
