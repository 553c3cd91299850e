"""The win rate at equal length: by pencil and paper, on planted truths, and where it cannot be told."""

from __future__ import annotations

import csv
import gzip
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rlaif.evaluation.win_rate import RIDGE, LengthControlled, _newton, length_controlled
from rlaif.stats import sigmoid
from tests.support import DATA


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

    The line goes through both: theta = (logit 0.9 + logit 0.3) / 2 = (2.1972 - 0.8473) / 2 = 0.6750, and
    phi = (2.1972 + 0.8473) / (2 * 0.7616) = 1.9988. Half of what that is above 1 is difficulty, 0.4994, which makes
    0.4994 * 0.7616 = 0.3803 of log-odds: (sigmoid(1.0553) + sigmoid(0.2947)) / 2 = (0.7418 + 0.5731) / 2 = 0.6575.
    Raw it is 0.6.
    """
    found = length_controlled([1.0] * 540 + [0.0] * 60 + [0.3] * 600, [50.0] * 600 + [-50.0] * 600)
    assert found.raw == pytest.approx(0.6)
    assert found.length_controlled == pytest.approx(0.6575, abs=1e-3)
    assert found.slope == pytest.approx(1.9988, abs=5e-3)
    assert (found.wins, found.ties, found.losses) == (540, 0, 660)
    assert found.note == ""


def test_unit_of_length_does_not_matter() -> None:
    said, gaps = drawn(1, 300, 0.3, 1.0)
    assert length_controlled(said, gaps).length_controlled == pytest.approx(
        length_controlled(said, [gap * 4.5 for gap in gaps]).length_controlled
    )


@pytest.mark.parametrize("soft", [False, True])
def test_a_planted_strength_is_found_again(soft: bool) -> None:
    """Longer by 0.45 deviations, a judge that adds 1 for length: raw 74%, at equal length sigmoid(0.8) = 69%."""
    said, gaps = drawn(2, 20_000, 0.8, 1.0, lean=0.45, soft=soft)
    found = length_controlled(said, gaps, resamples=50)
    assert found.raw > 0.73
    assert found.length_controlled == pytest.approx(0.690, abs=0.015 if not soft else 2e-3)
    assert found.slope == pytest.approx(1.0, abs=0.1)


def test_a_judge_of_length_alone_finds_nobody_better() -> None:
    """It gives the longer answer 0.95; the policy's is longer in two of three."""
    rng = random.Random(4)
    gaps = [rng.gauss(20, 50) for _ in range(400)]
    found = length_controlled([0.95 if gap > 0 else 0.05 for gap in gaps], gaps)
    assert found.raw_interval[0] > 0.55
    assert found.interval and found.interval[0] < 0.5 < found.interval[1]
    assert found.length_controlled == pytest.approx(0.5, abs=0.08)


def test_a_better_policy_stays_better() -> None:
    said, gaps = drawn(5, 400, 1.2, 1.0, lean=0.4)
    found = length_controlled(said, gaps)
    assert found.interval and found.interval[0] > 0.65
    assert found.interval[0] < sigmoid(1.2) < found.interval[1]


def test_a_better_policy_that_is_terse_gains() -> None:
    """What a judge holds against short answers is given back."""
    said, gaps = drawn(6, 2000, 0.25, 1.5, lean=-0.45)
    found = length_controlled(said, gaps)
    assert found.length_controlled is not None and found.raw < 0.5 < found.length_controlled


def test_equal_lengths_leave_the_raw_rate() -> None:
    found = length_controlled([0.9, 0.2, 0.7, 0.4, 0.8], [0.0] * 5)
    assert found.length_controlled == found.raw == pytest.approx(0.6)
    assert (found.interval, found.error, found.note) == (found.raw_interval, found.raw_error, "")


