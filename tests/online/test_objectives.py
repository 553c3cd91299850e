"""What the options of the algorithms make of a step, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlaif.online.experience import Experience
from rlaif.online.objectives import Counts, logged, policy_loss
from rlaif.online.settings import OnlineSettings
from rlaif.training.groups import Group
from tests.online.runs import given

LOGPS = torch.tensor([0.2, 0.3, 0.1])
"""Log-ratios of an answer of one token and of one of two, as they were all 0 before."""


WHOLE = Counts(prompts=1, answers=2, tokens=3)


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
        ({"algorithm": "grpo", "ratio": "sequence"}, (-1.2 + 1.221403) / 2),
        # A token each: e^0.3 = 1.349859 and e^0.1 = 1.105171, over three tokens.
        ({"algorithm": "grpo"}, (-1.2 + 1.349859 + 1.105171) / 3),
        ({"algorithm": "grpo", "dual_clip": 1.2}, (-1.2 + 1.2 + 1.105171) / 3),
        ({"algorithm": "grpo", "clip_high": 0.28}, (-1.221403 + 1.349859 + 1.105171) / 3),
        ({"algorithm": "grpo", "per": "sequence"}, (-1.2 + (1.349859 + 1.105171) / 2) / 2),
        ({"algorithm": "grpo", "per": "constant"}, (-1.2 + 1.349859 + 1.105171) / (2 * 8)),
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
    settings = OnlineSettings.model_validate(given(tmp_path, algorithm="grpo", kl={"place": "loss"}, **more))
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
        counts = Counts(prompts=2, answers=4, tokens=6)
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
    "more",
    [{"algorithm": "rloo"}, {"algorithm": "p3o"}, {"algorithm": "grpo"}, {"algorithm": "grpo", "ratio": "sequence"}],
)
def test_the_price_of_divergence_counts_tokens_alike_wherever_they_are(more: dict[str, Any], tmp_path: Path) -> None:
    """One process has 2 answers of 2 tokens at the reference, another 2 of 20 that are 1 nat off: 40 / 44 halves.

    Each counts in halves of all 2 prompts, 4 answers and 44 tokens, and the mean of the two is the step's.
    """
    settings = OnlineSettings.model_validate(given(tmp_path, **more, kl={"place": "loss"}))
    counts = Counts(prompts=1, answers=2, tokens=22)
    near, far = of_lengths(2, 2), of_lengths(20, 20)
    one = policy_loss(near.old, near, counts, settings, beta=1.0).loss.item()
    other = policy_loss(far.old + 1, replace(far, old=far.old + 1), counts, settings, beta=1.0).loss.item()
    assert (one + other) / 2 == pytest.approx(0.5 * 40 / 44, abs=1e-6)


@pytest.mark.parametrize("algorithm", ["p3o", "online-dpo"])
def test_no_pair_is_no_loss_and_no_gradient(algorithm: str, tmp_path: Path) -> None:
    """A tie is no preference, and one answer alone no pair; what is logged is then the mean of nothing."""
    settings = OnlineSettings.model_validate(given(tmp_path, algorithm=algorithm))
    alone = of_lengths(3)
    logps = torch.zeros(3, requires_grad=True)
    found = policy_loss(logps, alone, Counts(prompts=1, answers=1, tokens=3), settings, beta=0.1)
    found.loss.backward()
    assert found.loss.item() == 0 and logps.grad is not None and not logps.grad.any()
    assert list(found.sums.values()) == [(0.0, 0.0)] and list(found.sums) == logged(settings)
