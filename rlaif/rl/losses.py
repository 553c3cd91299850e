"""Losses of online training: PPO's clipped surrogate and its relatives, pairwise P3O, and what each algorithm takes.

| algorithm   | advantages                                         | loss                                     |
|-------------|----------------------------------------------------|------------------------------------------|
| ppo         | GAE on a value network, KL in every token's reward | clipped, a token; clipped value loss     |
| reinforce++ | reward to go, KL in every token's reward           | clipped, a token                         |
| rloo        | against the mean of the other responses            | clipped, a whole response                |
| grpo        | against the mean of all, over their deviation      | clipped, a token or response (GSPO); KL  |
| p3o         | against each other response, in pairs              | clipped, a pair                          |
| online-dpo  | the best against the worst                         | DPO's                                    |

`compute_advantages` and `policy_loss` are the one place where the algorithms differ. The losses are pure functions of
flat tensors (see `rlaif.rl.advantages` for the shapes). Only the first argument of a loss has a gradient, the policy's
log-probabilities or the values as they are now; all others are constants here, wherever they come from. Ratios of
probabilities are computed from clamped log-ratios (±20, a factor of 5·10⁸), so that neither they nor their gradients
are ever infinite.

P3O, pairwise proximal policy optimisation (Wu et al. 2023, arXiv:2310.00212), and pairs for online DPO.

The gradient. Let y1, y2 be two independent responses of π to one prompt, r1 and r2 their rewards. As E[∇log π(y)] = 0
and y1 says nothing about y2, the policy gradient ∇E[r] is E[(r1 − r2)·∇log π(y1)], and as well
E[(r2 − r1)·∇log π(y2)]. Their mean is the paper's pairwise policy gradient:

    ∇E[r] = E[ (r1 − r2) · ∇(log π(y1) − log π(y2)) / 2 ]

It reads only the difference of two rewards of one prompt: it needs no value network, and r + δ(prompt) is the same as
r. Rewards are of whole responses, r_i = score_i − β·log(π_old(y_i)/ref(y_i)) (`advantages.penalised`), constants in a
step. On the policy's own samples this is RLOO with two samples; P3O adds what follows, for pairs from an older π_old.

The clips. The formulas of the paper's two clipped versions are images in its text: the ones here are derived from its
words (V1 clips separately, V2 jointly) and from PPO. With ρ_i = π(y_i)/π_old(y_i), ratios of whole responses, and
D = (r1 − r2)/2, the gradient above is, as a mean over π_old,

    E_old[ ρ1·ρ2 · D · ∇(log π(y1) − log π(y2)) ]  =  E_old[ D·ρ2·∇ρ1 − D·ρ1·∇ρ2 ]

which is no gradient of one function of ρ1 and ρ2 (∂ρ2/∂ρ2 = 1, but ∂(−ρ1)/∂ρ1 = −1). So a ratio that is a mere weight
is held constant, written [·], and the objective is

- `separate` (V1): PPO's surrogate for each response, with the advantages D·[ρ2] and −D·[ρ1]:
  min(ρ1·D[ρ2], clip(ρ1, 1 ± ε)·D[ρ2]) + min(−ρ2·D[ρ1], −clip(ρ2, 1 ± ε)·D[ρ1]).
- `joint` (V2): the gradient pulls u = log ρ1 − log ρ2 apart, so that is clipped:
  min([ρ1ρ2]·D·u, [ρ1ρ2]·D·clip(u, ±log(1 + ε))).
  The bounds are alike on both sides, as swapping y1 and y2 negates u and must change nothing.

Both are pessimistic as PPO is: the gradient ends where a pair has gone far enough in the direction that its rewards
favour, and goes on where it has gone the wrong way. Weights [·] are cut at 1 + ε from above (truncated importance
sampling, not in the paper), as ratios of whole responses have no bound otherwise. Until a bound is reached both have
exactly the gradient above. The loss is 0 on the policy's own samples, whatever the rewards: only its gradient matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Literal, NamedTuple, assert_never

import torch
from torch import Tensor

from rlaif.rl.advantages import (
    Moments,
    estimate,
    gae,
    grpo,
    k3,
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
from rlaif.training.losses import PairLogps
from rlaif.training.losses import dpo as dpo_loss

Correction = Literal["token", "sequence", "mask"]
"""How importance weights correct a difference between sampler and trainer."""
Per = Literal["token", "sequence", "constant"]
"""What has equal weight in the mean of a loss."""
Variant = Literal["separate", "joint"]
"""Which of the two clips of P3O."""

_FAR = 20.0
"""Nats; beyond it a ratio stays as it is, and has no gradient."""


def ratio_of(logps: Tensor, old_logps: Tensor) -> Tensor:
    """π/π_old, between e^−20 and e^20, of any shape; `old_logps` is a constant."""
    return (logps - old_logps.detach()).clamp(-_FAR, _FAR).exp()


class Surrogate(NamedTuple):
    """PPO's loss of N tokens or completions."""

    loss: Tensor
    """[N], before any mean."""
    clipped: Tensor
    """[N] of bool: the bound was in force, so there is no gradient."""
    ratio: Tensor
    """[N], π/π_old, as a constant."""


