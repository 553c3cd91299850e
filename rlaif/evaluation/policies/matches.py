"""What the comparisons of two policies come to: a `Match`.

A comparison is won, tied or lost by its probability and the margin, and the win rate counts ties half. In the tiny
world that agrees with what the oracle counts; the mean probability does not, as it is drawn to one half by every
principle that sees no difference. What length does to a judge is told from the probabilities, as AlpacaEval does: the
value at equal length stands beside the mean preference, not the win rate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from rlaif.evaluation.intervals import fitted, share, share_of
from rlaif.evaluation.metrics import mean
from rlaif.evaluation.policies.comparing import NO_LABEL, Compared
from rlaif.evaluation.policies.report import Match, Part
from rlaif.evaluation.report import Estimate
from rlaif.evaluation.winrate import length_controlled


class _Labelled(NamedTuple):
    """The comparisons of a match that have a label."""

    rows: Sequence[Compared]
    said: list[float]
    """Their probabilities."""
    ends: list[float]
    """Their outcomes."""
    prompts: list[str]

    @classmethod
    def of(cls, rows: Sequence[Compared], margin: float) -> _Labelled:
        kept = [row for row in rows if row.probability is not None]
        said = [row.probability for row in kept if row.probability is not None]
        return cls(kept, said, [outcome(each, margin) for each in said], [row.prompt for row in kept])


class _AtEqualLength(NamedTuple):
    preference: Estimate | None
    note: str
    slope: float | None


def outcome(probability: float, margin: float) -> float:
    """1 for a win, 0 for a loss, one half for a probability nearer to one half than the margin."""
    return 1.0 if probability - 0.5 >= margin else 0.0 if 0.5 - probability >= margin else 0.5


def match_of(
    policy: str, baseline: str, rows: Sequence[Compared], *, margin: float, principles: Sequence[str]
) -> Match:
    """The match of two policies; `rows` are its comparisons, with or without a label.

    A probability at least `margin` above one half is a win. `principles` are told in their order.
    """
    known = _Labelled.of(rows, margin)
    ends, prompts = known.ends, known.prompts
    controlled = _controlled(known)
    judged = [row for row in known.rows if row.status != "identical"]
    statuses: Counter[str] = Counter(row.status for row in rows)
    return Match(
        policy=policy,
        baseline=baseline,
        compared=len(ends),
        identical=statuses["identical"],
        no_label={name: statuses[name] for name in NO_LABEL if statuses[name]},
        wins=share_of([float(each == 1) for each in ends], prompts),
        ties=share_of([float(each == 0.5) for each in ends], prompts),
        losses=share_of([float(each == 0) for each in ends], prompts),
        win_rate=share_of(ends, prompts),
        preference=share_of(known.said, prompts),
        controlled=controlled.preference,
        controlled_note=controlled.note,
        length_slope=controlled.slope,
        length_ratio=_ratio(rows),
        flips=mean([float(row.flip) for row in judged]) if judged else None,
        principles=tuple(_principle(name, known.rows, margin) for name in principles),
        tags=tuple(_tag(name, known) for name in sorted({row.tag for row in rows if row.tag is not None})),
    )


def _controlled(known: _Labelled) -> _AtEqualLength:
    """The mean preference at equal length; none, with the reason, where the comparisons cannot tell it."""
    if not known.said:
        return _AtEqualLength(None, "nothing was compared", None)
    gaps = [float(row.lengths[0] - row.lengths[1]) if row.lengths else 0.0 for row in known.rows]
    found = length_controlled(known.said, gaps, known.prompts)
    plain = share(known.said, known.prompts)
    if found.controlled is None or found.error is None:
        return _AtEqualLength(None, found.note, None)
    if found.slope is None:  # length makes no difference
        return _AtEqualLength(plain, found.note, None)
    controlled = fitted(found.controlled, found.error, len(set(known.prompts)), plain)
    return _AtEqualLength(controlled, found.note, found.slope)


def _ratio(rows: Sequence[Compared]) -> float | None:
    lengths = [row.lengths for row in rows if row.lengths is not None]
    own, other = (sum(each[side] for each in lengths) for side in (0, 1))
    return own / other if other else None


def _principle(name: str, rows: Sequence[Compared], margin: float) -> Part:
    said = [(value, row.prompt) for row in rows if (value := row.principles.get(name)) is not None]
    found = [(outcome(value, margin), prompt) for value, prompt in said]
    return Part(name=name, rate=share_of([value for value, _ in found], [prompt for _, prompt in found]))


def _tag(name: str, known: _Labelled) -> Part:
    found = [(end, row.prompt) for row, end in zip(known.rows, known.ends, strict=True) if row.tag == name]
    return Part(name=name, rate=share_of([end for end, _ in found], [prompt for _, prompt in found]))
