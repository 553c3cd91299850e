"""Losses by hand, with the pencil work beside each number, and what must hold of them everywhere."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlaif.training import losses
from rlaif.training.config import NEEDS_REFERENCE, READS, PairLoss
from rlaif.training.losses import LossSettings, PairLogps, pair_loss

NUMBERS = st.floats(-30, 30)
SHARES = st.floats(0, 1)
HALF = st.floats(0, 0.45)

# r_w = -10 + 12 = 2, r_l = -9 + 8 = -1, so Δ = 3; per token 2/4 - (-1/2), so Δ̄ = 1.
PAIR = (-10.0, -9.0, -12.0, -8.0, 4.0, 2.0)

# -log σ(1.5) = ln(1 + e^-1.5) = ln 1.223130 = 0.201413, and -log σ(-1.5) is 1.5 more.
AT_1_5 = 0.201413

PAIR_LOSSES: tuple[PairLoss, ...] = tuple(READS)


def pairs(*rows: tuple[float, ...], dtype: torch.dtype = torch.float32) -> PairLogps:
    return PairLogps(*torch.tensor(rows, dtype=dtype).unbind(-1))


def of_delta(delta: Tensor) -> PairLogps:
    """Pairs of which Δ is given, with one token a completion so that Δ̄ is the same."""
    zero, one = torch.zeros_like(delta), torch.ones_like(delta)
    return PairLogps(delta, zero, zero, zero, one, one)


def swapped(logps: PairLogps) -> PairLogps:
    return PairLogps(logps[1], logps[0], logps[3], logps[2], logps[5], logps[4])


def exact(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def soft(q: float | None) -> Tensor | None:
    return None if q is None else torch.tensor([q])


@pytest.mark.parametrize(
    ("name", "q", "chosen", "value"),
    [
        # β = 0.5, βΔ = 1.5; each 0.1 less of q adds 0.1 · 1.5, as -log σ(-z) = -log σ(z) + z
        ("sigmoid", None, {"beta": 0.5}, AT_1_5),
        ("sigmoid", 0.8, {"beta": 0.5}, AT_1_5 + 0.2 * 1.5),  # 0.8 · 0.201413 + 0.2 · 1.701413 = 0.501413
        ("sigmoid", None, {"beta": 0.5, "label_smoothing": 0.1}, AT_1_5 + 0.1 * 1.5),  # q' = 0.9
        ("sigmoid", 0.8, {"beta": 0.5, "label_smoothing": 0.1}, AT_1_5 + 0.26 * 1.5),  # q' = 0.8·0.9 + 0.2·0.1 = 0.74
        # (0.9 · 0.201413 - 0.1 · 1.701413) / 0.8 = (0.181272 - 0.170141) / 0.8
        ("robust", None, {"beta": 0.5, "label_smoothing": 0.1}, 0.013913),
        # 0.8 · 0.013913 + 0.2 · L_robust(-Δ), which is (0.9 · 1.701413 - 0.1 · 0.201413) / 0.8 = 1.888913
        ("robust", 0.8, {"beta": 0.5, "label_smoothing": 0.1}, 0.388913),
        # 1/(2β) = 2, Δ̄ = 1: (1 - 2)² = 1 one way and (1 + 2)² = 9 the other
        ("ipo", None, {"beta": 0.25}, 1.0),
        ("ipo", 0.75, {"beta": 0.25}, 0.75 * 1 + 0.25 * 9),
        # βΔ = 0.6: 1 - 0.6 = 0.4 one way and 1 + 0.6 the other; βΔ = 1.5 is past the hinge
        ("hinge", None, {"beta": 0.2}, 0.4),
        ("hinge", 0.75, {"beta": 0.2}, 0.75 * 0.4 + 0.25 * 1.6),
        ("hinge", None, {"beta": 0.5}, 0.0),
        # βΔ̄ = 2: ln(1 + e^-2) = ln 1.135335 = 0.126928
        ("sigmoid_norm", None, {"beta": 2.0}, 0.126928),
        ("sigmoid_norm", 0.75, {"beta": 2.0}, 0.126928 + 0.25 * 2),
        ("sigmoid_norm", None, {"beta": 2.0, "label_smoothing": 0.1}, 0.126928 + 0.1 * 2),
        # (2 · 0.9 - 1) · 1.5 = 1.2: ln(1 + e^-1.2) = ln 1.301194 = 0.263282; at q = 1/2 ln 2 whatever Δ
        ("gdpo", None, {"beta": 0.5}, AT_1_5),
        ("gdpo", 0.9, {"beta": 0.5}, 0.263282),
        ("gdpo", 0.5, {"beta": 0.5}, 0.693147),
        # d = -10/4 + 9/2 = 2, βd = 4, γ = 2 · 0.5 = 1: ln(1 + e^-3) = 0.048587, and -log σ(-5) = 5.006715
        ("simpo", None, {"beta": 2.0, "gamma_beta_ratio": 0.5}, 0.048587),
        ("simpo", 0.75, {"beta": 2.0, "gamma_beta_ratio": 0.5}, 0.75 * 0.048587 + 0.25 * 5.006715),
    ],
)
def test_pair_losses_by_hand(name: PairLoss, q: float | None, chosen: dict[str, float], value: float) -> None:
    loss = pair_loss(name, pairs(PAIR), soft(q), LossSettings(**chosen))
    assert loss.shape == (1,) and loss.dtype == torch.float32
    assert loss.item() == pytest.approx(value, abs=2e-6)


def test_orpo_by_hand() -> None:
    """p = 1/2 and 1/5 per token: odds 1 and 1/4, -log σ(ln 4) = -ln 4/5 = 0.223144, and -ln 1/5 = 1.609438 turned."""
    logps = pairs((3 * math.log(0.5), 2 * math.log(0.2), 0.0, 0.0, 3.0, 2.0))
    means = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.2)])
    assert losses.odds_ratio(*means).item() == pytest.approx(0.223144, abs=2e-6)
    assert losses.odds_ratio(*means, soft(0.75)).item() == pytest.approx(0.75 * 0.223144 + 0.25 * 1.609438, abs=2e-6)
    # NLL ln 2 = 0.693147, and a tenth of the odds ratio
    found = pair_loss("orpo", logps, None, LossSettings(orpo_weight=0.1))
    assert found.item() == pytest.approx(0.693147 + 0.0223144, abs=2e-6)


@pytest.mark.parametrize(
    ("more", "value"),
    [
        # rewards 2 and 0.5: Δ = 1.5
        ({}, AT_1_5),
        ({"probability": soft(0.8)}, AT_1_5 + 0.2 * 1.5),
        # Δ - m = 0.5: ln(1 + e^-0.5) = ln 1.606531 = 0.474077
        ({"margin": 1.0}, 0.474077),
        ({"margin": torch.tensor([1.0])}, 0.474077),
        ({"margin": 1.0, "probability": soft(0.8)}, 0.474077 + 0.2 * 0.5),
        # 0.01 · (2 + 0.5)² = 0.0625
        ({"centering": 0.01}, AT_1_5 + 0.0625),
    ],
)
def test_bradley_terry_by_hand(more: dict[str, Any], value: float) -> None:
    loss = losses.bradley_terry(torch.tensor([2.0]), torch.tensor([0.5]), **more)
    assert loss.dtype == torch.float32
    assert loss.tolist() == pytest.approx([value], abs=2e-6)


def test_kto_by_hand() -> None:
    """β(r - z0) = 0.4 · (2 - 0.5) = 0.6: 1 - σ(0.6) = 1/(1 + e^0.6) = 0.354344, and σ(0.6) = 0.645656."""
    ratios = torch.tensor([2.0, 2.0])
    loss = losses.kto(ratios, torch.tensor([True, False]), 0.5, 0.4, desirable_weight=1.5, undesirable_weight=2.0)
    assert loss.tolist() == pytest.approx([1.5 * 0.354344, 2 * 0.645656], abs=2e-6)


def test_what_each_loss_compares_by_hand() -> None:
    """PAIR's log-ratios are 2 and -1, over 4 and some tokens: sums for DPO, means for the losses of means."""
    logps = pairs(PAIR)
    lengths = [int(logps.chosen_tokens), int(logps.rejected_tokens)]
    by_name = {name: [each.item() for each in losses.compared(name, logps, 0.5)] for name in PAIR_LOSSES}
    assert by_name["sigmoid"] == by_name["hinge"] == by_name["gdpo"] == by_name["robust"] == [1.0, -0.5]
    per_token = [1.0 / lengths[0], -0.5 / lengths[1]]
    assert by_name["ipo"] == by_name["sigmoid_norm"] == pytest.approx(per_token)
    means = [logps.chosen.item() / lengths[0], logps.rejected.item() / lengths[1]]
    assert by_name["simpo"] == pytest.approx([0.5 * mean for mean in means])
    assert by_name["orpo"] == pytest.approx([math.log(math.exp(mean) / (1 - math.exp(mean))) for mean in means])


