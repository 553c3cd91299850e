"""Estimators of the divergence by hand, and their means and gradients by going through every possible sample."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlaif.errors import ModelError
from rlaif.rl import advantages
from rlaif.rl.advantages import AdaptiveKl, Kind, estimate
from rlaif.rl.losses import ratio_of

KINDS: tuple[Kind, ...] = get_args(Kind)
LN2 = math.log(2)

# Three tokens. KL = 0.5 ln 2.5 + 0.3 ln 1.5 + 0.2 ln 1/3 = 0.458145 + 0.121640 - 0.219722
POLICY, REFERENCE = (0.5, 0.3, 0.2), (0.2, 0.2, 0.6)
KL = 0.360063


def exact(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def slope(loss: Tensor, at: Tensor) -> list[float]:
    """Gradient of the sum of some losses."""
    (found,) = torch.autograd.grad(loss.sum(), at)
    return list(found.flatten().tolist())


@pytest.mark.parametrize(
    ("kind", "d", "value"),
    [
        ("k1", LN2, 0.693147),
        ("k1", -LN2, -0.693147),
        ("k2", LN2, 0.240227),  # 0.480453 / 2
        ("k2", -LN2, 0.240227),
        ("k3", LN2, 0.193147),  # 1/2 - 1 + 0.693147
        ("k3", -LN2, 0.306853),  # 2 - 1 - 0.693147
        ("k1", 0.0, 0.0),
        ("k2", 0.0, 0.0),
        ("k3", 0.0, 0.0),
    ],
)
def test_by_hand(kind: Kind, d: float, value: float) -> None:
    assert estimate(kind, torch.tensor([d - 3.0]), torch.tensor([-3.0])).item() == pytest.approx(value, abs=1e-6)
    assert getattr(advantages, kind)(torch.tensor([d])).item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "d", "cut", "whole"),
    [
        ("k1", 20.0, 10.0, 20.0),
        ("k1", -20.0, -10.0, -20.0),
        ("k2", 20.0, 79.442719, 200.0),  # 10, and sqrt(20) = 4.472136 for each of 15.527864 nats more
        ("k3", 20.0, 19.0, 19.0),  # e^-20 - 1 + 20: its slope is never above 1 here
        ("k3", -5.0, 33.623147, 142.413159),  # 10 - ln 11 = 7.602105, and 10 for each of 2.602105 nats; e^5 - 6
    ],
)
def test_far_tokens_are_cut(kind: Kind, d: float, cut: float, whole: float) -> None:
    logps, refs = torch.tensor([d]), torch.zeros(1)
    assert estimate(kind, logps, refs).item() == pytest.approx(cut, rel=1e-6)
    assert estimate(kind, logps, refs, clamp=None).item() == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("d", [-1000.0, -90.0, 90.0, 1000.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_farthest_tokens_have_a_finite_gradient(kind: Kind, d: float) -> None:
    """e^1000 is infinite, and 0 · infinity would be no number."""
    logps = torch.tensor([d], requires_grad=True)
    (found,) = slope(estimate(kind, logps, torch.zeros(1)), logps)
    far = {"k1": 0.0, "k2": math.copysign(math.sqrt(20), d), "k3": 1.0 if d > 0 else -10.0}
    assert found == pytest.approx(far[kind], rel=1e-6)


@pytest.mark.finding(7)
@pytest.mark.parametrize("d", [0.5, 4.4, 4.5, 6.0, 30.0])
def test_the_farthest_tokens_are_pulled_back_the_hardest(d: float) -> None:
    """The pull of d²/2 is d; from sqrt(20) = 4.472136 nats on it grows no more, and never ends."""
    for sign in (1, -1):
        logps = exact(sign * d).requires_grad_()
        assert slope(estimate("k2", logps, exact(0.0)), logps) == pytest.approx([sign * min(d, 4.472136)], rel=1e-6)


@pytest.mark.sibling("k3-cut-has-no-gradient")
@pytest.mark.parametrize(
    ("d", "pull"), [(0.5, 0.393469), (12.0, 0.999994), (-2.0, -6.389056), (-2.5, -10.0), (-9.0, -10.0)]
)
def test_the_other_estimator_for_a_loss_pulls_as_well(d: float, pull: float) -> None:
    """1 - e^-d; 10 at most, which it is at d = -ln 11 = -2.397895."""
    logps = exact(d).requires_grad_()
    assert slope(estimate("k3", logps, exact(0.0)), logps) == pytest.approx([pull], abs=1e-6)


@settings(deadline=None)
@given(st.floats(-50, 50, width=32))
def test_k2_and_k3_are_never_below_0(d: float) -> None:
    both = torch.tensor([d])
    assert advantages.k2(both).item() >= 0
    assert advantages.k3(both).item() >= 0


def test_no_gradient_to_the_reference_and_no_change_of_arguments() -> None:
    logps, refs = torch.tensor([-1.0, -2.0], requires_grad=True), torch.tensor([-1.5, -1.0], requires_grad=True)
    for kind in KINDS:
        found = torch.autograd.grad(estimate(kind, logps, refs).sum(), [logps, refs], allow_unused=True)
        assert [each is None for each in found] == [False, True]
    assert logps.tolist() == [-1.0, -2.0]


def test_means_over_every_sample() -> None:
    """k1 and k3 give the divergence exactly; k2's mean is ½ Σ p d² = ½ (0.419794 + 0.049321 + 0.241390) = 0.355252."""
    p, q = exact(*POLICY), exact(*REFERENCE)
    means = {kind: (p * estimate(kind, p.log(), q.log())).sum().item() for kind in KINDS}
    assert means == {
        "k1": pytest.approx(KL, abs=1e-6), "k2": pytest.approx(0.355252, abs=1e-6), "k3": pytest.approx(KL, abs=1e-6)
    }  # fmt: skip


