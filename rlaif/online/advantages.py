"""From scores to advantages: how much better than expected every token or completion was.

Data is flat. Arrays of tokens, [T], hold all completions one after another, and `lengths`, [C] of whole numbers above
0, says how many tokens each has; arrays of completions are [C]. `groups`, [C] of whole numbers, is the same for
completions of one prompt; they need not stand together, nor groups be of one size.

Advantages are constants to a loss, and the losses detach them. Everything is float32 in and out, adds up in a fixed
order (so that a run repeats itself) and leaves its arguments alone.

Methods that compare the completions of a prompt (`rloo`, `grpo`, `reinforce_pp_baseline`) know no
baseline for a completion whose group has lost all others: its advantage is 0, and `usable` tells which those are. Where
all scores of a group are the same, its advantages are exactly 0, with no rounding left over to be divided by.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

GROUP_EPS = 1e-4
"""Added to a deviation of scores, as in TRL: scores that differ by mere rounding get small advantages, not ±1."""
WHITEN_EPS = 1e-8
"""Added to a variance before its root is taken."""

Scale = Literal["group", "batch", "none"]
"""What GRPO divides by."""


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
    """What PPO learns from."""

    advantages: Tensor
    """[T]"""
    returns: Tensor
    """[T], what the value network should have said: advantage plus value."""


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
    """Mean and variance of some values."""

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

    Scores are whole rewards: take the divergence off first (`penalised`).
    """
    known = _grouped(groups)
    ours = known.shifted(scores)
    return ours - (known.sum(ours) - ours) / (known.size - 1).clamp(min=1)


def grpo(scores: Tensor, groups: Tensor, scale: Scale = "group", over: Moments | None = None) -> Tensor:
    """Score less the mean score of the group, over a deviation, [C] (GRPO, arXiv:2402.03300).

    A constant added to all scores of a prompt changes nothing under `group` and `none`; under `batch` it changes the
    deviation.

    `scale`: `group` divides by the deviation of the group's scores (the paper), `batch` by that of all scores
    (arXiv:2508.08221), `none` not at all (Dr. GRPO, arXiv:2503.20783). Deviations have n − 1 in the divisor, and
    `GROUP_EPS` is added to them. `over`: under `batch`, the unbiased ones of the scores of all processes; none takes
    those of `scores`.
    """
    known = _grouped(groups)
    ours = known.shifted(scores)
    centred = ours - known.sum(ours) / known.size
    if scale == "group":
        deviation = (known.sum(centred.square()) / (known.size - 1).clamp(min=1)).sqrt()
        return centred / (deviation + GROUP_EPS)
    if scale == "batch":
        every = over or moments(totals(scores), unbiased=True)
        return centred / (math.sqrt(every.variance) + GROUP_EPS)
    return centred


def reinforce_pp(scores: Tensor, kl: Tensor, lengths: Tensor, beta: float, gamma: float = 1.0) -> Tensor:
    """Of every token, [T], the return from it on: score less β times the kl still to come (arXiv:2501.03262).

    There is no baseline in it: whiten the result over the tokens of all processes.
    """
    return returns_to_go(token_rewards(scores, kl, lengths, beta), lengths, gamma)


def reinforce_pp_baseline(
    scores: Tensor, groups: Tensor, kl: Tensor, lengths: Tensor, beta: float, gamma: float = 1.0
) -> Tensor:
    """`reinforce_pp` after the mean score of the group was taken off, [T] (REINFORCE++-baseline, arXiv:2501.03262).

    The paper puts the divergence into the loss (k2), which is β = 0 here. With β above 0, equal scores of a group
    leave the penalty. Tokens of completions that are not `usable` get 0: leave them out when whitening.
    """
    returns = reinforce_pp(grpo(scores, groups, "none"), kl, lengths, beta, gamma)
    return torch.where(spread(usable(groups), lengths), returns, torch.zeros_like(returns))


def overlong_penalty(lengths: Tensor, limit: int, buffer: int) -> Tensor:
    """What is added to a score for length, [C]: 0 up to `limit − buffer` tokens, falling evenly to −1 at `limit`.

    DAPO's soft overlong punishment, arXiv:2503.14476, eq. 13.

    Raises:
        ValueError: `buffer` is not between 1 and `limit`.

    """
    if not 1 <= buffer <= limit:
        raise ValueError(f"the buffer has to be between 1 and the limit of {limit} tokens, not {buffer}")
    return -((lengths - (limit - buffer)) / buffer).clamp(0, 1)
