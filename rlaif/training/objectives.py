"""What each trainer minimizes: SFT, DPO and its relatives, KTO, reward models.

An objective turns summed log-probabilities or rewards of the completions of a batch into the loss and the metrics of
every group (`trainer.Objective`); the formulas are in `losses`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from rlaif.training.batches import Batch, column
from rlaif.training.config import DpoSettings, RewardSettings, beta_of
from rlaif.training.examples import Group
from rlaif.training.forward import Kind
from rlaif.training.losses import LossSettings, PairLogps, bradley_terry, compared, kto, nll, pair_loss, preferred
from rlaif.training.trainer import Metrics, Step

REFERENCE = "reference/{}"
"""The value of a group that holds the reference's log-probability of its k-th completion, summed over tokens."""


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


class DpoObjective:
    """A loss of pairs, by name (see `losses.pair_loss`)."""

    kind: Kind = "logps"

    def __init__(self, settings: DpoSettings) -> None:
        self.settings = settings
        self.numbers = LossSettings(
            beta_of(settings), settings.label_smoothing, settings.gamma_beta_ratio, settings.orpo_weight
        )

    def weight(self, group: Group) -> float:  # noqa: ARG002 - the same for all
        """Every pair counts alike."""
        return 1.0

    def before(self, groups: Sequence[Group], step: Step) -> Sequence[Group]:  # noqa: ARG002 - nothing to do
        """The pairs as they are."""
        return groups

    def losses(self, values: Tensor, batch: Batch, groups: Sequence[Group]) -> tuple[Tensor, Metrics]:
        """The loss of every pair from summed log-probabilities [2 * pairs], chosen and rejected in turn.

        Rewards, margin, accuracy and Brier score are those of what the loss compares (`losses.compared`); without a
        Brier score where its margins stand for no label (`losses.preferred`).
        """
        assert self.settings.loss != "kto"
        ref_chosen, ref_rejected = (column(groups, REFERENCE.format(at), 0.0).to(values) for at in (0, 1))
        lengths = batch.lengths.to(values)
        logps = PairLogps(values[0::2], values[1::2], ref_chosen, ref_rejected, lengths[0::2], lengths[1::2])
        probability = column(groups, "probability", 1.0).to(values) if self.settings.soft_labels else None
        losses = pair_loss(self.settings.loss, logps, probability, self.numbers)
        if self.settings.sft_weight:
            losses = losses + self.settings.sft_weight * nll(logps.chosen, logps.chosen_tokens)
        chosen, rejected = (logit.detach() for logit in compared(self.settings.loss, logps, self.numbers.beta))
        predicted = preferred(self.settings.loss, chosen - rejected)
        metrics = {
            "accuracy": (chosen > rejected).float(),
            "margin": chosen - rejected,
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "logps/chosen": logps.chosen,
            "logps/rejected": logps.rejected,
        }
        if predicted is not None:
            metrics["brier"] = (predicted - column(groups, "probability", 1.0).to(values)).square()
        return losses, metrics


class KtoObjective:
    """Single answers, each marked good or bad (see `losses.kto`).

    A group has two completions: the answer, and that of another prompt, from which the baseline of a step is estimated.
    """

    kind: Kind = "logps"

    def __init__(self, settings: DpoSettings) -> None:
        self.settings, self.beta = settings, beta_of(settings)

    def weight(self, group: Group) -> float:  # noqa: ARG002 - the same for all
        """Every answer counts alike."""
        return 1.0

    def before(self, groups: Sequence[Group], step: Step) -> Sequence[Group]:
        """The answers alone, with the baseline of `losses.kto`, which takes all answers of the step."""
        mismatched = [dataclasses.replace(group, completions=group.completions[1:]) for group in groups]
        logps = step.compute(mismatched)
        value = max(0.0, step.mean(logps - column(groups, REFERENCE.format(1), 0.0).to(logps)))
        return [
            dataclasses.replace(group, completions=group.completions[:1], values={**group.values, "baseline": value})
            for group in groups
        ]

    def losses(self, values: Tensor, batch: Batch, groups: Sequence[Group]) -> tuple[Tensor, Metrics]:  # noqa: ARG002
        """The loss of every answer from its summed log-probability [answers]."""
        settings = self.settings
        logratio = values - column(groups, REFERENCE.format(0), 0.0).to(values)
        desirable = column(groups, "label", 1.0).to(values) > 0.5
        baseline = column(groups, "baseline", 0.0).to(values)
        weights = settings.desirable_weight, settings.undesirable_weight
        losses = kto(logratio, desirable, baseline, self.beta, *weights)
        rewards = self.beta * logratio.detach()
        return losses, {
            "rewards/good": rewards[desirable],
            "rewards/bad": rewards[~desirable],
            "logps/good": values[desirable],
            "logps/bad": values[~desirable],
            "kl": self.beta * baseline,
        }


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
