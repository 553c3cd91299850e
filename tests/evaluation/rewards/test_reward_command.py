"""`rlaif evaluate reward` as a process: what it tells, its exit codes, its mistakes, an interrupt."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.rewards.test_evaluating import gold_rows, responses_file
from tests.fakes import FakeServer
from tests.support import command, environment, lines, rlaif, write_run
from tests.training.scorers import save_scorer, write_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_scorer(tmp_path_factory.mktemp("models") / "scorer")


def evaluated(*arguments: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return rlaif("evaluate", "reward", *arguments, cwd=cwd, timeout=400, OMP_NUM_THREADS="1", **env)


@pytest.mark.slow
def test_what_is_told_of_gold_pairs(folder: Path, tmp_path: Path) -> None:
    gold = write_rows(tmp_path / "gold.jsonl", gold_rows(24))
    flags = ("--model", folder, "--gold", gold, "--no-plots")
    done = evaluated(*flags, cwd=tmp_path)
    assert done.returncode == 3, done.stderr  # random weights are no better than length
    assert "\n  warning: no better than `" in done.stdout and "warning: only 24 pairs" in done.stdout
    assert done.stdout.startswith("scorer@") and " of 24 pairs, " in done.stdout.splitlines()[0]
    assert "48 rewards computed, 0 cached" in done.stdout
    told = evaluated(*flags, "--format", "json", cwd=tmp_path)
    report = json.loads(told.stdout)
    assert "gold pairs: 0 answered, 48 on disk already" in told.stderr
    (path,) = (tmp_path / "runs/rewards").glob("scorer@*-gold-*.json")
    assert json.loads(path.read_text()) == report
    limited = json.loads(evaluated(*flags, "--format", "json", "--limit", 5, cwd=tmp_path).stdout)
    assert limited["gold"]["pairs"] == 5


@pytest.mark.slow
def test_best_of_n_with_a_served_policy_and_judge(folder: Path, tmp_path: Path) -> None:
    """A killed evaluation goes on; a policy and a judge on real sockets."""
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Question {at}?"} for at in range(12)])
    with FakeServer(delay=0.02, most_at_once=8) as fake:
        flags: list[Any] = ["evaluate", "reward", "--model", folder, "--policy", "fake", "--policy-base-url", fake.url]
        flags += ["--prompts", prompts, "--samples", 4, "--max-tokens", 16, "--judge", "fake", "--base-url", fake.url]
        flags += ["--constitution", "harmless", "--no-plots"]
        process = subprocess.Popen(command(*flags), env=environment(), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        while fake.answered.total() < 60 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=100)
        assert process.returncode == 130 and "goes on from there" in error and "Traceback" not in error
        known = len(lines(tmp_path / "runs/rewards/samples.jsonl"))
        assert known == 48
        done = rlaif(*flags, cwd=tmp_path, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "answers: 0 answered, 48 on disk already" in done.stderr
    assert "rewards: 0 answered" in done.stderr
    assert "Best of n by the reward, over 12 prompts with 4 responses of fake" in done.stdout
    assert "mean grade by fake under `harmless` (0 to 9)" in done.stdout
    (path,) = (tmp_path / "runs/rewards").glob("scorer@*-best-of-n-fake-prompts-*.json")
    assert [point["n"] for point in json.loads(path.read_text())["best_of_n"]["points"]] == [1, 2, 4]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--gold", "g.jsonl"], "--model"),
        (["--model", "M"], "name what to evaluate on: --gold FILE"),
        (["--model", "M", "--gold", "absent.jsonl"], "absent.jsonl: no such file"),
        (["--model", "M", "--gold", "odd.jsonl"], "gold pairs need the columns `chosen` and `rejected`"),
        (["--model", "absent", "--gold", "g.jsonl"], "model `absent` is not on this machine"),
        (["--model", "./nowhere", "--gold", "g.jsonl"], "no model here: `config.json` is missing"),
        (["--model", "M", "--glod", "g.jsonl"], "--glod"),
        (["--model", "M", "--column", "x", "--policy", "p"], "--column goes with --gold"),
        (["--model", "M", "--policy", "demo-policy", "--judge", "x"], "name the prompts of the policy with --prompts"),
        (["--model", "M", "--gold", "g.jsonl", "--judge", "x"], "--judge goes with --policy MODEL, or with"),
        (["--model", "M", "--gold", "g.jsonl", "--samples", "4"], "--samples goes with"),
        (["--model", "M", "--responses", "r.jsonl"], "name the judge with --judge"),
        (["--model", "M", "--responses", "r.jsonl", "--policy", "p"], "leave out --policy"),
        (["--model", "M", "--responses", "g.jsonl", "--judge", "demo-judge"], "no answers that can be recognised"),
        (["--model", "M", "--responses", "r.jsonl", "--judge", "x", "--judge-model", "y"], "--judge-model goes with"),
        (["--model", "M", "--responses", "r.jsonl", "--judge", "x", "--run", "r.yaml"], "--run takes the judge"),
        (["--model", "M", "--policy", "p", "--prompts", "g.jsonl", "--temperature", "0", "--judge", "x"], "x>0"),
        (["--model", "M", "--responses", "r.jsonl", "--judge", "demo-judge", "--constitution", "harmles"], "harmless"),
    ],
)
def test_mistakes(folder: Path, tmp_path: Path, arguments: list[str], told: str) -> None:
    """In this process, as there are many of them."""
    write_rows(tmp_path / "g.jsonl", gold_rows(2))
    responses_file(tmp_path / "r.jsonl", 2)
    (tmp_path / "odd.jsonl").write_text('{"prompt": "x"}\n')
    result = _called(tmp_path, [str(folder) if each == "M" else each for each in arguments])
    assert result.returncode == 2, result.stderr
    assert told in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


def _called(cwd: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """The command line without a process of its own."""
    import contextlib
    import io
    import sys
    from unittest import mock

    from rlaif.cli.main import main

    out, error, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
        mock.patch.object(sys, "argv", ["rlaif", "evaluate", "reward", *arguments]),
    ):
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), error.getvalue())


def test_a_run_file_brings_judge_and_constitution(folder: Path, tmp_path: Path) -> None:
    """`principles: all` is one grade an answer; a judge's URL is enough, too."""
    responses_file(tmp_path / "r.jsonl", 3)
    flags = ["--model", str(folder), "--responses", "r.jsonl", "--no-plots", "--format", "json"]
    with FakeServer() as fake:
        write_run(tmp_path, fake.url, compare={"principles": "all"})
        by_run = _called(tmp_path, [*flags, "--run", "run.yaml"])
        asked = fake.asked.total()
        by_url = _called(tmp_path, [*flags, "--judge", fake.url, "--constitution", "harmless", "--principles", "all"])
        assert fake.asked.total() == asked, "the same questions, which are on disk already"
    assert len(lines(tmp_path / "runs/rewards/scores.jsonl")) == 12
    assert by_run.returncode == by_url.returncode == 0, by_run.stderr + by_url.stderr
    assert by_run.stdout == by_url.stdout
    found = json.loads(by_run.stdout)["best_of_n"]
    assert (found["measure"], found["prompts"]) == ("mean grade by fake under `harmless` (0 to 9)", 3)


