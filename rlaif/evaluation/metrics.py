"""Numbers about predictions of which of two replies is better. Pure functions of plain sequences.

A prediction about a gold pair is told by `logits` or `probabilities` *of the right reply*: above zero, or one half, it
is right.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from rlaif.comparisons.fold import sigmoid


class Interval(NamedTuple):
    """A value with its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%})"


def mean(values: Sequence[float]) -> float:
    """The mean; NaN of nothing."""
    return math.fsum(values) / len(values) if values else math.nan


def hits(logits: Sequence[float]) -> list[float]:
    """1 for a right prediction, 0 for a wrong one, one half for a tie."""
    return [0.5 if logit == 0 else float(logit > 0) for logit in logits]


def brier(probabilities: Sequence[float]) -> float:
    """Mean squared distance to the truth: 0 is perfect, 0.25 is what always saying one half gets (Brier 1950)."""
    return mean([(1 - probability) ** 2 for probability in probabilities])


def log_loss(logits: Sequence[float]) -> float:
    """Mean negative log-likelihood in nats; always saying one half gets ln 2."""
    return mean([math.log1p(math.exp(-abs(logit))) + max(0.0, -logit) for logit in logits])


class Bin(NamedTuple):
    """Predictions of like confidence."""

    confidence: float
    """Mean probability of the reply that was called better."""
    accuracy: float
    """Share in which it was."""
    size: int


def reliability(probabilities: Sequence[float], bins: int = 10) -> list[Bin]:
    """Predictions in bins of equal mass by confidence, least confident first (Nixon et al. 2019, arXiv:1904.01685).

    Confidence is the probability of the reply that was called better, so it is at least one half; at exactly one half
    neither was, and half of it counts as right. Where predictions of one confidence fall into several bins, each counts
    with the share of them that was right: which of them go where is chance.
    """
    groups: dict[float, list[float]] = {}
    for p in probabilities:  # rounded, as 1 - p is
        groups.setdefault(round(max(p, 1 - p), 12), []).append(0.5 if p == 0.5 else float(p > 0.5))
    said = [(confidence, mean(right)) for confidence, right in sorted(groups.items()) for _ in right]
    bins = min(bins, len(said))
    edges = [round(at * len(said) / bins) for at in range(bins + 1)] if bins else []
    parts = [said[start:end] for start, end in itertools.pairwise(edges)]
    return [Bin(mean([c for c, _ in part]), mean([right for _, right in part]), len(part)) for part in parts if part]


def calibration_error(probabilities: Sequence[float], bins: int = 10) -> float:
    """Expected calibration error over bins of equal mass: the mean distance of confidence and accuracy."""
    found = reliability(probabilities, bins)
    return mean([abs(each.confidence - each.accuracy) for each in found for _ in range(each.size)])


class Chance(NamedTuple):
    """What a measure comes to where its truth is 0."""

    mean: float
    high: float
    """95 of 100 lie below."""


def calibration_by_chance(
    probabilities: Sequence[float], bins: int = 10, *, simulations: int = 500, seed: int = 0
) -> Chance:
    """The calibration error that perfectly calibrated predictions of these very probabilities have by chance.

    Every prediction is right as often as it says, drawn anew in each simulation; the bins are those of `reliability`.
    With 100 predictions spread evenly from 0.5 to 1 it is 0.09 to 0.1 on average, so that an error tells something only
    beside it. NaN of nothing.
    """
    import numpy as np

    if not len(probabilities):
        return Chance(math.nan, math.nan)
    said = np.sort(np.round([max(p, 1 - p) for p in probabilities], 12))
    _, group = np.unique(said, return_inverse=True)
    bins = min(bins, len(said))
    edges = [round(at * len(said) / bins) for at in range(bins)]
    sizes = np.diff([*edges, len(said)])
    rng, errors = np.random.default_rng(seed), []
    for _ in range(simulations):
        right = np.where(said == 0.5, 0.5, rng.random(len(said)) < said)
        shares = np.bincount(group, right) / np.bincount(group)
        gaps = np.add.reduceat(said - shares[group], edges)
        errors.append(float(np.abs(gaps[sizes > 0]).sum() / len(said)))
    return Chance(mean(errors), float(np.quantile(errors, 0.95)))


def fit_temperature(logits: Sequence[float], *, low: float = 0.05, high: float = 20.0) -> float:
    """The temperature T that makes `sigmoid(logit / T)` most likely (Guo et al. 2017, arXiv:1706.04599).

    The loss is convex in 1/T; where every prediction is right, or more are wrong than right by their logits, the best
    T is infinite or zero, and the bound is returned.
    """

    def slope(inverse: float) -> float:
        return mean([-logit * sigmoid(-logit * inverse) for logit in logits])

    least, most = 1 / high, 1 / low
    for _ in range(60):
        middle = (least + most) / 2
        least, most = (middle, most) if slope(middle) < 0 else (least, middle)
    return 1 / ((least + most) / 2)
