"""Values with their intervals: shares, means, and the slope of a line. Pure functions; None where there is nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlaif.evaluation.metrics import Interval, bootstrap, mean
from rlaif.evaluation.report import Estimate

_Z = 1.959963984540054
"""Of the standard normal distribution, 95% lies within this distance of 0."""


def share(values: Sequence[float]) -> Estimate | None:
    """The mean of values between 0 and 1, one a pair, with its percentile bootstrap interval.

    Where all are 0, or all are 1, drawing them anew can show no doubt: the interval is then the score interval.
    """
    if not values:
        return None
    if set(values) in ({0.0}, {1.0}):
        return _estimate(wilson(math.fsum(values), len(values)), len(values))
    return _estimate(bootstrap(values), len(values))


def average(values: Sequence[float]) -> Estimate | None:
    """The mean of any values, one a pair."""
    return _estimate(bootstrap(values), len(values)) if values else None


def wilson(successes: float, trials: int) -> Interval:
    """A proportion with its 95% score interval (Wilson 1927, JASA 22:209-212); halves count as half a success."""
    z2, proportion = _Z**2, successes / trials
    middle = (proportion + z2 / (2 * trials)) / (1 + z2 / trials)
    spread = _Z * math.sqrt(proportion * (1 - proportion) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    # The ends at 0 and 1 are exact on paper, and rounded here.
    return Interval(proportion, max(0.0, min(proportion, middle - spread)), min(1.0, max(proportion, middle + spread)))


def slope(xs: Sequence[float], ys: Sequence[float]) -> Estimate | None:
    """The slope b of the least-squares line `y = a + b x`, its interval from points drawn anew (Freedman 1981).

    None of fewer than three points, and where all `xs` are equal.
    """
    if len(xs) < 3 or min(xs) == max(xs):
        return None
    middle_x, middle_y = mean(xs), mean(ys)
    along = [x - middle_x for x in xs]
    squares = [x * x for x in along]
    products = [x * (y - middle_y) for x, y in zip(along, ys, strict=True)]
    up = [y - middle_y for y in ys]

    def of(places: Sequence[float]) -> float:
        """Of the points at these places; by sums, as it is worked out a thousand times."""
        drawn = [int(place) for place in places]
        x, y, xx, xy = (sum([column[at] for at in drawn]) for column in (along, up, squares, products))
        spread = xx - x * x / len(drawn)
        # All drawn points may lie above one another, however unlikely: the line through all points stands in.
        return (xy - x * y / len(drawn)) / spread if spread > 1e-12 * xx else everywhere

    everywhere = sum(products) / sum(squares)
    return _estimate(bootstrap([float(at) for at in range(len(xs))], of), len(xs))


def _estimate(interval: Interval, pairs: int) -> Estimate:
    return Estimate(value=interval.value, low=interval.low, high=interval.high, pairs=pairs)
