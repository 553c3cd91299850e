"""Position bias of a judge that is asked in one order a pair, estimated from all its answers of a run.

Where both orders are asked, a bias that adds to the logit cancels pair by pair (see `rlaif.feedback.aggregate.fold`).
Where one order is, it stays in the label, but not hidden: in

    log P(first) - log P(second) = s_first - s_second + b + noise

the order is drawn by hash, so the difference of the strengths has either sign with equal chance, and only b is left on
average. So the mean of all logits estimates b without bias, whatever the strengths are, and whether or not principles
differ from call to call. It is a noisy mean, as a confident judge's logits are wide; within a prompt the strengths can
be estimated too and taken off. Hence Bradley and Terry's strengths (1952) with a common term for the slot (Davidson and
Beaver 1977), fitted to the logits themselves, which are what a soft label gives, with a ridge on the strengths:
b = sum 1'Wy / sum 1'W1 over prompts, W = I - B (B'B + ridge)^-1 B', where B has a row for every call, +1 at its first
and -1 at its second sample. Since the signs of B are random, this has no bias under any ridge: a ridge too small or too
large costs precision alone. With a single pair a prompt it is the plain mean again.

The standard error is robust: prompts are independent, calls within one are not taken to be. What is removed is the
estimate shrunk by its own uncertainty (positive-part shrinkage: James and Stein 1961), so that a judge without a bias,
or a run too small to tell, is left nearly as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pydantic import JsonValue

from rlaif.config.schemas import CompareSettings
from rlaif.feedback.aggregate import first_logit
from rlaif.feedback.run import Run
from rlaif.records import Judgement

_RIDGE = 1.0
"""Variance of the noise over that of the strengths."""

Row = tuple[str, str, float]
"""First sample, second sample, log-odds of the first."""


class PositionBias(NamedTuple):
    """How much a judge adds to the log-odds of whatever stands first."""

    estimate: float
    standard_error: float | None
    """None where there are fewer than two prompts to estimate it from."""
    judgements: int
    prompts: int

    @property
    def removed(self) -> float:
        """What is taken off the log-odds of the first slot."""
        if self.standard_error is None or self.estimate == 0:
            return 0.0
        return self.estimate * max(0.0, 1 - (self.standard_error / self.estimate) ** 2)


def position_bias(prompts: Iterable[Iterable[Judgement | None]], *, min_mass: float) -> PositionBias:
    """The bias in the judgements of one judge, given prompt by prompt; those without a label are left out.

    One pass, with six sums in memory. The logits are those before any temperature.
    """
    sums = [0.0] * 5
    judgements = groups = 0
    for of_prompt in prompts:
        rows: list[Row] = []
        for row in of_prompt:
            logit = None if row is None else first_logit(row, min_mass=min_mass)
            if row is not None and logit is not None:
                rows.append((row.first, row.second, logit))
        if not rows:
            continue
        weight, total = _weight_and_total(rows)
        judgements, groups = judgements + len(rows), groups + 1
        for at, value in enumerate((weight, total, weight * weight, weight * total, total * total)):
            sums[at] += value
    weight, total, square, cross, totals = sums
    if not groups or weight <= 0:
        return PositionBias(0.0, None, judgements, groups)
    estimate = total / weight
    if groups == 1:
        return PositionBias(estimate, None, judgements, groups)
    spread = max(0.0, totals - 2 * estimate * cross + estimate * estimate * square)
    error = math.sqrt(spread * groups / (groups - 1)) / weight
    return PositionBias(estimate, error, judgements, groups)


def _weight_and_total(rows: Sequence[Row]) -> tuple[float, float]:
    """1'W1 and 1'Wy of one prompt."""
    import numpy as np

    names = {name: None for first, second, _ in rows for name in (first, second)}
    place = {name: at for at, name in enumerate(names)}
    signs = np.zeros((len(rows), len(place)))
    for at, (first, second, _) in enumerate(rows):
        signs[at, place[first]], signs[at, place[second]] = 1.0, -1.0
    logits, ones = np.array([logit for *_, logit in rows]), np.ones(len(rows))
    fitted = signs @ np.linalg.solve(
        signs.T @ signs + _RIDGE * np.eye(len(place)), signs.T @ np.column_stack([ones, logits])
    )
    return float(ones @ (ones - fitted[:, 0])), float(ones @ (logits - fitted[:, 1]))


def removes_bias(compare: CompareSettings) -> bool:
    """Whether a position bias is to be estimated and taken off: in both orders it cancels by itself."""
    return compare.orders == "random" and compare.position_bias == "removed"


def find_slots(run: Run) -> dict[str, PositionBias]:
    """Estimate every judge's bias from its answers on disk to the questions of this run, and let the run's votes be
    corrected by it; nothing where nothing is to be removed, and where grades or rankings decide."""

    def judgements(judge: str) -> Iterator[list[Judgement | None]]:
        for prompt in run.prompts():
            pairings = run.matchups_of(prompt, run.samples_of(prompt))
            yield [run.judgements.get(question.id) for question in run.compare_questions_of(prompt, pairings, judge)]

    estimates = {}
    if removes_bias(run.settings.compare) and run.settings.compare.method in ("pairwise", "tournament"):
        min_mass = run.settings.pair.min_label_mass
        estimates = {name: position_bias(judgements(name), min_mass=min_mass) for name, _ in run.judges}
    run.slots = {name: bias.removed for name, bias in estimates.items()}
    return estimates


def bias_summary(estimates: Mapping[str, PositionBias]) -> JsonValue:
    """The estimates as a manifest records them."""
    return {name: {**bias._asdict(), "removed": bias.removed} for name, bias in estimates.items()}
