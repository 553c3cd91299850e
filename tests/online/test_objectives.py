"""What the options of the algorithms make of a step, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlaif.rl.advantages import Moments, moments, spread, totals
from rlaif.rl.config import KlSettings, OnlineSettings
from rlaif.rl.experience import Experience, Response, Scores, TokenizedPrompt
from rlaif.rl.losses import Counts, compute_advantages, logged, policy_loss
from rlaif.rl.trainer import OnlineTrainer
from rlaif.training.tokenize import Group
from tests.online.runs import given

LOGPS = torch.tensor([0.2, 0.3, 0.1])
"""Log-ratios of an answer of one token and of one of two, as they were all 0 before."""


WHOLE = Counts(prompts=1, responses=2, tokens=3)


def experience() -> Experience:
    nothing = torch.zeros(3)
    return Experience(
        groups=[Group("p", [1], ([2], [3, 4]))],
        owners=torch.tensor([0, 0]),
        lengths=torch.tensor([1, 2]),
        scores=torch.tensor([1.0, -1.0]),
        old=nothing,
        reference=nothing,
        weights=torch.ones(3),
        values=nothing,
        advantages=torch.tensor([1.0, -1.0, -1.0]),
        returns=nothing,
    )


@pytest.mark.parametrize(
    ("more", "loss"),
    [
        # Sums: e^0.2 is cut to 1.2, and e^0.4 = 1.491825 is not, as its answer is a bad one.
        ({"algorithm": "rloo"}, (-1.2 + 1.491825) / 2),
        ({"algorithm": "rloo", "dual_clip": 1.3}, (-1.2 + 1.3) / 2),
        # By length both ratios are e^0.2 = 1.221403.
        ({"algorithm": "grpo", "ratio": "sequence", "clip": 0.2}, (-1.2 + 1.221403) / 2),
        # A token each: e^0.3 = 1.349859 and e^0.1 = 1.105171, over three tokens.
        ({"algorithm": "grpo"}, (-1.2 + 1.349859 + 1.105171) / 3),
        ({"algorithm": "grpo", "dual_clip": 1.2}, (-1.2 + 1.2 + 1.105171) / 3),
        ({"algorithm": "grpo", "clip_high": 0.28}, (-1.221403 + 1.349859 + 1.105171) / 3),
        ({"algorithm": "grpo", "loss_normalization": "sequence"}, (-1.2 + (1.349859 + 1.105171) / 2) / 2),
        ({"algorithm": "grpo", "loss_normalization": "constant"}, (-1.2 + 1.349859 + 1.105171) / (2 * 8)),
        ({"algorithm": "ppo", "dual_clip": 1.2}, (-1.2 + 1.2 + 1.105171) / 3),
    ],
)
def test_clips_and_means_by_hand(more: dict[str, Any], loss: float, tmp_path: Path) -> None:
    settings = OnlineSettings.model_validate(given(tmp_path, **more))
    found = policy_loss(LOGPS, experience(), WHOLE, settings, beta=0.0)
    assert found.loss.item() == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("more", [{"ratio": "sequence"}, {}])
def test_the_price_of_divergence_in_the_loss(more: dict[str, Any], tmp_path: Path) -> None:
    """k2 is half the square: (0.04 + 0.09 + 0.01) / 2 over three tokens."""
    settings = OnlineSettings.model_validate(given(tmp_path, algorithm="grpo", kl={"apply_to": "loss"}, **more))
    free, priced = (policy_loss(LOGPS, experience(), WHOLE, settings, beta).loss.item() for beta in (0.0, 0.5))
    assert priced - free == pytest.approx(0.5 * 0.07 / 3, abs=1e-6)


def test_parts_of_a_minibatch_add_up(tmp_path: Path) -> None:
    """Two prompts, each a part of its own."""
    one = experience()
    both = replace(
        one,
        groups=[*one.groups, Group("q", [1], ([2], [3, 4]))],
        owners=torch.tensor([0, 0, 1, 1]),
        **{
            name: torch.cat([getattr(one, name)] * 2)
            for name in ("lengths", "scores", "old", "reference", "weights", "values", "advantages", "returns")
        },
    )
    for more in ({"algorithm": "grpo", "ratio": "sequence"}, {"algorithm": "grpo"}, {"algorithm": "rloo"}):
        settings = OnlineSettings.model_validate(given(tmp_path, **more))
        logps = torch.cat([LOGPS, LOGPS])
        counts = Counts(prompts=2, responses=4, tokens=6)
        parts = [policy_loss(LOGPS, both.take([at]), counts, settings, 0.0).loss.item() for at in (0, 1)]
        assert sum(parts) == pytest.approx(policy_loss(logps, both, counts, settings, 0.0).loss.item(), abs=1e-6)


def of_lengths(*lengths: int) -> Experience:
    """One prompt with answers of so many tokens, of equal scores."""
    tokens = torch.zeros(sum(lengths))
    answers = tuple([5] * size for size in lengths)
    return Experience(
        [Group("p", [1], answers)], torch.zeros(len(lengths), dtype=torch.long), torch.tensor(lengths),
        torch.zeros(len(lengths)), tokens, tokens, torch.ones_like(tokens), tokens, tokens, tokens,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("more", "of"),
    [
        ({"algorithm": "rloo"}, 4), ({"algorithm": "p3o"}, 4),
        ({"algorithm": "grpo"}, 44), ({"algorithm": "grpo", "ratio": "sequence"}, 44),
    ],
)  # fmt: skip
def test_the_price_of_divergence_counts_tokens_alike_wherever_they_are(
    more: dict[str, Any], of: int, tmp_path: Path
) -> None:
    """One process has 2 answers of 2 tokens at the reference, another 2 of 20 that are 1 nat off: 40 halves.

    A loss by answer is their mean over the 4 answers, one by token over the 44 tokens. Each process counts in halves of
    all 2 prompts, 4 answers and 44 tokens, and the mean of the two is the step's.
    """
    settings = OnlineSettings.model_validate(given(tmp_path, **more, kl={"apply_to": "loss"}))
    counts = Counts(prompts=1, responses=2, tokens=22)
    near, far = of_lengths(2, 2), of_lengths(20, 20)
    one = policy_loss(near.old, near, counts, settings, beta=1.0).loss.item()
    other = policy_loss(far.old + 1, replace(far, old=far.old + 1), counts, settings, beta=1.0).loss.item()
    assert (one + other) / 2 == pytest.approx(0.5 * 40 / of, abs=1e-6)


SCORED, SPREAD_OVER = torch.tensor([0.8, 0.8, 0.8, 0.8]), 20
NATS = torch.tensor([2.53, -0.34, 1.29, 0.51])
"""KL of four answers of 20 tokens, that of an answer spread evenly over its tokens."""


def answered(scores: torch.Tensor) -> Experience:
    """Four answers to one prompt, as far from the reference as `NATS` says."""
    found = of_lengths(*[SPREAD_OVER] * 4)
    reference = found.old - spread(NATS / SPREAD_OVER, found.lengths)
    return replace(found, scores=scores, reference=reference)


def over(values: torch.Tensor, unbiased: bool) -> Moments:
    return moments(totals(values), unbiased=unbiased)


@pytest.mark.finding(2)
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("beta", [0.05, 0.0005])
def test_equal_scores_teach_nothing_and_kl_keeps_its_price(scale: str, beta: float, tmp_path: Path) -> None:
    """By default KL is in the loss, and the advantages are exactly 0. In the reward it is beta times KL, less the mean
    of the four, 0.9975 nats, whatever the scores are divided by."""
    settings = OnlineSettings.model_validate(given(tmp_path, algorithm="grpo", scale=scale, kl={"beta": beta}))
    assert settings.kl.apply_to == "loss"
    assert not compute_advantages(answered(SCORED), settings, beta, over).advantages.any()
    paid = settings.model_copy(update={"kl": settings.kl.model_copy(update={"apply_to": "reward"})})
    found = compute_advantages(answered(SCORED), paid, beta, over).advantages[::SPREAD_OVER]
    assert found.tolist() == pytest.approx([beta * (0.9975 - nats) for nats in NATS.tolist()], abs=1e-6)


@pytest.mark.sibling("price-outside-of-the-deviation")
@pytest.mark.parametrize("scale", ["group", "batch"])
def test_scores_that_differ_are_divided_and_their_price_is_not(scale: str, tmp_path: Path) -> None:
    """1, 0, 0, 1 have the mean 0.5 and the unbiased deviation 0.57735: 0.5 / 0.57745 = 0.865876 (with the 1e-4)."""
    settings = OnlineSettings.model_validate(
        given(tmp_path, algorithm="grpo", scale=scale, kl={"beta": 0.1, "apply_to": "reward"})
    )
    found = compute_advantages(answered(torch.tensor([1.0, 0.0, 0.0, 1.0])), settings, 0.1, over).advantages[
        ::SPREAD_OVER
    ]
    wanted = [sign * 0.865876 + 0.1 * (0.9975 - nats) for sign, nats in zip((1, -1, -1, 1), NATS.tolist(), strict=True)]
    assert found.tolist() == pytest.approx(wanted, abs=1e-5)


def pull(settings: OnlineSettings, size: int) -> float:
    """The exact gradient of KL's price in the parameter t of a policy whose tokens are all x, with probability
    sigmoid(t), or y: over all pairs of answers of `size` tokens, which only the number of x tells apart."""
    start = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    now, beta = torch.nn.functional.logsigmoid, 0.3

    def tokens(t: torch.Tensor, count: int) -> torch.Tensor:
        return torch.cat([now(t).expand(count), now(-t).expand(size - count)])

    weights = [math.comb(size, count) * math.exp(tokens(start, count).sum().item()) for count in range(size + 1)]
    other = torch.tensor(-0.3, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for one in range(size + 1):
        for two in range(one + 1):
            logps = torch.cat([tokens(start, one), tokens(start, two)])
            made = replace(
                of_lengths(size, size),
                old=logps.detach(),
                reference=torch.cat([tokens(other, one), tokens(other, two)]),
            )
            made = replace(
                made, scores=torch.zeros(2, dtype=torch.float64), weights=torch.ones(2 * size, dtype=torch.float64)
            )
            made = compute_advantages(made, settings, beta, over)
            loss = policy_loss(logps, made, Counts(1, 2, 2 * size), settings, beta).loss
            total = total + (1 if one == two else 2) * weights[one] * weights[two] * loss
    (found,) = torch.autograd.grad(total, start)
    return found.item()


@pytest.mark.finding(4)
@pytest.mark.parametrize("size", [1, 5, 20])
@pytest.mark.parametrize("algorithm", ["rloo", "p3o"])
def test_a_nat_has_one_price_in_the_reward_and_in_the_loss(algorithm: str, size: int, tmp_path: Path) -> None:
    """The gradient of beta * KL is `size` times that of one token: beta * (t - s) * p * (1 - p), where policy and
    reference have the log-odds t = 0.4 and s = -0.3, and p = sigmoid(t)."""
    given_places = [{"apply_to": place, "beta": 0.3} for place in ("reward", "loss")]
    in_reward, in_loss = (
        pull(OnlineSettings.model_validate(given(tmp_path, algorithm=algorithm, kl=kl)), size) for kl in given_places
    )
    likely = 1 / (1 + math.exp(-0.4))
    exact = 0.3 * size * (0.4 + 0.3) * likely * (1 - likely)
    assert in_reward == pytest.approx(exact, rel=1e-4)
    assert in_loss == pytest.approx(exact, rel=1e-4)


@pytest.mark.finding(14)
def test_an_answer_that_is_cut_pays_once(tmp_path: Path) -> None:
    """DAPO: -1 at the limit; and what somebody sets beside it counts."""

    def pays(**more: Any) -> float:
        made = OnlineSettings.model_validate({**given(tmp_path), **more})
        cut = [Response(TokenizedPrompt("p", (), [1]), 0, [2] * 8, [-1.0] * 8, "", finished=False, version=0)]
        nobody: Any = None
        return OnlineTrainer(made, nobody, nobody, 0.0)._filter_scored(cut, Scores([0.0], {}))[1][0]

    usual = {name: value for name, value in given(tmp_path).items() if name != "missing_eos_penalty"}
    for more, wanted in (({}, 1.0), ({"overlong_buffer": 0}, 1.0), ({"overlong_buffer": 4}, 0.0)):
        assert OnlineSettings.model_validate({**usual, **more}).missing_eos_penalty == wanted
    assert pays(overlong_buffer=4) == -1.0
    assert pays(overlong_buffer=4, missing_eos_penalty=1.0) == -2.0


@pytest.mark.finding(14)
def test_a_ratio_by_length_has_a_clip_that_acts(tmp_path: Path) -> None:
    """GSPO: 3e-4. A ratio of 1.001 of a good answer has gone far enough, and no longer a gradient."""
    settings = OnlineSettings.model_validate(given(tmp_path, algorithm="grpo", ratio="sequence", kl={"beta": 0}))
    assert (settings.clip, settings.clip_high) == (3e-4, None)
    logps = torch.tensor([0.001, -0.001, -0.001], requires_grad=True)
    policy_loss(logps, experience(), WHOLE, settings, 0.0).loss.backward()
    assert logps.grad is not None and logps.grad.tolist() == [0.0, 0.0, 0.0]
    usual = OnlineSettings.model_validate(given(tmp_path, algorithm="grpo"))
    chosen = OnlineSettings.model_validate(given(tmp_path, algorithm="grpo", ratio="sequence", clip=0.1))
    assert (usual.clip, chosen.clip) == (0.2, 0.1)


@pytest.mark.sibling("grpo-settings-as-objects")
def test_usual_values_do_not_replace_what_is_set(tmp_path: Path) -> None:
    for kl in ({"apply_to": "reward"}, KlSettings(apply_to="reward")):
        assert OnlineSettings.model_validate(given(tmp_path, algorithm="grpo", kl=kl)).kl.apply_to == "reward"
    assert OnlineSettings.model_validate(given(tmp_path, algorithm="grpo", kl=KlSettings(beta=0.2))).kl == KlSettings(
        beta=0.2, apply_to="loss"
    )
    for algorithm in ("ppo", "rloo", "reinforce++", "p3o"):
        assert OnlineSettings.model_validate(given(tmp_path, algorithm=algorithm)).kl.apply_to == "reward"


@pytest.mark.parametrize("algorithm", ["p3o", "online-dpo"])
def test_no_pair_is_no_loss_and_no_gradient(algorithm: str, tmp_path: Path) -> None:
    """A tie is no preference, and one answer alone no pair; what is logged is then the mean of nothing."""
    settings = OnlineSettings.model_validate(given(tmp_path, algorithm=algorithm))
    alone = of_lengths(3)
    logps = torch.zeros(3, requires_grad=True)
    found = policy_loss(logps, alone, Counts(prompts=1, responses=1, tokens=3), settings, beta=0.1)
    found.loss.backward()
    assert found.loss.item() == 0 and logps.grad is not None and not logps.grad.any()
    assert list(found.sums.values()) == [(0.0, 0.0)] and list(found.sums) == logged(settings)
