"""Dawid and Skene's accuracies: on exact frequencies, on a simulated panel, and where they cannot be told."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest

from rlaif.feedback.agreement import accuracies, canonical
from tests.comparisons.test_agreement import counted


def frequencies(true: tuple[float, ...], total: int) -> Counter[tuple[int, ...]]:
    """The patterns exactly as often as they are to be expected, both answers being equally frequent."""
    found: Counter[tuple[int, ...]] = Counter()
    for answer, pattern in itertools.product((1, -1), itertools.product((1, -1), repeat=len(true))):
        chance = math.prod(a if said == answer else 1 - a for a, said in zip(true, pattern, strict=True))
        found[canonical(pattern)] += round(total / 2 * chance)
    return found


@pytest.mark.parametrize("true", [(0.9, 0.8, 0.7), (0.6, 0.95, 0.6, 0.8), (0.9, 0.9, 0.9, 0.3, 0.5)])
def test_exact_frequencies_give_the_truth_back(true: tuple[float, ...]) -> None:
    """Also of a judge that is worse than chance, where the others outnumber it."""
    assert accuracies(frequencies(true, 1_000_000)) == pytest.approx(true, abs=1e-3)


def test_a_simulated_panel_with_gaps() -> None:
    """Five judges of known accuracy, each silent on a fifth of 5,000 comparisons: sd of a share is 0.008 at most."""
    true, rng = (0.95, 0.85, 0.75, 0.65, 0.55), random.Random(3)
    patterns: Counter[tuple[int, ...]] = Counter()
    for _ in range(5000):
        answer = rng.choice((1, -1))
        said = [answer if rng.random() < a else -answer for a in true]
        patterns[canonical([each if rng.random() < 0.8 else 0 for each in said])] += 1
    assert len(patterns) <= 122
    assert accuracies(patterns) == pytest.approx(true, abs=0.03)


def test_a_mirrored_pattern_is_the_same() -> None:
    assert canonical((0, -1, 1)) == canonical((0, 1, -1)) == (0, 1, -1)
    assert canonical((0, 0, 0)) == (0, 0, 0)


def test_one_round_on_paper() -> None:
    """Three judges who always agree, four times: 4 right and the added one of each, so (4 q + 1) / 6 where q is the
    chance of the majority; the fixed point of a = (4 q(a) + 1) / 6 with q = a^3 / (a^3 + (1 - a)^3)."""
    found = accuracies({(1, 1, 1): 4})
    assert found is not None
    a = found[0]
    assert found == pytest.approx((a, a, a))
    assert a == pytest.approx((4 * a**3 / (a**3 + (1 - a) ** 3) + 1) / 6)
    assert 0.8 < a < 5 / 6


def test_two_judges_cannot_tell() -> None:
    assert accuracies({}) is None
    assert accuracies({(1, 1): 50, (1, -1): 5}) is None
    assert accuracies({(1, 1, 0): 50, (0, 1, -1): 5}) is None


def test_a_panel_tells_them() -> None:
    """The third judge opposes the two others in one of ten; ties and silence are left out of the model."""
    rows: list[tuple[float | None, ...]] = [(2.0, 2.0, 2.0)] * 9 + [(2.0, 2.0, -2.0), (2.0, 0.0, None)]
    found = counted(3, *rows).result()
    assert found.accuracies is not None
    first, second, third = found.accuracies
    assert first == second > third > 0.5
    assert counted(2, (2.0, 2.0), (2.0, -2.0)).result().accuracies is None
