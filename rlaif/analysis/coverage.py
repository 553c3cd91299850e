"""What each principle did in a run: what it decided, where the label went its way, and whom it contradicts.

Read from the answers on disk; no model is asked. Memory holds counters only.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlaif.config.schemas import PairSettings
from rlaif.feedback.aggregate import Comparison, Share, Status, Vote, folded, shares
from rlaif.feedback.position_bias import find_slots
from rlaif.feedback.run import Run, read_provenance, reopen_run

LEAST = 10
"""Comparisons that two principles must share before they can be said to contradict each other."""

_Z = 1.959963984540054
"""Of the standard normal distribution, 95% lies within this distance of 0."""


@dataclass(frozen=True, slots=True)
class PrincipleCoverage:
    """The part that one principle had in a run. Shares are None where there is nothing to take a share of."""

    id: str
    asked: int
    """Comparisons that it was asked in."""
    verdicts: int
    """Those where it has a readable verdict in every order that was asked."""
    decided: int
    """Labelled comparisons where no other principle adds more to the label's side."""
    labels: int
    """Labelled comparisons that it has a verdict on."""
    agrees: int
    """Those where its own verdict is on the label's side."""
    margin: float | None
    """Mean distance of its own probability (both orders folded) from one half."""
    flips: float | None
    """Share of its verdicts whose two orders disagree; None also where only one order was asked."""
    ties: float | None
    """Share of its verdicts closer to one half than `pair.margin`."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two principles on the comparisons where both have a clear verdict: no tie, and orders that agree."""

    first: str
    second: str
    agree: int
    both: int

    @property
    def share(self) -> float | None:
        """How often they are of one mind."""
        return self.agree / self.both if self.both else None

    @property
    def contradict(self) -> bool:
        """Whether they agree in less than half of the cases, beyond chance."""
        return self.both >= LEAST and wilson_upper(self.agree, self.both) < 0.5


@dataclass(frozen=True, slots=True)
class Coverage:
    """The principles of a run, in the order of its constitution."""

    constitution: str
    mode: str
    """`compare.principles`: one, each or all."""
    comparisons: int
    labels: int
    unanswered: int
    """Comparisons with a question that has no answer."""
    principles: tuple[PrincipleCoverage, ...]
    agreements: tuple[Agreement, ...]
    """Every two principles; empty where no two meet on a pair."""
    edited: bool = False
    """The constitution's file has changed since the run was finished."""

    @property
    def idle(self) -> tuple[str, ...]:
        """Principles that decide nothing."""
        return tuple(each.id for each in self.principles if not each.decided)

    @property
    def contradictions(self) -> tuple[Agreement, ...]:
        """Pairs of principles that contradict each other."""
        return tuple(each for each in self.agreements if each.contradict)


def wilson_upper(successes: int, trials: int) -> float:
    """Upper end of the 95% score interval of a proportion (Wilson 1927, JASA 22:209-212)."""
    share, z2 = successes / trials, _Z**2
    spread = _Z * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return (share + z2 / (2 * trials) + spread) / (1 + z2 / trials)


def coverage(folder: Path) -> Coverage:
    """The coverage of a finished run. Raises UserError where there is none in `folder`."""
    made_with = read_provenance(folder).hash
    with reopen_run(folder) as run:
        return covered(run, edited=run.constitution.hash != made_with)


def covered(run: Run, *, edited: bool = False) -> Coverage:
    """The coverage of an open run, by the answers that its constitution finds on disk."""
    compare = run.settings.compare
    find_slots(run)
    counting = Counting([criterion.id for criterion in run.criteria], run.settings.pair)
    for prompt in run.prompts():
        for matchup, votes in run.votes_of(prompt, run.matchups_of(prompt, run.samples_of(prompt))):
            counting.add(matchup.left.id, matchup.right.id, votes)
    return Coverage(
        constitution=run.constitution.name,
        mode=compare.principles,
        comparisons=counting.comparisons,
        labels=counting.labels,
        unanswered=counting.unanswered,
        principles=counting.principles(both_orders=compare.orders == "both"),
        agreements=counting.agreements() if compare.principles == "each" else (),
        edited=edited,
    )


class Counting:
    """Counts the comparisons of a run one by one."""

    def __init__(self, ids: Sequence[str], pair: PairSettings) -> None:
        self._ids, self._pair = list(ids), pair
        self.comparisons = self.labels = self.unanswered = 0
        self._counts: dict[str, Counter[str]] = defaultdict(Counter)
        self._margins: dict[str, float] = defaultdict(float)
        self._met: Counter[tuple[str, str]] = Counter()
        self._agreed: Counter[tuple[str, str]] = Counter()

    def add(self, left: str, right: str, votes: Sequence[Vote]) -> None:
        """Count one comparison."""
        comparison = folded(left, right, votes, self._pair)
        shared = shares(left, right, votes, self._pair)
        self.comparisons += 1
        self.labels += comparison.status is Status.LABELLED
        self.unanswered += comparison.status is Status.FAILED
        for vote in votes:
            self._counts[vote.principle]["asked"] += any(vote.asked)
        for share in shared:
            if share.readable:
                self._count_verdict(share)
        if comparison.status is Status.LABELLED:
            self._count_label(comparison, shared)
        self._count_agreement(shared)

    def _count_verdict(self, share: Share) -> None:
        own = share.own
        self._margins[share.principle] += abs(own.probability - 0.5)
        self._counts[share.principle].update(verdicts=1, flips=own.flip, ties=own.status is Status.TIE)

    def _count_label(self, comparison: Comparison, shared: Sequence[Share]) -> None:
        side = math.copysign(1, comparison.logit)
        decisive = max(shared, key=lambda share: side * share.logit)
        self._counts[decisive.principle]["decided"] += 1
        for share in shared:
            if share.readable:
                self._counts[share.principle].update(labels=1, agrees=side * share.own.logit > 0)

    def _count_agreement(self, shared: Sequence[Share]) -> None:
        clear = [each for each in shared if each.own.status is Status.LABELLED and not each.own.flip]
        for one, other in itertools.combinations(clear, 2):
            pair = one.principle, other.principle
            self._met[pair] += 1
            self._agreed[pair] += (one.own.logit > 0) == (other.own.logit > 0)

    def principles(self, *, both_orders: bool = True) -> tuple[PrincipleCoverage, ...]:
        """Every principle's part, also of those that were never asked."""
        return tuple(self._principle(name, both_orders) for name in self._ids)

    def _principle(self, name: str, both_orders: bool) -> PrincipleCoverage:
        counts = self._counts[name]
        verdicts = counts["verdicts"]
        return PrincipleCoverage(
            name,
            asked=counts["asked"],
            verdicts=verdicts,
            decided=counts["decided"],
            labels=counts["labels"],
            agrees=counts["agrees"],
            margin=self._margins[name] / verdicts if verdicts else None,
            flips=counts["flips"] / verdicts if verdicts and both_orders else None,
            ties=counts["ties"] / verdicts if verdicts else None,
        )

    def agreements(self) -> tuple[Agreement, ...]:
        """Every two principles, in the order of the constitution."""
        pairs = itertools.combinations(self._ids, 2)
        return tuple(Agreement(*pair, agree=self._agreed[pair], both=self._met[pair]) for pair in pairs)
