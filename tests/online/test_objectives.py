"""What the options of the algorithms make of a step, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlaif.online.experience import Experience
from rlaif.online.objectives import policy_loss
from rlaif.online.settings import OnlineSettings
from rlaif.training.groups import Group
from tests.online.runs import given

LOGPS = torch.tensor([0.2, 0.3, 0.1])
"""Log-ratios of an answer of one token and of one of two, as they were all 0 before."""


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
    whole = experience()
    found = policy_loss(LOGPS, whole, whole, settings, beta=0.0)
    assert found.loss.item() == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("more", [{"ratio": "sequence"}, {}])
def test_the_price_of_divergence_in_the_loss(more: dict[str, Any], tmp_path: Path) -> None:
    """k2 is half the square: (0.04 + 0.09 + 0.01) / 2 over three tokens."""
    settings = OnlineSettings.model_validate(given(tmp_path, algorithm="grpo", kl={"place": "loss"}, **more))
    whole = experience()
    free, priced = (policy_loss(LOGPS, whole, whole, settings, beta).loss.item() for beta in (0.0, 0.5))
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
        parts = [policy_loss(LOGPS, both.take([at]), both, settings, 0.0).loss.item() for at in (0, 1)]
        assert sum(parts) == pytest.approx(policy_loss(logps, both, both, settings, 0.0).loss.item(), abs=1e-6)