def test_the_label_at_which_a_loss_is_least_is_the_one_that_its_margin_stands_for() -> None:
    """IPO's is linear in the margin; the others' is logistic."""
    margins = torch.tensor([-3.0, -0.25, 0.0, 0.3, 3.0])
    ipo, sigmoid = losses.preferred("ipo", margins), losses.preferred("sigmoid", margins)
    assert ipo is not None and sigmoid is not None
    assert ipo.tolist() == pytest.approx([0, 0.25, 0.5, 0.8, 1])
    assert sigmoid.tolist() == pytest.approx(margins.sigmoid().tolist())


def _fitted(name: losses.PairLoss, q: float) -> float:
    """The margin at which the loss of a pair of this label is least, by a search over the chosen sum; 4 tokens each."""
    chosen = torch.linspace(-20, -0.001, 400_001, dtype=torch.float64)
    four, zero = torch.full_like(chosen, 4.0), torch.zeros_like(chosen)
    logps = losses.PairLogps(chosen, zero - 8, zero - 8, zero - 8, four, four)
    values = losses.pair_loss(name, logps, torch.full_like(chosen, q), losses.LossSettings(beta=2.0))
    good, bad = losses.compared(name, logps, 2.0)
    return float((good - bad)[int(values.argmin())])


@pytest.mark.finding(13)
@pytest.mark.parametrize(("q", "sigma"), [(0.6, 0.675), (0.7, 0.807), (0.9, 0.957)])
def test_simpo_has_no_brier_score_as_it_fits_beyond_the_label(q: float, sigma: float) -> None:
    assert 1 / (1 + math.exp(-_fitted("simpo", q))) == pytest.approx(sigma, abs=0.01)
    assert losses.preferred("simpo", torch.zeros(1)) is None


