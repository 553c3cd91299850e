"""Coverage: for each principle of a run, the labels that it decides, agrees with, and contradicts.

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
from rlaif.feedback.aggregate import Status, Vote, folded, shares
from rlaif.feedback.run import Run, find_slots, read_provenance, reopen_run
from rlaif.stats import wilson

LEAST = 10
"""Comparisons that two principles must share before they can be said to contradict each other."""


@dataclass(frozen=True, slots=True)
class PrincipleCoverage:
    """The part that one principle has in a run. Shares are None where there is nothing to take a share of."""

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
class PrincipleAgreement:
    """Two principles on the comparisons where both have a clear verdict: no tie, and orders that agree."""

    first: str
    second: str
    agree: int
    both: int

    @property
    def share(self) -> float | None:
        """Share of the comparisons in which they agree."""
        return self.agree / self.both if self.both else None

    @property
    def contradict(self) -> bool:
        """Whether they agree in less than half of the cases, beyond chance."""
        return self.both >= LEAST and wilson(self.agree, self.both).high < 0.5


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
    agreements: tuple[PrincipleAgreement, ...]
    """Every two principles; empty where no two judge the same pair."""
    edited: bool = False
    """The constitution's file has changed since the run was finished."""

    @property
    def idle(self) -> tuple[str, ...]:
        """Principles that decide nothing."""
        return tuple(row.id for row in self.principles if not row.decided)

    @property
    def contradictions(self) -> tuple[PrincipleAgreement, ...]:
        """Pairs of principles that contradict each other."""
        return tuple(pair for pair in self.agreements if pair.contradict)


def coverage(folder: Path) -> Coverage:
    """The coverage of a finished run. Raises UserError where there is none in `folder`."""
    original = read_provenance(folder).hash
    with reopen_run(folder) as run:
        return covered(run, edited=run.constitution.hash != original)


def covered(run: Run, *, edited: bool = False) -> Coverage:
    """The coverage of an open run, by the answers that its constitution finds on disk."""
    compare = run.settings.compare
    find_slots(run)
    counter = CoverageCounter([criterion.id for criterion in run.criteria], run.settings.pair)
    for prompt in run.prompts():
        for matchup, votes in run.votes_of(prompt, run.matchups_of(prompt, run.samples_of(prompt))):
            counter.add(matchup.left.id, matchup.right.id, votes)
    return Coverage(
        constitution=run.constitution.name,
        mode=compare.principles,
        comparisons=counter.comparisons,
        labels=counter.labels,
        unanswered=counter.unanswered,
        principles=counter.principles(both_orders=compare.orders == "both"),
        agreements=counter.agreements() if compare.principles == "each" else (),
        edited=edited,
    )


class CoverageCounter:
    """Counts the comparisons of a run one by one."""

    def __init__(self, ids: Sequence[str], pair: PairSettings) -> None:
        self._ids, self._pair = list(ids), pair
        self.comparisons = self.labels = self.unanswered = 0
        self._counts: dict[str, Counter[str]] = defaultdict(Counter)
        self._margins: dict[str, float] = defaultdict(float)
        self._both: Counter[tuple[str, str]] = Counter()
        """By two principles, the comparisons where both have a clear verdict."""
        self._agree: Counter[tuple[str, str]] = Counter()

    def add(self, left: str, right: str, votes: Sequence[Vote]) -> None:
        """Count one comparison."""
        comparison = folded(left, right, votes, self._pair)
        readable = [share for share in shares(left, right, votes, self._pair) if share.readable]
        self.comparisons += 1
        self.labels += comparison.status is Status.LABELLED
        self.unanswered += comparison.status is Status.FAILED
        for vote in votes:
            self._counts[vote.principle]["asked"] += any(vote.judgements)
        for share in readable:
            alone = share.comparison
            self._margins[share.principle] += abs(alone.probability - 0.5)
            self._counts[share.principle].update(verdicts=1, flips=alone.flip, ties=alone.status is Status.TIE)
        if comparison.status is Status.LABELLED:
            side = math.copysign(1, comparison.logit)
            decisive = max(readable, key=lambda share: side * share.logit)
            self._counts[decisive.principle]["decided"] += 1
            for share in readable:
                self._counts[share.principle].update(labels=1, agrees=side * share.comparison.logit > 0)
        clear = [row for row in readable if row.comparison.status is Status.LABELLED and not row.comparison.flip]
        for one, other in itertools.combinations(clear, 2):
            pair = one.principle, other.principle
            self._both[pair] += 1
            self._agree[pair] += (one.comparison.logit > 0) == (other.comparison.logit > 0)

    def principles(self, *, both_orders: bool = True) -> tuple[PrincipleCoverage, ...]:
        """Every principle's part, also of those that were never asked."""
        rows = []
        for name in self._ids:
            counts = self._counts[name]
            verdicts = counts["verdicts"]
            rows.append(
                PrincipleCoverage(
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
            )
        return tuple(rows)

    def agreements(self) -> tuple[PrincipleAgreement, ...]:
        """Every two principles, in the order of the constitution."""
        pairs = itertools.combinations(self._ids, 2)
        return tuple(PrincipleAgreement(*pair, agree=self._agree[pair], both=self._both[pair]) for pair in pairs)
