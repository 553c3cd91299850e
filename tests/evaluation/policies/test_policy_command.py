"""`rlaif evaluate policy` as a process: on files, on the fake server, from a run file, stopped and gone on with."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.evaluation.policies.scenes import write_answers, write_prompts
from tests.fakes import FakeServer, unit
from tests.support import command, environment, rlaif, write_run


def evaluated(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return rlaif("evaluate", "policy", *arguments, cwd=cwd)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """40 prompts of two kinds; `a.jsonl` has replies that the fake likes, `b.jsonl` others, the last one missing."""
    texts = [f"A reply of number {at}{', at length' * (at % 5)}." for at in range(600)]
    good = [text for text in texts if unit("merit", text) > 0.7][:40]
    poor = [text for text in texts if unit("merit", text) < 0.3][:39]
    write_prompts(tmp_path / "prompts.jsonl", 40, harmful=[True, False])
    write_answers(tmp_path / "a.jsonl", dict(enumerate(good)))
    write_answers(tmp_path / "b.jsonl", dict(enumerate(poor)))
    return tmp_path


def test_files_alone_need_no_policy_model(files: Path) -> None:
    flags = ("a.jsonl", "--against", "base=b.jsonl", "--prompts", "prompts.jsonl", "--constitution", "harmless")
    with FakeServer() as fake:
        judge = ("--judge", fake.url, "--no-plots", "--compare-principles", "all", "--grades", "false")
        told = evaluated(*flags, *judge, "--tag", "harmful", "--harmful", "true", cwd=files)
        asked = fake.asked.total()
        again = evaluated(*flags, *judge, "--tag", "harmful", "--harmful", "true", "--format", "json", cwd=files)
        assert fake.asked.total() == asked
        turned = evaluated("b.jsonl", "--against", "a.jsonl", *flags[3:], *judge, cwd=files)
        assert fake.asked.total() == asked, "the same pairs, seen from the other side"
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("a.jsonl beats base: ")
    assert "on 40 prompts, by fake under `harmless`" in told.stdout
    assert "true (harmful: rightly)" in told.stdout and "false (over-refusal)" in told.stdout
    assert "0 responses sampled" in told.stdout and "78 calls, 0 cached" in told.stdout
    assert "sample" not in told.stderr
    report = json.loads(again.stdout)
    (path,) = (files / "runs/policies").glob("a.jsonl-against-base-*[0-9a-f].json")
    assert json.loads(path.read_text()) == report
    assert (report["policies"][1]["missing"], report["matches"][0]["no_label"]) == (1, {"missing": 1})
    assert report["policies"][0]["kl_note"] == "its answers come from a file"
    assert report["cost"]["judgements"] == 2 * 39
    assert report["matches"][0]["wins"]["value"] == 1.0
    assert turned.stdout.startswith("b.jsonl loses to a.jsonl: ")


def test_models_on_a_server_by_a_run_file(files: Path) -> None:
    with FakeServer(model="small") as policies, FakeServer() as fake:
        run = write_run(files, fake.url, prompts=["How?"], pair={"margin": 0.2}, compare={"temperature": 2.0})
        write_prompts(files / "prompts.jsonl", 12)
        flags = ("--run", run, "--prompts", "prompts.jsonl", "--no-plots", "--format", "json", "--samples", "2")
        one = f"one={policies.url}"
        done = evaluated(one, "--against", f"two={policies.url}#small", "--against", "b.jsonl", *flags, cwd=files)
        asked = sum(count for text, count in policies.asked.items() if text.startswith("What about"))
        assert asked == 24, "both are one model, and are asked once"
        other = evaluated(one, "--against", "b.jsonl", *flags, "--judge", fake.url, cwd=files)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [each["name"] for each in report["policies"]] == ["one", "b.jsonl", "two"]
    assert report["about"]["constitution"] == "harmless" and report["about"]["pair"]["margin"] == 0.2
    assert (report["about"]["compare"]["temperature"], report["about"]["compare"]["principles"]) == (2.0, "each")
    assert report["matches"][0]["identical"] == 24 and report["matches"][0]["win_rate"]["value"] == 0.5
    assert report["policies"][0]["answers"] == 24 and report["policies"][0]["violations"]
    assert len(report["ratings"]) == 3 and report["cost"]["answers"] == 24
    assert other.returncode == 2 and "leave out the judge's own flags" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["a.jsonl", "--against", "gone.jsonl"], "Error: gone.jsonl: no such file"),
        (["a.jsonl", "--against", "b.jsonl", "--samples", "two"], "Error: --samples: `samples` must be a whole number"),
        (["a.jsonl", "--against", "b.jsonl", "--compare-principles", "eech"], "did you mean `each`?"),
        (["a.jsonl", "--against", "b.jsonl", "--tag", "harmfull"], "no column `harmfull`; did you mean `harmful`?"),
        (["a.jsonl", "--against", "b.jsonl", "--harmful", "true"], "--harmful: needs `tag`"),
        (["a.jsonl", "--against", "demo-polcy"], "Error: model `demo-polcy`"),
        (["a.jsonl", "--against", "a.jsonl"], "two policies are called `a.jsonl`"),
    ],
)
def test_mistakes_are_one_line(files: Path, arguments: list[str], what: str) -> None:
    judge = ("--judge", "demo-judge", "--prompts", "prompts.jsonl")
    done = evaluated(*arguments, *judge, cwd=files)
    assert done.returncode == 2, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line and not line.startswith("reading "))
    assert what in line


def test_nobody_to_put_it_beside(files: Path) -> None:
    done = evaluated("a.jsonl", "--judge", "demo-judge", "--prompts", "prompts.jsonl", cwd=files)
    assert done.returncode == 2 and "Missing option '--against'" in done.stderr


@pytest.mark.slow
def test_an_interrupt_keeps_what_was_answered(files: Path) -> None:
    with FakeServer(delay=0.05, most_at_once=2, batch=False) as fake:
        arguments = ("a.jsonl", "--against", "b.jsonl", "--prompts", "prompts.jsonl", "--judge", fake.url, "--no-plots")
        started = subprocess.Popen(
            command("evaluate", "policy", *arguments), cwd=files, env=environment(), stderr=subprocess.PIPE, text=True,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        while fake.answered.total() < 40:
            assert started.poll() is None, started.communicate()
        started.send_signal(signal.SIGINT)
        _, told = started.communicate(timeout=60)
        answered = fake.answered.total()
        fake.delay = 0.0
        done = evaluated(*arguments, cwd=files)
    assert started.returncode == 130
    assert "the same command goes on from there" in told
    assert done.returncode == 0, done.stderr
    assert fake.answered.total() - answered < 40 + 39 * 2 * 5 + 79 * 5, "what was kept is not asked again"
    kept = len((files / "runs/policies/judgements.jsonl").read_text().splitlines())
    assert kept >= 39 * 2
