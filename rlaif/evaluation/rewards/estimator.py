"""Best-of-n from a fixed number of answers: what the best of n would be, over all ways to draw n of them.

Drawing n answers and taking the one with the highest reward is estimated without bias from N > n answers by averaging
over all subsets of n (Nakano et al. 2021, arXiv:2112.09332, appendix I), so that one set of N answers gives the whole
curve. Pure functions of plain sequences.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence


def chances(rewards: Sequence[float], n: int) -> list[float]:
    """For each answer, in the order given, the probability that it is the best of n drawn without replacement.

    With the N answers sorted by reward, the i-th (from 1) is the best of a subset with probability
    C(i - 1, n - 1) / C(N, n). Answers of equal reward share theirs evenly, as where a draw decides among the best.
    Raises ValueError for an n that is not between 1 and N.
    """
    count = len(rewards)
    if not 1 <= n <= count:
        raise ValueError(f"n is {n}, with {count} answers")
    ways = math.comb(count, n)
    found = [0.0] * count
    ordered = sorted(range(count), key=lambda at: rewards[at])
    below = 0
    for _, tied in itertools.groupby(ordered, key=lambda at: rewards[at]):
        places = list(tied)
        up_to = below + len(places)
        # The sum of C(i - 1, n - 1) over these places; whole numbers until the last division.
        share = (math.comb(up_to, n) - math.comb(below, n)) / (ways * len(places))
        for at in places:
            found[at] = share
        below = up_to
    return found


def best_of(rewards: Sequence[float], values: Sequence[float], n: int) -> float:
    """The expected value of the answer that has the highest reward among n."""
    return math.fsum(chance * value for chance, value in zip(chances(rewards, n), values, strict=True))


def kl_of(n: int) -> float:
    """Nats from the policy to its best-of-n: ln n - (n - 1)/n.

    As in Stiennon et al. 2020 (arXiv:2009.01325, appendix G.3); an upper bound where answers can be equal (Beirami et
    al. 2024, arXiv:2401.01879).
    """
    return math.log(n) - (n - 1) / n


def doubled(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`."""
    return [2**power for power in range(most.bit_length())]
