"""Statistics: intervals over prompts, calibration, and Bradley-Terry strengths. Pure functions.

Means with 95% intervals over prompts: all values of one prompt stand or fall together. Pure functions.

The percentile bootstrap over prompts is too narrow where prompts are few: of 50 prompts and a share near 0.9 its
intervals hold the truth in 85 to 95 of 100 cases, these in 93 to 97 (`python -m tests.bench coverage`). The standard
error is that of a ratio of sums over prompts (Cochran 1977, Sampling Techniques, section 6.3), which is what the
bootstrap's comes to, and the interval is the score interval (Wilson 1927, JASA 22:209-212) of as many independent
trials as have that error, with Student's t for the normal quantile: it stays between 0 and 1, and leans towards one
half as it should. A value that was fitted gets its interval on the scale of log-odds, never a shorter one than the
plain value has there: with few losses the bootstrap alone would hold the truth in 91 of 100 cases.

Numbers about predictions of which of two replies is better. Pure functions of plain sequences.

A prediction about a gold pair is told by `logits` or `probabilities` *of the right reply*: above zero, or one half, it
is right.

Bradley-Terry strengths of a prompt's samples from their soft wins.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from rlaif.records import Record


def sigmoid(x: float) -> float:
    """The logistic function, without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


class Estimate(Record):
    """A value with its 95% interval over pairs."""

    value: float
    low: float
    high: float
    pairs: int
    """Pairs that it rests on; those are drawn anew for the interval, not single verdicts."""

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%})"


_Z = 1.959963984540054
_SMALLEST = 1e-12
"""Errors under this are rounding."""
_CERTAIN = 0.06
"""As near to 0 or 1 as a text verdict counts (0.946) and a little farther."""


def share(values: Sequence[float], prompts: Sequence[Hashable]) -> Estimate:
    """The mean of values between 0 and 1, one an answer or comparison; `prompts` says which belong together.

    Where prompts do not differ, or all values are (nearly) 0 or all 1, no error can be seen; see `within`.
    `Estimate.pairs` counts the values. Raises ValueError of no values, or where the two lists differ in length.
    """
    value, error, groups = clustered(values, prompts)
    if min(values) >= 1 - _CERTAIN - _SMALLEST or max(values) <= _CERTAIN + _SMALLEST:
        error = 0.0
    return within(value, error, groups, len(values))


def share_of(values: Sequence[float], prompts: Sequence[Hashable]) -> Estimate | None:
    """`share`; None of no values."""
    return share(values, prompts) if values else None


def average(values: Sequence[float], prompts: Sequence[Hashable]) -> Estimate:
    """The mean of any values, with an interval of Student's t. Raises ValueError as `share` does."""
    value, error, groups = clustered(values, prompts)
    reach = quantile(groups - 1) * error
    return Estimate(value=value, low=value - reach, high=value + reach, pairs=len(values))


def average_of(values: Sequence[float], prompts: Sequence[Hashable]) -> Estimate | None:
    """`average`; None of no values."""
    return average(values, prompts) if values else None


def slope(xs: Sequence[float], ys: Sequence[float], prompts: Sequence[Hashable]) -> Estimate | None:
    """The slope b of the least-squares line `y = a + b x`, with an interval of Student's t.

    Its error is the one over prompts (Liang and Zeger 1986, Biometrika 73:13-22): points of one prompt stand together,
    and need not scatter alike everywhere. None of fewer than three points or prompts, and where all `xs` are equal.
    """
    if len(xs) < 3 or min(xs) == max(xs) or len(set(prompts)) < 3:
        return None
    middle_x, middle_y = mean(xs), mean(ys)
    along = [x - middle_x for x in xs]
    squares = math.fsum(x * x for x in along)
    found = math.fsum(x * (y - middle_y) for x, y in zip(along, ys, strict=True)) / squares
    sums: dict[Hashable, float] = {}
    for x, y, prompt in zip(along, ys, prompts, strict=True):
        sums[prompt] = sums.get(prompt, 0.0) + x * (y - middle_y - found * x)
    groups = len(sums)
    error = math.sqrt(groups / (groups - 2) * math.fsum(each**2 for each in sums.values())) / squares
    reach = quantile(groups - 2) * error
    return Estimate(value=found, low=found - reach, high=found + reach, pairs=len(xs))


