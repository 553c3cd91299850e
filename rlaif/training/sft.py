"""Supervised fine-tuning: the likelihood of demonstrations, every token alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlaif.training.batches import Batch
from rlaif.training.forward import Kind
from rlaif.training.groups import Group
from rlaif.training.trainer import Metrics, Step


class SftObjective:
    """Negative log-likelihood of the completions: prompts are read and not learned."""

    kind: Kind = "logps"

    def weight(self, group: Group) -> float:
        """Its completion tokens: the mean is over tokens, not over rows (see `losses.nll`)."""
        return sum(map(len, group.completions))

    def before(self, groups: Sequence[Group], step: Step) -> Sequence[Group]:  # noqa: ARG002 - nothing to do
        """The groups as they are."""
        return groups

    def losses(self, values: Tensor, batch: Batch, groups: Sequence[Group]) -> tuple[Tensor, Metrics]:  # noqa: ARG002
        """-log p of each group's completions, summed over their tokens."""
        sizes = torch.tensor([len(group.completions) for group in groups], device=values.device)
        owners = torch.arange(len(groups), device=values.device).repeat_interleave(sizes)
        return values.new_zeros(len(groups)).index_add(0, owners, -values), {}
