"""Runs that come to no label, and toy judges outside of their world: said, with what to change, and exit code 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.run_file import load_run
from rlaif.constitution import load_constitution
from rlaif.demo.oracle import is_toy, outside_its_world
from rlaif.demo.world import demo_scenes
from rlaif.errors import ModelError
from rlaif.feedback.pipeline import run_pipeline
from rlaif.records import Message, Prompt
from rlaif.store import shipped_model
from rlaif.workflow.plan import load_plan
from rlaif.workflow.run import run_workflow
from tests.fakes import FakeServer, Taste
from tests.support import rlaif, write_run

ECHOING = Taste(mass=0.06)


def ended(folder: Path, fake: FakeServer, *words: str, command: str = "generate", **settings: Any) -> str:
    """What the command says at its end, which is exit code 1."""
    result = rlaif(command, write_run(folder, fake.url, **settings), *words)
    assert result.returncode == 1, (result.stdout, result.stderr)
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


def test_too_little_label_mass(tmp_path: Path) -> None:
    with FakeServer(taste=ECHOING) as fake:
        said = ended(tmp_path, fake)
        assert said.startswith("no pairs: 60 comparisons, 60 without a label: 120 of 120 answers put less than 0.5")
        assert "`compare.prefill`" in said and "`judge.templates`" in said and "`rlaif check`" in said
        again = rlaif("pair", tmp_path / "run.yaml")
    assert again.returncode == 1 and again.stderr.strip().splitlines()[-1] == said


@pytest.mark.parametrize("method", ["score", "rank"])
def test_the_other_ways_of_judging(tmp_path: Path, method: str) -> None:
    """The fake's answers to the other templates are text of no use where it does not know the question."""
    slots = {"score": "conversation reply question", "rank": "conversation replies question"}[method]
    (tmp_path / "own").mkdir()
    asked = " ".join(f"{{{slot}}}" for slot in slots.split())
    (tmp_path / "own" / f"{method}.txt").write_text(f"slots: {slots}\nBetween <<< and >>>. {asked} Well?")
    with FakeServer(logprobs="none", batch=False) as fake:
        judge = {"templates": "own"}
        said = ended(tmp_path, fake, compare={"method": method, "principles": "all"}, judge=judge)
    assert said.startswith("no pairs: 60 comparisons, 60 without a label: "), said
    assert "answers have no verdict that can be read; most often it says" in said
    assert f"`{method}.txt`" in said and "compare.prefill" not in said


def test_flips_ties_and_copies(tmp_path: Path) -> None:
    with FakeServer(taste=Taste(slot=12.0)) as fake:
        said = ended(tmp_path, fake)
        assert "60 comparisons, 60 whose orders disagree" in said and "`pair.flips: soft`" in said
    (tmp_path / "ties").mkdir()
    with FakeServer() as fake:
        said = ended(tmp_path / "ties", fake, "--pair-margin", "0.4999")
        assert "tied" in said and "`pair.margin` (0.4999)" in said
    (tmp_path / "copies").mkdir()
    with FakeServer() as fake:
        said = ended(tmp_path / "copies", fake, policy={"samples": 1})
        assert said == (
            "no pairs: no prompt has two different responses to compare, of 10 responses to 10 prompts; raise "
            "`policy.samples` or its `temperature`"
        )


def test_answers_cut_off_before_their_verdict(tmp_path: Path) -> None:
    with FakeServer() as fake:
        said = ended(tmp_path, fake, compare={"reasoning": "reply", "reasoning_tokens": 32})
    assert "120 of 120 answers were cut off before a verdict; raise `compare.reasoning_tokens`" in said


@pytest.mark.sibling("no-label-for-any-revision")
def test_revisions_without_a_label(tmp_path: Path) -> None:
    with FakeServer(taste=ECHOING) as fake:
        said = ended(tmp_path, fake, command="revise")
    assert said.startswith("the judge labels no revision: ") and "without a label" in said


@pytest.mark.sibling("training-on-no-pairs")
def test_the_loop_stops_before_it_trains_on_nothing(tmp_path: Path) -> None:
    with FakeServer(taste=ECHOING) as fake:
        path = write_run(tmp_path, fake.url)
        plan = load_plan(path)
        from rlaif.api.keywords import Screen

        with pytest.raises(ModelError, match="no pairs: 60 comparisons"):
            run_workflow(plan, Screen(quiet=True))
        result = rlaif("run", path)
    assert result.returncode == 1 and "no pairs: 60 comparisons" in result.stderr


def test_a_run_with_pairs_has_no_problem(tmp_path: Path) -> None:
    with FakeServer() as fake:
        assert run_pipeline(load_run(write_run(tmp_path, fake.url))).problem is None
        assert run_pipeline(load_run(tmp_path / "run.yaml"), ["sample"]).problem is None, "none was wanted"


def prompt(text: str) -> Prompt:
    return Prompt(id="", messages=(Message(role="user", content=text),), source="")


def test_what_is_outside_of_the_toys_world() -> None:
    demo, other = load_constitution("demo"), load_constitution("harmless")
    own = [prompt(scene.prompt) for scene in demo_scenes()[:20]]
    assert outside_its_world("demo-judge", demo, own) is None
    assert outside_its_world("Qwen/Qwen3-8B", other, [prompt("What is a quark?")]) is None
    foreign = [prompt(f"What is {at} times {at}?") for at in range(20)]
    said = outside_its_world("demo-judge", demo, [*own, *foreign])
    assert said is not None and "20 of 40 prompts are from outside of it" in said
    said = outside_its_world("demo-judge", other, own)
    assert said is not None and f"{len(other.principles)} of {len(other.principles)} principles" in said


def test_a_toy_by_another_name(tmp_path: Path) -> None:
    import shutil

    folder = shipped_model("demo-judge")
    assert folder is not None
    shutil.copytree(folder, tmp_path / "my-judge")
    assert is_toy("demo-judge") and is_toy(str(folder)) and is_toy(str(tmp_path / "my-judge"))
    assert not is_toy(str(tmp_path)) and not is_toy("Qwen/Qwen3-8B")


def test_a_toy_judge_is_announced_everywhere(tmp_path: Path) -> None:
    """A server that serves under the toy's name: in the output, the manifest, the page and the dataset's card."""
    with FakeServer(model="demo-judge") as fake:
        models = {"judge": {"model": "demo-judge"}, "policy": {"model": "demo-judge"}}
        looked = rlaif("check", write_run(tmp_path, fake.url, **models))
        assert looked.returncode == 0 and "WARNING: demo-judge is a toy" in looked.stderr
        result = rlaif("generate", write_run(tmp_path, fake.url, **models))
    assert result.returncode == 0, result.stderr
    assert "WARNING: demo-judge is a toy" in result.stderr and "10 of 10 prompts" in result.stderr
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert "demo-judge is a toy" in manifest["warnings"][0]
    assert rlaif("report", tmp_path / "run").returncode == 0
    assert "demo-judge is a toy" in (tmp_path / "run/report.html").read_text()
    done = rlaif("data", "export", tmp_path / "run/pairs.jsonl", "--format", "trl", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "out/README.md").read_text()
    assert "> **Warning:** demo-judge is a toy" in card
