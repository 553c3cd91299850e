"""Intervals and slopes by pencil and paper."""

from __future__ import annotations

import math
import random

import pytest

from rlaif.evaluation.estimates import average, share, slope, wilson


def test_the_score_interval_by_hand() -> None:
    """0 of 10: the upper end is z² / (n + z²) = 3.8415 / 13.8415; 5 of 10 lies symmetrically around one half."""
    none = wilson(0, 10)
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(3.8415 / 13.8415, abs=1e-4)
    half = wilson(5, 10)
    assert half.low == pytest.approx(1 - half.high)
    assert half.high == pytest.approx(0.7634, abs=1e-4)
    assert wilson(10, 10).high == 1
    assert all(wilson(n, n).high >= 1 for n in range(1, 200)), "the value lies inside its interval"


def test_a_share_of_all_or_nothing_is_still_in_doubt() -> None:
    """Drawing 20 ones anew gives 20 ones; the score interval says 84%."""
    every = share([1.0] * 20)
    assert every is not None
    assert (every.value, every.high, every.pairs) == (1, 1, 20)
    assert every.low == pytest.approx(20 / 23.8415, abs=1e-4)
    halves = share([0.5] * 20)
    assert halves is not None
    assert (halves.low, halves.high) == (0.5, 0.5), "one half by construction is not in doubt"
    assert share([]) is None
    assert average([]) is None


def test_a_slope_by_hand() -> None:
    """x = 0, 1, 2 and y = 1, 3, 8: means 1 and 4, so (1 * 3 + 0 + 1 * 4) / 2 = 3.5."""
    found = slope([0.0, 1.0, 2.0], [1.0, 3.0, 8.0])
    assert found is not None
    assert found.value == pytest.approx(3.5)
    assert slope([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
    assert slope([1.0, 2.0], [1.0, 2.0]) is None


def test_the_interval_of_a_slope_is_that_of_the_textbook() -> None:
    """y = 2 + 0.7 x + noise of 1, x of variance 4: standard error 1 / sqrt(4 n) = 0.025 for 400 points."""
    rng = random.Random(3)
    xs = [rng.gauss(5, 2) for _ in range(400)]
    found = slope(xs, [2 + 0.7 * x + rng.gauss(0, 1) for x in xs])
    assert found is not None
    assert found.low < 0.7 < found.high
    assert (found.high - found.low) / 2 == pytest.approx(1.96 / math.sqrt(4 * 400), rel=0.2)
