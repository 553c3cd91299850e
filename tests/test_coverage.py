"""What each principle did in a run, from hand-made votes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

from rlaif.analysis.coverage import CoverageCounter, PrincipleAgreement, coverage
from rlaif.config.run_file import load_run
from rlaif.config.schemas import PairSettings
from rlaif.feedback.aggregate import Vote
from rlaif.feedback.pipeline import run_pipeline
from rlaif.records import Judgement, Verdict, content_id
from rlaif.stats import wilson
from tests.fakes import FakeServer
from tests.support import lines, rlaif, write_run

STRONG, WEAK = math.log(9), math.log(1.5)
"""Logits of the probabilities 0.9 and 0.6."""


def judgement(key: int, principle: str, logit: float | None) -> Judgement:
    """A call that prefers the first reply by `logit`, or is unreadable."""
    share = 0.5 if logit is None else 1 / (1 + math.exp(-logit))
    return Judgement(
        id=content_id(key, principle),
        prompt="p",
        first="l",
        second="r",
        principle=principle,
        judge="j",
        verdict=Verdict.FIRST,
        logprobs=(math.log(share), math.log(1 - share)),
        label_mass=0.01 if logit is None else 1.0,
    )


def vote(principle: str, left: float | None, right: float | None = None, weight: float = 1.0) -> Vote:
    """Log-odds for the left reply in each order; one number stands for both, None for an unreadable verdict."""
    second = left if right is None else right
    backward = judgement(2, principle, None if second is None else -second)
    return Vote(principle, weight, judgement(1, principle, left), backward)


def counted(*comparisons: list[Vote]) -> CoverageCounter:
    counting = CoverageCounter(["a", "b", "c"], PairSettings())
    for votes in comparisons:
        counting.add("l", "r", votes)
    return counting


def test_by_pencil() -> None:
    """Four comparisons.

    1. a +2.20, b +0.41: labelled left; a decides; both agree with the label.
    2. a -2.20, b +0.41 of weight 9: (-2.20 + 3.65) / 10 > 0, but 0.536 is a tie: no label.
    3. a flips (+2.20, -0.41: mean 0.90), b -2.20: (0.90 - 2.20) / 2 < 0: labelled right; b decides, a disagrees.
       The orders together: +2.20 - 2.20 = 0 and -0.41 - 2.20 < 0: no flip.
    4. a unreadable, b +2.20: labelled left by b alone.
    """
    counting = counted(
        [vote("a", STRONG), vote("b", WEAK)],
        [vote("a", -STRONG), vote("b", WEAK, weight=9.0)],
        [vote("a", STRONG, -WEAK), vote("b", -STRONG)],
        [vote("a", None), vote("b", STRONG)],
    )
    assert (counting.comparisons, counting.labels, counting.unanswered) == (4, 3, 0)
    a, b, c = counting.principles()
    assert (a.asked, a.verdicts, a.decided, a.labels, a.agrees) == (4, 3, 1, 2, 1)
    assert (b.asked, b.verdicts, b.decided, b.labels, b.agrees) == (4, 4, 2, 3, 3)
    assert (c.asked, c.decided, c.margin, c.flips) == (0, 0, None, None)
    mixed = 1 / (1 + math.exp(-(STRONG - WEAK) / 2))
    assert a.margin == pytest.approx((0.4 + 0.4 + mixed - 0.5) / 3)
    assert b.margin == pytest.approx((0.1 + 0.1 + 0.4 + 0.4) / 4)
    assert (a.flips, b.flips) == (pytest.approx(1 / 3), 0)
    assert (a.ties, b.ties) == (0, 0)
    assert counting.principles(both_orders=False)[0].flips is None


def test_the_matrix_takes_clear_verdicts_only() -> None:
    """Of five comparisons a and b agree in one and disagree in one; tie, flip and unreadable verdict are left out."""
    counting = counted(
        [vote("a", STRONG), vote("b", WEAK)],
        [vote("a", STRONG), vote("b", -WEAK)],
        [vote("a", STRONG), vote("b", 0.1)],
        [vote("a", STRONG), vote("b", STRONG, -WEAK)],
        [vote("a", STRONG), vote("b", None)],
    )
    found = {(each.first, each.second): each for each in counting.agreements()}
    assert list(found) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert (found["a", "b"].agree, found["a", "b"].both, found["a", "b"].share) == (1, 2, 0.5)
    assert (found["a", "c"].both, found["a", "c"].share) == (0, None)


def test_a_missing_answer_makes_no_label() -> None:
    half = Vote("a", 1.0, judgement(1, "a", STRONG), None)
    counting = counted([half, vote("b", STRONG)])
    assert (counting.labels, counting.unanswered) == (0, 1)
    a, b, _ = counting.principles()
    assert (a.asked, a.verdicts, b.asked, b.verdicts) == (1, 0, 1, 1)


@pytest.mark.parametrize(
    ("agree", "both", "upper"),
    [(0, 10, 0.2775), (1, 10, 0.4042), (2, 10, 0.5098), (81, 263, 0.3662)],
)
def test_wilson(agree: int, both: int, upper: float) -> None:
    """81 of 263 is the worked example of Newcombe 1998 (0.2553 to 0.3662); 0 of 10 is z^2 / (10 + z^2)."""
    assert wilson(agree, both).high == pytest.approx(upper, abs=5e-5)


def test_contradictions_need_ten_cases() -> None:
    assert PrincipleAgreement("a", "b", 1, 10).contradict
    assert not PrincipleAgreement("a", "b", 2, 10).contradict
    assert not PrincipleAgreement("a", "b", 0, 9).contradict
    assert not PrincipleAgreement("a", "b", 0, 0).contradict


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of ten prompts under three principles; the judge holds `cold` for the contrary of the others."""
    from tests import fake_answers

    plain = fake_answers.first_share
    monkeypatch.setattr(
        fake_answers,
        "first_share",
        lambda connection: 1 - plain(connection) if "more cold" in connection[-1]["content"] else plain(connection),
    )
    weights = {"kind": 3, "true": 1, "cold": 1}
    principles = [{"id": n, "compare": f"Which reply is more {n}?", "weight": w} for n, w in weights.items()]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"name": "c", "principles": principles}))
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url, constitution="c.yaml", compare={"principles": "each"})
        run_pipeline(load_run(path))
    return tmp_path / "run"


