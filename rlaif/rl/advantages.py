"""Advantages from rewards, and estimates of the KL divergence that rewards and losses are penalised with.

Data is flat. Arrays of tokens, [T], hold all completions one after another, and `lengths`, [C] of whole numbers above
0, has the number of tokens of each; arrays of completions are [C]. `groups`, [C] of whole numbers, is the same for
completions of one prompt; they need not stand together, nor groups be of one size.

Advantages are constants to a loss, and the losses detach them. Everything is float32 in and out, adds up in a fixed
order (so that a run repeats itself) and leaves its arguments unchanged.

Methods that compare the completions of a prompt (`rloo`, `grpo`, `reinforce_pp_baseline`) have no baseline for a
completion that is alone in its group: its advantage is 0, and `usable` marks the others. Where all scores of a group
are the same, its advantages are exactly 0, without a rounding error for a small deviation to blow up.

KL estimators. Of a token y that was sampled from the policy, d = log π(y) − log ref(y). Three estimators of
KL(π ‖ ref) read nothing else (Schulman 2020, http://joschu.net/blog/kl-approx.html):

| name | value         | range       | expectation under π       | noise                                  |
|------|---------------|-------------|---------------------------|----------------------------------------|
| k1   | d             | any sign    | KL, exactly               | large: single tokens are often below 0 |
| k2   | d²/2          | 0 and above | biased, by O(d³)          | small                                  |
| k3   | e^(−d) − 1 + d | 0 and above | KL, exactly               | small, heavy tail where d is far below 0 |

A good number to report is not a good loss. The gradient of KL(π ‖ ref) is E_π[d · ∇log π]: the score function's other
half, E_π[∇log π], is 0. Hence, with y from the policy itself:

- in the **reward** (a constant that the policy gradient multiplies by ∇log π) k1 is right: it gives exactly
  E_π[d · ∇log π]. k2 and k3 there give the gradient of something else.
- in the **loss** (differentiated itself) k2 is right: ∇k2 = d · ∇log π, the same. k1 there has the gradient ∇log π, of
  mean 0: noise without any pull. k3 there has (1 − e^(−d)) · ∇log π, the gradient of the reverse divergence,
  KL(ref ‖ π): the same to first order near the reference; far from it weaker on what the policy has made more
  probable, and far stronger on what it has made less so.

For samples of slightly older weights, with ρ = π/π_old: E_old[∇(ρ · k)] = ∇E_π[k] for the unbiased k1 and k3, with the
gradient of ρ too (`losses.ratio_of`; arXiv:2512.02556 does so with k3); k2 takes ρ as a constant factor.

For texts of many tokens, k2 per token in the loss penalises the effect of each token on its own divergence only; k1 in
the reward with returns to go also penalises its effect on the divergence of the tokens after it. The two are the same
gradient only for the log-probabilities of whole completions (or of one token); the tests enumerate both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, assert_never

import torch
from torch import Tensor

from rlaif.errors import ModelError

GROUP_EPS = 1e-4
"""Added to a deviation of scores, as in TRL: scores that differ by mere rounding get small advantages, not ±1."""
WHITEN_EPS = 1e-8
"""Added to a variance before its root is taken."""

Scale = Literal["group", "batch", "none"]
"""What GRPO divides by."""
Kind = Literal["k1", "k2", "k3"]
"""An estimator of the divergence."""
_FAR = 60.0
"""Nats: e^60 is still a float32 number, and so are its sums."""


def spread(per_completion: Tensor, lengths: Tensor) -> Tensor:
    """A value per completion, [C], to each of its tokens, [T]."""
    return per_completion.repeat_interleave(lengths)


def padded(per_token: Tensor, lengths: Tensor) -> Tensor:
    """A value per token, [T], as a table [C, longest] that is filled up with 0 on the right; gradients pass.

    Raises:
        ValueError: A completion has no token, or `lengths` do not add up to T.

    """
    if lengths.numel() and int(lengths.min()) < 1:
        raise ValueError("every completion needs a token")
    if int(lengths.sum()) != per_token.numel():
        raise ValueError(f"the lengths add up to {int(lengths.sum())}, but there are {per_token.numel()} tokens")
    table = per_token.new_zeros(lengths.numel(), int(lengths.max()) if lengths.numel() else 0)
    return table.masked_scatter(_inside(table, lengths), per_token)


def _inside(table: Tensor, lengths: Tensor) -> Tensor:
    """Which places of a table [C, longest] are tokens."""
    return torch.arange(table.shape[1], device=table.device) < lengths[:, None]


def spread_sum(per_token: Tensor, lengths: Tensor) -> Tensor:
    """The sum over each completion's tokens: [T] to [C]; gradients pass. For instance, log-probabilities of texts."""
    return padded(per_token, lengths).sum(1)


