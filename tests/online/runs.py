"""Whole online trainings of tiny models: their folders and settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlaif.rl.config import OnlineSettings
from rlaif.rl.run import train_online
from rlaif.training.session import Trained
from tests.training.runs import Heard, make_model

REWARD = '''
def vowels(prompts, responses):
    """Share of letters that are an `a` or an `e`: a tiny policy learns that in a few steps."""
    return [sum(each in "ae" for each in text) / (len(text) + 1) for text in responses]
'''
_WORDS = ("red", "green", "blue", "old", "new", "small", "large", "round", "flat", "warm", "cold", "sweet")


def begin(folder: Path, prompts: int = 12) -> Path:
    """A folder with a model, prompts and a reward."""
    make_model(folder / "model")
    rows = [json.dumps({"prompt": f"{at}. Say {_WORDS[at % 12]} {'so ' * (at % 4)}now:"}) for at in range(prompts)]
    (folder / "prompts.jsonl").write_text("".join(f"{row}\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)
    return folder


def given(folder: Path, **more: Any) -> dict[str, Any]:
    """Settings of a short training on a CPU into `folder/out`."""
    usual: dict[str, Any] = {
        "model": str(folder / "model"), "output": str(folder / "out"), "prompts": str(folder / "prompts.jsonl"),
        "reward": f"{folder / 'reward.py'}:vowels", "device": "cpu", "algorithm": "rloo", "steps": 3, "batch_size": 8,
        "samples": 4, "epochs": 1, "learning_rate": 1e-3, "warmup": 0.0, "rollout": {"max_tokens": 8},
        "missing_eos_penalty": 0.0, "monitor": {"on_alarm": "warn"},
    }  # fmt: skip
    return usual | more


def run(folder: Path, *, resume: bool = False, heard: Heard | None = None, **more: Any) -> Trained:
    """Train from start to end."""
    return train_online(OnlineSettings.model_validate(given(folder, **more)), heard or Heard(), resume=resume)


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The log, without what a clock says."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("seconds")} for line in lines]
