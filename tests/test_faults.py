"""A server that misbehaves costs time, never a wrong label."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.run_file import load_run
from rlaif.errors import ModelError
from rlaif.feedback.pipeline import run_pipeline
from tests.fakes import FakeServer, Trouble, first_share
from tests.support import lines, rlaif, write_run

KINDS = ("429", "500", "hang", "drop", "broken_json", "no_logprobs", "short_batch")


def count_of(stage: str, manifest: dict[str, Any]) -> int:
    """Questions of a stage without an answer."""
    return sum(count for reason, count in manifest["failures"].items() if reason.startswith(f"{stage}:"))


def assert_labels_are_the_fakes(folder: Path) -> None:
    """Every pair's winner is the reply that the fake prefers, and its probability the fake's own."""
    rows = lines(folder / "pairs.jsonl")
    assert rows
    for row in rows:
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        shown = f"Reply A:\n<<<x\n{chosen}\nx>>>\nReply B:\n<<<x\n{rejected}\nx>>>"
        share = first_share([{"content": shown}])
        assert share > 0.5
        assert row["probability"] == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("batch", [True, False], ids=["batches", "single"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_tenth_of_the_requests_fails(tmp_path: Path, kind: str, batch: bool) -> None:
    with FakeServer(batch=batch, troubles=[Trouble(kind, chance=0.1)]) as fake:
        impatient = {"timeout": 0.5}
        run_file = write_run(tmp_path, fake.url, policy=impatient, judge=impatient)
        result = rlaif("generate", run_file)
    assert result.returncode == 0, result.stderr
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["counts"]["samples"] + count_of("sample", manifest) == 40
    assert_labels_are_the_fakes(tmp_path / "run")


@pytest.mark.slow
def test_all_faults_at_once(tmp_path: Path) -> None:
    """Seven in ten requests go wrong: the run ends, what failed is counted with its reason, no label is wrong."""
    troubles = [Trouble(kind, chance=0.1) for kind in KINDS]
    with FakeServer(batch=False, troubles=troubles) as fake:
        impatient = {"timeout": 0.5}
        run_file = write_run(tmp_path, fake.url, policy=impatient, judge=impatient)
        result = rlaif("generate", run_file)
        assert result.returncode == 0, result.stderr
        manifest = json.loads((tmp_path / "run/manifest.json").read_text())
        assert "sample: not asked yet" not in manifest["failures"]
        assert manifest["counts"]["samples"] + count_of("sample", manifest) == 40
        planned = 2 * sum(len(row["comparisons"]) for row in lines(tmp_path / "run/rankings.jsonl"))
        assert manifest["counts"]["judgements"] + count_of("compare", manifest) == planned
        reasons = {row["reason"] for row in lines(tmp_path / "run/failures.jsonl")}
        assert reasons <= {"http_429", "http_500", "timeout", "dropped", "broken_json", "no_logprobs", "short_batch"}
        assert_labels_are_the_fakes(tmp_path / "run")
        fake.troubles.clear()
        healed = rlaif("generate", run_file)
        assert healed.returncode == 0
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["failures"] == {}
    assert manifest["counts"]["judgements"] == 120
    assert_labels_are_the_fakes(tmp_path / "run")


def test_a_question_that_always_fails_is_counted_and_makes_no_label(tmp_path: Path) -> None:
    prompts = ["How do I get home?", "How do I get to the poisoned station?"]
    with FakeServer(troubles=[Trouble("400", contains="poisoned")]) as fake:
        run_file = write_run(tmp_path, fake.url, prompts=prompts, max_failed=1.0)
        result = rlaif("generate", run_file)
    assert result.returncode == 0, result.stderr
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["failures"] == {"sample: bad_request": 4}
    assert manifest["counts"]["pairs"] == 1
    assert {row["reason"] for row in lines(tmp_path / "run/failures.jsonl")} == {"bad_request"}


def test_a_server_that_is_down_ends_the_run_in_one_line(tmp_path: Path) -> None:
    with FakeServer() as fake:
        url = fake.url
    start = time.monotonic()
    result = rlaif("generate", write_run(tmp_path, url))
    assert time.monotonic() - start < 60
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    told = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert len(told) == 1
    assert url in told[0]


@pytest.mark.slow
def test_a_server_that_goes_down_is_resumed_later(tmp_path: Path) -> None:
    with FakeServer() as fake:
        calm = tmp_path / "calm"
        calm.mkdir()
        assert rlaif("generate", write_run(calm, fake.url)).returncode == 0
    with FakeServer(troubles=[Trouble("drop", start=45)], batch=False) as fake:
        start = time.monotonic()
        run_file = write_run(tmp_path, fake.url)
        result = rlaif("generate", run_file)
        assert time.monotonic() - start < 60
        assert result.returncode == 1
        assert sum(line.startswith("Error:") for line in result.stderr.splitlines()) == 1
        assert "Traceback" not in result.stderr
        assert len(lines(tmp_path / "run/samples.jsonl")) == 40
        fake.troubles.clear()
        assert rlaif("generate", run_file).returncode == 0
    assert (tmp_path / "run/pairs.jsonl").read_bytes() == (calm / "run/pairs.jsonl").read_bytes()


def test_a_stage_stops_when_too_much_fails(tmp_path: Path) -> None:
    with FakeServer(troubles=[Trouble("400", contains="Reply A")]) as fake:
        result = rlaif("generate", write_run(tmp_path, fake.url))
    assert result.returncode == 1
    assert "questions failed (bad_request" in result.stderr


def test_failures_that_a_run_has_finished_with_do_not_stop_it_later(tmp_path: Path) -> None:
    """Of 520 questions 120 can never be answered: 23 % of the stage, though they are all that a second run asks."""
    prompts = [f"Number {at}{' is poisoned' if at % 13 in (1, 5, 9) else ''}." for at in range(130)]
    with FakeServer(troubles=[Trouble("400", contains="poisoned")]) as fake:
        settings = load_run(write_run(tmp_path, fake.url, prompts=prompts))
        for asked in (520, 120):
            (tally,) = run_pipeline(settings, ["sample"]).tallies
            assert (tally.asked, tally.failed) == (asked, {"bad_request": 120})
        with pytest.raises(
            ModelError, match=r"sample: 120 of 520 questions failed \(bad_request 120; the latest: HTTP"
        ):
            run_pipeline(settings.model_copy(update={"max_failed": 0.2}), ["sample"])


@pytest.mark.parametrize(("poisoned", "most", "stops"), [(2, 0.5, False), (3, 0.5, True), (4, 1.0, False)])
def test_a_small_stage_is_judged_at_its_end(tmp_path: Path, poisoned: int, most: float, stops: bool) -> None:
    """Four questions: three failures are more than half of them; 1 is for those who want to go on whatever fails."""
    prompts = [f"Number {at}{' is poisoned' if at < poisoned else ''}." for at in range(4)]
    with FakeServer(troubles=[Trouble("400", contains="poisoned")]) as fake:
        run_file = write_run(tmp_path, fake.url, prompts=prompts, policy={"samples": 1}, max_failed=most)
        if not stops:
            assert run_pipeline(load_run(run_file), ["sample"]).tallies[0].failed.total() == poisoned
            return
        with pytest.raises(ModelError, match=f"{poisoned} of 4 questions failed .*raise `max_failed`"):
            run_pipeline(load_run(run_file), ["sample"])