def token_rewards(scores: Tensor, kl: Tensor, lengths: Tensor, beta: float) -> Tensor:
    """Reward of every token, [T]: −β·kl at each, and the completion's score at its last one (arXiv:1909.08593)."""
    last = lengths.cumsum(0) - 1
    return (-beta * kl).index_add(0, last, scores)


def penalised(scores: Tensor, kl: Tensor, lengths: Tensor, beta: float) -> Tensor:
    """Reward of every completion, [C]: its score less β times the sum of its tokens' kl, [T]. For RLOO and P3O."""
    return scores - beta * spread_sum(kl, lengths)


class Gae(NamedTuple):
    """Advantages and returns, for PPO."""

    advantages: Tensor
    """[T]"""
    returns: Tensor
    """[T], the targets of the value network: advantage plus value."""


def gae(rewards: Tensor, values: Tensor, lengths: Tensor, gamma: float, lam: float) -> Gae:
    """Generalised advantage estimation (arXiv:1506.02438, eq. 16), of every completion on its own.

    δ_t = r_t + γ·V_{t+1} − V_t and A_t = δ_t + γλ·A_{t+1}; after the last token both V and A are 0, as a completion's
    end, by itself or at the limit, is the end of its episode.

    Args:
        rewards: [T]
        values: [T], of the states in which the tokens were chosen.
        lengths: [C]
        gamma: Discount a token.
        lam: λ: 1 trusts the returns, 0 the values.

    """
    table = padded(values, lengths)
    following = torch.cat([table[:, 1:], table.new_zeros(len(table), 1)], dim=1)
    deltas = padded(rewards, lengths) + gamma * following - table
    advantages = _discounted(deltas, gamma * lam)[_inside(table, lengths)]
    return Gae(advantages, advantages + values)


def returns_to_go(rewards: Tensor, lengths: Tensor, gamma: float) -> Tensor:
    """Of every token, [T], the rewards from it to the end of its completion; each later token counts γ times less."""
    table = padded(rewards, lengths)
    return _discounted(table, gamma)[_inside(table, lengths)]


def _discounted(table: Tensor, factor: float) -> Tensor:
    """S_t = x_t + factor · S_{t+1} along each row; rows are filled up with 0, so that ends need no care."""
    sums = [table.new_zeros(len(table))]
    for column in reversed(table.unbind(1)):
        sums.append(column + factor * sums[-1])
    return torch.stack(sums[:0:-1], dim=1) if len(sums) > 1 else table


class Moments(NamedTuple):
    """Mean and variance."""

    mean: float
    variance: float


def totals(values: Tensor) -> Tensor:
    """Count, sum and sum of squares: [3] of float64, to be added up over processes and given to `moments`."""
    exact = values.detach().to(torch.float64)
    return torch.stack([exact.new_tensor(exact.numel()), exact.sum(), exact.square().sum()])


def moments(added: Tensor, *, unbiased: bool = False) -> Moments:
    """Mean and variance from the three numbers of `totals`; with `unbiased`, the variance is divided by count − 1.

    Of nothing both are 0, and so is the unbiased variance of one value.
    """
    count, total, squares = added.tolist()
    if count <= 0:
        return Moments(0.0, 0.0)
    mean = total / count
    divisor = count - 1 if unbiased else count
    variance = max(squares - total * mean, 0.0) / divisor if divisor > 0 else 0.0
    return Moments(mean, variance)


