"""What an edited constitution does to a finished run; every number follows from the fake server's one rule."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.analysis.edit_impact import Impact, Missing, ask_comparisons, ask_critiques, impact, missing, plans
from rlaif.config.run_file import load_run
from rlaif.constitution import load_constitution
from rlaif.errors import UserError
from rlaif.feedback.aggregate import Comparison, Share, Status, moves
from rlaif.feedback.pipeline import run_pipeline
from rlaif.feedback.run import reopen_run
from rlaif.inference.models import LazyModel
from rlaif.stats import sigmoid
from tests import fake_answers
from tests.fakes import FakeServer, unit
from tests.support import lines, rlaif, write_run

OLD = {"kind": 3.0, "true": 1.0, "brief": 1.0}
TIE = math.log(0.55 / 0.45)
"""The logit of the margin: a smaller one is a tie."""


@pytest.fixture(autouse=True)
def contrary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for the colder reply, the fake prefers the contrary of what it prefers otherwise."""
    plain = fake_answers.first_share

    def share(connection: Sequence[Mapping[str, str]]) -> float:
        return 1 - plain(connection) if "colder" in connection[-1]["content"] else plain(connection)

    monkeypatch.setattr(fake_answers, "first_share", share)


def write(folder: Path, name: str, weights: dict[str, float], **texts: str) -> Path:
    path = folder / f"{name}.yaml"
    principles = [
        {
            "id": each,
            "compare": texts.get(each, f"Which reply is more {each}?"),
            "critique": texts.get(f"{each}_critique", f"Is it {each}?"),
            "weight": weight,
        }
        for each, weight in weights.items()
    ]
    path.write_text(yaml.safe_dump({"name": name, "principles": principles}))
    return path


def finished(folder: Path, url: str, prompts: int = 10, **settings: Any) -> Path:
    """A finished run under OLD, with two samples a prompt."""
    write(folder, "old", OLD)
    texts = [f"How do I get to station number {number}?" for number in range(prompts)]
    settings = {"compare": {"principles": "each"}, "policy": {"samples": 2}} | settings
    run_pipeline(load_run(write_run(folder, url, prompts=texts, constitution="old.yaml", **settings)))
    return folder / "run"


def gaps(run: Path) -> list[float]:
    """The fake's logit for the left reply of every comparison, if asked for nothing colder."""
    texts = {row["id"]: row["text"] for row in lines(run / "samples.jsonl")}
    merit = {key: unit("merit", text) for key, text in texts.items()}
    met = [each for row in lines(run / "rankings.jsonl") for each in row["comparisons"]]
    return [8 * (merit[each["left"]] - merit[each["right"]]) for each in met]


async def assessed(run: Path, old: Path, new: Path) -> tuple[Missing, Impact]:
    """What there was to ask, and the impact after it was asked."""
    with reopen_run(run) as opened:
        both = plans(opened, load_constitution(old), load_constitution(new))
        judge = LazyModel(opened.settings.judge, log=run / "judge.log", labels=("A", "B"))
        lacking = missing(both)
        try:
            await ask_critiques(both, judge)
            await ask_comparisons(both, judge)
        finally:
            await judge.close()
        assert not missing(both).any
        return lacking, impact(both)


def compared(fake: FakeServer) -> list[str]:
    """The compare questions that arrived, without the probe's."""
    return [question for question in fake.asked.elements() if "Reply A:" in question]


