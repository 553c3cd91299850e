"""Losses of the trainers as pure functions: tensors in, one loss a row out, shape [B], float32.

The trainer takes the mean over rows; devices, accumulation and schedules are its business.

In what follows r_w = log π(y_w|x) − log π_ref(y_w|x) is the log-ratio of the chosen completion, r_l that of the
rejected one, Δ = r_w − r_l, and σ the logistic function. `probability` is the soft label q of a pair, [B]: the
probability that the chosen completion is the better one; None means 1. A soft label takes the expected loss over which
of the two is better, q·L(Δ) + (1−q)·L(−Δ), so that a pair written the other way round with 1−q costs the same. Where
a loss reads it otherwise (`gdpo`, `orpo`, `bradley_terry` with a margin) it says so.

log σ(z) is one function, never a logarithm of σ: so it is finite, with the right gradient, for |z| up to 1e4.
"""

from rlaif.training.losses.choice import (
    NEEDS_REFERENCE,
    PAIR_LOSSES,
    READS,
    LossSettings,
    PairLoss,
    compared,
    pair_loss,
    preferred,
)
from rlaif.training.losses.pairs import (
    PairLogps,
    dpo,
    dpo_robust,
    gdpo,
    hinge,
    implicit_rewards,
    ipo,
    odds_ratio,
    orpo,
    sigmoid_norm,
    simpo,
)
from rlaif.training.losses.reward import bradley_terry
from rlaif.training.losses.single import kto, mean_logps, nll

__all__ = [
    "NEEDS_REFERENCE",
    "PAIR_LOSSES",
    "READS",
    "LossSettings",
    "PairLogps",
    "PairLoss",
    "bradley_terry",
    "compared",
    "dpo",
    "dpo_robust",
    "gdpo",
    "hinge",
    "implicit_rewards",
    "ipo",
    "kto",
    "mean_logps",
    "nll",
    "odds_ratio",
    "orpo",
    "pair_loss",
    "preferred",
    "sigmoid_norm",
    "simpo",
]
