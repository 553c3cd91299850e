"""The unbiased estimate of best-of-n: by hand, and against every subset there is."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from rlaif.evaluation.best_of_n import best_of, chances, kl_of, powers_of_two


def test_chances_by_hand() -> None:
    """N = 4, n = 2: of the 6 pairs the lowest is the best of none, the next of 1, then of 2, the highest of 3."""
    assert chances([10.0, 20.0, 30.0, 40.0], 2) == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6])
    assert chances([30.0, 10.0, 40.0, 20.0], 2) == pytest.approx([2 / 6, 0, 3 / 6, 1 / 6])
    assert chances([3.0, 1.0, 2.0], 1) == pytest.approx([1 / 3] * 3)
    assert chances([3.0, 1.0, 2.0], 3) == [1.0, 0.0, 0.0]


def test_equal_rewards_share_evenly() -> None:
    """Of three answers the upper two are equal. The three pairs hold one of them, the other, and both: half of each."""
    assert chances([1.0, 2.0, 2.0], 2) == pytest.approx([0, 1 / 2, 1 / 2])
    assert chances([5.0] * 4, 3) == pytest.approx([1 / 4] * 4)
    # The lower two equal: their own pair is shared, the highest has the two others.
    assert chances([1.0, 1.0, 2.0], 2) == pytest.approx([1 / 6, 1 / 6, 2 / 3])


def brute(rewards: list[float], values: list[float], n: int) -> float:
    """The mean over all subsets of the value of the best one, the mean of the best ones where several are."""
    found = []
    for subset in itertools.combinations(range(len(rewards)), n):
        top = max(rewards[at] for at in subset)
        best = [values[at] for at in subset if rewards[at] == top]
        found.append(sum(best) / len(best))
    return sum(found) / len(found)


@pytest.mark.parametrize("seed", range(6))
def test_all_subsets_agree(seed: int) -> None:
    """Half of the cases have many equal rewards."""
    rng = random.Random(seed)
    count = rng.randint(2, 9)
    rewards = [float(rng.randint(0, 3)) if seed % 2 else rng.gauss(0, 1) for _ in range(count)]
    values = [rng.gauss(0, 1) for _ in range(count)]
    for n in range(1, count + 1):
        assert sum(chances(rewards, n)) == pytest.approx(1)
        assert best_of(rewards, values, n) == pytest.approx(brute(rewards, values, n))


def test_large_numbers_do_not_overflow() -> None:
    found = chances([float(at) for at in range(2000)], 1024)
    assert math.fsum(found) == pytest.approx(1) and found[-1] == pytest.approx(1024 / 2000)


@pytest.mark.parametrize("n", [0, 4])
def test_n_has_to_fit(n: int) -> None:
    with pytest.raises(ValueError, match=f"n is {n}, with 3 answers"):
        chances([1.0, 2.0, 3.0], n)


def test_distance_and_steps() -> None:
    """ln 4 - 3/4 = 0.636 and ln 16 - 15/16 = 1.835: the figures of Gao et al. 2022."""
    assert kl_of(1) == 0
    assert (kl_of(4), kl_of(16)) == (pytest.approx(0.6363, abs=1e-4), pytest.approx(1.8351, abs=1e-4))
    assert (powers_of_two(1), powers_of_two(10), powers_of_two(16)) == ([1], [1, 2, 4, 8], [1, 2, 4, 8, 16])