def clipped_surrogate(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, low: float, high: float, dual: float | None = None
) -> Surrogate:
    """−min(ρ·A, clip(ρ, 1 − low, 1 + high)·A) with ρ = π/π_old (PPO, arXiv:1707.06347, eq. 7).

    For tokens (PPO, GRPO, REINFORCE++), for whole completions (RLOO: give sums of log-probabilities, `spread_sum`), and
    for completions by length (GSPO: give `per_length`).

    Args:
        logps: The policy's, as it is now: [N].
        old_logps: Its log-probabilities before the first update of the step, [N].
        advantages: [N]
        low: ε below 1.
        high: ε above 1; a larger one than `low` is DAPO's "clip higher" (arXiv:2503.14476).
        dual: Where A is below 0, the loss is no more than −dual·A, with a number above 1 (arXiv:1912.09729, eq. 5):
            otherwise nothing bounds the gradient of a bad token that has become much more probable. None leaves it.

    Raises:
        ValueError: `dual` is not above 1.

    """
    if dual is not None and dual <= 1:
        raise ValueError(f"dual has to be above 1, not {dual}")
    ratio, gain = ratio_of(logps, old_logps), advantages.detach()
    loss = -torch.min(ratio * gain, ratio.clamp(1 - low, 1 + high) * gain)
    clipped = ((gain > 0) & (ratio > 1 + high)) | ((gain < 0) & (ratio < 1 - low))
    if dual is not None:
        beyond = (gain < 0) & (ratio > dual)
        loss = torch.where(beyond, -dual * gain, loss)
        clipped = clipped | beyond
    return Surrogate(loss, clipped, ratio.detach())