@pytest.mark.sibling("no-brier-score-of-hinge-and-gdpo")
@pytest.mark.parametrize("name", ["hinge", "gdpo"])
def test_a_loss_whose_margin_is_no_label_has_no_brier_score(name: losses.PairLoss) -> None:
    """A label of 0.7 is fitted at sigma(1) = 0.73 by the hinge loss, as is 0.9; without end by gdpo."""
    found = [_fitted(name, q) for q in (0.7, 0.9)]
    assert found[0] == pytest.approx(found[1], abs=1e-3)
    assert losses.preferred(name, torch.zeros(1)) is None


@pytest.mark.parametrize("name", ["sigmoid", "robust", "sigmoid_norm"])
def test_the_label_is_fitted_at_the_margin_that_stands_for_it(name: losses.PairLoss) -> None:
    likely = losses.preferred(name, torch.tensor([_fitted(name, 0.7)]))
    assert likely is not None and likely.item() == pytest.approx(0.7, abs=1e-3)


def test_nll_and_rewards_by_hand() -> None:
    """-(-10)/4 = 2.5. β r_w = 0.5 · 2, β r_l = 0.5 · -1. A completion without tokens costs nothing."""
    logps = pairs(PAIR)
    assert losses.nll(logps.chosen, logps.chosen_tokens).item() == 2.5
    assert losses.nll(torch.tensor([0.0]), torch.tensor([0])).item() == 0
    assert [each.item() for each in losses.implicit_rewards(logps, 0.5)] == [1.0, -0.5]


