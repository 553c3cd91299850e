"""Strengths of several policies."""

from __future__ import annotations

import math
import random

import pytest

from rlaif.evaluation.ratings import RIDGE, Won, ratings
from rlaif.stats import strengths


def match(one: str, other: str, probability: float, prompts: int = 200) -> list[Won]:
    return [Won(one, other, f"p{at}", probability) for at in range(prompts)]


def test_three_wins_of_four_are_ln_3_apart() -> None:
    found = ratings(["a", "b"], match("a", "b", 0.75, 2000))
    strong, weak = found
    assert (strong.name, weak.name) == ("a", "b")
    assert strong.strength.value - weak.strength.value == pytest.approx(math.log(3), abs=0.002)
    assert strong.strength.value + weak.strength.value == pytest.approx(0)
    assert strong.elo - weak.elo == pytest.approx(400 * math.log10(3), abs=0.5)
    assert (strong.elo + weak.elo) / 2 == pytest.approx(1000)


def test_the_fit_solves_its_equations() -> None:
    """At the maximum of the penalised likelihood: wins minus expected wins = ridge times strength, for every policy."""
    rng = random.Random(1)
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    rows = [Won(*pair, f"p{at}", rng.random()) for at in range(40) for pair in pairs]
    found = {each.name: each.strength.value for each in ratings(["a", "b", "c"], rows, resamples=10)}
    for name in found:
        excess = 0.0
        for row in rows:
            expected = 1 / (1 + math.exp(found[row.baseline] - found[row.policy]))
            excess += (row.share - expected) * ((row.policy == name) - (row.baseline == name))
        assert excess == pytest.approx(RIDGE * found[name], abs=1e-6)


def test_it_agrees_with_the_ranking_of_a_prompts_samples() -> None:
    """Newman's iteration in `rlaif.stats` on the same wins; its phantom draw hardly counts."""
    won = {
        ("a", "b"): 140.0,
        ("b", "a"): 60.0,
        ("a", "c"): 180.0,
        ("c", "a"): 20.0,
        ("b", "c"): 130.0,
        ("c", "b"): 70.0,
    }
    rows = [*match("a", "b", 0.7), *match("a", "c", 0.9), *match("b", "c", 0.65)]
    found = {each.name: each.strength.value for each in ratings(["a", "b", "c"], rows, resamples=10)}
    wanted = strengths(["a", "b", "c"], won)
    assert found == pytest.approx(wanted, abs=0.02)


def test_a_policy_that_always_wins_stays_finite() -> None:
    strong, weak = ratings(["a", "b"], match("a", "b", 1.0, 30))
    assert 2 < strong.strength.value < 10
    assert math.isfinite(strong.strength.low) and math.isfinite(weak.strength.high)


def test_names_change_nothing_and_the_unmatched_are_left_out() -> None:
    rows = [*match("a", "b", 0.7, 20), *match("b", "a", 0.3, 20)]
    found = ratings(["x", "b", "a"], rows)
    assert [each.name for each in found] == ["a", "b"]
    assert found[0].strength.value == pytest.approx(-found[1].strength.value)
    assert ratings(["a", "b"], []) == ()


def test_intervals_are_over_prompts() -> None:
    """The same 400 comparisons of 20 prompts or of 400: twenty times the prompts, a much narrower interval."""
    rng = random.Random(2)
    tastes = [rng.choice((0.9, 0.3)) for _ in range(400)]
    apart = [Won("a", "b", f"p{at}", each) for at, each in enumerate(tastes)]
    together = [Won("a", "b", f"p{at}", tastes[at]) for at in range(20) for _ in range(20)]
    one, other = (ratings(["a", "b"], rows)[0].strength for rows in (apart, together))
    assert (other.high - other.low) > 3 * (one.high - one.low)


def test_a_policy_that_never_loses_is_in_doubt() -> None:
    """Prompts drawn anew are all alike; a win rate of 20 in 20 leaves the truth at 84% or more."""
    rows = [each for pair in ("ab", "ac", "bc") for each in match(*pair, 1.0, 20)]
    for each in ratings("abc", rows):
        assert each.strength.high - each.strength.low > 2
    # With the prompts of one match cut to one, 12.7 errors of sqrt(1/(4 p(1-p) + 2 ridge)) either way, as strengths
    # are opposite: the strength x solves 1 - sigmoid(2x) = 0.1 x, which is 1.228.
    strong, _ = ratings("ab", match("a", "b", 1.0, 1))
    p = 1 / (1 + math.exp(-2 * strong.strength.value))
    assert 1 - p == pytest.approx(RIDGE * strong.strength.value, abs=1e-6)
    reach = 12.706 / math.sqrt(4 * p * (1 - p) + 2 * RIDGE)
    assert strong.strength.high - strong.strength.value == pytest.approx(reach, abs=0.01)


def test_two_sides_that_never_meet_evenly_are_in_doubt() -> None:
    """a and b share their wins, c and d share theirs; but the first two win everything else."""
    even = [Won(*pair, f"p{at}", float(at % 2)) for at in range(40) for pair in ("ab", "cd")]
    rows = [*even, *(each for pair in ("ac", "bd") for each in match(*pair, 1.0, 40))]
    found = {each.name: each.strength for each in ratings("abcd", rows)}
    assert all(each.high - each.low > 1 for each in found.values())


def test_ties_everywhere_are_in_doubt_too() -> None:
    """16 prompts: errors sqrt(1 / (4 * 16/4 + 2 ridge)), times 2.131, Student's t of 15 degrees."""
    strong, _ = ratings("ab", match("a", "b", 0.5, 16))
    assert strong.strength.high == pytest.approx(2.131 / math.sqrt(16 + 2 * RIDGE), abs=0.005)
