"""Advantages and loss of each algorithm: the one place where the algorithms differ.

| algorithm   | advantages                                         | loss                                     |
|-------------|----------------------------------------------------|------------------------------------------|
| ppo         | GAE on a value network, KL in every token's reward | clipped, a token; clipped value loss     |
| reinforce++ | reward to go, KL in every token's reward           | clipped, a token                         |
| rloo        | against the mean of the other responses            | clipped, a whole response                |
| grpo        | against the mean of all, over their deviation      | clipped, a token or response (GSPO); KL  |
| p3o         | against each other response, in pairs              | clipped, a pair                          |
| online-dpo  | the best against the worst                         | DPO's                                    |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from rlaif.rl.advantages import (
    Moments,
    estimate,
    gae,
    grpo,
    penalised,
    reinforce_pp,
    reinforce_pp_baseline,
    rloo,
    spread,
    spread_sum,
    token_rewards,
    usable,
    whiten,
)
from rlaif.rl.config import OnlineSettings
from rlaif.rl.experience import Experience
from rlaif.rl.losses import best_and_worst, clipped_surrogate, loss_weights, p3o, pairs_of, per_length, value_loss
from rlaif.training.losses import PairLogps
from rlaif.training.losses import dpo as dpo_loss

Over = Callable[[Tensor, bool], Moments]
"""Mean and variance of numbers over all processes; the flag asks for the unbiased variance."""


class Counts(NamedTuple):
    """Denominators of a minibatch's losses: counts over all processes by their number, as gradients are averaged."""

    prompts: float
    responses: float
    tokens: float


class Loss(NamedTuple):
    """The loss of a part of a minibatch, and its sums for the log."""

    loss: Tensor
    """Scalar; those of all parts of a minibatch add up to its loss."""
    sums: dict[str, tuple[float, float]]
    """By metric name, a sum and its count."""


def compute_advantages(experience: Experience, settings: OnlineSettings, beta: float, over: Over) -> Experience:
    """The experience with advantages, and with returns for a value network."""
    kl = estimate("k1", experience.old, experience.reference)
    reward_beta = beta if settings.kl.apply_to == "reward" else 0.0
    if settings.algorithm == "ppo":
        rewards = token_rewards(experience.scores, kl, experience.lengths, reward_beta)
        estimates = gae(rewards, experience.values, experience.lengths, settings.gamma, settings.lam)
        return replace(
            experience, advantages=_whitened(estimates.advantages, settings, over), returns=estimates.returns
        )
    if settings.algorithm == "reinforce++":
        if not settings.group_baseline:
            returns = reinforce_pp(experience.scores, kl, experience.lengths, reward_beta, settings.gamma)
            return replace(experience, advantages=_whitened(returns, settings, over))
        returns = reinforce_pp_baseline(
            experience.scores, experience.owners, kl, experience.lengths, reward_beta, settings.gamma
        )
        # A response without another one to its prompt has no baseline: it counts in no mean and has no gradient.
        tokens = spread(usable(experience.owners), experience.lengths)
        if settings.whiten:
            returns = torch.where(tokens, whiten(returns, over(returns[tokens], False)), 0.0)
        return replace(experience, advantages=returns)
    if settings.algorithm == "grpo":
        batch = over(experience.scores, True) if settings.scale == "batch" else None
        advantages = grpo(experience.scores, experience.owners, settings.scale, batch)
        # The KL penalty stays outside of the deviation, which would blow up the noise of KL where scores are equal.
        penalty = penalised(torch.zeros_like(experience.scores), kl, experience.lengths, reward_beta)
        return replace(
            experience, advantages=spread(advantages + grpo(penalty, experience.owners, "none"), experience.lengths)
        )
    if settings.algorithm == "rloo":
        rewards = penalised(experience.scores, kl, experience.lengths, reward_beta)
        return replace(experience, advantages=spread(rloo(rewards, experience.owners), experience.lengths))
    return experience  # losses of pairs read the rewards themselves


def logged(settings: OnlineSettings) -> list[str]:
    """The names of all `Loss.sums` of a training."""
    policy = "accuracy" if settings.algorithm == "online-dpo" else "clip_share"
    return [policy, "value_loss"] if settings.algorithm == "ppo" else [policy]