def test_sft_over_tokens_does_not_depend_on_micro_batches() -> None:
    """Sums -10 over 4 tokens, -2 over 1, -9 over 9: 21/14, where the means 2.5, 2 and 1 would have given 11/6."""
    logps, tokens = torch.tensor([-10.0, -2.0, -9.0]), torch.tensor([4, 1, 9])
    for split in ([3], [1, 2], [2, 1], [1, 1, 1]):
        parts = zip(logps.split(split), tokens.split(split), strict=True)
        total = sum((losses.nll(one, count) * count).sum().item() / tokens.sum().item() for one, count in parts)
        assert total == pytest.approx(21 / 14)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_rows_do_not_meet_and_hard_labels_are_soft_ones_of_1(name: PairLoss) -> None:
    rows = [PAIR, (-3.0, -30.0, -6.0, -20.0, 1.0, 7.0), (-50.0, -2.0, -40.0, -3.0, 20.0, 1.0)]
    chosen = LossSettings(label_smoothing=0.2)
    together = pair_loss(name, pairs(*rows), None, chosen)
    alone = [pair_loss(name, pairs(row), None, chosen).item() for row in rows]
    assert together.tolist() == pytest.approx(alone)
    torch.testing.assert_close(pair_loss(name, pairs(*rows), torch.ones(3), chosen), together)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_what_a_loss_reads(name: PairLoss) -> None:
    """`READS` and `NEEDS_REFERENCE` against what changes the loss."""
    logps, q, base = pairs(PAIR), torch.tensor([0.8]), LossSettings()
    value = pair_loss(name, logps, q, base)
    changes: dict[str, float] = {"beta": 0.3, "label_smoothing": 0.2, "gamma_beta_ratio": 1.0, "orpo_weight": 0.5}
    assert set(changes) == set(LossSettings.__slots__)
    found = {each for each in changes if pair_loss(name, logps, q, replace(base, **{each: changes[each]})) != value}
    assert found == READS[name]
    moved = pair_loss(name, logps._replace(ref_chosen=logps.ref_chosen - 1), q, base) != value
    assert moved.item() is (name in NEEDS_REFERENCE)