@pytest.mark.slow
def test_a_policy_is_no_reward_model(tmp_path: Path) -> None:
    write_rows(tmp_path / "g.jsonl", gold_rows(2))
    result = _called(tmp_path, ["--model", "demo-policy", "--gold", "g.jsonl"])
    assert result.returncode == 2
    assert "no reward model: is a LlamaForCausalLM" in result.stderr and "Traceback" not in result.stderr


def tiny_world(count: int, seed: int) -> list[dict[str, Any]]:
    """Pairs from the tiny world, the better reply by its oracle, grouped by the kind of prompt."""
    from rlaif.demo.oracle import prefer_overall
    from rlaif.demo.world import Voice
    from tools.train_demo_models.measure import HELD, draw_scene, held_out_reply

    voice, rows = Voice(random.Random(seed), HELD), []
    while len(rows) < count:
        scene = draw_scene(voice)
        one, other = held_out_reply(scene, voice), held_out_reply(scene, voice)
        better = prefer_overall(scene.prompt, one, other)
        if better == 0.5 or not one.strip() or not other.strip():
            continue
        sides = (one, other) if better == 1 else (other, one)
        turns = [[{"role": "assistant", "content": text}] for text in sides]
        prompt = [{"role": "user", "content": scene.prompt}]
        rows.append({"prompt": prompt, "chosen": turns[0], "rejected": turns[1], "subset": scene.family})
    return rows


@pytest.mark.slow
def test_a_model_trained_in_the_tiny_world(tmp_path: Path) -> None:
    """Trained as a user trains it, it beats both lengths on new pairs; its own training data give it away."""
    write_rows(tmp_path / "train.jsonl", tiny_world(600, 5))
    write_rows(tmp_path / "gold.jsonl", tiny_world(200, 6))
    flags = ("--learning-rate", 1e-3, "--epochs", 2, "--batch-size", 16, "--holdout", 0, "--device", "cpu")
    trained = rlaif(
        "train", "reward", "--model", "demo-policy", "--data", "train.jsonl", "--output", "rm", *flags,
        cwd=tmp_path, timeout=500, OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    done = evaluated("--model", "rm", "--gold", "gold.jsonl", "--format", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    gold = json.loads(done.stdout)["gold"]
    assert gold["accuracy"]["value"] > 0.7 and gold["gain"]["low"] > 0 and gold["trained_on"] == 0
    assert {each["name"] for each in gold["subsets"]} == {"harm", "ordinary", "upset"}
    own = evaluated("--model", "rm", "--gold", "train.jsonl", "--format", "json", "--no-plots", cwd=tmp_path)
    report = json.loads(own.stdout)
    assert report["gold"]["trained_on"] == report["gold"]["pairs"]
    assert report["gold"]["accuracy"]["value"] > gold["accuracy"]["value"]
    assert "stand in the data that the model was trained on" in report["warnings"][0]
    answers = ("--policy", "demo-policy", "--prompts", Path(__file__).parents[3] / "prompts/policy/demo.jsonl")
    judge = ("--limit", 4, "--samples", 4, "--max-tokens", 48, "--judge", "demo-judge", "--constitution", "demo")
    best = evaluated("--model", "rm", *answers, *judge, cwd=tmp_path)
    assert best.returncode == 0, best.stderr
    assert "Best of n by the reward, over 4 prompts with 4 responses of demo-policy@" in best.stdout
    assert "best-of-n on only 4 prompts: too few" in best.stdout
