"""The card of a trained model: what it tells, and what it keeps to itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.training.card import base_model, write_card
from rlaif.training.config import DpoSettings, LoraSettings, Method, RewardSettings, SftSettings, TrainSettings
from rlaif.training.dataset import DatasetReport, Prepared
from rlaif.training.examples import LeftOut
from rlaif.training.tokenize import Group
from tests.training.scorers import write_rows

_METRICS = {
    "loss": 0.51234, "eval_loss": 0.6, "accuracy": 0.75, "eval_accuracy": 0.7, "eval_margin": 0.25, "steps": 12,
    "seconds": 34.4, "learning_rate": 0.0,
}  # fmt: skip
_TURNS = [{"role": "user", "content": "Hi"}]
_PAIR: dict[str, Any] = {
    "prompt": _TURNS,
    "chosen": [{"role": "assistant", "content": "Hello."}],
    "rejected": [{"role": "assistant", "content": "No."}],
    "probability": 0.8,
    "judge": "some-judge@1234abcd",
    "constitution": "kind@0011223344ff",
}


def _prepared(path: str, data_hash: str = "d" * 64) -> Prepared:
    left = LeftOut(reason="too-long", count=1, lines=(3,), what="a completion alone is longer than max_length")
    told = DatasetReport(
        path=path, rows=10, kept=9, held=2, left_out=(left,), truncated=0, max_length=128, merged=0, ended=0, soft=4,
        prompt_median=7, prompt_p95=9, completion_median=30, completion_p95=40, notes=(),
    )  # fmt: skip
    groups = [Group(str(at), (1,), ((2,), (3,))) for at in range(9)]
    return Prepared(groups[:7], groups[7:], data_hash, told)


def _card(
    folder: Path, method: Method, settings: TrainSettings, metrics: Any = None, data_hash: str = "d" * 64
) -> tuple[dict[str, Any], str]:
    settings.folder.mkdir(parents=True, exist_ok=True)
    write_card(method, settings, _prepared(settings.data, data_hash), metrics or _METRICS)
    text = (settings.folder / "README.md").read_text()
    assert str(folder) not in text
    assert "\n\n\n" not in text
    return yaml.safe_load(text.split("---")[1]), text


def test_card_of_a_reward_model(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", [_PAIR])
    settings = RewardSettings(
        model="owner/base-1B", data=str(data), output=str(tmp_path / "helpful"), learning_rate=3e-5, centering=0.01
    )
    settings.folder.mkdir()
    (settings.folder / "curves.png").write_bytes(b"")
    head, text = _card(tmp_path, "reward", settings)
    assert head == {
        "base_model": "owner/base-1B",
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["rlaif", "reward-model"],
    }
    for told in (
        "# helpful", "| data | `pairs.jsonl` |", "| rows read | 10 |", "| to train on | 7 |", "| held out | 2 |",
        "| left out | 1 where a completion alone is longer than max_length |", "44% of the rows", "d" * 64,
        "`kind@0011223344ff` (as the first row says)", "`some-judge@1234abcd`", "| `learning_rate` | `3e-05` |",
        "| `centering` | `0.01` |", "| `batch_size` | `16` |", "| loss | 0.5123 | 0.6000 |",
        "| margin (chosen less rejected) |  | 0.2500 |", "12 optimizer steps in 34 seconds", "![curves](curves.png)",
        'AutoModelForSequenceClassification.from_pretrained("helpful")', "apply_chat_template", "zero is arbitrary",
    ):  # fmt: skip
        assert told in text, told
    assert "`template`" not in text
    assert "peft" not in text


def test_manifest_tells_where_the_data_are_the_very_file_of_the_run(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", [_PAIR])
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    manifest = {
        "constitution": {"name": "kind", "hash": "00112233445566778899aabbccddeeff"}, "judge": "some-judge@1234abcd",
        "policy": "some-policy@55667788", "files": {"pairs.jsonl": digest},
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    settings = DpoSettings(model="owner/base", data=str(tmp_path), output=str(tmp_path / "out"), loss="ipo")
    head, text = _card(tmp_path, "dpo", settings, data_hash=digest)
    assert "| constitution | `kind`, hash `00112233445566778899aabbccddeeff` |" in text
    assert "| replies drawn from | `some-policy@55667788` |" in text
    assert head["tags"] == ["rlaif", "ipo"]
    assert "by the loss `ipo`" in text
    _, changed = _card(tmp_path, "dpo", settings)
    assert "(as the first row says)" in changed


def test_adapter_is_loaded_by_peft(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", [{**_PAIR, "prompt": "Q: ", "chosen": "a", "rejected": "b"}])
    settings = RewardSettings(
        model="owner/base",
        data=str(data),
        output=str(tmp_path / "out"),
        lora=LoraSettings(rank=8),
        center_dataset=str(data),
    )
    head, text = _card(tmp_path, "reward", settings, {**_METRICS, "reward_mean": -1.25})
    assert (head["library_name"], head["base_model_relation"], head["tags"][-1]) == ("peft", "adapter", "lora")
    assert 'from_pretrained("owner/base", num_labels=1)' in text
    assert "PeftModel" in text
    assert "prompt + response + tokenizer.eos_token" in text
    assert "subtracts -1.2500" in text
    assert "`reward_mean` in reward.json" in text
    assert "| `lora.rank` | `8` |" in text


def test_trained_folder_passes_on_what_it_was_made_from(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Q", "completion": "A"}])
    first = SftSettings(model="owner/base", data=str(data), output=str(tmp_path / "first"))
    _card(tmp_path, "sft", first)
    second = DpoSettings(model=str(first.folder), data=str(data), output=str(tmp_path / "second"))
    head, text = _card(tmp_path, "dpo", second)
    assert head["base_model"] == "owner/base"
    assert "`first`, which was made from `owner/base`" in text
    (first.folder / "README.md").unlink()
    assert base_model(str(first.folder)) == "first"


@pytest.mark.parametrize("data", ["nowhere/to/be/found.jsonl", "broken.jsonl"])
def test_data_that_are_gone_by_now_leave_their_lines_out(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.jsonl").write_text("{")
    _, text = _card(tmp_path, "sft", SftSettings(model="owner/base", data=data, output=str(tmp_path / "out")))
    assert "constitution" not in text
    assert "text-generation" in text
