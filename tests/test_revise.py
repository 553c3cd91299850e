"""`rlaif revise` against a fake server: chains, resume, the SFT dataset, the judged pairs."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from rlaif.errors import ModelError, UserError
from rlaif.pipeline import Report, generate
from rlaif.runfile import load_run
from tests.fakes import FakeServer, Trouble, unit
from tests.support import command, environment, lines, rlaif, write_run
from tests.test_kill import PROBES


def revise(path: Path, **flags: str) -> Report:
    return generate(load_run(path, {tuple(name.split("__")): value for name, value in flags.items()}), ["revise"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("revised")
    with FakeServer() as fake:
        report = revise(write_run(folder, fake.url, revise={"principles": "one"}))
        assert report.outcome is None
        probes = 4
        assert fake.asked.total() == 10 + 2 * 20 + 20 + probes  # samples, two rounds, two orders
    return folder / "run"


def test_two_rounds_each_with_its_parent(finished: Path) -> None:
    samples = {row["id"]: row for row in lines(finished / "samples.jsonl")}
    revisions = {row["id"]: row for row in lines(finished / "revisions.jsonl")}
    critiques = {row["id"]: row for row in lines(finished / "critiques.jsonl")}
    assert len(samples) == 10, "only the samples that are revised are drawn"
    assert Counter(row["round"] for row in revisions.values()) == {1: 10, 2: 10}
    for row in revisions.values():
        assert row["sample"] in samples
        assert critiques[row["critique"]]["sample"] == row["parent"]
        assert critiques[row["critique"]]["principle"] == row["principle"]
        if row["round"] == 1:
            assert row["parent"] == row["sample"]
        elif row["parent"] != row["sample"]:
            assert revisions[row["parent"]]["round"] == 1


def test_the_sft_rows_are_usable_revisions(finished: Path) -> None:
    texts = {row["text"] for row in lines(finished / "revisions.jsonl")}
    counts = json.loads((finished / "revised.json").read_text())
    rows = lines(finished / "sft.jsonl")
    assert len(rows) == counts["counts"]["sft_rows"] == counts["uses"]["revised"]
    assert sum(counts["uses"].values()) == 20
    for row in rows:
        assert row["prompt"][-1]["role"] == "user"
        assert [turn["role"] for turn in row["response"]] == ["assistant"]
        assert row["response"][0]["content"] in texts


def test_the_judge_says_which_is_better(finished: Path) -> None:
    """The fake prefers the text of more merit, so about half of its own revisions lose against their originals."""
    counts = json.loads((finished / "revised.json").read_text())["counts"]
    texts = {row["id"]: row["text"] for name in ("samples", "revisions") for row in lines(finished / f"{name}.jsonl")}
    samples = {row["id"] for row in lines(finished / "samples.jsonl")}
    pairs = lines(finished / "revised_pairs.jsonl")
    assert len(pairs) == counts["pairs"] == counts["confirmed"] + counts["refuted"]
    for row in pairs:
        chosen, rejected = texts[row["chosen_id"]], texts[row["rejected_id"]]
        assert unit("merit", chosen) > unit("merit", rejected)
        assert (row["chosen_id"] in samples) != (row["rejected_id"] in samples)
        assert len(row["judgements"]) == 2
    assert counts["confirmed"] == sum(row["rejected_id"] in samples for row in pairs)
    assert counts["refuted"] == sum(row["chosen_id"] in samples for row in pairs) > 0


def test_a_second_call_asks_nothing_and_a_longer_chain_only_what_is_new(tmp_path: Path) -> None:
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url, revise={"principles": "one"})
        revise(path)
        names = ("sft.jsonl", "revised_pairs.jsonl", "revisions.jsonl")
        before, asked = {name: (tmp_path / "run" / name).read_bytes() for name in names}, fake.asked.total()
        report = revise(path)
        assert fake.asked.total() == asked
        assert {name: (tmp_path / "run" / name).read_bytes() for name in names} == before
        assert [tally.asked for tally in report.tallies] == [0] * 6
        report = revise(path, revise__rounds="3")
        assert {tally.stage: tally.asked for tally in report.tallies if tally.asked} == {
            "critique 3": 10,
            "revise 3": 10,
            "confirm": 2 * report.revised.counts["changed"] if report.revised else 0,
        }


def test_rewording_a_principle_asks_its_rounds_anew(tmp_path: Path) -> None:
    text = (Path(__file__).parent / "revisions" / "two.yaml").read_text()
    constitution = tmp_path / "two.yaml"
    constitution.write_text(text)
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url, constitution=str(constitution), revise={"rounds": 1, "principles": "one"})
        revise(path)
        drawn = Counter(row["principle"] for row in lines(tmp_path / "run" / "revisions.jsonl"))
        assert set(drawn) == {"kind", "short"}
        constitution.write_text(text.replace("Rewrite it kindly.", "Say it kindly."))
        report = revise(path)
        asked = {tally.stage: tally.asked for tally in report.tallies}
        assert asked["critique 1"] == 0
        assert asked["revise 1"] == drawn["kind"]


def test_failed_questions_are_counted_and_asked_again(tmp_path: Path) -> None:
    with FakeServer(troubles=[Trouble("400", chance=0.7, contains="You rewrite one reply")]) as fake:
        path = write_run(tmp_path, fake.url, revise={"principles": "one"}, judge={"concurrency": 1})
        report = revise(path)
        assert report.revised and report.revised.failures.total() > 0
        assert all(reason.startswith("revise ") for reason in report.revised.failures)
        fake.troubles.clear()
        again = revise(path)
        assert again.revised and not again.revised.failures
    with FakeServer() as calm:
        other = tmp_path / "other"
        other.mkdir()
        revise(write_run(other, calm.url, revise={"principles": "one"}))
    for name in ("sft.jsonl", "revised_pairs.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (other / "run" / name).read_bytes()


def test_a_dead_server_loses_nothing(tmp_path: Path) -> None:
    with FakeServer(troubles=[Trouble("401", start=14)]) as fake:
        path = write_run(tmp_path, fake.url, revise={"principles": "one"})
        with pytest.raises(ModelError):
            revise(path)
        assert not (tmp_path / "run" / "revised.json").exists()
        fake.troubles.clear()
        assert revise(path).revised is not None


def test_generate_revises_too_where_it_is_enabled(tmp_path: Path) -> None:
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url, revise={"enabled": True, "principles": "one", "samples": 2})
        report = generate(load_run(path))
    assert report.outcome is not None and report.revised is not None
    assert report.revised.counts["chains"] == 20
    assert len(lines(tmp_path / "run" / "pairs.jsonl")) == 10
    assert {row["sample"] for row in lines(tmp_path / "run" / "revisions.jsonl")} <= {
        row["id"] for row in lines(tmp_path / "run" / "samples.jsonl")
    }


def test_revising_leaves_a_finished_run_finished(tmp_path: Path) -> None:
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url, revise={"principles": "one"})
        generate(load_run(path))
        before = (tmp_path / "run" / "manifest.json").read_bytes()
        revise(path)
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before


def test_helpful_answers_are_mixed_in(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, what can I do?"}]
    (tmp_path / "helpful.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url, revise={"principles": "one", "helpful": "helpful.jsonl"})
        report = revise(path)
        (tmp_path / "helpful.jsonl").write_text('{"prompt": "Hi"}\n')
        with pytest.raises(UserError, match="holds prompts and no answers"):
            revise(path)
    assert report.revised and report.revised.counts["helpful_rows"] == 1
    assert not (tmp_path / "run" / "revised.json").exists()


def test_the_command_with_its_flags(tmp_path: Path) -> None:
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url)
        done = rlaif("revise", path, "--skip-critique", "--revise-rounds", "1", "--revise-principles", "all")
        assert done.returncode == 0, done.stderr
        assert "replies changed" in done.stdout and "the judge confirms" in done.stdout
        assert not lines(tmp_path / "run" / "critiques.jsonl")
        wrong = rlaif("revise", path, "--revise-rounds", "5")
        assert wrong.returncode == 2
        assert "`revise.rounds` must be at most 4, got '5'" in wrong.stderr
        wrong = rlaif("revise", path, "--revise-sft-rounds", "[3]")
        assert wrong.returncode == 2
        assert "names round 3, and there are 2" in wrong.stderr


@pytest.mark.slow
def test_kills_change_nothing(tmp_path: Path) -> None:
    """kill -9 at ten moments of the run; what is on disk is never asked again, and the end is the same."""
    steady, shaken = tmp_path / "steady", tmp_path / "shaken"
    steady.mkdir()
    shaken.mkdir()
    settings = {"revise": {"principles": "one", "samples": 2}}
    with FakeServer() as fake:
        assert rlaif("revise", write_run(steady, fake.url, **settings)).returncode == 0
        questions = len(fake.drawn)
    with FakeServer(delay=0.03, batch=False) as fake:
        path = write_run(shaken, fake.url, policy={"concurrency": 2}, judge={"concurrency": 2}, **settings)
        cut_short = 0
        for _ in range(10):
            until = fake.drawn.total() + questions // 10
            process = subprocess.Popen(command("revise", path), env=environment(), stderr=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL)  # fmt: skip
            while fake.drawn.total() < until and process.poll() is None:
                time.sleep(0.005)
            process.kill()
            cut_short += process.wait() == -9
        assert cut_short >= 7, "most runs ended before they were killed"
        assert rlaif("revise", path).returncode == 0
        assert len(fake.drawn) == questions
        lost = fake.drawn.total() - questions - 10 * len(PROBES)
        assert lost <= 10 * 2, "at most what was under way at each kill was asked again"
    for name in ("sft.jsonl", "revised_pairs.jsonl"):
        assert (shaken / "run" / name).read_bytes() == (steady / "run" / name).read_bytes()
