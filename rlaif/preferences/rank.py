"""Bradley-Terry strengths of a prompt's samples from their soft wins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

_PHANTOM = 1.0
"""Draws that every sample plays against one phantom of strength 1: a sample that won everything stays finite."""


_ROUNDS = 1000
_CLOSE = 1e-8
"""Relative change under which the strengths have settled."""


def strengths(items: Sequence[str], wins: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Log-strengths with mean 0; `wins[i, j]` is the probability (a soft win count) that i beats j.

    The model is P(i beats j) = p_i / (p_i + p_j) (Bradley and Terry 1952), fitted by Newman's update
    p_i <- [sum_j w_ij p_j/(p_i+p_j)] / [sum_j w_ji/(p_i+p_j)] (arXiv:2207.00076, eq. 10), which has the fixed point of
    Zermelo's MM update and reaches it in fewer rounds. The phantom draw adds half a win and half a loss against 1.
    """
    games = {
        item: [(other, wins[item, other], wins[other, item]) for other in items if (item, other) in wins]
        for item in items
    }
    power = dict.fromkeys(items, 1.0)
    for _ in range(_ROUNDS):
        moved = 0.0
        for item, played in games.items():
            own = power[item]
            gained = lost = _PHANTOM / 2 / (own + 1)
            for other, won, beaten in played:
                rival = power[other]
                share = 1 / (own + rival)
                gained += won * rival * share
                lost += beaten * share
            power[item] = fresh = gained / lost
            moved = max(moved, abs(fresh / own - 1))
        if moved < _CLOSE:
            break
    mean = sum(math.log(each) for each in power.values()) / max(len(power), 1)
    return {item: math.log(each) - mean for item, each in power.items()}
