"""Whole trainings of tiny models: their folders, data and settings, and what they tell."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlaif.inference.model_folder import load_tokenizer
from rlaif.training.config import SETTINGS, DpoSettings, Method, RewardSettings, TrainSettings
from rlaif.training.dataset import DataKind, prepare
from rlaif.training.forward import Kind, answering, select_forward_path
from rlaif.training.loading import load_policy, load_reward_model
from rlaif.training.losses import DpoObjective, KtoObjective, RewardObjective, SftObjective
from rlaif.training.session import Trained, train
from rlaif.training.tokenize import Group, Tokens
from rlaif.training.trainer import GroupTrainer, Objective, arguments
from tests.data.made import write_jsonl
from tests.training.families import FAMILIES
from tests.training.small import CHATML, bpe

_WORDS = [
    "red", "green", "blue", "old", "new", "small", "large", "round", "flat", "warm", "cold", "sweet", "sour", "quick",
    "slow", "calm", "loud", "bright", "dark",
]  # fmt: skip


def make_model(folder: Path, family: str = "llama", *, seed: int = 0, **config: Any) -> Path:
    """A tiny random policy of a family with its tokenizer, saved."""
    import transformers

    tokenizer = bpe(_WORDS * 4, CHATML, size=300)
    tokenizer.save_pretrained(folder)
    prefix, options = FAMILIES[family]
    own = {"vocab_size": len(tokenizer), "initializer_range": 0.1, **config}
    made = getattr(transformers, f"{prefix}Config")(**{**options, **own})
    torch.manual_seed(seed)
    transformers.AutoModelForCausalLM.from_config(made).save_pretrained(folder)
    return folder


def pair_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs of raw text, of many lengths, half of them with soft labels; the better reply says `calm` more often."""
    source = random.Random(seed)

    def words(most: int) -> str:
        return " ".join(source.choices(_WORDS, k=source.randint(1, most)))

    return [
        {
            "id": f"row-{at}",
            "prompt": f"{at}. Say {words(6)}:",
            "chosen": f" {words(5)} calm",
            "rejected": f" {words(9)}",
            "probability": 1.0 if at % 2 else round(source.uniform(0.55, 0.95), 2),
        }
        for at in range(count)
    ]


def write_pairs(path: Path, count: int = 12, seed: int = 0) -> Path:
    return write_jsonl(path, pair_rows(count, seed))


class Heard:
    """Keeps what a training tells."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.begun: list[tuple[str, int]] = []
        self.done: list[tuple[str, int]] = []
        self.shown: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, stage: str, total: int) -> None:
        self.begun.append((stage, total))

    def advance(self, stage: str, done: int, note: str = "") -> None:
        self.done.append((stage, done))
        self.shown.append(note)

    def end(self, stage: str, summary: str) -> None:
        self.done.append((stage, int(summary.split(" of ")[0])))
        self.shown.append(summary)

    def passes(self, stage: str) -> int:
        return sum(name == stage for name, _ in self.begun)


def settings_for(method: Method, folder: Path, **more: Any) -> TrainSettings:
    """Of a short training on a CPU with `folder/model` and `folder/rows.jsonl` into `folder/out`."""
    usual: dict[str, Any] = {
        "model": str(folder / "model"), "data": str(folder / "rows.jsonl"), "output": str(folder / "out"),
        "device": "cpu", "holdout": 0.0, "batch_size": 4, "max_steps": 3, "learning_rate": 1e-2, "warmup": 0.0,
    }  # fmt: skip
    if method == "dpo" and more.get("loss") not in ("simpo", "orpo"):
        usual["reference_cache"] = str(folder / "references")
    return SETTINGS[method].model_validate(usual | more)


def run(method: Method, folder: Path, *, resume: bool = False, heard: Heard | None = None, **more: Any) -> Trained:
    """Train from start to end."""
    return train(method, settings_for(method, folder, **more), heard or Heard(), resume=resume)


def begin(folder: Path, rows: int = 12, family: str = "llama", **config: Any) -> Path:
    """A folder with a model and data."""
    make_model(folder / "model", family, **config)
    write_pairs(folder / "rows.jsonl", rows)
    return folder


def groups_of(folder: Path, kind: DataKind = "pairs", data: str = "rows.jsonl", **more: Any) -> list[Group]:
    """The data as a trainer gets them."""
    tokens = Tokens(load_tokenizer(folder / "model"), max_length=1024)
    return prepare(folder / data, tokens, kind, **more).train


def weights(folder: Path) -> dict[str, Tensor]:
    """Everything in a folder's files of weights."""
    from safetensors.torch import load_file

    return {name: each for file in sorted(folder.glob("*.safetensors")) for name, each in load_file(file).items()}


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of two sets of weights."""
    assert one.keys() == other.keys() and one
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@contextlib.contextmanager
def trainer_of(method: Method, folder: Path, groups: list[Group], **more: Any) -> Iterator[GroupTrainer]:
    """A trainer whose steps are taken by hand, on groups that have all that their loss takes."""
    settings = settings_for(method, folder, **more)
    kind: Kind = "rewards" if method == "reward" else "logps"
    model = load_reward_model(settings, 0) if method == "reward" else load_policy(settings)
    objective: Objective = SftObjective()
    if isinstance(settings, RewardSettings):
        objective = RewardObjective(settings)
    elif isinstance(settings, DpoSettings):
        objective = KtoObjective(settings) if settings.loss == "kto" else DpoObjective(settings)
    forward_path = select_forward_path(model, groups, kind)
    with answering(model, forward_path, kind):
        made = arguments(settings, len(groups), 0)
        yield GroupTrainer(model, made, objective, forward_path, settings.max_tokens_per_pass, groups, [], None)


def gradients(trainer: GroupTrainer, groups: list[Group]) -> tuple[float, dict[str, Tensor]]:
    """The loss of one step, and the gradients that it leaves."""
    trainer.model.zero_grad()
    loss = float(trainer.training_step(trainer.model, groups))
    found = {name: each.grad.clone() for name, each in trainer.model.named_parameters() if each.grad is not None}
    trainer.model.zero_grad()
    return loss, found
