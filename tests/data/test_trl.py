"""TRL's own trainers take one step on an exported dataset: a tiny random model, on the CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from rlaif.data.export import Form
from rlaif.data.publish import make_dataset
from tests.data.made import clean_rows, write_jsonl

if os.environ.get("CI_REQUIRE_TRL") == "1":
    import trl
else:
    trl = pytest.importorskip("trl", reason="the extra `trl` is not installed")
pytestmark = pytest.mark.slow


def exported(folder: Path, form: Form) -> Any:
    import datasets

    make_dataset(write_jsonl(folder / "rows.jsonl", clean_rows(8)), folder / form, form)
    return datasets.load_dataset(str(folder / form), split="train", cache_dir=str(folder / "cache"))


def settings(kind: Any, folder: Path, **more: Any) -> Any:
    return kind(
        output_dir=str(folder / "trained"), per_device_train_batch_size=4, max_steps=1, learning_rate=1e-3,
        report_to=[], use_cpu=True, bf16=False, save_strategy="no", logging_steps=1, disable_tqdm=True, **more,
    )  # fmt: skip


def parts(folder: Path, *, reward: bool = False) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    kind = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    model = kind.from_pretrained(folder, **({"num_labels": 1} if reward else {}))
    return {"model": model, "processing_class": AutoTokenizer.from_pretrained(folder)}


def loss_of(trainer: Any) -> float:
    trainer.train()
    (loss,) = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return float(loss)


def test_dpo_takes_a_step(tiny_model: Path, tmp_path: Path) -> None:
    """Before the first update policy and reference agree, so that the loss is ln 2."""
    data = exported(tmp_path, "trl")
    args = settings(trl.DPOConfig, tmp_path, max_length=512)
    trainer = trl.DPOTrainer(args=args, train_dataset=data, **parts(tiny_model))
    assert loss_of(trainer) == pytest.approx(0.6931, abs=1e-3)


def test_reward_model_takes_a_step_and_reads_no_margin(tiny_model: Path, tmp_path: Path) -> None:
    """A column of that name it would read, which is why ours is called otherwise."""
    data = exported(tmp_path, "trl")
    args = settings(trl.RewardConfig, tmp_path, max_length=512)

    def trainer_on(rows: Any) -> Any:
        return trl.RewardTrainer(args=args, train_dataset=rows, **parts(tiny_model, reward=True))

    trainer = trainer_on(data)
    batch = next(iter(trainer.get_train_dataloader()))
    assert "margin" not in batch and "label_margin" not in batch
    assert 0 < loss_of(trainer) < 10
    assert "margin" in next(iter(trainer_on(data.rename_column("label_margin", "margin")).get_train_dataloader()))


def test_kto_takes_a_step(tiny_model: Path, tmp_path: Path) -> None:
    data = exported(tmp_path, "kto")
    args = settings(trl.KTOConfig, tmp_path, max_length=512)
    trainer = trl.KTOTrainer(args=args, train_dataset=data, ref_model=parts(tiny_model)["model"], **parts(tiny_model))
    assert 0 < loss_of(trainer) < 10