def whiten(values: Tensor, over: Moments) -> Tensor:
    """Values of any shape brought to mean 0 and variance 1, by the mean and (biased) variance of all processes."""
    return (values - over.mean) / math.sqrt(over.variance + WHITEN_EPS)


class _Groups(NamedTuple):
    """Groups with numbers from 0 without gaps."""

    of: Tensor
    """[C], which group a completion is in."""
    order: Tensor
    """[C], completions sorted by group, in their order within it."""
    counts: Tensor
    """[G]"""
    size: Tensor
    """[C], how many completions a completion's group has, itself included."""

    def shifted(self, scores: Tensor) -> Tensor:
        """Scores less the first of their group: no difference to a baseline, and equal scores become exactly 0."""
        first = self.order[self.counts.cumsum(0) - self.counts]
        return scores - scores[first][self.of]

    def sum(self, values: Tensor) -> Tensor:
        """[C], the sum over each completion's group."""
        return spread_sum(values[self.order], self.counts)[self.of]


def _grouped(groups: Tensor) -> _Groups:
    _, of, counts = torch.unique(groups, return_inverse=True, return_counts=True)
    return _Groups(of, torch.argsort(of, stable=True), counts, counts[of])


def usable(groups: Tensor) -> Tensor:
    """Which completions have another one of their group to be compared with: [C] of bool."""
    return _grouped(groups).size > 1


def rloo(scores: Tensor, groups: Tensor) -> Tensor:
    """Score less the mean score of the *other* completions of the group, [C] (RLOO, arXiv:2402.14740).

    `scores` are whole rewards: subtract the KL penalty first (`penalised`).
    """
    by_group = _grouped(groups)
    shifted = by_group.shifted(scores)
    return shifted - (by_group.sum(shifted) - shifted) / (by_group.size - 1).clamp(min=1)


def grpo(scores: Tensor, groups: Tensor, scale: Scale = "group", over: Moments | None = None) -> Tensor:
    """Score less the mean score of the group, over a deviation, [C] (GRPO, arXiv:2402.03300).

    A constant added to all scores of a prompt changes nothing under `group` and `none`; under `batch` it changes the
    deviation.

    `scale`: `group` divides by the deviation of the group's scores (the paper), `batch` by that of all scores
    (arXiv:2508.08221), `none` not at all (Dr. GRPO, arXiv:2503.20783). Deviations have n − 1 in the divisor, and
    `GROUP_EPS` is added to them. `over`: under `batch`, the unbiased ones of the scores of all processes; none takes
    those of `scores`.
    """
    by_group = _grouped(groups)
    shifted = by_group.shifted(scores)
    centered = shifted - by_group.sum(shifted) / by_group.size
    if scale == "group":
        deviation = (by_group.sum(centered.square()) / (by_group.size - 1).clamp(min=1)).sqrt()
        return centered / (deviation + GROUP_EPS)
    if scale == "batch":
        batch = over or moments(totals(scores), unbiased=True)
        return centered / (math.sqrt(batch.variance) + GROUP_EPS)
    return centered


def reinforce_pp(scores: Tensor, kl: Tensor, lengths: Tensor, beta: float, gamma: float = 1.0) -> Tensor:
    """Of every token, [T], the return from it on: score less β times the kl still to come (arXiv:2501.03262).

    It has no baseline: whiten the result over the tokens of all processes.
    """
    return returns_to_go(token_rewards(scores, kl, lengths, beta), lengths, gamma)


def reinforce_pp_baseline(
    scores: Tensor, groups: Tensor, kl: Tensor, lengths: Tensor, beta: float, gamma: float = 1.0
) -> Tensor:
    """`reinforce_pp` after the mean score of the group was taken off, [T] (REINFORCE++-baseline, arXiv:2501.03262).

    The paper puts the divergence into the loss (k2), which is β = 0 here. With β above 0, equal scores of a group
    leave the KL penalty alone. Tokens of completions that are not `usable` get 0: leave them out when whitening.
    """
    returns = reinforce_pp(grpo(scores, groups, "none"), kl, lengths, beta, gamma)
    return torch.where(spread(usable(groups), lengths), returns, torch.zeros_like(returns))


