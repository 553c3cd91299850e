"""Losses of pairs of completions: DPO and its relatives with a reference, SimPO and ORPO without."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rlaif.training.losses.single import mean_logps
from rlaif.training.losses.soft import expected, logistic, smoothed

if TYPE_CHECKING:
    from torch import Tensor


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
