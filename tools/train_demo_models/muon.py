"""Muon: momentum whose update is made orthogonal, for the matrices inside the layers (Jordan et al., 2024).

PyTorch has one, which orthogonalises in bfloat16; without matrix hardware for that type this is a hundred times slower
than float32, so here it is in float32.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal by Newton-Schulz steps, with decoupled weight decay."""

    def __init__(self, weights: Iterable[Tensor], lr: float, momentum: float = 0.95, decay: float = 0.0) -> None:
        super().__init__(list(weights), {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step on every matrix that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                velocity = self.state[weight].setdefault("velocity", torch.zeros_like(weight))
                velocity.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonal(weight.grad.lerp(velocity, group["momentum"]))
                weight.mul_(1 - group["lr"] * group["decay"])
                scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
                weight.add_(update, alpha=-group["lr"] * scale)


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearly `U V^T` of the singular value decomposition `U S V^T`, by a quintic Newton-Schulz iteration."""
    wide = matrix.shape[0] <= matrix.shape[1]
    now: Tensor = matrix if wide else matrix.T
    now = now / (torch.linalg.matrix_norm(now) + 1e-7)
    for _ in range(steps):
        square = now @ now.T
        now = 3.4445 * now + (-4.7750 * square + 2.0315 * square @ square) @ now
    return now if wide else now.T
