"""The win rate at equal length: by pencil and paper, on planted truths, and where it cannot be told."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rlaif.comparisons.fold import sigmoid
from rlaif.evaluation.winrate import RIDGE, LengthControlled, _newton, length_controlled


def drawn(
    seed: int, count: int, theta: float, phi: float, *, lean: float = 0.0, soft: bool = False
) -> tuple[list[float], list[float]]:
    """Preferences of a judge with a planted opinion; the policy's answers are longer by `lean` deviations."""
    rng = random.Random(seed)
    gaps = [rng.gauss(lean, 1.0) * 80 for _ in range(count)]
    middle = sum(gaps) / count
    deviation = math.sqrt(sum((gap - middle) ** 2 for gap in gaps) / count)
    chances = [sigmoid(theta + phi * math.tanh(gap / deviation)) for gap in gaps]
    return chances if soft else [float(rng.random() < chance) for chance in chances], gaps


def test_two_lengths_by_hand() -> None:
    """600 comparisons at +d with a mean of 0.9, 600 at -d with one of 0.3; the deviation is d, so tanh is +-0.7616.

    The line goes through both: theta = (logit 0.9 + logit 0.3) / 2 = (2.1972 - 0.8473) / 2 = 0.6750, and sigmoid of
    that is 0.6626; phi = (2.1972 + 0.8473) / (2 * 0.7616) = 1.9988. Raw it is 0.6.
    """
    found = length_controlled([1.0] * 540 + [0.0] * 60 + [0.3] * 600, [50.0] * 600 + [-50.0] * 600)
    assert found.raw == pytest.approx(0.6)
    assert found.controlled == pytest.approx(0.6626, abs=1e-3)
    assert found.slope == pytest.approx(1.9988, abs=5e-3)
    assert (found.wins, found.ties, found.losses) == (540, 0, 660)
    assert found.note == ""


def test_unit_of_length_does_not_matter() -> None:
    said, gaps = drawn(1, 300, 0.3, 1.0)
    assert length_controlled(said, gaps).controlled == pytest.approx(
        length_controlled(said, [gap * 4.5 for gap in gaps]).controlled
    )


@pytest.mark.parametrize("soft", [False, True])
def test_a_planted_strength_is_found_again(soft: bool) -> None:
    """Longer by a deviation and a half, a judge that adds 2 for length: raw 89%, at equal length sigmoid(0.8) = 69%."""
    said, gaps = drawn(2, 20_000, 0.8, 2.0, lean=1.5, soft=soft)
    found = length_controlled(said, gaps, resamples=50)
    assert found.raw > 0.86
    assert found.controlled == pytest.approx(0.690, abs=0.025 if not soft else 2e-3)
    assert found.slope == pytest.approx(2.0, abs=0.15)


def test_a_judge_of_length_alone_finds_nobody_better() -> None:
    """It gives the longer answer 0.95; the policy's is longer in seven of eight."""
    rng = random.Random(4)
    gaps = [rng.gauss(60, 50) for _ in range(400)]
    found = length_controlled([0.95 if gap > 0 else 0.05 for gap in gaps], gaps)
    assert found.raw_interval[0] > 0.75
    assert found.interval[0] < 0.5 < found.interval[1]
    assert found.controlled == pytest.approx(0.5, abs=0.08)


def test_a_better_policy_stays_better() -> None:
    said, gaps = drawn(5, 400, 1.2, 1.0, lean=0.5)
    found = length_controlled(said, gaps)
    assert found.interval[0] > 0.65
    assert found.interval[0] < sigmoid(1.2) < found.interval[1]


def test_a_better_policy_that_is_terse_gains() -> None:
    """What a judge holds against short answers is given back."""
    said, gaps = drawn(6, 600, 0.5, 1.5, lean=-1.0)
    found = length_controlled(said, gaps)
    assert found.raw < 0.5 < found.interval[0]


@pytest.mark.parametrize("gap", [0.0, 25.0])
def test_equal_lengths_leave_the_raw_rate(gap: float) -> None:
    said = [0.9, 0.2, 0.7, 0.4, 0.8]
    found = length_controlled(said, [gap] * 5)
    assert found.controlled == found.raw == pytest.approx(0.6)
    assert found.interval == found.raw_interval
    assert ("cannot be told apart" in found.note) == (gap > 0), found.note


def test_preferences_that_do_not_differ_leave_the_raw_rate() -> None:
    """Nothing but identical answers; or all 20 won: the score interval for 20 of 20 begins at 84%."""
    same = length_controlled([0.5] * 8, [0.0] * 8)
    assert (same.controlled, same.interval, same.error, same.note) == (0.5, (0.5, 0.5), 0.0, "")
    won = length_controlled([1.0] * 20, [float(at) for at in range(20)])
    assert (won.raw, won.controlled, won.wins) == (1, 1, 20)
    assert won.interval[0] == pytest.approx(20 / 23.8415, abs=1e-4)
    assert won.error > 0.03, "a clean sweep is in doubt, too"


def test_separation_is_told_and_stays_finite() -> None:
    """Every longer answer wins for certain: without a ridge the slope is infinite."""
    gaps = [float(gap) for gap in range(-50, 51) if gap]
    found = length_controlled([float(gap > 0) for gap in gaps], gaps)
    assert "length alone decides" in found.note
    assert found.controlled == pytest.approx(0.5)
    assert math.isfinite(found.slope) and found.slope > 5
    other = length_controlled([float(gap < 0) for gap in gaps], gaps)
    assert "length alone decides" in other.note and other.slope == pytest.approx(-found.slope)
    sweep = length_controlled([1.0] * 40 + [0.9995] * 10, [float(at) for at in range(50)])
    assert "wins every comparison" in sweep.note
    assert 0.95 < sweep.controlled < 1


