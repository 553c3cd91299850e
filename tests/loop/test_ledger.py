"""What the key of a training depends on: the contents of everything that its settings name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rlaif.rl.config import OnlineSettings
from rlaif.training.config import DpoSettings
from rlaif.workflow.plan import Step, key_of


def key(folder: Path, **more: Any) -> str:
    given = {"model": "demo-policy", "prompts": str(folder / "prompts.jsonl"), "reward": "judge", **more}
    settings = OnlineSettings.model_validate({"judge": {"model": "demo-judge"}, "output": str(folder / "out"), **given})
    return key_of(Step("ppo", settings))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hi"}\n')
    (tmp_path / "rewards.py").write_text("def plain(prompts, responses): ...\n")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    about = {"task_type": "SEQ_CLS", "base_model_name_or_path": "demo-policy"}
    (adapter / "adapter_config.json").write_text(json.dumps(about))
    (adapter / "adapter_model.safetensors").write_bytes(b"first")
    return tmp_path


@pytest.mark.parametrize(
    ("more", "file"),
    [
        ({}, "prompts.jsonl"),
        ({"reward": "ADAPTER"}, "adapter/adapter_model.safetensors"),
        ({"reward": "judge*0.5,ADAPTER*2"}, "adapter/adapter_model.safetensors"),
        ({"reward": "FOLDER/rewards.py:plain"}, "rewards.py"),
        ({"value": {"model": "ADAPTER"}}, "adapter/adapter_model.safetensors"),
    ],
)
def test_other_contents_make_another_key(more: dict[str, Any], file: str, folder: Path) -> None:
    """An adapter of a reward model is a thing to learn from as any other."""
    text = json.dumps(more).replace("ADAPTER", str(folder / "adapter")).replace("FOLDER", str(folder))
    given = json.loads(text)
    before = key(folder, **given)
    assert key(folder, **given) == before
    (folder / file).write_text((folder / file).read_text() + '{"prompt": "Ho"}\n')
    assert key(folder, **given) != before


def test_settings_count_and_the_place_of_the_output_does_not(folder: Path) -> None:
    found = [key(folder), key(folder, steps=7), key(folder, reward="judge*0.5"), key(folder, reward="judge,judge")]
    assert len(set(found)) == 4
    assert key(folder) == key(folder, output=str(folder / "elsewhere"))
    moved = shutil.copytree(folder / "adapter", folder / "moved" / "adapter")
    assert key(folder, reward=str(moved)) == key(folder, reward=str(folder / "adapter")), "what is in it counts"


def test_the_name_of_a_reward_function_counts(folder: Path) -> None:
    file = folder / "rewards.py"
    assert key(folder, reward=f"{file}:plain") != key(folder, reward=f"{file}:rude")


def test_a_home_folder_is_written_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert key(folder, prompts="~/prompts.jsonl") == key(folder)


@pytest.mark.parametrize("name", ["pairs.jsonl", "train.jsonl", "train.parquet"])
def test_a_folder_of_data_counts_by_what_its_trainer_reads(name: str, tmp_path: Path) -> None:
    """An export's folder as well as a run's."""
    (tmp_path / "data").mkdir()
    settings = DpoSettings(model="demo-policy", data=str(tmp_path / "data"), output=str(tmp_path / "out"))
    found = set()
    for text in ("first", "second"):
        (tmp_path / "data" / name).write_text(text)
        found.add(key_of(Step("dpo", settings)))
    assert len(found) == 2
