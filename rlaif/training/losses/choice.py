"""The losses of pairs by name: what a setting of the DPO trainer says, and which other settings it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, assert_never, get_args

from rlaif.training.losses.pairs import (
    PairLogps,
    dpo,
    dpo_robust,
    gdpo,
    hinge,
    implicit_rewards,
    ipo,
    log_odds,
    orpo,
    sigmoid_norm,
    simpo,
)
from rlaif.training.losses.single import mean_logps

if TYPE_CHECKING:
    from torch import Tensor

PairLoss = Literal["sigmoid", "robust", "ipo", "hinge", "sigmoid_norm", "gdpo", "simpo", "orpo"]
"""The losses of pairs, by the names that papers and other trainers use."""

PAIR_LOSSES: tuple[PairLoss, ...] = get_args(PairLoss)

NEEDS_REFERENCE: frozenset[PairLoss] = frozenset({"sigmoid", "robust", "ipo", "hinge", "sigmoid_norm", "gdpo"})
"""Losses that read the reference's log-probabilities. The others never look at `ref_chosen` and `ref_rejected`."""

READS: dict[PairLoss, frozenset[str]] = {
    "sigmoid": frozenset({"beta", "label_smoothing"}),
    "robust": frozenset({"beta", "label_smoothing"}),
    "ipo": frozenset({"beta"}),
    "hinge": frozenset({"beta"}),
    "sigmoid_norm": frozenset({"beta", "label_smoothing"}),
    "gdpo": frozenset({"beta"}),
    "simpo": frozenset({"beta", "gamma_beta_ratio"}),
    "orpo": frozenset({"orpo_weight"}),
}
"""Fields of `LossSettings` that each loss reads, for whoever refuses a setting that would do nothing."""


@dataclass(frozen=True, slots=True)
class LossSettings:
    """Numbers of the losses of pairs; `READS` tells which loss reads which."""

    beta: float = 0.1
    """β, how strongly the policy is held to the reference (τ of IPO). Usual: 5 for `sigmoid_norm`, 2 for `simpo`."""
    label_smoothing: float = 0.0
    """ε, the share of labels taken to be the wrong way round, below 1/2: `sigmoid` allows for it, `robust` corrects."""
    gamma_beta_ratio: float = 0.5
    """γ/β of SimPO: the lead in nats per token that the chosen completion should have."""
    orpo_weight: float = 0.1
    """λ of ORPO: the weight of the odds ratio beside the negative log-likelihood."""

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta must be above 0, not {self.beta}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be from 0 to below 0.5, not {self.label_smoothing}")


def pair_loss(name: PairLoss, logps: PairLogps, probability: Tensor | None, settings: LossSettings) -> Tensor:
    """The loss called `name`, [B]; `probability` [B] are the soft labels, None for hard ones."""
    beta, smoothing = settings.beta, settings.label_smoothing
    lengths = logps.chosen_tokens, logps.rejected_tokens
    match name:
        case "sigmoid":
            return dpo(logps, beta, probability, smoothing)
        case "robust":
            return dpo_robust(logps, beta, smoothing, probability)
        case "ipo":
            return ipo(logps, beta, probability)
        case "hinge":
            return hinge(logps, beta, probability)
        case "sigmoid_norm":
            return sigmoid_norm(logps, beta, probability, smoothing)
        case "gdpo":
            return gdpo(logps, beta, probability)
        case "simpo":
            return simpo(logps.chosen, logps.rejected, *lengths, beta, beta * settings.gamma_beta_ratio, probability)
        case "orpo":
            means = mean_logps(logps.chosen, lengths[0]), mean_logps(logps.rejected, lengths[1])
            return orpo(*means, settings.orpo_weight, probability)
        case _:
            assert_never(name)


def compared(name: PairLoss, logps: PairLogps, beta: float) -> tuple[Tensor, Tensor]:
    """What the loss compares of the chosen and of the rejected completion, [B] and [B]: their rewards in the log.

    β log-ratios, summed over tokens; of `ipo` and `sigmoid_norm` per token; of `simpo` β log-probabilities per token;
    of `orpo` log odds. A longer completion may have the higher sum and the lower mean, so that an accuracy of sums
    would tell of another loss.
    """
    tokens = logps.chosen_tokens, logps.rejected_tokens
    match name:
        case "ipo" | "sigmoid_norm":
            chosen, rejected = implicit_rewards(logps, beta)
            return mean_logps(chosen, tokens[0]), mean_logps(rejected, tokens[1])
        case "simpo":
            return beta * mean_logps(logps.chosen, tokens[0]), beta * mean_logps(logps.rejected, tokens[1])
        case "orpo":
            return log_odds(mean_logps(logps.chosen, tokens[0])), log_odds(mean_logps(logps.rejected, tokens[1]))
        case _:
            return implicit_rewards(logps, beta)


def preferred(name: PairLoss, margin: Tensor) -> Tensor | None:
    """The probability, [B], that the chosen completion is better, by the margin of what the loss compares.

    It is the label q of a pair that the loss draws to this margin: σ(margin); of `ipo`, which knows no σ, margin + 1/2
    within 0 and 1. None where margins stand for no label: `simpo` draws a pair of 0.7 beyond logit(0.7) by its lead,
    `hinge` every pair to 1 or -1, and `gdpo` as far as it can.
    """
    match name:
        case "ipo":
            return (margin + 0.5).clamp(0, 1)
        case "simpo" | "hinge" | "gdpo":
            return None
        case _:
            return margin.sigmoid()
