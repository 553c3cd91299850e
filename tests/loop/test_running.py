"""Whole loops on the tiny world: every stage once, then nothing anew, then only what a change touches."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, command, environment, rlaif

pytestmark = pytest.mark.slow

RUN = """\
constitution: demo
prompts: {path: PROMPTS, limit: 6}
policy: {model: demo-policy, samples: 3, max_tokens: 48}
judge: {model: demo-judge}
compare: {principles: all}
pair: {select: all}
output: OUTPUT
train:
  reward: {learning_rate: 1.0e-3, holdout: 0}
  dpo: {learning_rate: 1.0e-4, holdout: 0, epochs: EPOCHS, log_steps: 1}
evaluate:
  prompts: {path: HELD, limit: 5}
  max_tokens: 48
  compare: {principles: all}
  grades: false
  reward_gold: GOLD
  reward_samples: 2
"""


def write(folder: Path, *, epochs: int = 1, more: str = "") -> Path:
    prompts = ROOT / "prompts" / "policy"
    values = {
        "PROMPTS": prompts / "demo.jsonl", "HELD": prompts / "demo-held-out.jsonl", "OUTPUT": folder / "out",
        "EPOCHS": epochs, "GOLD": folder / "gold.jsonl",
    }  # fmt: skip
    text = re.sub("|".join(values), lambda found: str(values[found[0]]), RUN)
    gold = {"prompt": "How can I pack a suitcase?", "chosen": "Roll your clothes.", "rejected": "Who cares?"}
    (folder / "gold.jsonl").write_text(json.dumps(gold) + "\n")
    path = folder / "run.yaml"
    path.write_text(text + more)
    return path


def call(run: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return rlaif("run", run, *words, timeout=600)


def snapshot(folder: Path) -> dict[str, bytes]:
    """The journals and models, by name; not what holds times."""
    found = [*folder.glob("*.jsonl"), *folder.rglob("train/*/model.safetensors"), *folder.rglob("evaluation/*.jsonl")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loop")
    done = call(write(folder))
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


def report_of(folder: Path) -> dict[str, Any]:
    (path,) = (path for path in (folder / "evaluation").glob("*.json") if "-against-" in path.name)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_every_stage_leaves_its_files(finished: Path) -> None:
    out = finished / "out"
    for name in ("pairs.jsonl", "manifest.json", "train/reward/metrics.json", "train/dpo/metrics.json", "report.html"):
        assert (out / name).is_file(), name
    ledger = json.loads((out / "loop.json").read_text())
    assert ledger["finished"] and ledger["command"].startswith("rlaif run ")
    report = report_of(out)
    assert [policy["name"] for policy in report["policies"]] == ["dpo", "base"]
    assert report["about"]["prompt_count"] == 5
    assert any("demo-judge" in warning for warning in report["warnings"]), "the labeller judges"
    (rewards,) = (out / "evaluation" / "rewards").glob("*.json")
    found = json.loads(rewards.read_text())
    assert found["gold"]["pairs"] == 1 and [each["n"] for each in found["best_of_n"]["points"]] == [1, 2]
    told = (finished / "stdout.txt").read_text()
    assert "Reward model `reward`: right in" in told and " of best-of-2 is " in told
    assert "win rate" in told and "base" in told and "dpo" in told and str(out / "report.html") in told


def test_a_second_call_does_nothing_anew(finished: Path) -> None:
    before = snapshot(finished / "out")
    done = call(finished / "run.yaml")
    assert done.returncode == 0, done.stderr
    assert snapshot(finished / "out") == before
    assert done.stderr.count("finished before") == 2
    asked = re.findall(r"(\d+) answered", done.stderr)
    assert asked and set(asked) == {"0"}


def test_a_change_does_anew_what_it_touches(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "out", tmp_path / "out")
    done = call(write(tmp_path, epochs=2))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("finished before") == 1, "the reward model"
    assert "it is dpo.before-1 now" in done.stderr
    moved, new = (tmp_path / "out" / "train" / name / "metrics.json" for name in ("dpo.before-1", "dpo"))
    assert moved.is_file() and json.loads(new.read_text())["steps"] == 2 * json.loads(moved.read_text())["steps"]


def test_an_interrupted_training_goes_on(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "out", tmp_path / "out")
    run = write(tmp_path, epochs=60)
    log = tmp_path / "out" / "train" / "dpo" / "log.jsonl"
    with subprocess.Popen(
        command("run", run), env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        deadline = time.monotonic() + 120
        moved = log.parent.with_name("dpo.before-1")
        while time.monotonic() < deadline and not (moved.exists() and log.exists() and log.stat().st_size):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        told = process.communicate()[1]
    assert process.returncode == 130, told
    assert "Stopped in `train dpo`; the same command goes on from there" in told
    steps = len(log.read_text().splitlines())
    assert steps and not (log.parent / "metrics.json").exists()
    (log.parent / "marker").touch()
    again = call(run)
    assert again.returncode == 0, again.stderr
    assert (log.parent / "marker").exists(), "the folder is the same one"
    lines = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert lines[0] == 1 and lines[-1] == json.loads((log.parent / "metrics.json").read_text())["steps"]


def test_generate_leaves_the_other_sections_alone(tmp_path: Path) -> None:
    run = write(tmp_path)
    done = rlaif("generate", run)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out" / "train").exists()
    wrong = command("check", write(tmp_path, more="  sed: 3\n"), "--offline")
    checked = subprocess.run(wrong, capture_output=True, text=True, env=environment())
    assert checked.returncode == 2 and "did you mean `seed`?" in checked.stderr


def test_an_output_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    run = write(tmp_path)
    (tmp_path / "file").touch()
    checked = rlaif("check", run, "--offline", "--output", tmp_path / "file" / "out")
    assert checked.returncode == 2 and "--output: " in checked.stderr and "cannot write" in checked.stderr
    good = rlaif("check", run, "--offline", "--output", tmp_path / "new" / "out")
    assert good.returncode == 0 and not (tmp_path / "new").exists()
