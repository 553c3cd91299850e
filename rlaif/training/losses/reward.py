"""The loss of reward models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlaif.training.losses.soft import logistic

if TYPE_CHECKING:
    from torch import Tensor


def bradley_terry(
    chosen: Tensor,
    rejected: Tensor,
    probability: Tensor | None = None,
    margin: Tensor | float = 0.0,
    centering: float = 0.0,
) -> Tensor:
    """Negative log-likelihood of a Bradley-Terry model, [B], from rewards [B] and [B]; Δ = r_w − r_l:

        −[q log σ(Δ − m) + (1−q) log σ(−(Δ − m))] + c (r_w + r_l)²

    q is `probability` (1: arXiv:2203.02155, eq. 1). The gradient by Δ is σ(Δ − m) − q, so that the two rewards end up
    logit(q) + m apart. m is `margin`, larger where the chosen completion is clearly better (arXiv:2307.09288, eq. 2);
    it belongs to the pair as written and changes its sign when the two change places. c is `centering`, usually 0.01
    (arXiv:2312.09244, eq. 2): the model is blind to a constant added to all rewards, and this holds their mean near 0.
    """
    return logistic(chosen - rejected - margin, probability) + centering * (chosen + rejected).square()
