"""Bradley-Terry strengths against closed forms."""

from __future__ import annotations

import math

import pytest

from rlaif.stats import strengths


def both_ways(wins: dict[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    return wins | {(j, i): 1 - p for (i, j), p in wins.items()}


def test_equal_samples_have_equal_strength() -> None:
    assert strengths("ab", both_ways({("a", "b"): 0.5})) == pytest.approx({"a": 0.0, "b": 0.0})


def test_two_samples_by_hand() -> None:
    """With p_a = 1/p_b = x the phantom draw is symmetric, and a's stationarity condition reads
    w + 1/2 = x/(x + 1/x) + x/(x + 1). For w = 0.9: 1.4 = x^2/(x^2+1) + x/(x+1), solved by bisection.
    """
    low, high = 1.0, 100.0
    for _ in range(200):
        x = (low + high) / 2
        low, high = (x, high) if x * x / (x * x + 1) + x / (x + 1) < 1.4 else (low, x)
    result = strengths("ab", both_ways({("a", "b"): 0.9}))
    assert result["a"] == pytest.approx(math.log(low), abs=1e-6)
    assert result["b"] == pytest.approx(-math.log(low), abs=1e-6)


def test_a_sample_that_won_everything_stays_finite() -> None:
    result = strengths("abc", both_ways({("a", "b"): 1.0, ("a", "c"): 1.0, ("b", "c"): 1.0}))
    assert math.inf > result["a"] > result["b"] > result["c"] > -math.inf
    assert sum(result.values()) == pytest.approx(0.0, abs=1e-9)


def test_the_order_of_the_games_does_not_matter() -> None:
    wins = both_ways({("a", "b"): 0.7, ("b", "c"): 0.6, ("a", "c"): 0.9, ("c", "d"): 0.2, ("a", "d"): 0.55})
    backwards = dict(reversed(wins.items()))
    assert strengths("abcd", wins) == pytest.approx(strengths("dcba", backwards), abs=1e-6)


def test_without_games_everybody_is_equal() -> None:
    assert strengths("ab", {}) == {"a": 0.0, "b": 0.0}
    assert strengths("", {}) == {}
