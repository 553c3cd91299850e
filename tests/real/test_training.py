"""Short trainings of the real model: where they begin, what they save, and how that loads again."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rlaif.inference.base import Question
from rlaif.inference.transformers_model import Local
from rlaif.records import Message, Sampling
from rlaif.rl.config import OnlineSettings
from rlaif.rl.run import train_online
from rlaif.training.config import SETTINGS
from rlaif.training.session import train
from tests.data.made import write_jsonl
from tests.training.runs import Heard

pytestmark = pytest.mark.slow

REQUESTS = ("Name a colour.", "What is a river?", "Why do cats purr?", "Say hello to Ann.")


@pytest.fixture(scope="module")
def adapter(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of two steps of DPO."""
    folder = tmp_path_factory.mktemp("real")
    rows = [
        {
            "prompt": [{"role": "user", "content": text}],
            "chosen": [{"role": "assistant", "content": f"In short: {text.lower()}"}],
            "rejected": [{"role": "assistant", "content": "As an AI language model, I cannot say."}],
        }
        for text in REQUESTS
    ]
    settings = {
        "model": str(smollm2), "data": str(write_jsonl(folder / "pairs.jsonl", rows)), "output": str(folder / "lora"),
        "lora": {"rank": 4}, "learning_rate": 1e-3, "max_steps": 2, "batch_size": 4, "holdout": 0, "warmup": 0.0,
        "device": "cpu",
    }  # fmt: skip
    return train("dpo", SETTINGS["dpo"].model_validate(settings), Heard()).folder


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def last_logits(model: Any, tokenizer: Any) -> torch.Tensor:
    turns = [{"role": "user", "content": REQUESTS[0]}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        return model(input_ids=ids["input_ids"]).logits[0, -1].float()


def test_dpo_begins_at_its_reference(adapter: Path) -> None:
    first, second = (line["loss"] for line in log_of(adapter)[:2])
    assert first == pytest.approx(math.log(2), abs=1e-4)
    assert second < first


def test_an_adapter_is_the_same_model_merged_and_loaded_by_peft(adapter: Path, smollm2: Path) -> None:
    """Three ways to the same logits: PEFT with the adapter apart, PEFT's merge, and our model in process."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    base = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    plain = last_logits(base, tokenizer)
    apart = last_logits(PeftModel.from_pretrained(base, adapter), tokenizer)
    assert float((apart - plain).abs().max()) > 0.1, "two steps have moved the model"
    expected = apart.log_softmax(-1)

    question = Question(
        "test", "any", (Message(role="user", content=REQUESTS[0]),), Sampling(max_tokens=1), labels=("A", "B")
    )
    (answer,) = asyncio.run(Local(str(adapter), device="cpu").answer([question]))
    ids = [[tokenizer.convert_tokens_to_ids(f"{space}{label}") for space in ("", "Ġ")] for label in ("A", "B")]
    by_peft = [float(torch.logsumexp(expected[each], 0)) for each in ids]
    assert answer.logprobs == pytest.approx(by_peft, abs=1e-3)


def test_ppo_begins_at_its_reference_and_moves(smollm2: Path, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(
        "def short(prompts, responses):\n    return [-len(text) / 100 for text in responses]\n"
    )
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": text} for text in REQUESTS])
    settings = {
        "model": str(smollm2), "output": str(tmp_path / "out"), "prompts": str(tmp_path / "prompts.jsonl"),
        "reward": f"{tmp_path / 'reward.py'}:short", "device": "cpu", "algorithm": "rloo", "steps": 2, "batch_size": 8,
        "samples": 4, "epochs": 1, "learning_rate": 1e-5, "warmup": 0.0, "rollout": {"max_tokens": 16},
        "missing_eos_penalty": 0.0, "monitor": {"on_alarm": "warn"},
    }  # fmt: skip
    folder = train_online(OnlineSettings.model_validate(settings), Heard()).folder
    first, second = log_of(folder)[:2]
    assert first["kl"] == pytest.approx(0, abs=1e-4)
    assert second["kl"] != first["kl"] and math.isfinite(second["kl"])
    rows = [json.loads(line) for line in (folder / "responses.jsonl").open()]
    assert len(rows) == 16 and all("<|im_" not in row["response"] for row in rows)
