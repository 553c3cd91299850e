"""A panel: several judges' comparisons of one pair become one.

Each judge's own answers are folded as if it judged alone, its flips told but not left out. Then the judges' log-odds
are averaged by weight, order by order, and the two orders after that, as the principles of a single judge are. Pooling
by the mean is one of the two ways of the panel of Verga et al. (2024, arXiv:2404.18796). A panel of one is its judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from rlaif.comparisons.fold import Comparison, Status, Vote, disagree, status_of
from rlaif.comparisons.shares import folded
from rlaif.settings import PairSettings


class Ballot(NamedTuple):
    """What one judge said about a pair."""

    weight: float
    """Share in the panel's label."""
    votes: Sequence[Vote]
    """One a principle, with the judge's own calibration in their temperature."""


class Election(NamedTuple):
    """A pair as the panel sees it, and as each judge does."""

    panel: Comparison
    owns: tuple[Comparison, ...]
    """In the order of the judges; flips are told and not left out, unless there is one judge, who is the panel."""


def elect(left: str, right: str, ballots: Sequence[Ballot], pair: PairSettings) -> Election:
    """Fold the ballots on a pair under a run's thresholds."""
    if len(ballots) == 1:
        alone = folded(left, right, ballots[0].votes, pair)
        return Election(alone, (alone,))
    soft = pair.model_copy(update={"flips": "soft"})
    owns = tuple(folded(left, right, ballot.votes, soft) for ballot in ballots)
    return Election(pooled([ballot.weight for ballot in ballots], owns, pair), owns)


def pooled(weights: Sequence[float], owns: Sequence[Comparison], pair: PairSettings) -> Comparison:
    """The judges' own comparisons of one pair as one.

    It has no label where a judge lacks an answer, or where no majority of the judges has a readable verdict. Its two
    orders disagree where the judges' mean log-odds do, whatever the single judges' do; of a principle the same is said
    where it holds for most of the judges that count it.
    """
    known = replace(owns[0], judgements=tuple(key for own in owns for key in own.judgements))
    if any(own.status is Status.FAILED for own in owns):
        return Comparison(known.left, known.right, Status.FAILED, judgements=known.judgements)
    read = [(weight, own) for weight, own in zip(weights, owns, strict=True) if own.readable]
    if 2 * len(read) <= len(owns):
        return Comparison(known.left, known.right, Status.UNPARSED, judgements=known.judgements)
    total = sum(weight for weight, _ in read)
    orders = tuple(sum(weight * own.orders[at] for weight, own in read) / total for at in range(len(read[0][1].orders)))
    logit = sum(orders) / len(orders)
    counted = [[own for _, own in read if name in own.principles] for name in _principles(read)]
    return replace(
        known,
        status=status_of(logit, flip=disagree(orders), margin=pair.margin, drop_flips=pair.flips == "drop"),
        logit=logit,
        flip=disagree(orders),
        hard=any(own.hard for _, own in read),
        principles=_principles(read),
        flips=tuple(
            name
            for name, by in zip(_principles(read), counted, strict=True)
            if 2 * sum(name in own.flips for own in by) > len(by)
        ),
        orders=orders,
    )


def _principles(read: Sequence[tuple[float, Comparison]]) -> tuple[str, ...]:
    """Those that count for any of the judges."""
    return tuple(dict.fromkeys(name for _, own in read for name in own.principles))