def test_preferences_that_do_not_differ_leave_the_raw_rate() -> None:
    """Nothing but identical answers; or all 20 won: the score interval for 20 of 20 begins at 84%."""
    same = length_controlled([0.5] * 8, [0.0] * 8)
    assert (same.length_controlled, same.interval, same.error, same.note) == (0.5, (0.5, 0.5), 0.0, "")
    won = length_controlled([1.0] * 20, [float(at) for at in range(-10, 10)])
    assert (won.raw, won.length_controlled, won.wins) == (1, 1, 20)
    assert won.interval and won.interval[0] == pytest.approx(20 / 23.8415, abs=1e-4)
    assert won.error and won.error > 0.03, "a clean sweep is in doubt, too"


def test_where_length_alone_decides_nothing_is_told_of_equal_length() -> None:
    """Every longer answer wins for certain: no slope is steep enough."""
    gaps = [float(gap) for gap in range(-50, 51) if gap]
    found = length_controlled([float(gap > 0) for gap in gaps], gaps)
    assert "length alone decides" in found.note and found.length_controlled is None
    other = length_controlled([float(gap < 0) for gap in gaps], gaps)
    assert "length alone decides" in other.note and other.slope is None
    sweep = length_controlled([1.0] * 40 + [0.9995] * 10, [float(at) for at in range(-25, 25)])
    assert sweep.length_controlled == sweep.raw and "all preferences are equal" in sweep.note


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
    said = [0.9, 0.4, 0.8, 0.6]
    assert "100% of the responses are longer" in length_controlled(said, [10.0, 20.0, 30.0, 40.0]).note
    found = length_controlled(said, [-10.0, -20.0, -30.0, -40.0])
    assert "100% of the responses are shorter than the baseline's, on average by 25, so" in found.note
    assert (found.length_controlled, found.interval, found.error, found.slope) == (None, None, None, None)
    assert length_controlled(said, [25.0] * 4).length_controlled is None, "no two lengths to compare"


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """100 times 150 comparisons: 95% is the aim, and fewer than 88 would be a chance of 1 in 200."""
    inside = 0
    for seed in range(100):
        said, gaps = drawn(100 + seed, 150, 0.6, 1.2, lean=0.2)
        interval = length_controlled(said, gaps, resamples=400).interval
        inside += interval is None or interval[0] < sigmoid(0.6) < interval[1]
    assert inside >= 88


def test_comparisons_of_one_prompt_are_drawn_together() -> None:
    """Ten copies of every comparison say no more than one: only with the prompts does the interval know."""
    said, gaps = drawn(8, 60, 0.4, 1.0)
    names = list(range(60))
    one = length_controlled(said, gaps, names)
    copies = length_controlled(said * 10, gaps * 10, names * 10)
    blind = length_controlled(said * 10, gaps * 10)
    assert one.error and blind.error and copies.error == pytest.approx(one.error, rel=0.15)
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
    monkeypatch.setattr("rlaif.evaluation.win_rate._BATCH", 200)
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

    monkeypatch.setattr("rlaif.evaluation.win_rate._BATCH", 7 * 30)
    monkeypatch.setattr("rlaif.evaluation.win_rate._newton", newton)
    parts = length_controlled(said, gaps, prompts, resamples=100)
    assert max(largest) == 7
    assert (parts.raw_interval, parts.note) == (pytest.approx(whole.raw_interval, abs=1e-12), whole.note)
    assert parts.interval == pytest.approx(whole.interval, abs=1e-8)


