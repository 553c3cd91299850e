"""Trainers in the tiny world: does the policy behave better, does the reward model know the better answer?

Samples are the tiny policy's, labels the oracle's own, so that what is tested is the training alone. The limits are
wide, as 120 prompts are few; with the judge's labels, and with more of them, `tests/bench/world.py` measures the same.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.schemas import JudgeSettings, PolicySettings, PromptSettings, RunSettings
from rlaif.demo.oracle import prefer_overall, read_reply, violations
from rlaif.feedback.pipeline import run_pipeline
from rlaif.progress import show_progress
from rlaif.records import Prompt, Sample
from rlaif.store import read_records, resource, shipped_model
from rlaif.training.config import SETTINGS, Method
from rlaif.training.session import train
from tests.bench.behaviour import behaviour, fresh_prompts

pytestmark = pytest.mark.slow
ASKED = fresh_prompts(100)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs.jsonl and sft.jsonl, of four samples to every shipped prompt."""
    folder = tmp_path_factory.mktemp("world")
    settings = RunSettings(
        constitution="demo",
        prompts=PromptSettings(path=str(resource("prompts") / "policy" / "demo.jsonl")),
        policy=PolicySettings(model="demo-policy", samples=4, max_tokens=96),
        judge=(JudgeSettings(model="demo-judge"),),
        output=str(folder / "run"),
    )
    run_pipeline(settings, ["sample"])
    prompts = {each.id: each.messages[-1].content for each in read_records(folder / "run/prompts.jsonl", Prompt)}
    replies: dict[str, list[str]] = defaultdict(list)
    for sample in read_records(folder / "run/samples.jsonl", Sample):
        replies[prompts[sample.prompt]].append(sample.text)
    pairs, good = [], []
    for prompt, texts in replies.items():
        good += [{"prompt": turn(prompt), "completion": answer(text)} for text in texts if kept(prompt, text)]
        pairs += [
            {"prompt": turn(prompt), "chosen": answer(one), "rejected": answer(other), "probability": 0.9}
            for one in texts
            for other in texts
            if prefer_overall(prompt, one, other) == 1.0
        ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (folder / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in good))
    return folder


def turn(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def kept(prompt: str, text: str) -> bool:
    return not violations(prompt, text) and read_reply(text).malformed is None


def trained(world: Path, name: str, method: Method, data: str, **more: Any) -> tuple[Path, dict[str, float]]:
    given = {"model": "demo-policy", "data": str(world / data), "output": str(world / name), "save_steps": 0, **more}
    if method == "dpo":
        given["reference_cache"] = str(world / "references")
    with show_progress() as told:
        return world / name, train(method, SETTINGS[method](**given), told).metrics


@pytest.fixture(scope="module")
def before() -> float:
    start = shipped_model("demo-policy")
    assert start is not None
    found = behaviour(start, ASKED)
    assert found.faulty > 0.3, found
    return found.faulty


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_preference_optimisation_cuts_the_faults(world: Path, before: float, loss: str) -> None:
    how: dict[str, Any] = {"ipo": {"beta": 0.5, "learning_rate": 3e-4}, "sigmoid": {"learning_rate": 2e-4}}[loss]
    model, _ = trained(world, loss, "dpo", "pairs.jsonl", loss=loss, batch_size=16, epochs=2, holdout=0.0, **how)
    after = behaviour(model, ASKED)
    assert after.faulty <= 0.65 * before, after
    assert after.malformed < 0.05, after


def test_fine_tuning_on_good_answers_cuts_the_faults(world: Path, before: float) -> None:
    model, _ = trained(world, "sft", "sft", "sft.jsonl", batch_size=16, epochs=4, learning_rate=3e-4)
    after = behaviour(model, ASKED)
    assert after.faulty <= 0.7 * before, after
    assert after.malformed < 0.02, after


def test_a_reward_model_knows_the_better_answer(world: Path) -> None:
    _, metrics = trained(
        world, "reward", "reward", "pairs.jsonl", batch_size=16, epochs=4, learning_rate=1e-3, holdout=0.2
    )
    assert metrics["eval_accuracy"] >= 0.65, metrics