def test_one_of_three_principles_reworded(tmp_path: Path) -> None:
    """`kind`, which has three fifths of the weight, turns round: a logit of L becomes (-3 + 1 + 1) / 5 L = -L / 5."""
    new = write(tmp_path, "new", OLD, kind="Which reply is colder?")
    with FakeServer() as fake:
        run = finished(tmp_path, fake.url, prompts=200)
        before = {path.name: path.read_bytes() for path in run.iterdir()}
        logits = gaps(run)
        fake.asked.clear()

        arguments = ("constitution", "diff", tmp_path / "old.yaml", new, "--run", run)
        dry = rlaif(*arguments, "--dry-run")
        assert dry.returncode == 0, dry.stderr
        assert f"{2 * len(logits):,} comparisons to run, {6 * len(logits):,} cached" in dry.stdout
        assert not fake.asked
        assert {path.name: path.read_bytes() for path in run.iterdir()} == before

        result = rlaif(*arguments, "--json")
        assert result.returncode == 0, result.stderr
        assert len(compared(fake)) == 2 * len(logits)
        assert all("colder" in question for question in compared(fake))
        told = json.loads(result.stdout)

        fake.asked.clear()
        again = rlaif(*arguments)
        assert again.returncode == 0, again.stderr
        assert f"0 comparisons to run, {8 * len(logits):,} cached" in again.stdout
        assert not fake.asked
    found = told["impact"]
    labels = [sum(abs(each) >= TIE for each in logits), sum(abs(each) / 5 >= TIE for each in logits)]
    assert 0 < labels[1] < labels[0] < len(logits) == found["pairs"] == found["measured"]
    assert [found["labels"]["old"], found["labels"]["new"]] == labels
    assert (found["flipped"], found["causes_of_flips"]) == (labels[1], {"kind": labels[1]})
    assert (found["vanished"], found["appeared"]) == ({"tie": labels[0] - labels[1]}, {})
    assert f"{labels[1]} (kind {labels[1]})" in again.stdout
    changes = sorted((abs(sigmoid(each) - sigmoid(-each / 5)) for each in logits), reverse=True)
    assert found["mean_change"] == pytest.approx(sum(changes) / len(changes), abs=1e-6)
    assert [abs(each["new"] - each["old"]) for each in found["most_moved"]] == pytest.approx(changes[:10], abs=1e-6)
    assert {each["cause"] for each in found["most_moved"]} == {"kind"}
    kept = {path.name for path in run.iterdir() if before.get(path.name) == path.read_bytes()}
    assert kept == {path.name for path in run.iterdir()} - {"judgements.jsonl"}
    assert (run / "judgements.jsonl").read_bytes().startswith(before["judgements.jsonl"])


async def ask_and_count(fake: FakeServer, run: Path, old: Path, new: Path) -> tuple[Missing, Impact, int]:
    fake.asked.clear()
    lacking, found = await assessed(run, old, new)
    return lacking, found, len(compared(fake))


def test_a_later_run_asks_no_more(tmp_path: Path) -> None:
    new = write(tmp_path, "new", OLD | {"cold": 2.0}, cold="Which reply is colder?")
    with FakeServer() as fake:
        run = finished(tmp_path, fake.url)
        asyncio.run(assessed(run, tmp_path / "old.yaml", new))
        report = run_pipeline(load_run(tmp_path / "run.yaml", {("constitution",): str(new)}))
    (compare,) = (tally for tally in report.tallies if tally.stage == "compare")
    assert (compare.asked, compare.known) == (0, 4 * 2 * len(gaps(run)))


@pytest.mark.parametrize(
    ("weights", "asked", "factor", "cause"),
    [
        (OLD | {"cold": 15.0}, 2, -0.5, "cold"),
        ({"cold": 3.0, "true": 4.0, "brief": 1.0}, 2, 0.25, "cold"),
        ({"true": 1.0, "brief": 1.0}, 0, 1.0, None),
        ({"kind": 3.0, "honest": 1.0, "brief": 1.0}, 0, 1.0, None),
        ({name: 2 * weight for name, weight in OLD.items()}, 0, 1.0, None),
    ],
    ids=["added", "one for another", "removed", "renamed", "all doubled"],
)
def test_other_edits(tmp_path: Path, weights: dict[str, float], asked: int, factor: float, cause: str | None) -> None:
    """All principles but the cold one agree: with 15 / 20 of the weight against 5 / 20 the logit L becomes -L / 2.

    With 3 / 8 against 5 / 8 it becomes L / 4; the reweighted `true`, whose own logit is L as before, is not to blame.
    """
    new = write(tmp_path, "new", weights, cold="Which reply is colder?", honest="Which reply is more true?")
    with FakeServer() as fake:
        run = finished(tmp_path, fake.url)
        lacking, found, arrived = asyncio.run(ask_and_count(fake, run, tmp_path / "old.yaml", new))
    logits = gaps(run)
    assert arrived == lacking.comparisons == asked * len(logits)
    moved = [abs(sigmoid(each) - sigmoid(factor * each)) for each in logits]
    assert found.change == pytest.approx(sum(moved) / len(moved), abs=1e-6)
    assert len(found.moved) == (len(logits) if cause else 0)
    assert {each.cause for each in found.moved} == ({cause} if cause else set())