def test_the_fit_is_at_its_minimum_where_it_is_hard() -> None:
    """77,000 lost at one length and 14,000 won at nearly the same: the penalised loss is flat in either coefficient.

    With theta and phi, the gradient sum w (q - p) - ridge * theta, and the same times x, is 0.
    """
    x, said, weights = np.array([0.632, 0.639]), np.array([0.0, 1.0]), np.array([[77_000.0, 14_000.0]])
    (theta,), (phi,) = _newton(x, said, weights)
    p = 1 / (1 + np.exp(-(theta + phi * x)))
    miss = weights[0] * (said - p)
    assert abs(miss.sum() - RIDGE * theta) < 1e-6
    assert abs((miss * x).sum() - RIDGE * phi) < 1e-6
    assert phi > 100


def test_a_single_doubt_is_no_separation() -> None:
    gaps = [float(gap) for gap in range(-50, 51) if gap]
    said = [float(gap > 0) for gap in gaps]
    said[3] = 0.2
    assert length_controlled(said, gaps).note == ""


def test_extrapolation_is_told() -> None:
    found = length_controlled([0.9, 0.4, 0.8, 0.6], [10.0, 20.0, 30.0, 40.0])
    assert "every answer is longer" in found.note
    assert "every answer is shorter" in length_controlled([0.9, 0.4, 0.8, 0.6], [-10.0, -20.0, -30.0, -40.0]).note


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """100 times 150 comparisons: 95% is the aim, and fewer than 88 would be a chance of 1 in 200."""
    inside = 0
    for seed in range(100):
        said, gaps = drawn(100 + seed, 150, 0.6, 1.2, lean=0.7)
        low, high = length_controlled(said, gaps, resamples=400).interval
        inside += low < sigmoid(0.6) < high
    assert inside >= 88


def test_comparisons_of_one_prompt_are_drawn_together() -> None:
    """Ten copies of every comparison say no more than one: only with the prompts does the interval know."""
    said, gaps = drawn(8, 60, 0.4, 1.0)
    names = list(range(60))
    one = length_controlled(said, gaps, names)
    copies = length_controlled(said * 10, gaps * 10, names * 10)
    blind = length_controlled(said * 10, gaps * 10)
    assert copies.error == pytest.approx(one.error, rel=0.15)
    assert blind.error < 0.5 * one.error
    assert _width(copies.raw_interval) == pytest.approx(_width(one.raw_interval), rel=0.01)


def _width(interval: tuple[float, float]) -> float:
    return interval[1] - interval[0]


def test_the_same_every_time() -> None:
    said, gaps = drawn(9, 80, 0.2, 0.5)
    first = length_controlled(said, gaps)
    assert first == length_controlled(said, gaps)
    assert first.interval != length_controlled(said, gaps, seed=1).interval


def test_many_comparisons_in_parts_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    said, gaps = drawn(10, 90, 0.2, 0.5)
    whole = length_controlled(said, gaps)
    monkeypatch.setattr("rlaif.evaluation.winrate._AT_ONCE", 200)
    parts = length_controlled(said, gaps)
    assert parts.interval == pytest.approx(whole.interval, abs=1e-9)


def test_ties_by_the_margin() -> None:
    found = length_controlled([0.5, 0.54, 0.46, 0.56, 0.44, 0.9], [1.0, -2.0, 3.0, -4.0, 5.0, -6.0])
    assert (found.wins, found.ties, found.losses) == (2, 3, 1)
    assert length_controlled([0.54, 0.46], [1.0, -1.0], margin=0.01).ties == 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: length_controlled([], []), "no comparison"),
        (lambda: length_controlled([0.5], []), "one length difference"),
        (lambda: length_controlled([0.5], [1.0], ["a", "b"]), "one prompt"),
        (lambda: length_controlled([1.5], [1.0]), "between 0 and 1"),
        (lambda: length_controlled([math.nan], [1.0]), "between 0 and 1"),
        (lambda: length_controlled([0.5], [math.inf]), "finite"),
    ],
)
def test_what_cannot_be_counted_is_refused(call: Callable[[], LengthControlled], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


def test_how_many_resamples_fit_into_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are drawn and fitted in parts; 30 comparisons in parts of 7 resamples, and no table is larger than that."""
    rng = random.Random(4)
    said, gaps = [rng.random() for _ in range(30)], [rng.gauss(0, 10) for _ in range(30)]
    prompts = [at // 2 for at in range(30)]
    whole = length_controlled(said, gaps, prompts, resamples=100)
    largest = []

    def newton(x: Any, p: Any, weights: Any) -> Any:
        largest.append(len(weights))
        return _newton(x, p, weights)

    monkeypatch.setattr("rlaif.evaluation.winrate._AT_ONCE", 7 * 30)
    monkeypatch.setattr("rlaif.evaluation.winrate._newton", newton)
    parts = length_controlled(said, gaps, prompts, resamples=100)
    assert max(largest) == 7
    assert (parts.raw_interval, parts.note) == (pytest.approx(whole.raw_interval, abs=1e-12), whole.note)
    assert parts.interval == pytest.approx(whole.interval, abs=1e-8)
