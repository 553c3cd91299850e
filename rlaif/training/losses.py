"""Losses of the trainers as pure functions: tensors in, one loss a row out, shape [B], float32; and their objectives.

The trainer takes the mean over rows; devices, accumulation and schedules are its business. The sections: soft labels;
losses of pairs with a reference (DPO and its relatives) and without (SimPO, ORPO); losses of single completions (NLL,
KTO); reward models (Bradley-Terry); the losses of pairs by name (`config.READS`: the settings of each); and the
objectives of the trainers, which turn log-probabilities or rewards of a batch into the loss and metrics of each group.

In what follows r_w = log π(y_w|x) − log π_ref(y_w|x) is the log-ratio of the chosen completion, r_l that of the
rejected one, Δ = r_w − r_l, and σ the logistic function. `probability` is the soft label q of a pair, [B]: the
probability that the chosen completion is the better one; None means 1. A soft label takes the expected loss over which
of the two is better, q·L(Δ) + (1−q)·L(−Δ), so that a pair written the other way round with 1−q costs the same. Where
a loss reads it otherwise (`gdpo`, `orpo`, `bradley_terry` with a margin) it says so.

log σ(z) is one function, never a logarithm of σ: it is finite, with the right gradient, for |z| up to 1e4.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, assert_never

import torch
from torch import Tensor

from rlaif.training.batches import Batch, column
from rlaif.training.config import DpoSettings, PairLoss, RewardSettings, beta_of
from rlaif.training.forward import Kind
from rlaif.training.tokenize import Group
from rlaif.training.trainer import Metrics, Step

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


class PairLogps(NamedTuple):
    """Summed completion log-probabilities of pairs; all of shape [B], float32."""

    chosen: Tensor
    """Under the policy, over the tokens of the completion."""
    rejected: Tensor
    ref_chosen: Tensor
    """Under the reference, without gradient."""
    ref_rejected: Tensor
    chosen_tokens: Tensor
    """Counts of completion tokens."""
    rejected_tokens: Tensor

    @property
    def delta(self) -> Tensor:
        """Δ = r_w − r_l, [B]."""
        return (self.chosen - self.ref_chosen) - (self.rejected - self.ref_rejected)

    @property
    def mean_delta(self) -> Tensor:
        """Δ̄ = r_w / |y_w| − r_l / |y_l|, [B]: the difference of log-ratios per token."""
        chosen = mean_logps(self.chosen - self.ref_chosen, self.chosen_tokens)
        return chosen - mean_logps(self.rejected - self.ref_rejected, self.rejected_tokens)


def implicit_rewards(logps: PairLogps, beta: float) -> tuple[Tensor, Tensor]:
    """The rewards that the policy stands for, [B] and [B]: β r_w and β r_l (arXiv:2305.18290, section 4)."""
    return beta * (logps.chosen - logps.ref_chosen), beta * (logps.rejected - logps.ref_rejected)


def dpo(logps: PairLogps, beta: float, probability: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """Direct preference optimization, [B] (arXiv:2305.18290, eq. 7), with soft labels:

        −q' log σ(βΔ) − (1−q') log σ(−βΔ),   q' = q(1−ε) + (1−q)ε

    ε is `label_smoothing`; with q = 1 this is conservative DPO (Mitchell 2023). The gradient by Δ is β(σ(βΔ) − q'), so
    that Δ is drawn to logit(q')/β. TRL 1.16 has neither: its `sigmoid` takes no soft label and ignores ε.
    """
    return logistic(beta * logps.delta, smoothed(probability, label_smoothing))


def dpo_robust(logps: PairLogps, beta: float, epsilon: float, probability: Tensor | None = None) -> Tensor:
    """DPO corrected for labels of which a share ε < 1/2 is the wrong way round, [B] (arXiv:2403.00409):

        [(1−ε) L(Δ) − ε L(−Δ)] / (1−2ε),   L(Δ) = −log σ(βΔ)

    Over the wrong labels its mean is L(Δ) of the right ones: (1−ε) L_robust(Δ) + ε L_robust(−Δ) = L(Δ). It undoes the
    label smoothing of `dpo` (a soft label q acts as (q−ε)/(1−2ε)), can be negative, and has no lower bound.
    """
    hard = 1.0 if probability is None else probability
    return logistic(beta * logps.delta, (hard - epsilon) / (1 - 2 * epsilon))


def sigmoid_norm(
    logps: PairLogps, beta: float, probability: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """DPO with log-ratios per token, [B]: −log σ(βΔ̄) (arXiv:2411.15124, eq. 6); soft labels as in `dpo`.

    Summed log-ratios grow with length, and DPO with them towards long completions. Δ̄ is smaller by that length, so β
    is larger: the paper's is 5.
    """
    return logistic(beta * logps.mean_delta, smoothed(probability, label_smoothing))


def gdpo(logps: PairLogps, beta: float, probability: Tensor | None = None) -> Tensor:
    """DPO with geometrically averaged soft labels, [B]: −log σ(β(2q−1)Δ) (arXiv:2409.06691).

    Not an expected loss: π(y_w)^q π(y_l)^(1−q) takes the place of π(y_w), and the other way round. The gradient by Δ
    is β(2q−1)(σ(β(2q−1)Δ) − 1): none at q = 1/2, and never a pull back to a finite Δ as soft labels of `dpo` have it.
    """
    from torch.nn import functional

    certainty = 1.0 if probability is None else 2 * probability - 1
    return -functional.logsigmoid(beta * certainty * logps.delta)


def ipo(logps: PairLogps, beta: float, probability: Tensor | None = None) -> Tensor:
    """Identity preference optimization, [B] (arXiv:2310.12036, eq. 17, its τ is β):

        q (Δ̄ − 1/(2β))² + (1−q) (Δ̄ + 1/(2β))²

    Eq. 17 draws Δ to 1/(2τ) where the first completion is preferred. A soft label is the expectation over which is:
    with 1−q it is the other one, −Δ is drawn to 1/(2τ), and (−Δ − 1/(2τ))² = (Δ + 1/(2τ))². The sum is
    (Δ − (2q−1)/(2τ))² and a constant, so that Δ is drawn to (2q−1)/(2τ), finite even for q = 1.

    Departs from the paper's text: Δ̄ is per token, where the text has sums. A fixed distance 1/(2τ) between sums asks
    next to nothing per token of long completions and much of short ones. TRL does the same, and says the authors
    confirmed it as what their results come from.
    """
    target = 1 / (2 * beta)
    return expected((logps.mean_delta - target).square(), (logps.mean_delta + target).square(), probability)


def hinge(logps: PairLogps, beta: float, probability: Tensor | None = None) -> Tensor:
    """Hinge loss, [B]: max(0, 1 − βΔ), and q max(0, 1 − βΔ) + (1−q) max(0, 1 + βΔ) for soft labels.

    SLiC (arXiv:2305.10425: max(0, δ − log π(y_w|x) + log π(y_l|x)), δ = 1/β) with log-ratios in the place of
    log-probabilities, as in arXiv:2309.06657 and TRL. SLiC's other term, the likelihood of a reference text, is `nll`.
    """
    reward = beta * logps.delta
    return expected((1 - reward).relu(), (1 + reward).relu(), probability)


def simpo(
    chosen: Tensor,
    rejected: Tensor,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
    beta: float,
    gamma: float,
    probability: Tensor | None = None,
) -> Tensor:
    """Simple preference optimization, [B] (arXiv:2405.14734, eq. 6), without a reference:

        −log σ(βd − γ),   d = log π(y_w|x) / |y_w| − log π(y_l|x) / |y_l|

    Arguments are summed log-probabilities and counts of tokens, [B]. A soft label is
    −q log σ(βd − γ) − (1−q) log σ(−βd − γ): whichever is better should lead by γ. The label smoothing of TRL's
    `simpo` has log σ(−βd + γ) there, so that at q = 1/2 it still favours the completion that happens to be first.
    """
    from torch.nn import functional

    reward = beta * (mean_logps(chosen, chosen_tokens) - mean_logps(rejected, rejected_tokens))
    return expected(-functional.logsigmoid(reward - gamma), -functional.logsigmoid(-reward - gamma), probability)


def odds_ratio(chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, probability: Tensor | None = None) -> Tensor:
    """The preference part of ORPO, [B] (arXiv:2403.07691, eq. 7): −log σ(log odds(y_w|x) − log odds(y_l|x)).

    odds = p / (1−p), p = exp(mean log-probability per token), from mean log-probabilities [B].
    """
    return logistic(log_odds(chosen_mean_logps) - log_odds(rejected_mean_logps), probability)


def orpo(
    chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, weight: float, probability: Tensor | None = None
) -> Tensor:
    """Odds ratio preference optimization, [B] (arXiv:2403.07691, eq. 6): NLL(y_w|x) + λ · `odds_ratio`.

    It is SFT and preference at once, so the NLL belongs to it and needs no further term; it is per token of a
    completion. A soft label mixes the odds ratio only: the NLL stays that of the chosen completion, as SFT on the
    worse one is not what a doubtful label asks for. TRL's NLL is over the tokens of prompt and completion together.
    """
    return weight * odds_ratio(chosen_mean_logps, rejected_mean_logps, probability) - chosen_mean_logps


def log_odds(logp: Tensor) -> Tensor:
    """log odds of probabilities given as l = log p ≤ 0, [B]: l − log(1 − e^l).

    1 − e^l is −expm1(l), which keeps its digits near l = 0; far below, it is 1 to the last digit, and l is what
    counts. p = 1 has infinite odds: l is kept below 0 by one rounding error, so that the gradient is a number there.
    """
    import torch

    logp = logp.clamp(max=-torch.finfo(logp.dtype).eps)
    return logp - torch.log(-torch.expm1(logp))


def mean_logps(logps: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability per completion token, [B], from sums and counts; a completion cut down to nothing has 0."""
    return logps / tokens.clamp(min=1)


def nll(logps: Tensor, tokens: Tensor) -> Tensor:
    """Negative log-likelihood per token of each completion, [B]: −log π(y|x) / |y|.

    The plain mean of these weighs completions alike. It is the term that preference losses are mixed with
    (arXiv:2404.19733, eq. 1: DPO plus α times this, of the chosen completion; it keeps log π(y_w|x) from falling).

    SFT weighs tokens alike instead: Σ −log π(y|x) / Σ |y|, both sums over all completions of one optimizer step, on
    every device and in every micro-batch. The trainer counts the tokens of the step first, and then adds up
    `nll(logps, tokens) * tokens / tokens_of_the_step`; a mean of the means of micro-batches would be another loss,
    that depends on how rows fall into batches.
    """
    return -mean_logps(logps, tokens)


def kto(
    logratio: Tensor,
    desirable: Tensor,
    baseline: Tensor | float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Kahneman-Tversky optimization, [B] (arXiv:2402.01306, section 4): r is a gain or a loss against the baseline z0.

        λ_D (1 − σ(β(r − z0)))   where `desirable`,      λ_U (1 − σ(β(z0 − r)))   elsewhere

    z0 is max(0, mean of log π(y'|x) − log π_ref(y'|x)) over completions y' of *other* prompts, without gradient: a
    rough estimate of how far the policy has moved from the reference, one for the step (the mean is over all devices).
    `logratio` is r = log π(y|x) − log π_ref(y|x), [B]; `desirable` is bool, [B]. This is λ_y − v(x, y) of the
    paper, from 0 to λ_y. λ_D n_D / (λ_U n_U) over the numbers of rows of both kinds should be from 1 to 4/3.
    """
    import torch

    gain = beta * (logratio - baseline)
    # 1 − σ(z) = σ(−z), without the cancellation at large z
    return torch.where(desirable, desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain))


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


@dataclass(frozen=True, slots=True)
class LossSettings:
    """Numbers of the losses of pairs; `READS` tells which loss reads which."""

    beta: float = 0.1
    """β, how strongly the policy is held to the reference (τ of IPO). Usual: 5 for `sigmoid_norm`, 2 for `simpo`."""
    label_smoothing: float = 0.0
    """ε, the share of labels taken to be the wrong way round, below 1/2: `sigmoid` allows for it, `robust` corrects."""
    gamma_beta_ratio: float = 0.5
    """γ/β of SimPO: the lead in nats per token that the chosen completion should have."""
    orpo_weight: float = 0.1
    """λ of ORPO: the weight of the odds ratio beside the negative log-likelihood."""

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta must be above 0, not {self.beta}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be from 0 to below 0.5, not {self.label_smoothing}")


def pair_loss(name: PairLoss, logps: PairLogps, probability: Tensor | None, settings: LossSettings) -> Tensor:
    """The loss called `name`, [B]; `probability` [B] are the soft labels, None for hard ones."""
    beta, smoothing = settings.beta, settings.label_smoothing
    lengths = logps.chosen_tokens, logps.rejected_tokens
    match name:
        case "sigmoid":
            return dpo(logps, beta, probability, smoothing)
        case "robust":
            return dpo_robust(logps, beta, smoothing, probability)
        case "ipo":
            return ipo(logps, beta, probability)
        case "hinge":
            return hinge(logps, beta, probability)
        case "sigmoid_norm":
            return sigmoid_norm(logps, beta, probability, smoothing)
        case "gdpo":
            return gdpo(logps, beta, probability)
        case "simpo":
            return simpo(logps.chosen, logps.rejected, *lengths, beta, beta * settings.gamma_beta_ratio, probability)
        case "orpo":
            means = mean_logps(logps.chosen, lengths[0]), mean_logps(logps.rejected, lengths[1])
            return orpo(*means, settings.orpo_weight, probability)
        case _:
            assert_never(name)


def compared(name: PairLoss, logps: PairLogps, beta: float) -> tuple[Tensor, Tensor]:
    """What the loss compares of the chosen and of the rejected completion, [B] and [B]: their rewards in the log.

    β log-ratios, summed over tokens; of `ipo` and `sigmoid_norm` per token; of `simpo` β log-probabilities per token;
    of `orpo` log odds. A longer completion may have the higher sum and the lower mean, so that an accuracy of sums
    would tell of another loss.
    """
    tokens = logps.chosen_tokens, logps.rejected_tokens
    match name:
        case "ipo" | "sigmoid_norm":
            chosen, rejected = implicit_rewards(logps, beta)
            return mean_logps(chosen, tokens[0]), mean_logps(rejected, tokens[1])
        case "simpo":
            return beta * mean_logps(logps.chosen, tokens[0]), beta * mean_logps(logps.rejected, tokens[1])
        case "orpo":
            return log_odds(mean_logps(logps.chosen, tokens[0])), log_odds(mean_logps(logps.rejected, tokens[1]))
        case _:
            return implicit_rewards(logps, beta)


def preferred(name: PairLoss, margin: Tensor) -> Tensor | None:
    """The probability, [B], that the chosen completion is better, by the margin of what the loss compares.

    It is the label q of a pair that the loss draws to this margin: σ(margin); of `ipo`, which knows no σ, margin + 1/2
    within 0 and 1. None where margins stand for no label: `simpo` draws a pair of 0.7 beyond logit(0.7) by its lead,
    `hinge` every pair to 1 or -1, and `gdpo` as far as it can.
    """
    match name:
        case "ipo":
            return (margin + 0.5).clamp(0, 1)
        case "simpo" | "hinge" | "gdpo":
            return None
        case _:
            return margin.sigmoid()


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
