"""P3O by hand, on bandits whose every pair can be gone through, and beside RLOO; pairs for online DPO."""

from __future__ import annotations

import itertools
import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlaif.rl.advantages import rloo
from rlaif.rl.losses import PairwiseLoss, Variant, best_and_worst, p3o, pairs_of

VARIANTS: tuple[Variant, ...] = get_args(Variant)
NUMBERS = st.floats(-4, 4, width=32)


def near(*values: float, bound: float = 1e-5) -> Any:
    return pytest.approx(list(values), abs=bound)


def whole(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


def slope(loss: Tensor, at: Tensor) -> list[float]:
    """Gradient of the sum of some losses."""
    (found,) = torch.autograd.grad(loss.sum(), at)
    return list(found.flatten().tolist())


def of_one(
    moved: tuple[float, float], rewards: tuple[float, float], variant: Variant
) -> tuple[PairwiseLoss, list[float]]:
    """Loss of one pair whose log-probabilities have moved so far, and its gradient for them; ε = 0.2."""
    old = torch.tensor([[-20.0, -30.0]])
    logps = (old + torch.tensor([moved])).requires_grad_()
    found = p3o(logps, old, torch.tensor([rewards]), 0.2, variant)
    return found, slope(found.loss, logps)


# D = (3 - 1)/2 = 1 or its negative; log 1.2 = 0.182322
@pytest.mark.parametrize(
    ("moved", "rewards", "loss", "gradient", "clipped"),
    [
        ((0.0, 0.0), (3.0, 1.0), 0.0, (-1.0, 1.0), False),
        ((0.05, -0.05), (3.0, 1.0), -0.1, (-1.0, 1.0), False),  # u = 0.1, the weight e^0
        ((0.2, -0.1), (3.0, 1.0), -0.201497, (0.0, 0.0), True),  # e^0.1 · 0.182322
        ((-0.2, 0.1), (3.0, 1.0), 0.271451, (-0.904837, 0.904837), False),  # the wrong way: e^-0.1 · 0.3
        ((-0.2, 0.1), (1.0, 3.0), -0.164972, (0.0, 0.0), True),  # e^-0.1 · 0.182322
        ((0.5, 0.45), (3.0, 1.0), -0.06, (-1.2, 1.2), False),  # u = 0.05; the weight e^0.95 is cut to 1.2
        ((0.2, -0.1), (2.0, 2.0), 0.0, (0.0, 0.0), False),
    ],
)
def test_joint_by_hand(
    moved: tuple[float, float], rewards: tuple[float, float], loss: float, gradient: tuple[float, float], clipped: bool
) -> None:
    found, pull = of_one(moved, rewards, "joint")
    assert [found.loss.item(), *pull] == near(loss, *gradient)
    assert found.clipped.tolist() == [clipped]


# D = 1: advantages [ρ2] and -[ρ1], each cut at 1.2 from above
@pytest.mark.parametrize(
    ("ratios", "loss", "gradient", "clipped"),
    [
        ((1.0, 1.0), 0.0, (-1.0, 1.0), False),
        ((1.1, 0.9), 0.0, (-0.99, 0.99), False),  # 1.1 · 0.9 - 0.9 · 1.1
        ((1.5, 0.9), 0.0, (0.0, 1.08), True),  # 1.2 · 0.9 - 0.9 · 1.2; the second still learns
        ((1.5, 0.5), 0.36, (0.0, 0.0), True),  # -(1.2 · 0.5 - 0.8 · 1.2)
        ((0.5, 1.5), 0.15, (-0.6, 0.75), False),  # the wrong way: -(0.5 · 1.2 - 1.5 · 0.5)
    ],
)
def test_separate_by_hand(
    ratios: tuple[float, float], loss: float, gradient: tuple[float, float], clipped: bool
) -> None:
    found, pull = of_one((math.log(ratios[0]), math.log(ratios[1])), (3.0, 1.0), "separate")
    assert [found.loss.item(), *pull] == near(loss, *gradient)
    assert found.clipped.tolist() == [clipped]


@pytest.mark.parametrize("variant", VARIANTS)
def test_within_the_bounds_it_is_the_importance_weighted_gradient(variant: Variant) -> None:
    """ρ1 ρ2 D = 1.1 · 0.95 · 1 = 1.045, for and against."""
    found, pull = of_one((math.log(1.1), math.log(0.95)), (3.0, 1.0), variant)
    assert pull == near(-1.045, 1.045)
    assert not found.clipped.any()


# A bandit of three arms: E[r] = 0.5·1 + 0.3·4 - 0.2·2 = 1.3, and ∂E[r]/∂logit_j = p_j (r_j - E[r]).
ARMS, PAYS, TRUE = (0.5, 0.3, 0.2), (1.0, 4.0, -2.0), (-0.15, 0.81, -0.66)
PAIRS = torch.tensor(list(itertools.product(range(3), repeat=2)))


def expected_gradient(old: tuple[float, ...], clip: float, variant: Variant) -> list[float]:
    """Of the loss, over all pairs of arms as `old` draws them, for the logits of the policy."""
    logits = torch.tensor(ARMS, dtype=torch.float64).log().requires_grad_()
    before = torch.tensor(old, dtype=torch.float64).log()
    found = p3o(logits.log_softmax(0)[PAIRS], before[PAIRS], torch.tensor(PAYS)[PAIRS], clip, variant)
    return slope(before[PAIRS].sum(1).exp() * found.loss, logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_on_its_own_samples_it_is_the_policy_gradient(variant: Variant) -> None:
    assert expected_gradient(ARMS, 0.2, variant) == near(*(-each for each in TRUE), bound=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_on_older_samples_it_is_the_policy_gradient_unless_clipped(variant: Variant) -> None:
    older = (0.3, 0.3, 0.4)
    assert expected_gradient(older, math.inf, variant) == near(*(-each for each in TRUE), bound=1e-9)
    assert expected_gradient(older, 0.2, variant) != near(*(-each for each in TRUE), bound=1e-2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_of_every_pair_it_is_rloo_of_two(variant: Variant) -> None:
    for pair in PAIRS:
        slopes = []
        for method in ("p3o", "rloo"):
            logits = torch.tensor(ARMS).log().requires_grad_()
            logps, pays = logits.log_softmax(0)[pair], torch.tensor(PAYS)[pair]
            if method == "p3o":
                loss = p3o(logps[None], logps.detach()[None], pays[None], 0.2, variant).loss.sum()
            else:
                loss = -(rloo(pays, whole(0, 0)) * logps).mean()
            slopes.append(slope(loss, logits))
        assert slopes[0] == near(*slopes[1], bound=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_of_all_pairs_of_a_prompt_it_is_rloo_of_n(variant: Variant) -> None:
    """Four answers to one prompt, two to another, one to a third: the mean over prompts of RLOO's mean over answers."""
    groups = whole(5, 2, 5, 5, 9, 2, 5)
    scores, old = torch.randn(7, generator=torch.Generator().manual_seed(0)), torch.linspace(-9, -3, 7)
    pairs = pairs_of(groups)
    logps = old.clone().requires_grad_()
    loss = p3o(logps[pairs.indices], old[pairs.indices], scores[pairs.indices], 0.2, variant).loss
    share = torch.tensor([1 / 8, 1 / 4, 1 / 8, 1 / 8, 0, 1 / 4, 1 / 8])  # ½ a prompt
    assert slope(pairs.weights * loss, logps) == near(*(-share * rloo(scores, groups)).tolist(), bound=1e-6)


@settings(deadline=None)
@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.sampled_from(VARIANTS))
def test_order_and_a_constant_change_nothing(
    a: float, b: float, good: float, bad: float, constant: float, variant: Variant
) -> None:
    found, pull = of_one((a, b), (good, bad), variant)
    turned, back = of_one((b, a), (bad, good), variant)
    assert [turned.loss.item(), *back[::-1]] == near(found.loss.item(), *pull, bound=1e-3)
    assert turned.clipped.tolist() == found.clipped.tolist()
    if good != bad and round(good, 3) != round(bad, 3):
        moved, again = of_one((a, b), (good + constant, bad + constant), variant)
        assert [moved.loss.item(), *again] == near(found.loss.item(), *pull, bound=1e-2)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("moved", [(500.0, -500.0), (-500.0, 500.0), (500.0, 500.0), (-500.0, -500.0)])
def test_pairs_that_have_gone_astray_stay_finite(moved: tuple[float, float], variant: Variant) -> None:
    found, pull = of_one(moved, (3.0, 1.0), variant)
    assert math.isfinite(found.loss.item())
    assert all(map(math.isfinite, pull))


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_the_policy_learns(variant: Variant) -> None:
    made = [torch.full((1, 2), value, requires_grad=True) for value in (0.1, 0.2, 0.3)]
    loss = p3o(made[0], made[1], made[2] * torch.tensor([1.0, 2.0]), 0.2, variant).loss
    found = torch.autograd.grad(loss.sum(), made, allow_unused=True)
    assert [each is not None for each in found] == [True, False, False]


def test_pairs_by_hand() -> None:
    """Group 7 has three pairs, group 9 one, group 3 none: half the weight each for 7 and 9."""
    found = pairs_of(whole(7, 3, 7, 9, 7, 9))
    assert found.indices.tolist() == [[0, 2], [0, 4], [2, 4], [3, 5]]
    assert found.weights.tolist() == near(1 / 6, 1 / 6, 1 / 6, 1 / 2)
    nothing = pairs_of(whole(1, 2))
    assert nothing.indices.shape == (0, 2)
    assert nothing.weights.shape == (0,)


def test_best_and_worst_by_hand() -> None:
    """Group 2 first: 4 over 1. Of group 7's two best and two worst the first each. Group 3 ties, group 8 is alone."""
    groups = whole(7, 2, 7, 3, 2, 3, 7, 8, 7)
    scores = torch.tensor([5.0, 1.0, -1.0, 0.1, 4.0, 0.1, 5.0, 9.0, -1.0])
    assert best_and_worst(scores, groups).tolist() == [[4, 1], [0, 2]]
    assert best_and_worst(scores[:1], groups[:1]).shape == (0, 2)
