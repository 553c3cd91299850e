"""What each algorithm makes of a step's rewards, and the loss it takes: the one place where they differ.

| algorithm   | credit                                             | loss                                     |
|-------------|----------------------------------------------------|------------------------------------------|
| ppo         | GAE on a value network, KL in every token's reward | clipped, a token; clipped value loss     |
| reinforce++ | reward to go, KL in every token's reward           | clipped, a token                         |
| rloo        | against the mean of the other answers              | clipped, a whole answer                  |
| grpo        | against the mean of all, over their deviation      | clipped, a token or an answer (GSPO); KL |
| p3o         | against each other answer, in pairs                | clipped, a pair                          |
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
    """What a minibatch's losses are means over: that of all processes over their number, as gradients are averaged."""

    prompts: float
    answers: float
    tokens: float


class Loss(NamedTuple):
    """The loss of some of a minibatch's answers, and what is logged of it: sums, and over how many."""

    loss: Tensor
    """Scalar; those of all parts of a minibatch add up to its loss."""
    sums: dict[str, tuple[float, float]]
    """By name, a sum and what it is divided by."""


def compute_advantages(found: Experience, settings: OnlineSettings, beta: float, over: Over) -> Experience:
    """The same with advantages, and returns for a value network."""
    kl = estimate("k1", found.old, found.reference)
    charged = beta if settings.kl.apply_to == "reward" else 0.0
    if settings.algorithm == "ppo":
        rewards = token_rewards(found.scores, kl, found.lengths, charged)
        credit = gae(rewards, found.values, found.lengths, settings.gamma, settings.lam)
        return replace(found, advantages=_whitened(credit.advantages, settings, over), returns=credit.returns)
    if settings.algorithm == "reinforce++":
        return replace(found, advantages=_reinforced(found, kl, charged, settings, over))
    if settings.algorithm == "grpo":
        batch = over(found.scores, True) if settings.scale == "batch" else None
        gained = grpo(found.scores, found.owners, settings.scale, batch)
        # The price stays outside of the deviation: where scores are equal, that would blow up the noise of KL.
        price = penalised(torch.zeros_like(found.scores), kl, found.lengths, charged)
        return replace(found, advantages=spread(gained + grpo(price, found.owners, "none"), found.lengths))
    if settings.algorithm == "rloo":
        paid = penalised(found.scores, kl, found.lengths, charged)
        return replace(found, advantages=spread(rloo(paid, found.owners), found.lengths))
    return found  # pairs look at the rewards themselves


def logged(settings: OnlineSettings) -> list[str]:
    """The names of all `Loss.sums` of a training."""
    policy = "accuracy" if settings.algorithm == "online-dpo" else "clip_share"
    return [policy, "value_loss"] if settings.algorithm == "ppo" else [policy]


def policy_loss(logps: Tensor, part: Experience, whole: Counts, settings: OnlineSettings, beta: float) -> Loss:
    """The loss of a part of a minibatch from the log-probabilities of its tokens, [tokens]."""
    if settings.algorithm in ("p3o", "online-dpo"):
        found = _of_pairs(logps, part, whole, settings, beta)
    elif _by_answer(settings):
        found = _of_answers(logps, part, whole, settings)
    else:
        found = _of_tokens(logps, part, whole, settings)
    if settings.kl.apply_to == "reward" or settings.algorithm == "online-dpo" or not beta:
        return found
    weights = _price_weights(part, whole, settings)
    return found._replace(loss=found.loss + beta * (weights * estimate("k2", logps, part.reference)).sum())


def critic_loss(values: Tensor, part: Experience, whole: Counts, clip: float) -> Loss:
    """The value network's loss of a part of a minibatch, [tokens] -> scalar."""
    losses = value_loss(values, part.values, part.returns, clip)
    return Loss(losses.sum() / whole.tokens, {"value_loss": (float(losses.detach().sum()), float(len(losses)))})


def _of_tokens(logps: Tensor, part: Experience, whole: Counts, settings: OnlineSettings) -> Loss:
    losses, clipped, _ = clipped_surrogate(
        logps, part.old, part.advantages, settings.clip, _high(settings), settings.dual_clip
    )
    weights = _token_weights(part, whole, settings)
    return Loss((weights * part.weights * losses).sum(), {"clip_share": _share(clipped)})


