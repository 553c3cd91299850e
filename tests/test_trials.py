"""Unit tests of principles, put to the fake server and to the demo's judge."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.analysis.principle_tests import PrincipleTests, Result, run_principle_tests
from rlaif.config.schemas import JudgeSettings
from rlaif.constitution import load_constitution
from rlaif.errors import UserError
from rlaif.inference.models import LazyModel
from tests import fake_answers
from tests.fakes import FakeServer, Trouble, unit
from tests.support import lines, rlaif, write_run

WORST, BEST = sorted((f"A reply that says {word}." for word in ("yes", "no", "perhaps", "later")),
                     key=lambda text: unit("merit", text))[::3]  # fmt: skip
"""The fake goes by one number a text: it prefers BEST to WORST whatever it is asked."""

RIGHT = {"prompt": "How are you?", "better": BEST, "worse": WORST}
WRONG = {"prompt": "What now?", "better": WORST, "worse": BEST, "why": "The contrary is meant."}
SURE = 1 / (1 + math.exp(-8 * (unit("merit", BEST) - unit("merit", WORST))))


def principle(name: str, *examples: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"id": name, "compare": f"Which reply is more {name}?", "examples": list(examples)} | more


def write(folder: Path, *principles: dict[str, Any]) -> Path:
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump({"name": "c", "principles": list(principles)}))
    return path


def tried(path: Path, url: str, **more: Any) -> PrincipleTests:
    judge = LazyModel(JudgeSettings(model="fake", base_url=url), log=path.with_name("judge.log"), labels=("A", "B"))

    async def run() -> PrincipleTests:
        try:
            return await run_principle_tests(load_constitution(path), judge, path.parent / "answers", **more)
        finally:
            await judge.close()

    return asyncio.run(run())


def compared(fake: FakeServer) -> list[str]:
    """The compare questions that arrived, without the probe's."""
    return [question for question in fake.asked.elements() if "Reply A:" in question]


def test_pass_and_fail(tmp_path: Path) -> None:
    path = write(tmp_path, principle("kind", RIGHT, WRONG), principle("true"), principle("brief", RIGHT))
    with FakeServer() as fake:
        found = tried(path, fake.url)
        assert len(compared(fake)) == 6
    assert [(each.principle, each.number, each.result) for each in found.trials] == [
        ("kind", 1, Result.PASS),
        ("kind", 2, Result.FAIL),
        ("brief", 1, Result.PASS),
    ]
    assert [each.probability for each in found.trials] == pytest.approx([SURE, 1 - SURE, SURE], abs=1e-6)
    assert found.trials[1].orders == pytest.approx((1 - SURE, 1 - SURE), abs=1e-6)
    assert (found.untested, found.passed, found.tally.asked, found.tally.known) == (("true",), False, 6, 0)


def test_orders_that_disagree_flip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that gives the first slot 0.8: `better` gets 0.8 shown first and 0.2 shown second, 0.5 together."""
    monkeypatch.setattr(fake_answers, "first_share", lambda connection: 0.8)
    with FakeServer() as fake:
        (trial,) = tried(write(tmp_path, principle("kind", RIGHT)), fake.url).trials
    assert trial.result is Result.FLIP
    assert trial.orders == pytest.approx((0.8, 0.2))
    assert trial.probability == pytest.approx(0.5)


def test_a_tie_is_no_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.54 in both orders is closer to one half than the margin of 0.05."""

    def share(connection: list[dict[str, str]]) -> float:
        text = connection[-1]["content"]
        return 0.54 if text.find(BEST) < text.find(WORST) else 0.46

    monkeypatch.setattr(fake_answers, "first_share", share)
    with FakeServer() as fake:
        (trial,) = tried(write(tmp_path, principle("kind", RIGHT)), fake.url).trials
    assert (trial.result, trial.probability) == (Result.FAIL, pytest.approx(0.54))


def test_no_verdict(tmp_path: Path) -> None:
    """One principle's calls are refused; the others are answered all the same, and only those calls are made again."""
    path = write(tmp_path, principle("kind", RIGHT), principle("noble", RIGHT))
    with FakeServer(troubles=[Trouble("400", contains="more noble")]) as fake:
        kind, noble = tried(path, fake.url).trials
    assert kind.result is Result.PASS
    assert (noble.result, noble.probability, noble.orders) == (Result.NO_VERDICT, None, (None, None))
    assert noble.reason == "bad_request"
    with FakeServer() as fake:
        again = tried(path, fake.url)
    assert again.passed
    assert (again.tally.asked, again.tally.known) == (2, 2)


def test_a_judge_that_wants_to_say_something_else_has_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_answers, "MASS", 0.3)
    with FakeServer() as fake:
        (trial,) = tried(write(tmp_path, principle("kind", RIGHT)), fake.url).trials
    assert (trial.result, trial.reason) == (Result.NO_VERDICT, "label mass 0.30")


