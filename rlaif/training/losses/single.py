"""Losses of single completions: negative log-likelihood, and KTO."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def mean_logps(logps: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability per completion token, [B], from sums and counts; a completion cut down to nothing has 0."""
    return logps / tokens.clamp(min=1)


def nll(logps: Tensor, tokens: Tensor) -> Tensor:
    """Negative log-likelihood per token of each completion, [B]: −log π(y|x) / |y|.

    The plain mean of these weighs completions alike. It is the term that preference losses are mixed with
    (arXiv:2404.19733, eq. 1: DPO plus α times this, of the chosen completion; it keeps log π(y_w|x) from falling).

    SFT weighs tokens alike instead: Σ −log π(y|x) / Σ |y|, both sums over all completions of one optimizer step, on
    every device and in every micro-batch. The trainer counts the tokens of the step first, and then adds up
    `nll(logps, tokens) * tokens / tokens_of_the_step`; a mean of the means of micro-batches would be another loss,
    that depends on how rows fall into batches.
    """
    return -mean_logps(logps, tokens)


def kto(
    logratio: Tensor,
    desirable: Tensor,
    baseline: Tensor | float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Kahneman-Tversky optimization, [B] (arXiv:2402.01306, section 4): r is a gain or a loss against the baseline z0.

        λ_D (1 − σ(β(r − z0)))   where `desirable`,      λ_U (1 − σ(β(z0 − r)))   elsewhere

    z0 is max(0, mean of log π(y'|x) − log π_ref(y'|x)) over completions y' of *other* prompts, without gradient: a
    rough estimate of how far the policy has moved from the reference, one for the step (the mean is over all devices).
    `logratio` is r = log π(y|x) − log π_ref(y|x), [B]; `desirable` is bool, [B]. This is λ_y − v(x, y) of the
    paper, from 0 to λ_y. λ_D n_D / (λ_U n_U) over the numbers of rows of both kinds should be from 1 to 4/3.
    """
    import torch

    gain = beta * (logratio - baseline)
    # 1 − σ(z) = σ(−z), without the cancellation at large z
    return torch.where(desirable, desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain))
