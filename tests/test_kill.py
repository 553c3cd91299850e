"""kill -9 at any moment, resumed, ends as if nothing had happened."""

from __future__ import annotations

import random
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from rlaif.config.run_file import load_run
from rlaif.feedback.run import open_run
from tests.fakes import FakeServer
from tests.support import command, environment, lines, rlaif, write_run

pytestmark = pytest.mark.slow  # whole runs

KILLS = 20
PROBES = ("Say yes.", "Answer with one of these and nothing else: A, B")
"""What the start of a run asks the policy and the judge, to see what the server can do."""


def drawn_on_disk(run_file: Path) -> set[tuple[str, int | None]]:
    """Last message and seed of every question whose answer is on disk."""
    settings = load_run(run_file)
    with open_run(settings, "fake", "fake") as run:
        if not (run.folder / "prompts.jsonl").exists():
            return set()
        tables = ((run.samples, run.sample_questions()), (run.judgements, run.compare_questions()))
        return {
            (question.messages[-1].content, question.sampling.seed)
            for table, questions in tables
            for question in questions
            if question.id in table
        }


def _await_draws(fake: FakeServer, count: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the server was asked so often: a moment that does not depend on how fast this machine is."""
    while fake.drawn.total() < count and process.poll() is None:
        time.sleep(0.005)


def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    prompts = [f"How do I get to station number {number}?" for number in range(40)]
    steady, shaken = tmp_path / "steady", tmp_path / "shaken"
    steady.mkdir()
    shaken.mkdir()
    with FakeServer() as fake:
        calm = rlaif("generate", write_run(steady, fake.url, prompts=prompts))
        assert calm.returncode == 0, calm.stderr
        share = fake.drawn.total() // KILLS
    moments = random.Random(20)
    cut_short = 0
    with FakeServer(delay=0.05, batch=False) as fake:
        slow = {"concurrency": 4}
        run_file = write_run(shaken, fake.url, prompts=prompts, policy=slow, judge=slow)
        for _ in range(KILLS):
            before = Counter(fake.drawn)
            known = drawn_on_disk(run_file)
            process = subprocess.Popen(command("generate", run_file), env=environment(), stderr=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL)  # fmt: skip
            _await_draws(fake, before.total() + moments.randint(0, share), process)
            time.sleep(0.1 * moments.random())
            process.kill()
            cut_short += process.wait() == -9
            again = [key for key in known if fake.drawn[key] != before[key]]
            assert again == [], "an answer on disk was asked again"
        before = Counter(fake.drawn)
        known = drawn_on_disk(run_file)
        last = rlaif("generate", run_file)
        assert last.returncode == 0, last.stderr
        assert all(fake.drawn[key] == before[key] for key in known)
        asked = len(fake.drawn)
    assert cut_short >= KILLS * 3 // 4, "most runs ended before they were killed"
    assert asked == 40 * 4 + 40 * 12 + len(PROBES)
    assert (shaken / "run/pairs.jsonl").read_bytes() == (steady / "run/pairs.jsonl").read_bytes()
    assert (shaken / "run/rankings.jsonl").read_bytes() == (steady / "run/rankings.jsonl").read_bytes()
    assert len(lines(shaken / "run/pairs.jsonl")) == 40


def test_a_torn_line_is_healed_and_asked_again(tmp_path: Path) -> None:
    with FakeServer() as fake:
        run_file = write_run(tmp_path, fake.url)
        assert rlaif("generate", run_file).returncode == 0
        whole = (tmp_path / "run/pairs.jsonl").read_bytes()
        journal = tmp_path / "run/judgements.jsonl"
        journal.write_bytes(journal.read_bytes()[:-30])
        before = sum(fake.drawn.values())
        result = rlaif("generate", run_file)
        assert result.returncode == 0, result.stderr
        assert "1 torn last line(s) cut off" in result.stderr
        assert sum(fake.drawn.values()) - before <= 1 + 3, "one question, and the probe"
        assert (tmp_path / "run/pairs.jsonl").read_bytes() == whole


def test_two_writers_are_refused(tmp_path: Path) -> None:
    with FakeServer(delay=0.5) as fake:
        run_file = write_run(tmp_path, fake.url)
        first = subprocess.Popen(command("generate", run_file), env=environment(), stderr=subprocess.DEVNULL,
                                 stdout=subprocess.DEVNULL)  # fmt: skip
        try:
            while not (tmp_path / "run/samples.jsonl").exists():
                assert first.poll() is None
                time.sleep(0.02)
            second = rlaif("generate", run_file)
            assert second.returncode == 2
            assert "another process is writing here" in second.stderr
            assert "Traceback" not in second.stderr
            assert first.wait(60) == 0
        finally:
            first.kill()
            first.wait()


def test_ctrl_c_stops_cleanly_and_resumes(tmp_path: Path) -> None:
    import signal

    with FakeServer(delay=0.4, batch=False) as fake:
        few = ["How do I get home?", "How do I get away?"]
        run_file = write_run(tmp_path, fake.url, prompts=few, judge={"concurrency": 2}, policy={"concurrency": 1})
        process = subprocess.Popen(command("generate", run_file), env=environment(), stderr=subprocess.PIPE, text=True)
        while not (tmp_path / "run/samples.jsonl").exists() or len(lines(tmp_path / "run/samples.jsonl")) < 3:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 130
        assert "the same command goes on" in said
        assert "Traceback" not in said
        assert not (tmp_path / "run/manifest.json").exists()
        assert rlaif("generate", run_file).returncode == 0
        assert (tmp_path / "run/manifest.json").exists()


def test_a_finished_run_asks_nothing_again(tmp_path: Path) -> None:
    with FakeServer() as fake:
        run_file = write_run(tmp_path, fake.url)
        assert rlaif("generate", run_file).returncode == 0
        before = sum(fake.requests.values())
        again = rlaif("generate", run_file)
        assert again.returncode == 0
        assert sum(fake.requests.values()) == before, "not even a probe"


def test_more_samples_ask_only_for_the_new_ones(tmp_path: Path) -> None:
    with FakeServer() as fake:
        run_file = write_run(tmp_path, fake.url)
        assert rlaif("generate", run_file, "--policy-samples", 3).returncode == 0
        before = Counter(fake.drawn)
        assert rlaif("generate", run_file, "--policy-samples", 5).returncode == 0
        fresh = fake.drawn - before
        assert max(fresh.values()) == 1 or set(fresh.values()) == {1, 2}  # the probe's own question repeats
        samples = [key for key in fresh if key[1] is not None and key[0] != "Say yes."]  # which the probe asks
        assert len(samples) == 10 * 2
    assert len(lines(tmp_path / "run/samples.jsonl")) == 10 * 5
    assert len(lines(tmp_path / "run/judgements.jsonl")) == 10 * 2 * (3 + 3 + 3)