def per_length(logps: Tensor, lengths: Tensor) -> Tensor:
    """Mean log-probability of each completion's tokens: [T] to [C].

    The ratio of two of them is GSPO's, exp(1/|y| · Σ log π/π_old) (arXiv:2507.18071, eq. 7). It differs from 1 by much
    less than a ratio of tokens does: its bounds are about 3·10⁻⁴, not 0.2.
    """
    return spread_sum(logps, lengths) / lengths


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """½·max((V − R)², (clip(V, V_old ± clip) − R)²), [T]: a value that has moved far has no gradient further out.

    As in OpenAI's code (arXiv:2403.17031 lists the details).
    """
    target, before = returns.detach(), old_values.detach()
    bounded = before + (values - before).clamp(-clip, clip)
    return torch.max((values - target).square(), (bounded - target).square()) / 2


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 − Var(R − V)/Var(R), of any shape: 1 is a perfect value network, 0 one as good as a constant, below 0 worse.

    Not a number where returns do not vary: there is nothing to explain.
    """
    exact = returns.detach().double()
    total = exact.var(correction=0).item() if exact.numel() else 0.0
    if total == 0:
        return math.nan
    return 1 - (exact - values.detach().double()).var(correction=0).item() / total


def importance_weights(logps: Tensor, sampler_logps: Tensor, lengths: Tensor, mode: Correction, cap: float) -> Tensor:
    """Weights of tokens, [T], that correct for a sampler with other numbers than the trainer; constants.

    A sampler's kernels, precision or slightly older weights give it another distribution q than the p that the trainer
    computes for the same weights. A mean under q, weighted with p/q, is the mean under p; the cap trades a little bias
    for bounded variance (truncated importance sampling, Ionides 2008).

    Args:
        logps: The trainer's, of the sampled tokens, before it learns from them: [T].
        sampler_logps: The sampler's, at its temperature: [T].
        lengths: [C]
        mode: `token` weighs each token by its own ratio, which leaves the change in what came before it out: little
            variance, some bias. `sequence` weighs all of a completion's tokens by the ratio of the whole completion:
            exact but for the cap. `mask` does so too, but leaves a completion beyond the cap out (weight 0).
        cap: Largest weight; infinity never cuts.

    """
    d = (logps - sampler_logps).detach()
    if mode != "token":
        d = spread(spread_sum(d, lengths), lengths)
    ratio = d.exp()
    match mode:
        case "token" | "sequence":
            return ratio.clamp(max=cap)
        case "mask":
            return ratio.masked_fill(ratio > cap, 0.0)
        case _:
            assert_never(mode)


def effective_sample_size(weights: Tensor) -> float:
    """(Σw)²/(n·Σw²), of any shape: the share of n samples that they are worth; 1 for equal weights, 0 for none."""
    exact = weights.detach().double()
    squares = exact.square().sum().item()
    return exact.sum().item() ** 2 / (exact.numel() * squares) if squares > 0 else 0.0


class Mismatch(NamedTuple):
    """How far the sampler's log-probabilities are from the trainer's, in nats per token."""

    mean: float
    """Of the absolute differences."""
    largest: float
    """Absolute difference."""
    kl: float
    """KL(sampler ‖ trainer), estimated by k3 from the sampler's tokens; never below 0."""


def mismatch(logps: Tensor, sampler_logps: Tensor) -> Mismatch:
    """Compare the trainer's log-probabilities of sampled tokens with the sampler's: one shape, not empty."""
    d = (logps - sampler_logps).detach().double()
    return Mismatch(d.abs().mean().item(), d.abs().max().item(), k3(-d).mean().item())


def loss_weights(
    lengths: Tensor, mode: Per, limit: int, *, completions: float | None = None, tokens: float | None = None
) -> Tensor:
    """The weight of each token's loss, [T]; the loss of a step is the weighted sum.

    Args:
        lengths: [C]
        mode: `token`: every token of the step alike, 1/T (DAPO, arXiv:2503.14476, eq. 8), so that long completions
            count more. `sequence`: the mean over each completion's tokens, then over completions, 1/(C·|y|) (GRPO,
            arXiv:2402.03300, eq. 3), so that a token of a long completion counts less. `constant`: 1/(C·limit), which
            depends on no length at all (Dr. GRPO, arXiv:2503.20783); it alone does not add up to 1.
        limit: Most tokens that a completion may have; read by `constant` alone.
        completions: C, where `lengths` are only a part of the step's (a micro-batch, one process of several).
        tokens: T, likewise.

    """
    count = len(lengths) if completions is None else completions
    match mode:
        case "token":
            weights = torch.ones_like(lengths, dtype=torch.float32) / (int(lengths.sum()) if tokens is None else tokens)
        case "sequence":
            weights = 1 / (count * lengths.float())
        case "constant":
            weights = torch.ones_like(lengths, dtype=torch.float32) / (count * limit)
        case _:
            assert_never(mode)
    return spread(weights, lengths)


