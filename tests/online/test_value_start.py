"""What a value network expects that starts from a reward model: the rewards that the policy gets, no constant apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlaif.inference.model_folder import load_tokenizer
from rlaif.rl.advantages import gae, token_rewards
from rlaif.rl.config import OnlineSettings
from rlaif.rl.experience import TokenizedPrompt
from rlaif.rl.networks import Network, value_of
from rlaif.rl.run import _accelerator
from rlaif.training.reward_model import load
from rlaif.training.score import rewards_of
from rlaif.training.tokenize import Group
from tests.online.runs import given
from tests.training.scorers import POLICY, save_scorer

PROMPT, ANSWER = [5, 9, 100, 7, 33], [8, 60, 71, 12, 45, 1]
ASKED = [TokenizedPrompt("one", (), PROMPT), TokenizedPrompt("two", (), [8, 9, 10])]


def network(reward: Path, folder: Path) -> Network:
    settings = OnlineSettings.model_validate(
        given(folder, model=str(POLICY), algorithm="ppo", reward=str(reward), value={"model": str(reward)})
    )
    return value_of(settings, ASKED, _accelerator(settings), load_tokenizer(Path(str(POLICY))), lambda _: None)


def adapter_of(base: Path, to: Path) -> Path:
    """A reward model as an adapter that has learned nothing yet, centred."""
    import peft
    from transformers import AutoModelForSequenceClassification

    model: Any = AutoModelForSequenceClassification.from_pretrained(base)
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], task_type="SEQ_CLS")).save_pretrained(to)
    about = json.loads((to / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(base)}
    (to / "adapter_config.json").write_text(json.dumps(about))
    load_tokenizer(base).save_pretrained(to)
    (to / "reward.json").write_text(json.dumps({"reward_mean": 4.0, "reward_std": 1.0}))
    return to


@pytest.mark.finding(6)
@pytest.mark.parametrize("centred", ["whole", "adapter", "not"])
def test_a_value_network_starts_at_the_rewards_of_its_reward_model(centred: str, tmp_path: Path) -> None:
    """What it expects before a token is the reward of the answer up to there, which `rlaif score` gives."""
    plain = save_scorer(tmp_path / "plain")
    start = plain
    if centred == "whole":
        start = save_scorer(tmp_path / "centred", reward_mean=4.0)
    elif centred == "adapter":
        start = adapter_of(plain, tmp_path / "adapter")
    values = network(start, tmp_path).compute([Group("x", PROMPT, (ANSWER,))])
    begun = [Group("x", PROMPT, (ANSWER[:size],)) for size in range(1, len(ANSWER))]
    assert values[1:].tolist() == pytest.approx(rewards_of(load(str(start), "cpu").model, begun), abs=1e-4)
    raw = rewards_of(load(str(plain), "cpu").model, begun)
    assert values[1:].tolist() == pytest.approx([each - (0 if centred == "not" else 4) for each in raw], abs=1e-4)


@pytest.mark.finding(6)
def test_what_the_centre_would_do_to_40_tokens() -> None:
    """Values that are right otherwise, off by a centre of 4: from -0.54 at the first token (4 * 0.95^39) to -4 at the
    last, where 0 is right."""
    lengths, score = torch.tensor([40]), torch.tensor([-3.34])
    rewards = token_rewards(score, torch.zeros(40), lengths, 0.0)
    off = gae(rewards, torch.full((40,), -3.34 + 4), lengths, 1.0, 0.95).advantages
    assert (off[0].item(), off[-1].item()) == pytest.approx((-4 * 0.95**39, -4.0), abs=1e-5)
    assert gae(rewards, torch.full((40,), -3.34), lengths, 1.0, 0.95).advantages.abs().max() < 1e-5
