"""Advantages by hand, beside plain Python, on a bandit whose every sample can be gone through, and beside TRL."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlaif.rl import advantages
from rlaif.rl.advantages import Moments, Scale

NUMBERS = st.floats(-100, 100, width=32)
TASKS: list[Callable[[Tensor, Tensor], Tensor]] = [
    advantages.rloo,
    advantages.grpo,
    lambda scores, groups: advantages.grpo(scores, groups, "batch"),
    lambda scores, groups: advantages.grpo(scores, groups, "none"),
    lambda scores, groups: advantages.reinforce_pp_baseline(
        scores, groups, torch.ones_like(scores), torch.ones_like(groups), beta=0.0
    ),
]
"""Every method that compares the completions of a prompt."""


def near(values: Sequence[float], bound: float = 1e-5) -> Any:
    return pytest.approx(list(values), abs=bound)


def whole(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


def test_spreading_by_hand() -> None:
    lengths = whole(2, 1, 3)
    assert advantages.spread(torch.tensor([1.0, 5.0, -1.0]), lengths).tolist() == [1, 1, 5, -1, -1, -1]
    flat = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    assert advantages.spread_sum(flat, lengths).tolist() == [3, 4, 56]
    assert advantages.padded(flat, lengths).tolist() == [[1, 2, 0], [4, 0, 0], [8, 16, 32]]


def test_sums_pass_gradients() -> None:
    flat = torch.zeros(4, requires_grad=True)
    weighted = advantages.spread_sum(flat, whole(3, 1)) * torch.tensor([2.0, 7.0])
    (found,) = torch.autograd.grad(weighted.sum(), flat)
    assert found.tolist() == [2, 2, 2, 7]


def test_lengths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="add up to 3, but there are 4 tokens"):
        advantages.padded(torch.zeros(4), whole(1, 2))
    with pytest.raises(ValueError, match="needs a token"):
        advantages.padded(torch.zeros(2), whole(2, 0))


def test_rewards_by_hand() -> None:
    """β = 0.1: tokens (-0.05, -0.1 + 1) and (-0.2 - 2); whole answers 1 - 0.15 and -2 - 0.2."""
    scores, kl, lengths = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0, 2.0]), whole(2, 1)
    assert advantages.token_rewards(scores, kl, lengths, 0.1).tolist() == near([-0.05, 0.9, -2.2])
    assert advantages.penalised(scores, kl, lengths, 0.1).tolist() == near([0.85, -2.2])
    rewards = advantages.token_rewards(scores, kl, lengths, 0.1)
    assert advantages.returns_to_go(rewards, lengths, 0.5).tolist() == near([0.4, 0.9, -2.2])  # -0.05 + 0.5 · 0.9


def test_gae_by_hand() -> None:
    """γ = 0.9, λ = 0.5: δ = (1 + 0.9·1 - 0.5, 2 - 1) = (1.4, 1), A = (1.4 + 0.45·1, 1); and δ = A = 3 - 2."""
    found = advantages.gae(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 2.0]), whole(2, 1), 0.9, 0.5)
    assert found.advantages.tolist() == near([1.85, 1.0, 1.0])
    assert found.returns.tolist() == near([2.35, 2.0, 3.0])


def one_at_a_time(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Σ_l (γλ)^l δ_{t+l}, written out, of one completion."""
    ends = [*values, 0.0]
    deltas = [reward + gamma * ends[t + 1] - ends[t] for t, reward in enumerate(rewards)]
    return [
        sum((gamma * lam) ** (later - t) * deltas[later] for later in range(t, len(deltas))) for t in range(len(deltas))
    ]


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.floats(-9, 9, width=32), st.floats(-9, 9, width=32)), min_size=1, max_size=9),
        min_size=1,
        max_size=5,
    ),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_gae_of_ragged_completions(texts: list[list[tuple[float, float]]], gamma: float, lam: float) -> None:
    expected = [
        value for text in texts
        for value in one_at_a_time([reward for reward, _ in text], [value for _, value in text], gamma, lam)
    ]  # fmt: skip
    rewards, values = torch.tensor([token for text in texts for token in text]).unbind(1)
    lengths = whole(*map(len, texts))
    assert advantages.gae(rewards, values, lengths, gamma, lam).advantages.tolist() == near(expected, bound=1e-3)
    whole_returns = advantages.gae(rewards, values, lengths, 1.0, 1.0)
    to_go = advantages.returns_to_go(rewards, lengths, 1.0)
    assert (to_go - values).tolist() == near(
        whole_returns.advantages.tolist(), bound=1e-3
    )  # eq. 18: returns less values
    assert to_go.tolist() == near(whole_returns.returns.tolist(), bound=1e-3)