def alpaca() -> dict[str, tuple[list[float], list[float], float]]:
    """By model of AlpacaEval 2's leaderboard: 805 preferences, length differences, the published figure."""
    with (DATA / "alpacaeval/alpacaeval2-lc.csv").open() as file:
        published = {row["model"]: float(row["lc_alpacaeval"] or "nan") / 100 for row in csv.DictReader(file)}
    found: dict[str, tuple[list[float], list[float], float]] = {}
    with gzip.open(DATA / "alpacaeval/alpacaeval2-numbers.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            said, gaps, _ = found.setdefault(row["model"], ([], [], published[row["model"]]))
            said.append(float(row["preference"]))
            gaps.append(float(row["length_model"]) - float(row["length_baseline"]))
    return found


@pytest.mark.finding(3)
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared data")
def test_beside_the_published_figures_of_alpaca_eval() -> None:
    """Within 1.5 points on average, and the published figure in the interval; or withheld, as of an answer of 69
    characters that was made to game the measure: raw 3.7, published 12.2, and 36.0 by the plain fit."""
    off, withheld = [], set()
    for model, (said, gaps, published) in alpaca().items():
        found = length_controlled(said, gaps, resamples=200)
        if found.length_controlled is None or found.interval is None:
            assert "would be extrapolated" in found.note
            withheld.add(model)
            continue
        off.append(abs(found.length_controlled - published))
        assert found.interval[0] < published < found.interval[1], model
    assert len(off) == 5 and sum(off) / len(off) < 0.005
    assert {"gpt4_gamed", "NullModel", "alpaca-7b", "gpt-3.5-turbo-1106_concise"} <= withheld and len(withheld) == 8


def confounded(seed: int, count: int, centre: float, taste: float) -> tuple[list[float], list[float]]:
    """Preferences where the policy does better at prompts that make its answers longer: 0.75 of log-odds a deviation
    of length, and as much again of its own; the win rate where answers are equally long is 34.2%, wherever their
    lengths lie."""
    rng = np.random.default_rng(seed)
    spread = rng.normal(size=count)
    gaps = centre + spread
    ease = 0.75 * spread + math.sqrt(1 - 0.75**2) * rng.normal(size=count)
    chances = 1 / (1 + np.exp(-(-0.8 + taste * np.tanh(gaps / gaps.std()) + ease)))
    return [float(each) for each in rng.random(count) < chances], [float(100 * gap) for gap in gaps]


def test_the_truth_of_the_simulation() -> None:
    ease = np.random.default_rng(0).normal(size=1_000_000)
    assert (1 / (1 + np.exp(0.8 - ease))).mean() == pytest.approx(0.340, abs=0.002)


@pytest.mark.finding(3)
@pytest.mark.parametrize(("centre", "taste"), [(0.0, 1.0), (0.25, 1.0), (-0.4, 1.0), (-0.4, 0.3), (0.25, 1.7)])
def test_intervals_hold_the_truth_where_difficulty_goes_with_length(centre: float, taste: float) -> None:
    """Of 60 evaluations of 400 prompts; 95% are 57. The plain fit held it in 55 to 80 of 100."""
    told, inside = 0, 0
    for seed in range(60):
        interval = length_controlled(*confounded(seed, 400, centre, taste), resamples=200).interval
        told += interval is not None
        inside += interval is not None and interval[0] < 0.340 < interval[1]
    assert told >= 50 and inside >= 0.88 * told, (told, inside)


@pytest.mark.finding(3)
@pytest.mark.parametrize("seed", range(5))
def test_far_from_equal_length_nothing_is_told(seed: int) -> None:
    """One and a half deviations shorter: the plain fit says 49% where 34% is right, and is sure of it."""
    found = length_controlled(*confounded(seed, 400, -1.5, 1.0))
    assert found.length_controlled is None and "would be extrapolated" in found.note


@pytest.mark.sibling("identical-answers-are-no-extrapolation")
def test_answers_that_are_mostly_the_same_are_compared_at_equal_length() -> None:
    """80 of 100 the same text, 10 shorter, 10 longer: equal length is where most of the comparisons are."""
    found = length_controlled([0.5] * 80 + [0.8] * 10 + [0.4] * 10, [0.0] * 80 + [30.0] * 10 + [-30.0] * 10)
    assert found.length_controlled is not None and 0.5 < found.length_controlled < 0.53


@pytest.mark.sibling("one-long-answer-hides-a-collapse")
def test_one_endless_answer_of_the_baseline_hides_no_collapse() -> None:
    """It makes the deviation so large that the mean gap looks small; 99 of 100 answers are shorter all the same."""
    gaps = [-float(90 + at % 20) for at in range(99)] + [-100_000.0]
    assert abs(sum(gaps) / 100) < 0.5 * float(np.std(gaps))
    assert length_controlled([0.1 + at % 2 * 0.2 for at in range(100)], gaps).length_controlled is None