def gradient(objective: Callable[[Tensor, Tensor], Tensor]) -> list[float]:
    """Of Σ objective(log p, log q) over all tokens, for the logits of the policy."""
    logits = exact(*POLICY).log().requires_grad_()
    return slope(objective(logits.log_softmax(0), exact(*REFERENCE).log()), logits)


def in_reward(kind: Kind) -> list[float]:
    """E_π[estimate · ∇log π], the estimate and the sampling being constants."""
    return gradient(lambda p, q: p.exp().detach() * estimate(kind, p, q).detach() * p)


def in_loss(kind: Kind) -> list[float]:
    """E_π[∇estimate], the sampling being a constant."""
    return gradient(lambda p, q: p.exp().detach() * estimate(kind, p, q))


def near(*values: float) -> object:
    return pytest.approx(values, abs=1e-6)


def test_gradients_over_every_sample() -> None:
    """∂KL/∂logit_j = p_j (d_j - KL): 0.5 (0.916291 - KL), 0.3 (0.405465 - KL), 0.2 (-1.098612 - KL)."""
    true = near(0.278114, 0.013621, -0.291735)
    assert gradient(lambda p, q: p.exp() * (p - q)) == true, "the hand's arithmetic"
    assert in_reward("k1") == true
    assert in_loss("k2") == true


def test_gradients_of_what_stands_in_the_wrong_place() -> None:
    """k1 as a loss pulls nowhere; k3 as a loss is ∇KL(ref ‖ π), which for the logits is p - q."""
    assert in_loss("k1") == near(0, 0, 0)
    assert in_loss("k3") == near(0.3, 0.1, -0.4)
    assert gradient(lambda p, q: q.exp() * (q - p)) == near(0.3, 0.1, -0.4)
    wrong = near(0.278114, 0.013621, -0.291735)
    assert in_reward("k2") != wrong
    assert in_reward("k3") != wrong


@pytest.mark.parametrize("kind", ["k1", "k3"])
@pytest.mark.parametrize("old", [POLICY, (0.3, 0.3, 0.4)])
def test_an_unbiased_estimate_times_its_ratio_is_right_in_the_loss(kind: Kind, old: tuple[float, ...]) -> None:
    """E_old[∇(ρ · k)] = ∇E_π[k], also for samples of older weights. Of k2 the ratio has to be a constant."""
    before = exact(*old).log()
    true = near(0.278114, 0.013621, -0.291735)
    assert gradient(lambda p, q: before.exp() * (ratio_of(p, before) * estimate(kind, p, q))) == true
    assert gradient(lambda p, q: before.exp() * (ratio_of(p, before).detach() * estimate("k2", p, q))) == true