def wilson(successes: float, trials: int) -> Interval:
    """A proportion with its 95% score interval (Wilson 1927, JASA 22:209-212); halves count as half a success."""
    z2, proportion = _Z**2, successes / trials
    middle = (proportion + z2 / (2 * trials)) / (1 + z2 / trials)
    spread = _Z * math.sqrt(proportion * (1 - proportion) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    # The ends at 0 and 1 are exact on paper, and rounded here.
    return Interval(proportion, max(0.0, min(proportion, middle - spread)), min(1.0, max(proportion, middle + spread)))


def clustered(values: Sequence[float], prompts: Sequence[Hashable]) -> tuple[float, float, int]:
    """The mean of all values, its standard error over prompts, and the number of prompts.

    A prompt with more values counts for more. The error is 0 of a single prompt: nothing tells it. Raises ValueError
    of no values, or where the two lists differ in length.
    """
    if not values:
        raise ValueError("no value to take a mean of")
    sums: dict[Hashable, list[float]] = {}
    for value, prompt in zip(values, prompts, strict=True):
        sums.setdefault(prompt, []).append(value)
    middle, groups = mean(values), len(sums)
    if groups < 2:
        return middle, 0.0, groups
    residuals = math.fsum(math.fsum(each - middle for each in own) ** 2 for own in sums.values())
    error = math.sqrt(groups / (groups - 1) * residuals) / len(values)
    return middle, (error if error > _SMALLEST else 0.0), groups


def within(value: float, error: float, prompts: int, pairs: int) -> Estimate:
    """A share with the score interval that belongs to its standard error over so many prompts; `pairs` is only told.

    Where no error can be seen, each prompt counts as one trial. One prompt alone tells nothing of others: its interval
    is all there is.
    """
    if prompts < 2:
        return Estimate(value=value, low=0.0, high=1.0, pairs=pairs)
    if error == 0.0 or value in (0.0, 1.0):
        _, low, high = wilson(value * prompts, prompts)
        return Estimate(value=value, low=low, high=high, pairs=pairs)
    trials, t = value * (1 - value) / error**2, quantile(prompts - 1)
    middle = (value + t * t / (2 * trials)) / (1 + t * t / trials)
    reach = t * math.sqrt(value * (1 - value) / trials + t * t / (4 * trials**2)) / (1 + t * t / trials)
    return Estimate(value=value, low=max(0.0, middle - reach), high=min(1.0, middle + reach), pairs=pairs)


def fitted(value: float, error: float, prompts: int, plain: Estimate) -> Estimate:
    """A share that comes from a fit of two parameters, with the bootstrap's standard error over so many prompts.

    The interval is one of Student's t about the log-odds; on either side it reaches at least as far as that of the
    `plain` share, since a fit on top does not make surer. Raises ValueError where the value is not between 0 and 1.
    """
    if not 0 < value < 1:
        raise ValueError("a fitted share lies between 0 and 1")
    if prompts < 3:
        return Estimate(value=value, low=0.0, high=1.0, pairs=plain.pairs)
    # The bootstrap's error is too small by the root, as its resamples fit themselves.
    error *= math.sqrt(prompts / (prompts - 2)) / (value * (1 - value))
    reach = quantile(prompts - 2) * error
    low, middle, high = (_logit(each) for each in (plain.low, plain.value, plain.high))
    down, up = max(reach, middle - low), max(reach, high - middle)
    at = _logit(value)
    return Estimate(value=value, low=sigmoid(at - down), high=sigmoid(at + up), pairs=plain.pairs)


def _logit(share: float) -> float:
    inner = min(1 - _SMALLEST, max(_SMALLEST, share))
    return math.log(inner / (1 - inner))


def quantile(freedom: int) -> float:
    """The 0.975 quantile of Student's t: exact for 1 and 2 degrees of freedom, then by its expansion about the normal
    one (Abramowitz and Stegun 1964, 26.7.5), right to 0.004 at 3. That of 1 degree where there is none.
    """
    if freedom <= 1:
        return math.tan(math.pi * 0.475)
    if freedom == 2:
        return 0.95 / math.sqrt(2 * 0.975 * 0.025)
    z = _Z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / freedom**power for power, term in enumerate(terms, start=1))


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


_PHANTOM = 1.0
"""Draws that every sample plays against one phantom of strength 1: a sample that won everything stays finite."""


_ROUNDS = 1000
_CLOSE = 1e-8
"""Relative change under which the strengths have settled."""


def strengths(items: Sequence[str], wins: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Log-strengths with mean 0; `wins[i, j]` is the probability (a soft win count) that i beats j.

    The model is P(i beats j) = p_i / (p_i + p_j) (Bradley and Terry 1952), fitted by Newman's update
    p_i <- [sum_j w_ij p_j/(p_i+p_j)] / [sum_j w_ji/(p_i+p_j)] (arXiv:2207.00076, eq. 10), which has the fixed point of
    Zermelo's MM update and reaches it in fewer rounds. The phantom draw adds half a win and half a loss against 1.
    """
    games = {
        item: [(other, wins[item, other], wins[other, item]) for other in items if (item, other) in wins]
        for item in items
    }
    power = dict.fromkeys(items, 1.0)
    for _ in range(_ROUNDS):
        moved = 0.0
        for item, played in games.items():
            own = power[item]
            gained = lost = _PHANTOM / 2 / (own + 1)
            for other, won, beaten in played:
                rival = power[other]
                share = 1 / (own + rival)
                gained += won * rival * share
                lost += beaten * share
            power[item] = fresh = gained / lost
            moved = max(moved, abs(fresh / own - 1))
        if moved < _CLOSE:
            break
    mean = sum(math.log(each) for each in power.values()) / max(len(power), 1)
    return {item: math.log(each) - mean for item, each in power.items()}


def logsumexp(values: Iterable[float]) -> float:
    """log of the sum of exponentials; minus infinity for nothing, NaN where one is NaN."""
    known = list(values)
    if len(known) == 1:
        return known[0]
    top = math.nan if any(map(math.isnan, known)) else max(known, default=-math.inf)
    return top if math.isinf(top) else top + math.log(sum(math.exp(value - top) for value in known))