def test_an_edit_asks_only_its_own_questions(tmp_path: Path) -> None:
    three = [principle(name, RIGHT, WRONG) for name in ("kind", "true", "brief")]
    with FakeServer() as fake:
        tried(write(tmp_path, *three), fake.url)
        assert len(compared(fake)) == 12
        fake.asked.clear()
        three[1] = principle("true", RIGHT, WRONG, compare="Which reply is truer?")
        found = tried(write(tmp_path, *three), fake.url)
        assert len(compared(fake)) == 4
        assert all("truer" in question for question in compared(fake))
        assert (found.tally.asked, found.tally.known) == (4, 8)
        requests = fake.requests.total()
        assert tried(write(tmp_path, *three), fake.url).tally.asked == 0
        assert fake.requests.total() == requests
    assert tried(write(tmp_path, *three), "http://127.0.0.1:9").tally.known == 12, "no server is needed any more"
    assert len(lines(tmp_path / "answers/judgements.jsonl")) == 16


def test_only_some_principles(tmp_path: Path) -> None:
    path = write(tmp_path, principle("kind", RIGHT), principle("true", RIGHT), principle("bare"))
    with FakeServer() as fake:
        assert [each.principle for each in tried(path, fake.url, only=["true"]).trials] == ["true"]
        with pytest.raises(UserError, match="no principle `tru`; did you mean `true`"):
            tried(path, fake.url, only=["tru"])
        with pytest.raises(UserError, match="no examples under `bare`"):
            tried(path, fake.url, only=["bare"])


def test_the_command(tmp_path: Path) -> None:
    path = write(tmp_path, principle("kind", RIGHT), principle("true", WRONG), principle("bare"))
    with FakeServer() as fake:
        judge = ("--judge", "fake", "--base-url", fake.url, "--answers", tmp_path / "a")
        failing = rlaif("constitution", "test", path, *judge)
        passing = rlaif("constitution", "test", path, *judge, "--principle", "kind", "--format", "json")
    assert failing.returncode == 1, failing.stderr
    assert "kind: 1/1\ntrue: 0/1\nWithout examples: bare\n" in failing.stdout
    assert "The contrary is meant." in failing.stdout
    assert "4 calls (" in failing.stdout
    assert passing.returncode == 0, passing.stderr
    told = json.loads(passing.stdout)
    assert (told["passed"], told["total"], told["asked"], told["on_disk"]) == (1, 1, 0, 2)
    assert told["principles"][0]["examples"][0]["result"] == "pass"


def test_the_judge_of_a_run_file(tmp_path: Path) -> None:
    path = write(tmp_path, principle("kind", RIGHT))
    with FakeServer() as fake:
        result = rlaif("constitution", "test", path, "--run", write_run(tmp_path, fake.url), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(lines(tmp_path / "runs/constitution-tests/judgements.jsonl")) == 2
    assert not (tmp_path / "run").exists()


def test_a_run_that_shows_critiques_is_tested_with_them(tmp_path: Path) -> None:
    """Two critiques an example come first, and both orders show them; one that is missing leaves no verdict."""
    asking = principle("kind", RIGHT, critique="Is it kind?")
    path = write(tmp_path, asking, principle("noble", RIGHT, critique="Is it noble?"))
    with FakeServer(troubles=[Trouble("400", contains="Is it noble?")], batch=False) as fake:
        run_file = write_run(tmp_path, fake.url, compare={"critique": True})
        result = rlaif("constitution", "test", path, "--run", run_file, "--format", "json", cwd=tmp_path)
        shown = [key for key in fake.asked if "Reply A:" in key]
    told = json.loads(result.stdout)
    assert (result.returncode, told["asked"], told["failed"]) == (1, 6, {"bad_request": 2}), result.stderr
    assert len(shown) == 2 and all("A reviewer's notes on reply A" in key for key in shown)
    kind, noble = (each["examples"][0] for each in told["principles"])
    assert (kind["result"], noble["result"], noble["reason"]) == ("pass", "no verdict", "critique: bad_request")
    bare = rlaif("constitution", "test", write(tmp_path, principle("bare", RIGHT)), "--run", run_file, cwd=tmp_path)
    assert bare.returncode == 2 and "principle `bare` has no `critique`" in bare.stderr


def test_a_judge_by_its_url(tmp_path: Path) -> None:
    with FakeServer() as fake:
        result = rlaif("constitution", "test", write(tmp_path, principle("kind", RIGHT)), "--judge", fake.url,
                       cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "1 of 1 examples pass with fake" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--judge", "demo-judge"], "no principle has an example"),
        ([], "name the judge with --judge"),
        (["--judge", "x", "--base-url", "ftp://x"], "--base-url"),
        (["--judge", "x", "--base-url", "http://x", "--launch", "vllm"], "exclude each other"),
        (["--judge", "x", "--run", "run.yaml"], "--run takes the judge"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: list[str], told: str) -> None:
    result = rlaif("constitution", "test", write(tmp_path, principle("bare")), *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert told in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_demo_constitution_passes_with_the_demo_judge(tmp_path: Path) -> None:
    result = rlaif("constitution", "test", "demo", "--judge", "demo-judge", "--format", "json", cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    told = json.loads(result.stdout)
    assert told["without_examples"] == []
    assert len(told["principles"]) == 8
    assert all(each["total"] >= 3 and each["passed"] == each["total"] for each in told["principles"])