def policy_loss(logps: Tensor, part: Experience, whole: Counts, settings: OnlineSettings, beta: float) -> Loss:
    """The loss of a part of a minibatch from the log-probabilities of its tokens, [tokens]."""
    if settings.algorithm in ("p3o", "online-dpo"):
        result = _pair_loss(logps, part, whole, settings, beta)
    elif settings.algorithm == "rloo" or (settings.algorithm == "grpo" and settings.ratio == "sequence"):
        result = _response_loss(logps, part, whole, settings)
    else:
        losses, clipped, _ = clipped_surrogate(
            logps, part.old, part.advantages, settings.clip, _high(settings), settings.dual_clip
        )
        weights = _token_weights(part, whole, settings) * part.weights
        result = Loss((weights * losses).sum(), {"clip_share": _share(clipped)})
    if settings.kl.apply_to == "reward" or settings.algorithm == "online-dpo" or not beta:
        return result
    # A mean over responses of sums of log-probabilities has a KL term of the same form: beta weighs the same in reward
    # and loss, whatever the lengths. GSPO's ratio is by length, and its KL term by token.
    by_response = settings.algorithm in ("rloo", "p3o")
    kl_weights = 1 / whole.responses if by_response else _token_weights(part, whole, settings)
    return result._replace(loss=result.loss + beta * (kl_weights * estimate("k2", logps, part.reference)).sum())


def critic_loss(values: Tensor, part: Experience, whole: Counts, clip: float) -> Loss:
    """The value network's loss of a part of a minibatch, [tokens] -> scalar."""
    losses = value_loss(values, part.values, part.returns, clip)
    return Loss(losses.sum() / whole.tokens, {"value_loss": (float(losses.detach().sum()), float(len(losses)))})


def _response_loss(logps: Tensor, part: Experience, whole: Counts, settings: OnlineSettings) -> Loss:
    """One ratio a response: of probabilities (RLOO, arXiv:2402.14740), or by length (GSPO, arXiv:2507.18071)."""
    ends = torch.cumsum(part.lengths, 0) - 1
    summed = spread_sum if settings.algorithm == "rloo" else per_length
    losses, clipped, _ = clipped_surrogate(
        summed(logps, part.lengths), summed(part.old, part.lengths), part.advantages[ends],
        settings.clip, _high(settings), settings.dual_clip,
    )  # fmt: skip
    return Loss((_response_weights(part) * losses).sum() / whole.responses, {"clip_share": _share(clipped)})


def _pair_loss(logps: Tensor, part: Experience, whole: Counts, settings: OnlineSettings, beta: float) -> Loss:
    sums, old, reference = (spread_sum(of_tokens, part.lengths) for of_tokens in (logps, part.old, part.reference))
    if settings.algorithm == "online-dpo":
        pairs = best_and_worst(part.scores, part.owners)
        best, worst = pairs.unbind(1)
        lengths = part.lengths.to(sums)
        pair_logps = PairLogps(
            sums[best], sums[worst], reference[best], reference[worst], lengths[best], lengths[worst]
        )
        losses = dpo_loss(pair_logps, beta)
        correct = (pair_logps.delta.detach() > 0).float()
        return Loss(losses.sum() / whole.prompts, {"accuracy": (float(correct.sum()), float(len(correct)))})
    reward_beta = beta if settings.kl.apply_to == "reward" else 0.0
    rewards = part.scores - reward_beta * (old - reference)
    pairs, weights = pairs_of(part.owners)
    losses, clipped = p3o(sums[pairs], old[pairs], rewards[pairs], settings.clip, settings.p3o_clip)
    corrections = _response_weights(part)[pairs].prod(dim=1)
    comparable = len(torch.unique(part.owners[pairs[:, 0]]))
    return Loss((weights * corrections * losses).sum() * (comparable / whole.prompts), {"clip_share": _share(clipped)})


def _token_weights(part: Experience, whole: Counts, settings: OnlineSettings) -> Tensor:
    """[tokens]; the weights of a minibatch, of which `part` is a part."""
    limit = settings.rollout.max_tokens
    return loss_weights(
        part.lengths, settings.loss_normalization, limit, completions=whole.responses, tokens=whole.tokens
    )


def _response_weights(part: Experience) -> Tensor:
    """[responses]; the mean over tokens: a correction of whole responses has the same weight at all of them."""
    return spread_sum(part.weights, part.lengths) / part.lengths


def _high(settings: OnlineSettings) -> float:
    """ε above 1."""
    return settings.clip if settings.clip_high is None else settings.clip_high


def _whitened(advantages: Tensor, settings: OnlineSettings, over: Over) -> Tensor:
    return whiten(advantages, over(advantages, False)) if settings.whiten else advantages


def _share(flags: Tensor) -> tuple[float, float]:
    """For `Loss.sums`."""
    return float(flags.sum()), float(flags.numel())
