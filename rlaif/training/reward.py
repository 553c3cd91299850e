"""Reward models: a scalar on the last token, trained so that the better completion gets the higher one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rlaif.training.batches import Batch, column
from rlaif.training.forward import Kind
from rlaif.training.groups import Group
from rlaif.training.losses import bradley_terry
from rlaif.training.settings import RewardSettings
from rlaif.training.trainer import Metrics, Step


class RewardObjective:
    """Bradley-Terry with soft labels (see `losses.bradley_terry`)."""

    kind: Kind = "rewards"

    def __init__(self, settings: RewardSettings) -> None:
        self.settings = settings

    def weight(self, group: Group) -> float:  # noqa: ARG002 - the same for all
        """Every pair counts alike."""
        return 1.0

    def before(self, groups: Sequence[Group], step: Step) -> Sequence[Group]:  # noqa: ARG002 - nothing to do
        """The pairs as they are."""
        return groups

    def losses(self, values: Tensor, batch: Batch, groups: Sequence[Group]) -> tuple[Tensor, Metrics]:  # noqa: ARG002
        """The loss of every pair from the rewards [2 * pairs], chosen and rejected in turn."""
        chosen, rejected = values[0::2], values[1::2]
        probability = column(groups, "probability", 1.0).to(values)
        margin = column(groups, "margin", 0.0).to(values) if self.settings.margins else 0.0
        soft = probability if self.settings.soft_labels else None
        losses = bradley_terry(chosen, rejected, soft, margin, self.settings.centering)
        return losses, {
            "accuracy": (chosen > rejected).float(),
            "margin": chosen - rejected,
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "brier": ((chosen - rejected).sigmoid() - probability).square(),
        }