def test_a_finished_run(run: Path) -> None:
    found = coverage(run)
    rankings = lines(run / "rankings.jsonl")
    labels = sum(each["status"] == "labelled" for row in rankings for each in row["comparisons"])
    assert (found.comparisons, found.labels) == (60, labels)
    kind, true, cold = found.principles
    assert (kind.decided, true.decided, cold.decided) == (labels, 0, 0)
    assert (kind.agrees, true.agrees, cold.agrees) == (labels, labels, 0)
    assert found.idle == ("true", "cold")
    assert [(each.first, each.second) for each in found.contradictions] == [("kind", "cold"), ("true", "cold")]
    assert [each.share for each in found.agreements] == [1.0, 0.0, 0.0]


def test_the_command(run: Path) -> None:
    """On a run folder that was moved: nothing in it changes, not even the path in its settings."""
    run = run.rename(run.with_name("moved"))
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    shown = rlaif("constitution", "coverage", run)
    assert shown.returncode == 0, shown.stderr
    assert "Never decided a label: true, cold" in shown.stdout
    assert "Contradict each other: kind and cold agree in 0 of" in shown.stdout
    told = rlaif("constitution", "coverage", run, "--json")
    assert json.loads(told.stdout)["never_decide"] == ["true", "cold"]
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    nowhere = rlaif("constitution", "coverage", run.parent)
    assert (nowhere.returncode, nowhere.stdout) == (2, "")
    assert "no finished run" in nowhere.stderr
    assert not (run.parent / ".lock").exists()


def test_one_principle_a_pair_has_no_matrix(tmp_path: Path) -> None:
    with FakeServer() as fake:
        run_pipeline(load_run(write_run(tmp_path, fake.url, constitution="helpful-honest-harmless-concise")))
    found = coverage(tmp_path / "run")
    assert found.agreements == ()
    assert sum(each.asked for each in found.principles) == 60
    assert sum(each.decided for each in found.principles) == found.labels
    shown = rlaif("constitution", "coverage", tmp_path / "run")
    assert "No two principles judged the same pair" in shown.stdout


def test_an_edited_constitution_is_told(run: Path) -> None:
    path = run.parent / "c.yaml"
    path.write_text(path.read_text().replace("more kind", "kinder"))
    found = coverage(run)
    assert (found.edited, found.labels, found.unanswered) == (True, 0, 60)