def test_gradients_of_two_tokens() -> None:
    """The divergence of a text: k1 in the reward of the whole, or k2 of sums; k2 per token leaves a part out."""
    start = torch.tensor([0.3, -0.4], dtype=torch.float64)
    then = torch.tensor([[0.5, 0.1], [-0.2, 0.9]], dtype=torch.float64)
    refs = [torch.tensor([0.5, 0.5], dtype=torch.float64).log(), exact(0.9, 0.1).log().expand(2, 2)]

    def of(kind: str) -> Tensor:
        first, second = start.clone().requires_grad_(), then.clone().requires_grad_()
        logps = [first.log_softmax(0)[:, None].expand(2, 2), second.log_softmax(1)]
        d = [logps[0] - refs[0][:, None], logps[1] - refs[1]]
        joint = (logps[0] + logps[1]).exp()
        terms = {
            "true": joint * (d[0] + d[1]),
            "k1 in the reward": joint.detach() * (d[0] + d[1]).detach() * (logps[0] + logps[1]),
            "k1 to go": joint.detach() * ((d[0] + d[1]).detach() * logps[0] + d[1].detach() * logps[1]),
            "k2 of sums": joint.detach() * advantages.k2(d[0] + d[1]),
            "k2 per token": joint.detach() * (advantages.k2(d[0]) + advantages.k2(d[1])),
        }
        found = torch.autograd.grad(terms[kind].sum(), [first, second])
        return torch.cat([each.flatten() for each in found])

    for kind in ("k1 in the reward", "k1 to go", "k2 of sums"):
        torch.testing.assert_close(of(kind), of("true"))
    missing = (of("k2 per token") - of("true")).abs()
    assert missing[:2].max() > 0.05
    torch.testing.assert_close(of("k2 per token")[2:], of("true")[2:])  # the last token has none after it


@pytest.mark.parametrize(
    ("measured", "answers", "beta"),
    [
        (6.0, 500, 0.1),  # at the target
        (6.6, 500, 0.1005),  # e = 0.1, factor 1 + 0.1 · 500 / 10000
        (12.0, 500, 0.101),  # e = 1, cut to 0.2
        (3.0, 500, 0.099),  # e = -0.5, cut to -0.2
        (-1.0, 500, 0.099),  # an estimate below 0
        (12.0, 10_000, 0.12),
        (0.0, 100_000, 0.01),  # 1 - 0.2 · 10 would turn the penalty into a bonus
    ],
)
def test_adaptive_by_hand(measured: float, answers: int, beta: float) -> None:
    before = AdaptiveKl(beta=0.1, target=6.0, horizon=10_000)
    assert before.after(measured, answers).beta == pytest.approx(beta)
    assert before.beta == 0.1


def test_adaptive_goes_on_from_one_number() -> None:
    fresh = AdaptiveKl(0.1, 6.0, 1000)
    through = fresh.after(9.0, 64).after(2.0, 64)
    saved = json.loads(json.dumps(fresh.after(9.0, 64).beta))
    assert replace(fresh, beta=saved).after(2.0, 64) == through


def test_adaptive_finds_the_target() -> None:
    """A world in which the policy settles at 1/β nats comes to rest at the target."""
    adaptive = AdaptiveKl(1.0, 4.0, 100)
    for _ in range(300):
        adaptive = adaptive.after(1 / adaptive.beta, 10)
    assert 1 / adaptive.beta == pytest.approx(4.0, rel=1e-3)


def test_adaptive_refuses() -> None:
    with pytest.raises(ModelError, match="nan"):
        AdaptiveKl(0.1, 6.0, 1000).after(math.nan, 10)
    for wrong in ((0.0, 6.0, 10.0), (0.1, -1.0, 10.0), (0.1, 6.0, 0.0), (math.nan, 6.0, 10.0)):
        with pytest.raises(ValueError, match="above 0"):
            AdaptiveKl(*wrong)
