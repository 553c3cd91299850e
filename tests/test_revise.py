"""`rlaif revise` against a fake server: chains, resume, the SFT dataset, the judged pairs."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from rlaif.config.run_file import load_run
from rlaif.errors import ModelError, UserError
from rlaif.feedback.pipeline import Report, run_pipeline
from tests.fakes import FakeServer, Trouble, unit
from tests.support import command, environment, lines, rlaif, write_run
from tests.test_kill import PROBES

JOURNALS = ("samples", "critiques", "revisions", "judgements")


def revise(path: Path, **flags: str) -> Report:
    return run_pipeline(load_run(path, {tuple(name.split("__")): value for name, value in flags.items()}), ["revise"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("revised")
    with FakeServer() as fake:
        report = revise(write_run(folder, fake.url, revise={"principles": "one"}))
        assert report.outcome is None
        assert max(fake.drawn.values()) <= 2, "the probes of the two models apart, nothing is asked twice"
        on_disk = sum(len(lines(folder / "run" / f"{name}.jsonl")) for name in JOURNALS)
        assert fake.asked.total() == on_disk + 4
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
    assert set(counts["uses"]) >= {"revised", "unchanged", "critique", "empty"}
    assert len(rows) == counts["counts"]["sft_rows"] == counts["uses"]["revised"] < 20
    assert sum(counts["uses"].values()) == 20
    for row in rows:
        assert row["prompt"][-1]["role"] == "user"
        assert [turn["role"] for turn in row["response"]] == ["assistant"]
        assert any(
            text in (said, f"Revised reply: {said}") for text in texts for said in [row["response"][0]["content"]]
        )


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
        asked_now = {tally.stage: tally.asked for tally in report.tallies}
        assert {stage for stage, count in asked_now.items() if count} == {"critique 3", "revise 3", "confirm"}
        assert asked_now["revise 3"] == sum(row["round"] == 3 for row in lines(tmp_path / "run" / "revisions.jsonl"))


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
        path = write_run(tmp_path, fake.url, revise={"principles": "one"}, judge={"concurrency": 1}, max_failed=1.0)
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
        report = run_pipeline(load_run(path))
    assert report.outcome is not None and report.revised is not None
    assert report.revised.counts["chains"] == 20
    assert len(lines(tmp_path / "run" / "pairs.jsonl")) == 10
    samples = [row["id"] for row in lines(tmp_path / "run" / "samples.jsonl") if row["index"] < 2]
    assert sorted(row["id"] for row in lines(tmp_path / "run" / "chains.jsonl")) == sorted(samples)


def test_revising_leaves_a_finished_run_finished(tmp_path: Path) -> None:
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url, revise={"principles": "one"})
        run_pipeline(load_run(path))
        before = (tmp_path / "run" / "manifest.json").read_bytes()
        revise(path)
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before


def test_helpful_answers_are_mixed_in(tmp_path: Path) -> None:
    connection = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, what can I do?"}]
    (tmp_path / "helpful.jsonl").write_text(json.dumps({"messages": connection}) + "\n")
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url, revise={"principles": "one", "helpful": "helpful.jsonl"})
        report = revise(path)
        (tmp_path / "helpful.jsonl").write_text('{"prompt": "Hi"}\n')
        with pytest.raises(UserError, match="holds prompts and no answers"):
            revise(path)
    assert report.revised and report.revised.counts["helpful_rows"] == 1
    assert (tmp_path / "run" / "revised.json").exists(), "told before anything was touched"


def test_a_prompt_may_have_several_helpful_answers(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "answers": [text]} for text in ("Hello.", "Good day.", "Hello.")]
    (tmp_path / "helpful.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    helpful = {"path": "helpful.jsonl", "responses": "answers"}
    with FakeServer() as fake:
        report = revise(write_run(tmp_path, fake.url, revise={"principles": "one", "helpful": helpful}))
    assert report.revised and report.revised.counts["helpful_rows"] == 2
    assert report.revised.input_issues.counts == {"repeated prompt": 1}


def test_a_session_with_other_settings_unfinishes_what_it_makes_untrue(tmp_path: Path) -> None:
    manifest, revised = tmp_path / "run" / "manifest.json", tmp_path / "run" / "revised.json"
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url, revise={"principles": "one"})
        run_pipeline(load_run(path))
        revise(path)
        assert manifest.exists() and revised.exists()
        revise(path, revise__rounds="1")
        assert manifest.exists(), "pairs do not rest on the revisions"
        run_pipeline(load_run(path))
        assert manifest.exists() and not revised.exists(), "the settings name two rounds again"
        revise(path, pair__margin="0.2")
        assert revised.exists() and not manifest.exists(), "the pairs were those of another margin"
        run_pipeline(load_run(path))
        assert manifest.exists()
        revise(path)
        revise(path, prompts__limit="3")
        assert revised.exists() and not manifest.exists(), "the pairs were those of ten prompts"
        fake.troubles.append(Trouble("401"))
        with pytest.raises(UserError):
            revise(path, revise__rounds="4")
        assert not revised.exists()


def test_a_mistake_is_told_before_the_folder_is_touched(tmp_path: Path) -> None:
    bare = tmp_path / "bare.yaml"
    bare.write_text("name: bare\nprinciples: [{id: x, compare: Which is the better reply}]\n")
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url, revise={"principles": "one"})
        run_pipeline(load_run(path))
        files = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
        asked = fake.asked.total()
        with pytest.raises(UserError, match="no principle has both `critique` and `revise`"):
            revise(path, constitution=str(bare))
        with pytest.raises(UserError, match="no such file"):
            revise(path, revise__helpful__path=str(tmp_path / "nope.jsonl"))
        assert fake.asked.total() == asked
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == files


def test_given_answers_are_revised_first(tmp_path: Path) -> None:
    rows = [{"prompt": f"Why {number}?", "answers": ["It is so."]} for number in range(5)]
    (tmp_path / "given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = {"path": "given.jsonl", "responses": "answers"}
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url, revise={"principles": "one", "rounds": 1})
        path.write_text(path.read_text().replace("prompts: prompts.jsonl", f"prompts: {json.dumps(prompts)}"))
        report = revise(path)
        assert report.tallies[0].asked == 0, "every prompt has its one answer already"
        assert report.revised and report.revised.counts["chains"] == 5
        report = revise(path, revise__samples="2")
        assert report.tallies[0].asked == 5
        assert report.revised and report.revised.counts["chains"] == 10


def test_a_reply_that_would_be_shown_cut_is_not_revised(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "answers": ["word " * 100]}, {"prompt": "How?", "answers": ["So."]}]
    (tmp_path / "given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = {"path": "given.jsonl", "responses": "answers"}
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url, policy=None, revise={"principles": "one"}, compare={"max_chars": 100})
        path.write_text(path.read_text().replace("prompts: prompts.jsonl", f"prompts: {json.dumps(prompts)}"))
        report = revise(path)
    assert report.revised and report.revised.counts["chains"] == 1
    assert report.revised.counts["too_long"] == 1


def test_failed_verdicts_are_told(tmp_path: Path) -> None:
    with FakeServer(troubles=[Trouble("400", contains="You compare two replies")]) as fake:
        report = revise(write_run(tmp_path, fake.url, revise={"principles": "one"}, max_failed=1.0))
    assert report.revised
    assert report.revised.counts["judged_failed"] == report.revised.counts["changed"] > 0
    assert set(report.revised.failures) == {"confirm: bad_request"}


def test_the_preview_shows_revisions_and_counts_their_tokens(tmp_path: Path) -> None:
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url, policy={"samples": 1}, revise={"principles": "one", "enabled": True})
        done = rlaif("preview", path, "-n", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("revision 1 (") == done.stdout.count("revision 2 (") == 2
    judge = next(line for line in done.stdout.splitlines() if line.startswith("  judge "))
    assert int(judge.split()[1].replace(",", "")) > 1000


def test_the_command_with_its_flags(tmp_path: Path) -> None:
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url)
        done = rlaif("revise", path, "--skip-critique", "--revise-rounds", "1", "--revise-principles", "all")
        assert done.returncode == 0, done.stderr
        assert "responses changed" in done.stdout and "the judge confirms" in done.stdout
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