def test_gae_with_lambda_0_is_the_error_of_one_step() -> None:
    """Eq. 17: r + γV' - V = 1 + 0.9·3 - 2, 0 + 0.9·1 - 3, 5 - 1; then 7 - 4."""
    rewards, values = torch.tensor([1.0, 0.0, 5.0, 7.0]), torch.tensor([2.0, 3.0, 1.0, 4.0])
    found = advantages.gae(rewards, values, whole(3, 1), 0.9, 0.0)
    assert found.advantages.tolist() == near([1.7, -2.1, 4.0, 3.0])


def moments_of(values: torch.Tensor) -> Moments:
    return advantages.moments(advantages.totals(values))


def test_whitening_by_hand() -> None:
    """Of 1, 2, 3, 6: mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5, deviation 1.870829."""
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert advantages.whiten(values, moments_of(values)).tolist() == near([-1.069045, -0.534522, 0, 1.603567])
    assert advantages.whiten(values, Moments(1.0, 4.0)).tolist() == near([0, 0.5, 1, 2.5])


@settings(deadline=None)
@given(st.lists(NUMBERS, min_size=2, max_size=50), NUMBERS, st.booleans())
def test_whitened_tokens(values: list[float], offset: float, alike: bool) -> None:
    tokens = torch.tensor(values) if not alike else torch.full((len(values),), offset)
    found = advantages.whiten(tokens, moments_of(tokens)).double()
    assert found.mean().item() == pytest.approx(0, abs=1e-3)
    if tokens.double().var(correction=0) > 1e-2:
        assert found.var(correction=0).item() == pytest.approx(1, abs=1e-3)
    if alike:
        assert found.tolist() == [0.0] * len(values)


def test_moments_add_up_over_processes() -> None:
    """Also where the mean is ten thousand times the deviation: float32 would lose the variance."""
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) + 1e4
    parts = [advantages.totals(values[:300]), advantages.totals(values[300:])]
    found = advantages.moments(parts[0] + parts[1])
    assert found.mean == pytest.approx(values.double().mean().item(), rel=1e-9)
    assert found.variance == pytest.approx(values.double().var(correction=0).item(), rel=1e-5)
    unbiased = advantages.moments(parts[0] + parts[1], unbiased=True)
    assert unbiased.variance == pytest.approx(values.double().var().item(), rel=1e-5)
    assert advantages.moments(advantages.totals(torch.zeros(0))) == (0, 0)
    assert advantages.moments(advantages.totals(torch.tensor([3.0])), unbiased=True) == (3, 0)
    split = [advantages.whiten(part, found) for part in (values[:300], values[300:])]
    torch.testing.assert_close(torch.cat(split), advantages.whiten(values, moments_of(values)))


SCORES = torch.tensor([1.0, 4.0, 2.0, 5.0, 6.0, 5.0])
GROUPS = whole(7, 3, 7, 9, 7, 9)
"""One group of three (1, 2, 6), one of one (4), one of two equal ones (5, 5), none together."""


def test_rloo_by_hand() -> None:
    """1 - (2 + 6)/2, 2 - (1 + 6)/2, 6 - (1 + 2)/2."""
    assert advantages.rloo(SCORES, GROUPS).tolist() == [-3, 0, -1.5, 0, 4.5, 0]


@pytest.mark.parametrize(
    ("scale", "divisor"),
    [
        ("none", 1.0),
        ("group", 2.645851),  # √((4 + 1 + 9) / 2) = √7 = 2.645751, and 0.0001
        ("batch", 1.940890),  # √((107 - 23²/6) / 5) = √3.766667 = 1.940790, and 0.0001
    ],
)
def test_grpo_by_hand(scale: Scale, divisor: float) -> None:
    found = advantages.grpo(SCORES, GROUPS, scale).tolist()
    assert found == near([-2 / divisor, 0, -1 / divisor, 0, 3 / divisor, 0])


def test_grpo_takes_the_moments_of_all_processes() -> None:
    every = torch.cat([SCORES, torch.tensor([10.0, -10.0])])
    found = advantages.grpo(every, torch.cat([GROUPS, whole(11, 11)]), "batch")
    ours = advantages.grpo(SCORES, GROUPS, "batch", advantages.moments(advantages.totals(every), unbiased=True))
    assert ours.tolist() == near(found[:6].tolist())


