"""From answers with a reward and another measure to the curve of best-of-n. Pure: no model, no files."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rlaif.evaluation.intervals import average
from rlaif.evaluation.metrics import mean
from rlaif.evaluation.report import Estimate
from rlaif.evaluation.rewards.estimator import best_of, doubled, kl_of
from rlaif.evaluation.rewards.report import BestOf, BestOfN

LEAST_PROMPTS = 10
"""With fewer, their errors show too little of the doubt: nothing is called over-optimised."""


class Rated(NamedTuple):
    """The answers to one prompt, in any order."""

    rewards: tuple[float, ...]
    golds: tuple[float, ...]
    """The other measure of each."""
    lengths: tuple[int, ...]
    """Characters of each."""


def curve_of(
    rated: Sequence[Rated],
    *,
    policy: str,
    measure: str,
    left_out: Mapping[str, int] | None = None,
    truncated: float | None = None,
) -> BestOfN:
    """The curve over n = 1, 2, 4, ... up to the answers of a prompt, of which all prompts have equally many.

    Intervals are over prompts. Raises ValueError where there is no prompt, or where their numbers of answers differ.
    """
    sizes = {len(each.rewards) for each in rated}
    if len(sizes) != 1:
        raise ValueError(f"every prompt needs the same number of answers, not {sorted(sizes) or 'none'}")
    (samples,) = sizes
    steps = doubled(samples)
    golds = {n: [best_of(each.rewards, each.golds, n) for each in rated] for n in steps}
    best_n = max(steps, key=lambda n: mean(golds[n]))  # of equals the smallest
    drop = _paired(golds[best_n], golds[steps[-1]]) if best_n != steps[-1] else None
    return BestOfN(
        policy=policy,
        measure=measure,
        prompts=len(rated),
        samples=samples,
        left_out=dict(left_out or {}),
        truncated=truncated,
        points=tuple(_point(rated, n, golds[n]) for n in steps),
        best_n=best_n,
        drop=drop,
        overoptimised=drop is not None and drop.low > 0 and len(rated) >= LEAST_PROMPTS,
    )


def _point(rated: Sequence[Rated], n: int, golds: Sequence[float]) -> BestOf:
    """Prompt by prompt the gain over the mean of its own answers: prompts differ more in reward than answers do."""
    spread = statistics.pstdev([reward for each in rated for reward in each.rewards]) or 1.0
    gains = [(best_of(each.rewards, each.rewards, n) - mean(each.rewards)) / spread for each in rated]
    return BestOf(
        n=n,
        kl=kl_of(n),
        reward=average(gains, range(len(rated))),
        gold=average(golds, range(len(rated))),
        length=mean([best_of(each.rewards, each.lengths, n) for each in rated]),
    )


def _paired(one: Sequence[float], other: Sequence[float]) -> Estimate:
    return average([first - second for first, second in zip(one, other, strict=True)], range(len(one)))