def test_another_principle_is_drawn(tmp_path: Path) -> None:
    """Under `one`, an added principle takes over its share of the pairs, and those turn round."""
    new = write(tmp_path, "new", OLD | {"cold": 5.0}, cold="Which reply is colder?")
    with FakeServer() as fake:
        run = finished(tmp_path, fake.url, prompts=20, compare={"principles": "one"})
        lacking, found, arrived = asyncio.run(ask_and_count(fake, run, tmp_path / "old.yaml", new))
    fresh = [row for row in lines(run / "judgements.jsonl") if row["principle"] == "cold"]
    taken = {frozenset((row["first"], row["second"])) for row in fresh}
    assert arrived == lacking.comparisons == len(fresh) == 2 * len(taken)
    assert 0 < len(taken) < len(gaps(run))
    assert len(found.moved) == min(10, len(taken))
    assert {each.cause for each in found.moved} <= {f"{name} -> cold" for name in OLD}
    assert found.flipped == found.causes.total() <= len(taken)


def test_critiques_come_first(tmp_path: Path) -> None:
    """One principle's critique is reworded: two critiques a pair, then the pair's two orders, which waited for them."""
    new = write(tmp_path, "new", OLD, true_critique="Is it wholly true?")
    with FakeServer() as fake:
        run = finished(tmp_path, fake.url, compare={"principles": "each", "critique": True})
        pairs = len(gaps(run))
        lacking, found, arrived = asyncio.run(ask_and_count(fake, run, tmp_path / "old.yaml", new))
        assert arrived == 2 * pairs
        assert sum("wholly true" in question for question in fake.asked.elements()) == 2 * pairs
    assert lacking == Missing(2 * pairs, 6 * pairs, 0, 6 * pairs, 2 * pairs)
    assert (found.pairs, found.unanswered) == (pairs, 0)


def test_moves_by_pencil() -> None:
    """a +4, b -2 weigh the same: the logit is 1. With c -3 it is -1/3: a moves by 1 - 1.5, b by -1 + 1.5, c by -4/3."""

    def parts(**logits: float) -> list[Share]:
        weight = 1 / len(logits)
        return [Share(name, weight, Comparison("l", "r", Status.LABELLED, logit=x)) for name, x in logits.items()]

    found = moves(parts(a=4, b=-2), parts(a=4, b=-2, c=-3), 1.0)
    assert found == {"a": pytest.approx(-0.5), "b": pytest.approx(0.5), "c": pytest.approx(-4 / 3)}
    assert sum(found.values()) == pytest.approx(-1 / 3 - 1)


def test_mistakes_and_notes(tmp_path: Path) -> None:
    other = write(tmp_path, "other", {"brief": 1.0})
    third = write(tmp_path, "third", {"brief": 2.0, "true": 1.0})
    with FakeServer() as fake:
        run = finished(tmp_path, fake.url)
        foreign = rlaif("constitution", "diff", other, third, "--run", run, "--dry-run")
    assert foreign.returncode == 0
    assert "the run was made with neither: its constitution is old@" in foreign.stderr
    plain = rlaif("constitution", "diff", tmp_path / "old.yaml", other)
    assert plain.returncode == 0, plain.stderr
    assert "kind: removed" in plain.stdout
    for arguments, told in (
        (("--run", tmp_path), "no finished run here"),
        (("--dry-run",), "--run RUN_DIR"),
    ):
        wrong = rlaif("constitution", "diff", other, third, *arguments)
        assert wrong.returncode == 2
        assert told in wrong.stderr
        assert "Traceback" not in wrong.stderr
    assert not (tmp_path / ".lock").exists()


def test_another_judge_is_refused(tmp_path: Path) -> None:
    """The model behind the run's name has changed: its answers must not stand beside the old ones."""
    new = write(tmp_path, "new", OLD, kind="Which reply is colder?")
    with FakeServer() as fake:
        run = finished(tmp_path, fake.url)
        saved = (run / "run.yaml").read_text()
        (run / "run.yaml").write_text(saved.replace("model: fake", "model: other"))
        before = (run / "judgements.jsonl").read_bytes()
        with pytest.raises(UserError, match="the judge of this run was `fake`, and is `other` now"):
            asyncio.run(assessed(run, tmp_path / "old.yaml", new))
    assert (run / "judgements.jsonl").read_bytes() == before


def test_a_tournament_with_a_final_is_refused(tmp_path: Path) -> None:
    """Other grades bring other samples into it: the two constitutions have no pairs in common to look at."""
    new = write(tmp_path, "new", OLD, kind="Which reply is colder?")
    for samples, code in ((4, 0), (5, 2)):
        with FakeServer() as fake:
            compare = {"method": "tournament", "principles": "all"}
            run = finished(tmp_path, fake.url, prompts=2, compare=compare, policy={"samples": samples})
            told = rlaif("constitution", "diff", tmp_path / "old.yaml", new, "--run", run)
        assert (told.returncode, "Traceback" in told.stderr) == (code, False), told.stderr
    assert "a tournament chooses by grades which samples meet" in told.stderr