def test_usable() -> None:
    assert advantages.usable(GROUPS).tolist() == [True, False, True, True, True, True]
    assert advantages.usable(whole()).tolist() == []


def test_reinforce_pp_by_hand() -> None:
    """To go, β = 0.1, γ = 1: 0.9 - 0.05, 0.9, -2.2. With a baseline of -0.5 the scores are ±1.5."""
    scores, kl, lengths = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0, 2.0]), whole(2, 1)
    assert advantages.reinforce_pp(scores, kl, lengths, 0.1).tolist() == near([0.85, 0.9, -2.2])
    assert advantages.reinforce_pp(scores, kl, lengths, 0.1, gamma=0.5).tolist() == near([0.4, 0.9, -2.2])
    found = advantages.reinforce_pp_baseline(scores, whole(4, 4), kl, lengths, 0.1)
    assert found.tolist() == near([1.35, 1.4, -1.7])
    alone = advantages.reinforce_pp_baseline(scores, whole(4, 5), kl, lengths, 0.1)
    assert alone.tolist() == [0, 0, 0]


def test_overlong_penalty_by_hand() -> None:
    """Free to 10 - 4 = 6 tokens, then a quarter each."""
    found = advantages.overlong_penalty(whole(3, 6, 7, 8, 10, 12), limit=10, buffer=4)
    assert found.tolist() == [0, 0, -0.25, -0.5, -1, -1]
    for buffer in (0, 11):
        with pytest.raises(ValueError, match="between 1 and the limit of 10"):
            advantages.overlong_penalty(whole(3), 10, buffer)


@pytest.mark.parametrize("method", TASKS)
def test_equal_scores_and_lone_ones_get_exactly_0(method: Callable[[Tensor, Tensor], Tensor]) -> None:
    """0.1 three times adds up to a little more than 0.3: what is left over must not be divided by 0.0001."""
    scores = torch.tensor([0.1, 0.1, 0.1, 1 / 3, 1e6, 1e6, *[-0.7] * 7, 2.0, 5.0])
    groups = whole(0, 0, 0, 1, 2, 2, *[3] * 7, 4, 4)
    found = method(scores, groups)
    assert found[:-2].tolist() == [0.0] * 13
    assert found[-2] < 0 < found[-1]
    assert method(scores[:4], groups[:4]).tolist() == [0.0] * 4, "nothing else in the batch"


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), NUMBERS), min_size=1, max_size=12), st.lists(NUMBERS, min_size=4, max_size=4)
)
def test_a_constant_added_per_prompt_changes_nothing(rows: list[tuple[int, float]], added: list[float]) -> None:
    groups, scores = whole(*[group for group, _ in rows]), torch.tensor([score for _, score in rows])
    moved = scores + torch.tensor(added)[groups]
    for method in (advantages.rloo, lambda s, g: advantages.grpo(s, g, "none")):
        assert method(moved, groups).tolist() == near(method(scores, groups).tolist(), bound=1e-3)
    if all(scores[groups == group].std() > 1 for group in set(groups[advantages.usable(groups)].tolist())):
        assert advantages.grpo(moved, groups).tolist() == near(advantages.grpo(scores, groups).tolist(), bound=1e-3)


@settings(deadline=None)
@given(st.permutations(range(6)))
def test_order_does_not_matter(order: list[int]) -> None:
    at = whole(*order)
    for method in TASKS:
        assert method(SCORES[at], GROUPS[at]).tolist() == near(method(SCORES, GROUPS)[at].tolist())


def test_nothing_is_changed_in_place_and_all_is_float32() -> None:
    scores, groups, kl, lengths = SCORES.clone(), GROUPS.clone(), torch.ones(8), whole(1, 1, 2, 2, 1, 1)
    found = [method(scores, groups) for method in TASKS]
    found += advantages.gae(kl, kl, lengths, 0.9, 0.9)
    found += [advantages.reinforce_pp(scores, kl, lengths, 0.1), advantages.penalised(scores, kl, lengths, 1.0)]
    found += [
        advantages.whiten(kl, moments_of(kl)),
        advantages.spread(scores, lengths),
        advantages.overlong_penalty(lengths, 2, 1),
    ]
    assert {each.dtype for each in found} == {torch.float32}
    assert torch.equal(scores, SCORES)
    assert torch.equal(groups, GROUPS)
    assert torch.equal(kl, torch.ones(8))
    assert torch.equal(lengths, whole(1, 1, 2, 2, 1, 1))


