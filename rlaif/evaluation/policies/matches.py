"""What the comparisons of two policies come to: a `Match`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from rlaif.evaluation.metrics import mean
from rlaif.evaluation.policies.comparing import NO_LABEL, Compared
from rlaif.evaluation.policies.intervals import fitted, share
from rlaif.evaluation.policies.report import Match, Part
from rlaif.evaluation.report import Estimate
from rlaif.evaluation.winrate import length_controlled


class _Labelled(NamedTuple):
    """The comparisons of a match that have a label."""

    rows: Sequence[Compared]
    said: list[float]
    """Their probabilities."""
    prompts: list[str]

    @classmethod
    def of(cls, rows: Sequence[Compared]) -> _Labelled:
        kept = [(row, row.probability) for row in rows if row.probability is not None]
        return cls([row for row, _ in kept], [value for _, value in kept], [row.prompt for row, _ in kept])


class _AtEqualLength(NamedTuple):
    rate: Estimate | None
    note: str
    slope: float


def match_of(
    policy: str, baseline: str, rows: Sequence[Compared], *, margin: float, principles: Sequence[str]
) -> Match:
    """The match of two policies; `rows` are its comparisons, with or without a label.

    A probability at least `margin` above one half is a win. `principles` are told in their order.
    """
    known = _Labelled.of(rows)
    said, prompts = known.said, known.prompts
    controlled = _controlled(known, margin)
    judged = [row for row in known.rows if row.status != "identical"]
    statuses: Counter[str] = Counter(row.status for row in rows)
    return Match(
        policy=policy,
        baseline=baseline,
        compared=len(said),
        identical=statuses["identical"],
        no_label={name: statuses[name] for name in NO_LABEL if statuses[name]},
        wins=_share([float(p - 0.5 >= margin) for p in said], prompts),
        ties=_share([float(abs(p - 0.5) < margin) for p in said], prompts),
        losses=_share([float(0.5 - p >= margin) for p in said], prompts),
        win_rate=_share(said, prompts),
        controlled=controlled.rate,
        controlled_note=controlled.note,
        length_slope=controlled.slope,
        length_ratio=_ratio(rows),
        flips=mean([float(row.flip) for row in judged]) if judged else None,
        principles=tuple(_principle(name, known.rows) for name in principles),
        tags=tuple(_tag(name, known) for name in sorted({row.tag for row in rows if row.tag is not None})),
    )


def _controlled(known: _Labelled, margin: float) -> _AtEqualLength:
    """The win rate at equal length; the plain one where length cannot be told apart from the rest."""
    if not known.said:
        return _AtEqualLength(None, "nothing was compared", 0.0)
    gaps = [float(row.lengths[0] - row.lengths[1]) if row.lengths else 0.0 for row in known.rows]
    found = length_controlled(known.said, gaps, known.prompts, margin=margin)
    if found.slope == 0.0:  # nothing was fitted, and the note says why
        return _AtEqualLength(share(known.said, known.prompts), found.note, 0.0)
    rate = fitted(found.controlled, found.error, len(set(known.prompts)), len(known.said))
    return _AtEqualLength(rate, found.note, found.slope)


def _ratio(rows: Sequence[Compared]) -> float:
    lengths = [row.lengths for row in rows if row.lengths is not None]
    own, other = (sum(each[side] for each in lengths) for side in (0, 1))
    return own / other if own and other else 1.0


def _principle(name: str, rows: Sequence[Compared]) -> Part:
    found = [(value, row.prompt) for row in rows if (value := row.principles.get(name)) is not None]
    return Part(name=name, rate=_share([value for value, _ in found], [prompt for _, prompt in found]))


def _tag(name: str, known: _Labelled) -> Part:
    found = [(p, row.prompt) for row, p in zip(known.rows, known.said, strict=True) if row.tag == name]
    return Part(name=name, rate=_share([p for p, _ in found], [prompt for _, prompt in found]))


def _share(values: Sequence[float], prompts: Sequence[str]) -> Estimate | None:
    return share(values, prompts) if values else None
