"""P3O, pairwise proximal policy optimisation (Wu et al. 2023, arXiv:2310.00212), and pairs for online DPO.

The gradient. Let y1, y2 be two independent answers of π to one prompt, r1 and r2 their rewards. As E[∇log π(y)] = 0
and y1 says nothing about y2, the policy gradient ∇E[r] is E[(r1 − r2)·∇log π(y1)], and as well
E[(r2 − r1)·∇log π(y2)]. Their mean is the paper's pairwise policy gradient:

    ∇E[r] = E[ (r1 − r2) · ∇(log π(y1) − log π(y2)) / 2 ]

It reads only the difference of two rewards of one prompt: no value network is needed, and r + δ(prompt) is the same
as r. Rewards are of whole answers, r_i = score_i − β·log(π_old(y_i)/ref(y_i)) (`advantages.penalised`), constants in a
step. On the policy's own samples this is RLOO with two samples; P3O adds what follows, for pairs from an older π_old.

The clips. What the paper writes for its two clipped versions could not be read as text: they are derived anew, from its
words (V1 clips separately, V2 jointly) and from PPO. With ρ_i = π(y_i)/π_old(y_i), ratios of whole answers, and
D = (r1 − r2)/2, the gradient above is, as a mean over π_old,

    E_old[ ρ1·ρ2 · D · ∇(log π(y1) − log π(y2)) ]  =  E_old[ D·ρ2·∇ρ1 − D·ρ1·∇ρ2 ]

which is no gradient of one function of ρ1 and ρ2 (∂ρ2/∂ρ2 = 1, but ∂(−ρ1)/∂ρ1 = −1). So a ratio that is a mere weight
is held constant, written [·], and what is maximised is

- `separate` (V1): PPO's surrogate for each answer, with the advantages D·[ρ2] and −D·[ρ1]:
  min(ρ1·D[ρ2], clip(ρ1, 1 ± ε)·D[ρ2]) + min(−ρ2·D[ρ1], −clip(ρ2, 1 ± ε)·D[ρ1]).
- `joint` (V2): the gradient pulls u = log ρ1 − log ρ2 apart, so that is clipped:
  min([ρ1ρ2]·D·u, [ρ1ρ2]·D·clip(u, ±log(1 + ε))).
  The bounds are alike on both sides, as swapping y1 and y2 turns u round and must change nothing.

Both are pessimistic as PPO is: the gradient ends where a pair has gone far enough in the direction that its rewards
favour, and goes on where it has gone the wrong way. Weights [·] are cut at 1 + ε from above (truncated importance
sampling, our addition), as ratios of whole answers have no bound otherwise. Until a bound is reached both have exactly
the gradient above. The loss is 0 on the policy's own samples, whatever the rewards: only its gradient tells something.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Literal, NamedTuple, assert_never

import torch
from torch import Tensor

from rlaif.online.losses import clipped_surrogate, ratio_of

Variant = Literal["separate", "joint"]
"""Which of the two clips."""


class PairwiseLoss(NamedTuple):
    """P3O's loss of P pairs."""

    loss: Tensor
    """[P], before any mean."""
    clipped: Tensor
    """[P] of bool: the bound was in force; with `separate`, for one of the two at least."""


def p3o(logps: Tensor, old_logps: Tensor, rewards: Tensor, clip: float, variant: Variant) -> PairwiseLoss:
    """The clipped pairwise loss; see the module for its derivation.

    Args:
        logps: The policy's log-probabilities of whole answers, summed over tokens, as it is now: [P, 2].
        old_logps: The same when the answers were taken up, [P, 2].
        rewards: Of whole answers, the divergence's price taken off: [P, 2].
        clip: ε above.
        variant: `separate` is the paper's V1, `joint` its V2.

    """
    half = (rewards[:, 0] - rewards[:, 1]).detach() / 2
    match variant:
        case "separate":
            return _separate(logps, old_logps, half, clip)
        case "joint":
            return _joint(logps, old_logps, half, clip)
        case _:
            assert_never(variant)


def _separate(logps: Tensor, old_logps: Tensor, half: Tensor, clip: float) -> PairwiseLoss:
    other = ratio_of(logps, old_logps).flip(1).clamp(max=1 + clip)
    gains = torch.stack([half, -half], dim=1) * other
    loss, clipped, _ = clipped_surrogate(logps, old_logps, gains, clip, clip)  # holds the gains constant
    return PairwiseLoss(loss.sum(1), clipped.any(1))


def _joint(logps: Tensor, old_logps: Tensor, half: Tensor, clip: float) -> PairwiseLoss:
    moved = logps - old_logps.detach()
    weight = ratio_of(moved.sum(1), torch.zeros_like(half)).detach().clamp(max=1 + clip)
    apart, bound = moved[:, 0] - moved[:, 1], math.log1p(clip)
    loss = -weight * torch.min(half * apart, half * apart.clamp(-bound, bound))
    return PairwiseLoss(loss, half.sign() * apart.detach() > bound)


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
    found: list[tuple[int, int]] = []
    weights: list[float] = []
    comparable = [members for members in _members(groups) if len(members) > 1]
    for members in comparable:
        pairs = list(combinations(members, 2))
        found += pairs
        weights += [1 / (len(comparable) * len(pairs))] * len(pairs)
    indices = torch.tensor(found, dtype=torch.long, device=groups.device).reshape(-1, 2)
    return Pairs(indices, torch.tensor(weights, dtype=torch.float32, device=groups.device))


def best_and_worst(scores: Tensor, groups: Tensor) -> Tensor:
    """The best and the worst completion of every group, [G, 2] of whole numbers: online DPO's chosen and rejected.

    For two samples this is arXiv:2402.04792. Groups come in the order of their number; of several best (or worst)
    completions the first counts. A group whose scores are all equal, or of one, is left out: a tie is no preference.

    Args:
        scores: [C]
        groups: [C]

    """
    known = scores.tolist()
    found = []
    for members in _members(groups):
        best, worst = max(members, key=known.__getitem__), min(members, key=known.__getitem__)
        if known[best] > known[worst]:
            found.append((best, worst))
    return torch.tensor(found, dtype=torch.long, device=scores.device).reshape(-1, 2)


def _members(groups: Tensor) -> list[list[int]]:
    """The completions of each group, in order."""
    found: dict[int, list[int]] = {}
    for at, group in enumerate(groups.tolist()):
        found.setdefault(group, []).append(at)
    return [found[group] for group in sorted(found)]
