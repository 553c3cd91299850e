"""How far the policy is from its reference: estimates from sampled tokens, and a price that steers itself.

Of a token y that was sampled from the policy, d = log π(y) − log ref(y). Three estimators of KL(π ‖ ref) read nothing
else (Schulman 2020, http://joschu.net/blog/kl-approx.html):

| name | value         | range       | expectation under π       | noise                                  |
|------|---------------|-------------|---------------------------|----------------------------------------|
| k1   | d             | any sign    | KL, exactly               | large: single tokens are often below 0 |
| k2   | d²/2          | 0 and above | biased, by O(d³)          | small                                  |
| k3   | e^(−d) − 1 + d | 0 and above | KL, exactly               | small, heavy tail where d is far below 0 |

What is good for reporting is not what is good for learning. The gradient of KL(π ‖ ref) is E_π[d · ∇log π]: the score
function's other half, E_π[∇log π], is 0. Hence, with y from the policy itself:

- in the **reward** (taken off it as a constant, the policy gradient multiplies it by ∇log π) k1 is right: it gives
  exactly E_π[d · ∇log π]. k2 and k3 there give the gradient of something else.
- in the **loss** (differentiated itself) k2 is right: ∇k2 = d · ∇log π, the same. k1 there has the gradient ∇log π, of
  mean 0: noise without any pull. k3 there has (1 − e^(−d)) · ∇log π, the gradient of the divergence the other way
  round, KL(ref ‖ π): the same to first order near the reference; far from it weaker on what the policy has made more
  probable, and far stronger on what it has made less so.

For samples of slightly older weights, with ρ = π/π_old: E_old[∇(ρ · k)] = ∇E_π[k] for the unbiased k1 and k3, with the
gradient of ρ too (`losses.ratio_of`; arXiv:2512.02556 does so with k3); k2 takes ρ as a constant factor.

One caveat for texts of many tokens: a loss of k2 per token prices what each token does to its own divergence; k1 in the
reward with returns to go also prices what it does to the divergence of the tokens after it. The two are the same
gradient only for the log-probabilities of whole completions (or of one token); the tests enumerate both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, assert_never

import torch
from torch import Tensor

from rlaif.errors import ModelError

Kind = Literal["k1", "k2", "k3"]
"""An estimator of the divergence."""

_FAR = 60.0
"""Nats: e^60 is still a float32 number, and so are its sums."""


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
        clamp: So that one strange token does not rule a batch. k1 is cut to this on either side. k2 and k3, which are
            losses, go on as straight lines: k2 from where it has this value, k3 from where it has this slope (Huber).
            Cut as values, the farthest tokens would have no gradient, and never be pulled back. None leaves all three.

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
    """A price of divergence that rises while the policy is too far from the reference, and falls while it is too near.

    Ziegler et al. 2019 (arXiv:1909.08593), section 2.2: e = clip(KL/target − 1, ±0.2), β ← β·(1 + K·e). Their code has
    K = n/horizon, for n answers seen since the last change; so does this. All that changes is `beta`: save this one
    number, and go on with `replace(adaptive, beta=saved)`.
    """

    beta: float
    """Reward per nat."""
    target: float
    """Nats an answer."""
    horizon: float
    """Answers in which β grows or falls by about 20 % at most."""

    def __post_init__(self) -> None:
        for name in ("beta", "target", "horizon"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} has to be a number above 0, not {getattr(self, name)}")

    def after(self, kl: float, answers: int) -> AdaptiveKl:
        """The price after so many answers with a mean divergence of `kl` nats an answer (not a token).

        Raises:
            ModelError: `kl` is not a number: the policy or its reference is broken.

        """
        if not math.isfinite(kl):
            raise ModelError(f"the divergence from the reference is {kl}: no price of it can be found")
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        # Five horizons of answers at once would make the factor 0 or negative, and the price with it, for good.
        factor = max(1 + error * answers / self.horizon, 0.1)
        return replace(self, beta=self.beta * factor)