# A bandit of three arms: E[r] = 0.5·1 + 0.3·4 - 0.2·2 = 1.3, and ∂E[r]/∂logit_j = p_j (r_j - E[r]).
ARMS, PAYS = (0.5, 0.3, 0.2), (1.0, 4.0, -2.0)
TRUE = [-0.15, 0.81, -0.66]


def expected_gradient(method: Callable[[Tensor, Tensor], Tensor], samples: int) -> list[float]:
    """E[1/n Σ A_i ∇log π(a_i)], by going through every possible draw of n samples."""
    logits = torch.tensor(ARMS, dtype=torch.float64).log().requires_grad_()
    logps, pays = logits.log_softmax(0), torch.tensor(PAYS, dtype=torch.float64)
    total = logits.new_zeros(())
    for draw in itertools.product(range(3), repeat=samples):
        arms = whole(*draw)
        chance = logps[arms].sum().exp().detach()
        total = total + chance * (method(pays[arms], torch.zeros_like(arms)) * logps[arms]).mean()
    (found,) = torch.autograd.grad(total, logits)
    return list(found.tolist())


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_rloo_is_unbiased(samples: int) -> None:
    assert expected_gradient(advantages.rloo, samples) == near(TRUE, bound=1e-9)


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_a_mean_with_oneself_in_it_shrinks_the_gradient(samples: int) -> None:
    """Dr. GRPO's baseline contains the sample itself: the same gradient, (n - 1)/n times."""
    found = expected_gradient(lambda s, g: advantages.grpo(s, g, "none"), samples)
    assert found == near([(samples - 1) / samples * each for each in TRUE], bound=1e-9)


Rewards = Callable[..., list[float]]


class Recorded:
    """Rewards of TRL's completions that were drawn beforehand."""

    def __init__(self, name: str, values: list[float]) -> None:
        self.__name__, self.values = name, values

    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        assert len(completions) == len(self.values)
        return self.values


FIRST = [1.0, 0.25, -3.0, 2.0, 0.5, 0.5, 0.5, 0.5, 4.0, 9.0, -1.0, 4.0]
PER_PROMPT = 4


def trl_advantages(
    kind: Literal["GRPO", "RLOO"], model: Path, folder: Path, rewards: list[Rewards], **more: Any
) -> Any:
    """What TRL's own trainer makes of these rewards, three prompts with four sampled completions each."""
    if os.environ.get("CI_REQUIRE_TRL") == "1":
        import trl
    else:
        trl = pytest.importorskip("trl", reason="the extra `trl` is not installed")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompts = [{"prompt": "Is it A or B?"}, {"prompt": "Answer with one letter."}, {"prompt": "Which?"}]
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(folder), per_device_train_batch_size=12, num_generations=PER_PROMPT, max_completion_length=4,
        report_to=[], use_cpu=True, bf16=False, disable_tqdm=True, beta=0.0, **more,
    )  # fmt: skip
    trainer = getattr(trl, f"{kind}Trainer")(
        model=AutoModelForCausalLM.from_pretrained(model), args=config, reward_funcs=rewards,
        train_dataset=Dataset.from_list(prompts), processing_class=AutoTokenizer.from_pretrained(model),
    )  # fmt: skip
    rows = [prompt for prompt in prompts for _ in range(PER_PROMPT)]
    return trainer._generate_and_score_completions(rows)["advantages"].tolist()


OF_TRL = torch.arange(3).repeat_interleave(PER_PROMPT)


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_grpo_beside_trl(scale: Scale, tiny_model: Path, tmp_path: Path) -> None:
    theirs = trl_advantages("GRPO", tiny_model, tmp_path, [Recorded("a", FIRST)], scale_rewards=scale)
    assert advantages.grpo(torch.tensor(FIRST), OF_TRL, scale).tolist() == near(theirs)


@pytest.mark.slow
def test_rloo_beside_trl(tiny_model: Path, tmp_path: Path) -> None:
    theirs = trl_advantages("RLOO", tiny_model, tmp_path, [Recorded("a", FIRST)])
    assert advantages.rloo(torch.tensor(FIRST), OF_TRL).tolist() == near(theirs)