def test_settings_that_no_loss_can_take() -> None:
    for wrong in ({"beta": 0.0}, {"label_smoothing": 0.5}, {"label_smoothing": -0.1}, {"beta": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LossSettings(**wrong)
    with pytest.raises(AssertionError):
        pair_loss("sigmiod", pairs(PAIR), None, LossSettings())  # type: ignore[arg-type]


@given(NUMBERS, SHARES, st.floats(0.01, 5))
@settings(deadline=None)
def test_gradient_of_soft_labels(delta: float, q: float, beta: float) -> None:
    """By Δ: σ(Δ) - q for rewards, β(σ(βΔ) - q) for DPO."""
    at = exact(delta).requires_grad_()
    losses.bradley_terry(at, exact(0.0), exact(q)).sum().backward()
    assert at.grad is not None
    torch.testing.assert_close(at.grad, torch.sigmoid(exact(delta)) - q)
    at = exact(delta).requires_grad_()
    losses.dpo(of_delta(at), beta, exact(q)).sum().backward()
    torch.testing.assert_close(at.grad, beta * (torch.sigmoid(exact(beta * delta)) - q))


@given(st.tuples(*[NUMBERS] * 4, *[st.integers(1, 50)] * 2), SHARES, HALF)
@settings(deadline=None)
def test_a_pair_written_the_other_way_round_costs_the_same(row: tuple[float, ...], q: float, smoothing: float) -> None:
    """But not with ORPO: its NLL is that of the completion called chosen."""
    logps, one, other = pairs(row, dtype=torch.float64), exact(q), exact(1 - q)
    chosen = LossSettings(beta=0.3, label_smoothing=smoothing)
    for name in PAIR_LOSSES:
        if name != "orpo":
            turned = pair_loss(name, swapped(logps), other, chosen)
            torch.testing.assert_close(turned, pair_loss(name, logps, one, chosen))
    means = exact(-abs(row[0]) - 0.01), exact(-abs(row[1]) - 0.01)
    torch.testing.assert_close(losses.odds_ratio(*reversed(means), other), losses.odds_ratio(*means, one))
    ratios = logps.chosen, logps.rejected
    turned = losses.bradley_terry(*reversed(ratios), other, margin=-2.0, centering=0.01)
    torch.testing.assert_close(turned, losses.bradley_terry(*ratios, one, margin=2.0, centering=0.01))


@given(NUMBERS, HALF, SHARES)
@settings(deadline=None)
def test_robust_is_unbiased_and_undoes_smoothing(delta: float, epsilon: float, q: float) -> None:
    """(1-ε) L_robust(Δ) + ε L_robust(-Δ) = L(Δ); and a label that was smoothed by ε comes out as it was."""
    right, wrong, beta = of_delta(exact(delta)), of_delta(exact(-delta)), 0.7
    found = (1 - epsilon) * losses.dpo_robust(right, beta, epsilon) + epsilon * losses.dpo_robust(wrong, beta, epsilon)
    torch.testing.assert_close(found, losses.dpo(right, beta))
    smooth = exact(q * (1 - epsilon) + (1 - q) * epsilon)
    torch.testing.assert_close(losses.dpo_robust(right, beta, epsilon, smooth), losses.dpo(right, beta, exact(q)))


@given(NUMBERS, SHARES, st.floats(0.05, 5))
@settings(deadline=None)
def test_soft_ipo_is_a_parabola_around_its_target(delta: float, q: float, beta: float) -> None:
    """(Δ̄ - (2q-1)/(2β))² + (1 - (2q-1)²)/(4β²), as the docstring derives."""
    lean = 2 * q - 1
    found = losses.ipo(of_delta(exact(delta)), beta, exact(q))
    assert found.item() == pytest.approx((delta - lean / (2 * beta)) ** 2 + (1 - lean**2) / (4 * beta**2), abs=1e-9)


def test_where_soft_labels_draw_delta() -> None:
    """At q = 0.8, β = 0.5: DPO to ln 4 / 0.5 = 2.772589, IPO to 0.6; GDPO goes on, and at q = 1/2 does not move."""
    q = exact(0.8)
    for loss, target in ((losses.dpo, 2.772589), (losses.ipo, 0.6)):
        delta = exact(target).requires_grad_()
        loss(of_delta(delta), 0.5, q).sum().backward()  # type: ignore[operator]
        assert delta.grad is not None and abs(delta.grad.item()) < 1e-6
    for share, moves in ((0.8, True), (0.5, False)):
        delta = exact(2.772589).requires_grad_()
        losses.gdpo(of_delta(delta), 0.5, exact(share)).sum().backward()
        assert delta.grad is not None and (delta.grad.item() < 0) is moves


@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize("q", [None, 0.0, 0.7, 1.0])
def test_finite_at_extremes(name: PairLoss, q: float | None) -> None:
    """Log-probabilities from 0 to -1e4 on either side, in float32: loss and gradients are numbers."""
    ends = [0.0, -1e-8, -1e-3, -1.0, -1e4]
    rows = [(one, other, ref, -1.0, 1.0, 1.0) for one in ends for other in ends for ref in ends]
    logps = pairs(*rows)
    chosen, rejected = logps.chosen.clone().requires_grad_(), logps.rejected.clone().requires_grad_()
    probability = None if q is None else torch.full((len(rows),), q)
    loss = pair_loss(name, logps._replace(chosen=chosen, rejected=rejected), probability, LossSettings())
    loss.sum().backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert all(bool(each.isfinite().all()) for each in (loss, chosen.grad, rejected.grad))


def test_right_at_extremes() -> None:
    """Far out a loss is a line: β · 1e4 with slope -β where the policy is wrong, 0 with slope 0 where it is right."""
    delta = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = losses.dpo(of_delta(delta), 1.0)
    loss.sum().backward()
    assert loss.tolist() == [1e4, 0.0]
    assert delta.grad is not None and delta.grad.tolist() == [-1.0, 0.0]
    rewards = torch.tensor([-1e4, 1e4], requires_grad=True)
    losses.bradley_terry(rewards, torch.zeros(2), torch.tensor([0.75, 0.75])).sum().backward()
    assert rewards.grad is not None and rewards.grad.tolist() == [-0.75, 0.25]
    far = losses.kto(torch.tensor([-1e4, 1e4]), torch.tensor([True, True]), 0.0, 1.0)
    assert far.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("logp", [-1e-6, -1e-3, -0.69, -0.7, -5.0, -40.0, -1e4])
def test_log_odds_keep_their_digits(logp: float) -> None:
    """Against a completion of p = 1/2, whose log-odds are 0: float32 beside Python's doubles."""
    mean = torch.tensor([logp], requires_grad=True)
    loss = losses.odds_ratio(mean, torch.tensor([math.log(0.5)]))
    loss.sum().backward()
    rounded = mean.item()
    odds = rounded - math.log(-math.expm1(rounded))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-abs(odds))) + max(-odds, 0), rel=1e-5)
    # dL/dl = -σ(-log odds) / (1 - p) = -(1 - p) / (1 - p)
    assert mean.grad is not None and mean.grad.item() == pytest.approx(-1.0, rel=1e-5)
