"""Who says what in a folded comparison: every principle on its own, and its part of the weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rlaif.comparisons.fold import Comparison, Status, Vote, fold
from rlaif.settings import PairSettings


class Share(NamedTuple):
    """One principle's part of a comparison. The parts `weight * own.logit` add up to the comparison's logit."""

    principle: str
    weight: float
    """Its part of the weight of all principles with a verdict on this pair; 0 where it has none itself."""
    own: Comparison
    """The comparison as this principle alone would have it; flips are told but not left out."""

    @property
    def readable(self) -> bool:
        """Whether the principle has a label in every order that was asked."""
        return _readable(self.own)

    @property
    def logit(self) -> float:
        """What it adds to the comparison's logit."""
        return self.weight * self.own.logit


def folded(left: str, right: str, votes: Sequence[Vote], pair: PairSettings) -> Comparison:
    """The votes on a pair folded under a run's thresholds."""
    return _folded(left, right, votes, pair, drop_flips=pair.flips == "drop")


def shares(left: str, right: str, votes: Sequence[Vote], pair: PairSettings) -> list[Share]:
    """Every vote on its own, in the order of the votes."""
    owns = [_folded(left, right, [vote], pair, drop_flips=False) for vote in votes]
    total = sum(vote.weight for vote, own in zip(votes, owns, strict=True) if _readable(own))
    return [
        Share(vote.principle, vote.weight / total if _readable(own) else 0.0, own)
        for vote, own in zip(votes, owns, strict=True)
    ]


def moves(before: Sequence[Share], after: Sequence[Share], origin: float) -> dict[str, float]:
    """How far each principle moved a comparison whose logit was `origin`; the moves add up to the whole.

    Shares are measured from the old logit, not from 0: so an added principle answers for its whole effect, and the
    others for nothing where they only make room for it.
    """
    found: dict[str, float] = {}
    for shared, sign in ((before, -1), (after, 1)):
        for share in shared:
            move = sign * share.weight * (share.own.logit - origin)
            found[share.principle] = found.get(share.principle, 0.0) + move
    return found


def _folded(left: str, right: str, votes: Sequence[Vote], pair: PairSettings, *, drop_flips: bool) -> Comparison:
    return fold(left, right, votes, min_mass=pair.min_label_mass, margin=pair.margin, drop_flips=drop_flips)


def _readable(own: Comparison) -> bool:
    return own.status not in (Status.UNPARSED, Status.FAILED)
