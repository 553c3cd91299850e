"""What a soft label makes of a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def expected(chosen: Tensor, rejected: Tensor, probability: Tensor | float | None) -> Tensor:
    """q · `chosen` + (1−q) · `rejected`, [B]: the losses if the one is better and if the other is, by soft label."""
    return chosen if probability is None else probability * chosen + (1 - probability) * rejected


def logistic(logit: Tensor, probability: Tensor | float | None) -> Tensor:
    """−q log σ(z) − (1−q) log σ(−z), [B]; the gradient by z is σ(z) − q."""
    from torch.nn import functional

    return expected(-functional.logsigmoid(logit), -functional.logsigmoid(-logit), probability)


def smoothed(probability: Tensor | None, label_smoothing: float) -> Tensor | float | None:
    """q' = q(1−ε) + (1−q)ε: the soft label after a share ε of labels was turned round."""
    if label_smoothing == 0:
        return probability
    return label_smoothing + (1 - 2 * label_smoothing) * (1.0 if probability is None else probability)
