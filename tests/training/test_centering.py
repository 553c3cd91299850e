"""Where the zero of a reward model is put, and who sees it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rlaif.errors import UserError
from rlaif.inference.model_folder import load_tokenizer
from rlaif.training.config import LoraSettings, RewardSettings
from rlaif.training.forward import mean_of
from rlaif.training.loading import load_reward_model
from rlaif.training.reward_model import load
from rlaif.training.score import score
from rlaif.training.session import center, check_center, complete
from tests.support import lines
from tests.training.scorers import Plain, save_scorer, write_rows

DEMONSTRATIONS = [("Hi", "Hello! How can I help?"), ("Bread?", "Mix flour, water and salt."), ("Hi", "No.")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_scorer(tmp_path_factory.mktemp("models") / "scorer", reward_mean=7.0)


def _settings(folder: Path, output: Path, **more: Any) -> RewardSettings:
    rows = [{"prompt": [{"role": "user", "content": prompt}], "response": reply} for prompt, reply in DEMONSTRATIONS]
    output.parent.mkdir(exist_ok=True)
    data = write_rows(output.parent / "demonstrations.jsonl", rows)
    return RewardSettings(model=str(folder), data=str(data), output=str(output), center_dataset=str(data), **more)


def test_mean_over_the_demonstrations_becomes_zero(folder: Path, tmp_path: Path) -> None:
    """Of three rewards by the model's own forward; loaded again, the model knows what is to be taken off."""
    settings, plain = _settings(folder, tmp_path / "out"), Plain(folder)
    tokenizer = load_tokenizer(folder)
    model = load_reward_model(settings, 0)
    rewards = [plain.chat(prompt, reply) for prompt, reply in DEMONSTRATIONS]
    mean = sum(rewards) / 3
    assert center(model, tokenizer, settings) == pytest.approx(mean, abs=1e-5)
    found = complete(model, tokenizer, settings)
    std = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / 3)
    assert found == {"reward_mean": pytest.approx(mean, abs=1e-5), "reward_std": pytest.approx(std, abs=1e-5)}
    model.save_pretrained(settings.folder)
    tokenizer.save_pretrained(settings.folder)
    config = json.loads((settings.folder / "config.json").read_text())
    assert (config["reward_mean"], config["problem_type"]) == (pytest.approx(mean, abs=1e-5), "regression")
    data, output = str(settings.center_dataset), tmp_path / "rewards.jsonl"
    figures = score(str(settings.folder), data, output=output)
    assert figures.rewards.mean == pytest.approx(0, abs=1e-5)
    assert figures.centered_by == pytest.approx(mean, abs=1e-5)
    raw = score(str(settings.folder), data, output=output, centered=False)
    assert (raw.rewards.mean, raw.centered_by) == (pytest.approx(mean, abs=1e-5), 0)
    assert [row["reward"] for row in lines(output)] == pytest.approx(rewards, abs=1e-5)


def test_what_the_start_was_centred_on_does_not_stay(folder: Path, tmp_path: Path) -> None:
    settings = _settings(folder, tmp_path / "out").model_copy(update={"center_dataset": None})
    model = load_reward_model(settings, 0)
    assert mean_of(model) == 7.0
    assert complete(model, load_tokenizer(folder), settings) == {}
    assert mean_of(model) == 0.0


def test_ends_of_replies_are_kept(tmp_path: Path) -> None:
    """A classifier is saved without its generation config, and the tokens would be others."""
    start = save_scorer(tmp_path / "start")
    (start / "generation_config.json").write_text('{"eos_token_id": [1, 9]}')
    settings = _settings(start, tmp_path / "out")
    model, tokenizer = load_reward_model(settings, 0), load_tokenizer(start)
    complete(model, tokenizer, settings)
    model.save_pretrained(settings.folder)
    tokenizer.save_pretrained(settings.folder)
    assert load(str(settings.folder)).ends == {1, 9}


def test_adapter_is_scored_as_it_was_trained(folder: Path, tmp_path: Path) -> None:
    """Its mean stands in a file of its own: with a config.json, transformers would look for whole weights."""
    settings = _settings(folder, tmp_path / "out", lora=LoraSettings(rank=2))
    model, tokenizer = load_reward_model(settings, 0), load_tokenizer(folder)
    for name, weights in model.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            weights.data.normal_(0, 0.2)
    mean = complete(model, tokenizer, settings)["reward_mean"]
    model.save_pretrained(settings.folder)
    tokenizer.save_pretrained(settings.folder)
    assert not (settings.folder / "config.json").exists()
    assert mean != pytest.approx(center(load_reward_model(settings, 0), tokenizer, settings), abs=1e-3)
    figures = score(str(settings.folder), str(settings.center_dataset))
    assert (figures.rewards.mean, figures.centered_by) == (pytest.approx(0, abs=1e-5), pytest.approx(mean, abs=1e-6))


def test_mistakes_are_told_before_the_training(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, tokenizer = _settings(folder, tmp_path / "out"), load_tokenizer(folder)
    check_center(tokenizer, settings)
    gone = settings.model_copy(update={"center_dataset": str(tmp_path / "gone.jsonl")})
    with pytest.raises(UserError, match="no such file"):
        check_center(tokenizer, gone)
    blank = write_rows(tmp_path / "blank.jsonl", [{"prompt": "Hi", "response": " "}])
    with pytest.raises(UserError, match="a reply is blank"):
        check_center(tokenizer, settings.model_copy(update={"center_dataset": str(blank)}))
    check_center(tokenizer, settings.model_copy(update={"center_dataset": None}))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="sharded over several"):
        check_center(tokenizer, settings)