class PairwiseLoss(NamedTuple):
    """P3O's loss of P pairs."""

    loss: Tensor
    """[P], before any mean."""
    clipped: Tensor
    """[P] of bool: the bound was in force; with `separate`, for one of the two at least."""


def p3o(logps: Tensor, old_logps: Tensor, rewards: Tensor, clip: float, variant: Variant) -> PairwiseLoss:
    """The clipped pairwise loss; see the module for its derivation.

    Args:
        logps: The policy's log-probabilities of whole responses, summed over tokens, as it is now: [P, 2].
        old_logps: The same before the first update of the step, [P, 2].
        rewards: Of whole responses, the KL penalty taken off: [P, 2].
        clip: ε above.
        variant: `separate` is the paper's V1, `joint` its V2.

    """
    half = (rewards[:, 0] - rewards[:, 1]).detach() / 2
    match variant:
        case "separate":
            other_ratio = ratio_of(logps, old_logps).flip(1).clamp(max=1 + clip)
            gains = torch.stack([half, -half], dim=1) * other_ratio
            loss, clipped, _ = clipped_surrogate(logps, old_logps, gains, clip, clip)  # holds the gains constant
            return PairwiseLoss(loss.sum(1), clipped.any(1))
        case "joint":
            log_ratios = logps - old_logps.detach()
            weight = ratio_of(log_ratios.sum(1), torch.zeros_like(half)).detach().clamp(max=1 + clip)
            difference, bound = log_ratios[:, 0] - log_ratios[:, 1], math.log1p(clip)
            loss = -weight * torch.min(half * difference, half * difference.clamp(-bound, bound))
            return PairwiseLoss(loss, half.sign() * difference.detach() > bound)
        case _:
            assert_never(variant)


class Pairs(NamedTuple):
    """Pairs of completions of one prompt."""

    indices: Tensor
    """[P, 2] of whole numbers: which completions."""
    weights: Tensor
    """[P], which add up to 1: every prompt with a pair counts alike, and so does every pair of a prompt."""


def pairs_of(groups: Tensor) -> Pairs:
    """All pairs of completions within each group; the smaller index first, groups in the order of their number.

    The weighted sum of unclipped P3O losses of all n·(n − 1)/2 pairs has RLOO's gradient for n samples.

    Args:
        groups: [C] of whole numbers; a group of one has no pair.

    """
    all_pairs: list[tuple[int, int]] = []
    weights: list[float] = []
    comparable = [members for members in _members(groups) if len(members) > 1]
    for members in comparable:
        pairs = list(combinations(members, 2))
        all_pairs += pairs
        weights += [1 / (len(comparable) * len(pairs))] * len(pairs)
    indices = torch.tensor(all_pairs, dtype=torch.long, device=groups.device).reshape(-1, 2)
    return Pairs(indices, torch.tensor(weights, dtype=torch.float32, device=groups.device))


def best_and_worst(scores: Tensor, groups: Tensor) -> Tensor:
    """The best and the worst completion of every group, [G, 2] of whole numbers: online DPO's chosen and rejected.

    For two samples this is arXiv:2402.04792. Groups come in the order of their number; of several best (or worst)
    completions the first counts. A group whose scores are all equal, or of one, is left out: a tie is no preference.

    Args:
        scores: [C]
        groups: [C]

    """
    values = scores.tolist()
    pairs = []
    for members in _members(groups):
        best, worst = max(members, key=values.__getitem__), min(members, key=values.__getitem__)
        if values[best] > values[worst]:
            pairs.append((best, worst))
    return torch.tensor(pairs, dtype=torch.long, device=scores.device).reshape(-1, 2)


def _members(groups: Tensor) -> list[list[int]]:
    """The completions of each group, in order."""
    members: dict[int, list[int]] = {}
    for at, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(at)
    return [members[group] for group in sorted(members)]


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