def _of_answers(logps: Tensor, part: Experience, whole: Counts, settings: OnlineSettings) -> Loss:
    """One ratio an answer: of its probabilities (RLOO, arXiv:2402.14740), or by its length (GSPO, arXiv:2507.18071)."""
    ends = torch.cumsum(part.lengths, 0) - 1
    summed = spread_sum if settings.algorithm == "rloo" else per_length
    losses, clipped, _ = clipped_surrogate(
        summed(logps, part.lengths), summed(part.old, part.lengths), part.advantages[ends],
        settings.clip, _high(settings), settings.dual_clip,
    )  # fmt: skip
    return Loss((_answer_weights(part) * losses).sum() / whole.answers, {"clip_share": _share(clipped)})


def _of_pairs(logps: Tensor, part: Experience, whole: Counts, settings: OnlineSettings, beta: float) -> Loss:
    sums, old, reference = (spread_sum(each, part.lengths) for each in (logps, part.old, part.reference))
    if settings.algorithm == "online-dpo":
        pairs = best_and_worst(part.scores, part.owners)
        best, worst = pairs.unbind(1)
        lengths = part.lengths.to(sums)
        given = PairLogps(sums[best], sums[worst], reference[best], reference[worst], lengths[best], lengths[worst])
        losses = dpo_loss(given, beta)
        likely = (given.delta.detach() > 0).float()
        return Loss(losses.sum() / whole.prompts, {"accuracy": (float(likely.sum()), float(len(likely)))})
    charged = beta if settings.kl.apply_to == "reward" else 0.0
    rewards = part.scores - charged * (old - reference)
    pairs, weights = pairs_of(part.owners)
    losses, clipped = p3o(sums[pairs], old[pairs], rewards[pairs], settings.clip, settings.p3o_clip)
    sampled = _answer_weights(part)[pairs].prod(dim=1)
    compared = len(torch.unique(part.owners[pairs[:, 0]]))
    return Loss((weights * sampled * losses).sum() * (compared / whole.prompts), {"clip_share": _share(clipped)})


def _by_answer(settings: OnlineSettings) -> bool:
    """Whether each answer has one ratio."""
    return settings.algorithm == "rloo" or (settings.algorithm == "grpo" and settings.ratio == "sequence")


def _token_weights(part: Experience, whole: Counts, settings: OnlineSettings) -> Tensor:
    """[tokens]; those of all parts of a minibatch belong together."""
    limit = settings.rollout.max_tokens
    return loss_weights(
        part.lengths, settings.loss_normalization, limit, completions=whole.answers, tokens=whole.tokens
    )


def _price_weights(part: Experience, whole: Counts, settings: OnlineSettings) -> Tensor | float:
    """What the KL of each token counts in the loss.

    Where the loss is a mean over answers of sums of log-probabilities, so is the price: beta weighs the same in reward
    and loss, whatever the lengths. GSPO's ratio is by length, and its price by token.
    """
    return 1 / whole.answers if settings.algorithm in ("rloo", "p3o") else _token_weights(part, whole, settings)


def _answer_weights(part: Experience) -> Tensor:
    """[answers]; a correction of whole answers has the same weight at all their tokens, one of tokens their mean."""
    return spread_sum(part.weights, part.lengths) / part.lengths


def _high(settings: OnlineSettings) -> float:
    return settings.clip if settings.clip_high is None else settings.clip_high


def _reinforced(found: Experience, kl: Tensor, beta: float, settings: OnlineSettings, over: Over) -> Tensor:
    if not settings.group_baseline:
        returns = reinforce_pp(found.scores, kl, found.lengths, beta, settings.gamma)
        return _whitened(returns, settings, over)
    returns = reinforce_pp_baseline(found.scores, found.owners, kl, found.lengths, beta, settings.gamma)
    # An answer without another one to its prompt has no baseline: it neither counts in the mean nor is learned from.
    known = spread(usable(found.owners), found.lengths)
    return torch.where(known, whiten(returns, over(returns[known], False)), 0.0) if settings.whiten else returns


def _whitened(advantages: Tensor, settings: OnlineSettings, over: Over) -> Tensor:
    return whiten(advantages, over(advantages, False)) if settings.whiten else advantages


def _share(flags: Tensor) -> tuple[float, float]:
    return float(flags.sum()), float(flags.numel())