def overlong_penalty(lengths: Tensor, limit: int, buffer: int) -> Tensor:
    """Penalty for length, added to a score, [C]: 0 up to `limit − buffer` tokens, falling evenly to −1 at `limit`.

    DAPO's soft overlong punishment, arXiv:2503.14476, eq. 13.

    Raises:
        ValueError: `buffer` is not between 1 and `limit`.

    """
    if not 1 <= buffer <= limit:
        raise ValueError(f"the buffer has to be between 1 and the limit of {limit} tokens, not {buffer}")
    return -((lengths - (limit - buffer)) / buffer).clamp(0, 1)


def k1(d: Tensor) -> Tensor:
    """d itself, of any shape: unbiased, of either sign; the one for the reward."""
    return d


def k2(d: Tensor) -> Tensor:
    """d²/2, of any shape: biased as a number, with the right gradient as a loss."""
    return d.square() / 2


def k3(d: Tensor) -> Tensor:
    """e^(−d) − 1 + d, of any shape: unbiased and never below 0, biased as a loss.

    d below −60 counts as −60, without a gradient: e^88 would be infinite, and its gradient not a number.
    """
    bounded = d.clamp(min=-_FAR)
    return (torch.expm1(-bounded) + bounded).clamp(min=0)  # rounding near d = 0 can fall below 0


def estimate(kind: Kind, logps: Tensor, ref_logps: Tensor, clamp: float | None = 10.0) -> Tensor:
    """Nats a token (or a completion, where sums of log-probabilities are given), of the shape of `logps`.

    Args:
        kind: Which estimator; see the module for which one belongs where.
        logps: The policy's log-probabilities of what it sampled, any shape.
        ref_logps: The reference's, of the same tokens; no gradient goes to them.
        clamp: Bounds the effect of one outlier token. k1 is clipped to it on either side. k2 and k3, which are losses,
            continue as straight lines: k2 from where it has this value, k3 from where it has this slope (Huber); as
            clipped values, the farthest tokens would have no gradient back. None bounds none of the three.

    """
    d = logps - ref_logps.detach()
    match kind:
        case "k1":
            return k1(d) if clamp is None else k1(d).clamp(-clamp, clamp)
        case "k2":
            reach = math.inf if clamp is None else math.sqrt(2 * clamp)
            near = d.clamp(-reach, reach)
            return k2(near) + near.detach() * (d - near)
        case "k3":
            near = d.clamp(min=-_FAR if clamp is None else -math.log1p(clamp))
            return k3(near) - (0.0 if clamp is None else torch.expm1(-near.detach()) * (d - near))
        case _:
            assert_never(kind)


@dataclass(frozen=True, slots=True)
class AdaptiveKl:
    """A KL coefficient that rises while the policy is too far from the reference, and falls while it is too near.

    Ziegler et al. 2019 (arXiv:1909.08593), section 2.2: e = clip(KL/target − 1, ±0.2), β ← β·(1 + K·e). Their code has
    K = n/horizon, for n responses since the last change; so does this. `beta` alone changes: save this one number, and
    resume with `replace(adaptive, beta=saved)`.
    """

    beta: float
    """Reward per nat."""
    target: float
    """Nats a response."""
    horizon: float
    """Responses over which β grows or falls by about 20 % at most."""

    def __post_init__(self) -> None:
        for name in ("beta", "target", "horizon"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} has to be a number above 0, not {getattr(self, name)}")

    def after(self, kl: float, responses: int) -> AdaptiveKl:
        """The coefficient after `responses` responses with a mean divergence of `kl` nats a response (not a token).

        Raises:
            ModelError: `kl` is not a number: the policy or its reference is broken.

        """
        if not math.isfinite(kl):
            raise ModelError(f"the divergence from the reference is {kl}: no price of it can be found")
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        # Five horizons of responses at once would make the factor, and so β, 0 or negative for good.
        factor = max(1 + error * responses / self.horizon, 0.1)
        return replace(self, beta=self.beta * factor)
