"""Means and their intervals over prompts, by hand and from tables."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.stats import (
    Estimate,
    average,
    average_of,
    clustered,
    fitted,
    quantile,
    share,
    share_of,
    slope,
    wilson,
    within,
)


@pytest.mark.parametrize(
    ("freedom", "wanted"),
    # Abramowitz and Stegun 1964, table 26.10.
    [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (29, 2.045), (120, 1.980), (10**6, 1.960)],
)
def test_students_quantile(freedom: int, wanted: float) -> None:
    assert quantile(freedom) == pytest.approx(wanted, abs=0.005)


def test_all_values_of_a_prompt_stand_together() -> None:
    """Prompts {1, 1}, {0, 0}: two units, not four. Mean 1/2; residual sums 1 and -1; error sqrt(2/1 * 2) / 4 = 1/2."""
    assert clustered([1.0, 1.0, 0.0, 0.0], ["a", "a", "b", "b"]) == pytest.approx((0.5, 0.5, 2))
    # Apart: residuals of 1/2, error sqrt(4/3 * 4 * 1/4) / 4 = 0.2887.
    assert clustered([1.0, 1.0, 0.0, 0.0], "abcd") == pytest.approx((0.5, math.sqrt(4 / 3) / 4, 4))


def test_prompts_with_more_values_count_for_more() -> None:
    """{1, 1, 1}, {0}: 3/4, not the 1/2 of the prompts' own means."""
    middle, error, groups = clustered([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"])
    # Residual sums: 3 * 1/4 and -3/4; error sqrt(2 * 2 * 9/16) / 4 = 3/8.
    assert (middle, error, groups) == pytest.approx((0.75, 0.375, 2))


def test_a_share_of_independent_trials_has_nearly_wilsons_interval() -> None:
    values = [1.0] * 70 + [0.0] * 30
    found, paper = share(values, range(100)), wilson(70, 100)
    # Student's t for 99 degrees of freedom and n - 1 under the root make it a little wider.
    assert found.value == 0.7
    assert found.low == pytest.approx(paper.low, abs=0.004) and found.low < paper.low
    assert found.high == pytest.approx(paper.high, abs=0.004) and found.high > paper.high
    assert found.pairs == 100


def test_where_no_error_can_be_seen() -> None:
    assert share([1.0] * 20, range(20)) == share([1.0] * 40, [at // 2 for at in range(40)]).model_copy(
        update={"pairs": 20}
    )
    assert share([1.0] * 20, range(20)).low == pytest.approx(0.839, abs=0.001)  # Wilson: 20 / (20 + 1.96^2)
    sure = share([0.99] * 20, range(20))  # a judge that answers in words, and says the same everywhere
    assert (sure.value, sure.low) == pytest.approx((0.99, wilson(19.8, 20).low))
    ties = share([0.5] * 3, range(3))  # Wilson's for 1.5 of 3: 1/2 - 1.96 sqrt(1/12 + 1.96^2/36) / (1 + 1.96^2/3)
    assert (ties.low, ties.high) == pytest.approx((0.1253, 0.8747), abs=1e-4)
    shared = share([1.0, 0.0] * 3, [at // 2 for at in range(6)])  # a win and a loss in each of three prompts
    assert (shared.low, shared.high) == (ties.low, ties.high)
    one = share([0.9, 0.8], ["a", "a"])
    assert (one.low, one.high) == (0.0, 1.0), "a single prompt tells nothing of others"


def test_a_mean_of_any_values() -> None:
    """1, 2, 3: error 1 / sqrt(3), t of 2 degrees 4.303."""
    found = average([1.0, 2.0, 3.0], "abc")
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), 1e-4)


def test_nothing_has_no_mean() -> None:
    with pytest.raises(ValueError, match="no value"):
        share([], [])
    with pytest.raises(ValueError, match="shorter"):
        average([1.0], [])
    assert share_of([], []) is None and average_of([], []) is None


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 5)), min_size=1, max_size=40))
def test_a_share_is_within_its_interval_and_mirrors(rows: list[tuple[int, int]]) -> None:
    values, prompts = [value / 100 for value, _ in rows], [prompt for _, prompt in rows]
    found = share(values, prompts)
    assert 0 <= found.low <= found.value + 1e-9 and found.value - 1e-9 <= found.high <= 1
    other = share([1 - value for value in values], prompts)
    assert (1 - other.high, 1 - other.low) == pytest.approx((found.low, found.high), abs=1e-6)


def test_more_error_is_a_wider_interval() -> None:
    narrow, wide = within(0.9, 0.02, 50, 50), within(0.9, 0.05, 50, 50)
    assert wide.low < narrow.low < 0.9 < narrow.high < wide.high < 1


def test_a_fitted_share_has_its_interval_on_the_log_odds() -> None:
    """0.8 of 12 prompts: log-odds ln 4, error 0.05 * sqrt(12/10) / 0.16 = 0.342, t of 10 degrees 2.228."""
    plain = Estimate(value=0.7, low=0.69, high=0.71, pairs=30)
    found = fitted(0.8, 0.05, 12, plain)
    low, high = (math.log(4) + sign * 2.228 * 0.3423 for sign in (-1, 1))
    assert (found.low, found.high) == pytest.approx((1 / (1 + math.exp(-low)), 1 / (1 + math.exp(-high))), abs=1e-4)
    assert (fitted(0.8, 0.05, 2, plain).low, fitted(0.8, 0.05, 2, plain).high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        fitted(1.0, 0.05, 12, plain)


def test_a_fitted_share_is_no_surer_than_the_plain_one() -> None:
    """0.5 with log-odds from -1 to 2 leaves the fit as much room about ln 4."""
    plain = Estimate(value=0.5, low=1 / (1 + math.exp(1)), high=1 / (1 + math.exp(-2)), pairs=30)
    found = fitted(0.8, 0.001, 12, plain)
    assert (found.low, found.high) == pytest.approx((1 / (1 + math.exp(1) / 4), 1 / (1 + math.exp(-2) / 4)))


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


def test_a_slope_by_hand() -> None:
    """x = 0, 1, 2 and y = 1, 3, 8: means 1 and 4, so (1 * 3 + 0 + 1 * 4) / 2 = 3.5."""
    found = slope([0.0, 1.0, 2.0], [1.0, 3.0, 8.0], "abc")
    assert found is not None
    assert found.value == pytest.approx(3.5)
    assert slope([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], "abc") is None
    assert slope([1.0, 2.0], [1.0, 2.0], "ab") is None


def test_the_interval_of_a_slope_is_that_of_the_textbook() -> None:
    """y = 2 + 0.7 x + noise of 1, x of variance 4: standard error 1 / sqrt(4 n) = 0.025 for 400 points."""
    rng = random.Random(3)
    xs = [rng.gauss(5, 2) for _ in range(400)]
    found = slope(xs, [2 + 0.7 * x + rng.gauss(0, 1) for x in xs], range(400))
    assert found is not None
    assert found.low < 0.7 < found.high
    assert (found.high - found.low) / 2 == pytest.approx(1.96 / math.sqrt(4 * 400), rel=0.2)


def test_points_of_one_prompt_are_no_more_than_one() -> None:
    rng = random.Random(5)
    xs = [rng.gauss(0, 1) for _ in range(60)]
    ys = [x + rng.gauss(0, 1) for x in xs]
    once, thrice = slope(xs, ys, range(60)), slope(xs * 3, ys * 3, list(range(60)) * 3)
    assert once is not None and thrice is not None
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
