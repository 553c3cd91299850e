"""Whole evaluations of files by judges whose taste is known: nothing is loaded, every question is counted."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from rlaif.config.schemas import ModelSettings
from rlaif.errors import ModelError, UserError
from rlaif.evaluation.policy_metrics import Compared
from rlaif.evaluation.policy_responses import require_distinct
from rlaif.evaluation.policy_specs import EvaluateSettings, PolicySpec
from rlaif.evaluation.reports import PolicyReport
from rlaif.progress import Silent
from rlaif.records import Messages, Sample
from rlaif.store import read_records
from tests.evaluation.judges import Judge, constitution, longer_wins
from tests.evaluation.policies.scenes import Grader, evaluated, evaluated_now, write_answers, write_prompts


def by_mark(first: str, second: str) -> float:
    """Good replies beat plain ones by 2, and plain ones bad ones."""
    merit = {"good": 2.0, "plain": 0.0, "bad": -2.0}
    return merit[first.split()[0]] - merit[second.split()[0]]


def test_by_hand(tmp_path: Path) -> None:
    """Five prompts: a win, a loss, a tie by the judge, one text for both, one answer missing."""
    prompts = write_prompts(tmp_path / "prompts.jsonl", 5, kind=["x", "y"])
    a = write_answers(tmp_path / "a.jsonl", {3: "plain 3", 0: "good 0", 1: "plain 1", 2: "plain two"})
    b = write_answers(tmp_path / "b.jsonl", {0: "plain 0", 1: "good 1", 2: "plain 2", 3: " plain 3", 4: "bad 4"})
    judge = Judge(by_mark)
    done = evaluated(judge, prompts, {"a": a, "b": b}, tmp_path / "out", tag="kind")
    (match,) = done.report.matches
    assert len(judge.asked) == 2 * 3, "identical answers and missing ones are not asked"
    assert (match.policy, match.baseline, match.compared, match.identical) == ("a", "b", 4, 1)
    assert match.no_label == {"missing": 1}
    assert match.wins and match.ties and match.losses and match.win_rate
    assert (match.wins.value, match.ties.value, match.losses.value) == (0.25, 0.5, 0.25)
    assert match.win_rate.value == pytest.approx(0.5)
    assert [policy.missing for policy in done.report.policies] == [1, 0]
    assert [(part.name, part.rate and part.rate.pairs) for part in match.tags] == [("x", 2), ("y", 2)]
    rows = list(read_records(done.path.with_suffix(".comparisons.jsonl"), Compared))
    assert [row.status for row in rows] == ["labelled", "labelled", "tie", "identical", "missing"]
    assert rows[0].probability == pytest.approx(1 / (1 + 2.718281828**-2))
    texts = {each.id: each.text for each in read_records(tmp_path / "out" / "samples.jsonl", Sample)}
    assert [texts[key] for key in rows[0].samples if key] == ["good 0", "plain 0"]
    assert rows[4].samples[0] is None and rows[4].lengths is None
    assert any("one answers" in text or "only 5 prompts" in text for text in done.report.warnings)


def test_the_order_of_a_file_is_nothing(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 8)
    answers = {at: f"{('good', 'plain', 'bad')[at % 3]} {at}" for at in range(8)}
    a, turned = write_answers(tmp_path / "a.jsonl", answers), tmp_path / "turned" / "a.jsonl"
    turned.parent.mkdir()
    turned.write_text("".join(reversed(a.read_text().splitlines(keepends=True))))
    b = write_answers(tmp_path / "b.jsonl", {at: f"plain {at}{at}" for at in range(8)})
    one, two = (
        evaluated(Judge(by_mark), prompts, {"a": path, "b": b}, tmp_path / f"out{at}").report.matches
        for at, path in enumerate((a, turned))
    )
    assert one == two


def test_a_second_call_asks_nothing_and_says_the_same(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 6)
    a = write_answers(tmp_path / "a.jsonl", {at: f"good {at}" for at in range(6)})
    b = write_answers(tmp_path / "b.jsonl", {at: f"bad {at}" for at in range(6)})
    judge = Grader(by_mark)
    files = {"a": a, "b": b}
    done = evaluated(judge, prompts, files, tmp_path / "out", grades=True)
    asked = len(judge.asked)
    principles = len(constitution().principles)
    assert asked == 2 * 6 + 2 * 6 * principles
    again = evaluated(judge, prompts, files, tmp_path / "out", grades=True)
    assert len(judge.asked) == asked
    assert again.report == done.report and again.path == done.path
    good, bad = done.report.policies
    assert (good.violations[0].share.value, bad.violations[0].share.value) == (0.0, 1.0)
    assert (done.report.cost.judgements, done.report.cost.grades) == (12, 12 * principles)
    assert done.report.cost.answers == 0, "the files' answers were not drawn here"
    more = evaluated(judge, prompts, files, tmp_path / "out", grades=True, pair={"margin": 0.4})
    assert len(judge.asked) == asked and more.path != done.path, "another margin is another report of the same answers"


def test_what_failed_is_asked_again_and_counted_until_then(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 4)
    a = write_answers(tmp_path / "a.jsonl", {at: f"good {at}" for at in range(4)})
    b = write_answers(tmp_path / "b.jsonl", {at: f"plain {at}" for at in range(4)})
    judge = Grader(by_mark)
    judge.failing = {"good 2"}
    done = evaluated(judge, prompts, {"a": a, "b": b}, tmp_path / "out")
    assert done.report.matches[0].no_label == {"failed": 1}
    assert done.report.cost.failed == {"compare: timeout": 2}
    assert "1 of 4 pairs of `a` and `b` have no label (1 failed)" in " ".join(done.report.warnings)
    judge.failing = set()
    judge.asked.clear()
    again = evaluated(judge, prompts, {"a": a, "b": b}, tmp_path / "out")
    assert len(judge.asked) == 2 and again.report.matches[0].no_label == {}
    judge.failing = {"Reply A"}
    with pytest.raises(ModelError, match=r"^compare: 8 of 8 questions failed \(timeout 8\)"):
        evaluated(judge, prompts, {"a": a, "b": b}, tmp_path / "other")


def test_several_answers_meet_by_their_index(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 3)
    a = write_answers(tmp_path / "a.jsonl", {at: [f"good {at}", f"bad {at}", f"good more {at}"] for at in range(3)})
    b = write_answers(tmp_path / "b.jsonl", {at: [f"plain {at}", f"plain second {at}"] for at in range(3)})
    done = evaluated(Judge(by_mark), prompts, {"a": a, "b": b}, tmp_path / "out", samples=3)
    (match,) = done.report.matches
    assert match.wins and match.losses and (match.wins.value, match.losses.value) == (0.5, 0.5)
    assert match.no_label == {"missing": 3} and [each.missing for each in done.report.policies] == [0, 3]
    # One win and one loss each: prompts show no doubt, and each counts as one trial (Wilson, 1.5 of 3).
    assert (match.wins.low, match.wins.high) == pytest.approx((0.1253, 0.8747), abs=1e-4)


def test_three_policies_and_who_meets_whom(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 5)
    files = {
        name: write_answers(tmp_path / f"{name}.jsonl", {at: f"{name} {at}" for at in range(5)})
        for name in ("good", "bad", "plain")
    }
    done = evaluated(Judge(by_mark), prompts, files, tmp_path / "out")
    assert done.report.baseline == "plain"
    assert [(each.policy, each.baseline) for each in done.report.matches] == [
        ("good", "plain"), ("bad", "plain"), ("good", "bad")
    ]  # fmt: skip
    assert [each.name for each in done.report.ratings] == ["good", "plain", "bad"]
    few = evaluated(Judge(by_mark), prompts, files, tmp_path / "out", matchups="baseline")
    assert len(few.report.matches) == 2 and [each.name for each in few.report.ratings] == ["good", "plain", "bad"]


def test_a_policy_against_itself_is_one_half(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 4)
    a = write_answers(tmp_path / "a.jsonl", {at: f"good {at}" for at in range(4)})
    judge = Judge(by_mark)
    done = evaluated(judge, prompts, {"a": a, "b": a}, tmp_path / "out")
    (match,) = done.report.matches
    assert match.win_rate and match.win_rate.value == 0.5
    assert match.win_rate.low == pytest.approx(0.1500, abs=1e-4), "four ties leave room: Wilson's interval for 2 of 4"
    assert judge.asked == [] and match.identical == 4
    assert any("`a` and `b` are one model" in text for text in done.report.warnings)


def test_filler_wins_with_a_judge_that_likes_length_but_not_at_equal_length(tmp_path: Path) -> None:
    """The policy says what the baseline says, mostly with filler, and the judge looks at length and chance."""
    rng = random.Random(3)
    prompts = write_prompts(tmp_path / "prompts.jsonl", 120)
    plain = {at: f"Answer {at} " + "x" * rng.randint(20, 60) for at in range(120)}
    filled = {at: f"Answer {at} " + "x" * rng.randint(20, 80) for at in range(120)}
    a, b = write_answers(tmp_path / "a.jsonl", filled), write_answers(tmp_path / "b.jsonl", plain)
    noise = {at: rng.gauss(0, 1) for at in range(120)}

    def opinion(first: str, second: str) -> float:
        number = int(first.split()[1])
        sign = 1.0 if first == filled[number] else -1.0
        return 0.05 * (len(first) - len(second)) + sign * noise[number]

    done = evaluated(Judge(opinion), prompts, {"a": a, "b": b}, tmp_path / "out")
    (match,) = done.report.matches
    assert match.win_rate and match.length_controlled
    assert match.win_rate.low > 0.5
    assert match.length_controlled.low < 0.5 < match.length_controlled.high
    assert match.length_slope and match.length_slope > 0.5 and match.length_ratio and match.length_ratio > 1.1


def test_changing_places_mirrors_the_report(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 20)
    rng = random.Random(4)
    texts = [{at: f"reply {at} " + "y" * rng.randint(1, 40) for at in range(20)} for _ in range(2)]
    files = {name: write_answers(tmp_path / f"{name}.jsonl", own) for name, own in zip("ab", texts, strict=True)}
    one = evaluated(Judge(longer_wins), prompts, files, tmp_path / "out").report.matches[0]
    judge = Judge(longer_wins)
    two = evaluated(judge, prompts, dict(reversed(files.items())), tmp_path / "out").report.matches[0]
    assert judge.asked == [], "both orders are known from the first evaluation"
    assert one.win_rate and two.win_rate and one.win_rate.value == pytest.approx(1 - two.win_rate.value)
    assert (one.win_rate.low, one.win_rate.high) == pytest.approx((1 - two.win_rate.high, 1 - two.win_rate.low))
    assert one.wins == two.losses and one.flips == two.flips


def test_a_judge_that_says_neither(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 4)
    a = write_answers(tmp_path / "a.jsonl", {at: f"good {at}" for at in range(4)})
    b = write_answers(tmp_path / "b.jsonl", {at: f"plain {at}" for at in range(4)})
    judge = Judge(lambda first, second: None if "2" in first else by_mark(first, second))
    done = evaluated(judge, prompts, {"a": a, "b": b}, tmp_path / "out")
    assert done.report.matches[0].no_label == {"unparsed": 1} and done.report.matches[0].compared == 3


def test_mistakes(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 2, kind=["x", "y"])
    a = write_answers(tmp_path / "a.jsonl", {0: "good 0"})
    other = write_answers(tmp_path / "other.jsonl", {17: "good 17"})
    judge = Judge(by_mark)
    with pytest.raises(UserError, match="answers none of the 2 prompts"):
        evaluated(judge, prompts, {"a": other, "b": a}, tmp_path / "out")
    with pytest.raises(UserError, match="did you mean `kind`"):
        evaluated(judge, prompts, {"a": a, "b": a}, tmp_path / "out", tag="kid")
    with pytest.raises(UserError, match="no prompt has `z` in the column `kind`"):
        evaluated(judge, prompts, {"a": a, "b": a}, tmp_path / "out", tag="kind", harmful=["z"])
    settings = EvaluateSettings(prompts=str(prompts))
    with pytest.raises(ValueError, match="two or more contestants"):
        evaluated_now(
            settings, constitution(), [PolicySpec("a", answers=a)], judge, tmp_path / "out", progress=Silent()
        )
    assert not list((tmp_path / "out").glob("*.json")) and judge.asked == []


def test_an_own_measure_is_asked_once_and_may_have_no_value(tmp_path: Path) -> None:
    """8 answers; three of `a` have no finite number, and of `b` none has."""
    prompts = write_prompts(tmp_path / "prompts.jsonl", 4)
    a = write_answers(tmp_path / "a.jsonl", {at: f"good {at}" for at in range(4)})
    b = write_answers(tmp_path / "b.jsonl", {at: f"plain {at}" for at in range(4)})
    asked = []

    def odd(messages: Messages, text: str) -> float:
        asked.append(text)
        return 2.0 if text == "good 0" else math.nan if "good" in text else math.inf

    settings = EvaluateSettings.model_validate({"prompts": str(prompts), "grades": False})
    policies = [PolicySpec("a", answers=a), PolicySpec("b", answers=b)]
    done = evaluated_now(
        settings, constitution(), policies, Judge(by_mark), tmp_path / "out", progress=Silent(), metrics={"odd": odd}
    )
    assert len(asked) == 8
    one, two = done.report.policies
    assert (one.metrics["odd"].value, one.metrics["odd"].pairs, two.metrics) == (2.0, 1, {})
    assert done.report.matches[0].metrics == {}
    assert PolicyReport.model_validate_json(done.path.read_bytes()) == done.report


def test_two_servers_that_call_their_models_alike_are_refused(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 3)
    urls = {"new": "http://h1/v1", "old": "http://h2/v1/", "again": "http://h1/v1/"}
    new, old, again = (PolicySpec(name, ModelSettings(model="policy", base_url=url)) for name, url in urls.items())
    settings, judge = EvaluateSettings(prompts=str(prompts)), Judge(by_mark)
    with pytest.raises(UserError, match=r"^http://h2/v1/: `new` and `old` are both called `policy` .*different names"):
        evaluated_now(settings, constitution(), [new, old], judge, tmp_path / "out", progress=Silent())
    require_distinct([new, again])


def test_plots_and_the_callers_own_measure(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 4)
    a = write_answers(tmp_path / "a.jsonl", {at: f"good {at}" for at in range(4)})
    b = write_answers(tmp_path / "b.jsonl", {at: f"plain {at} $x^2$" for at in range(4)})
    settings = EvaluateSettings.model_validate({"prompts": str(prompts), "grades": False})
    policies = [PolicySpec("a", answers=a), PolicySpec("b", answers=b), PolicySpec("c", answers=b)]
    metrics = {"matter": lambda messages, text: float(text.split()[1] == messages[-1].content.split()[-1][:-1])}
    done = evaluated_now(
        settings, constitution(), policies, Judge(by_mark), tmp_path / "out", progress=Silent(), metrics=metrics
    )
    assert done.report.policies[0].metrics["matter"].value == 1.0
    names = {path.name.removeprefix(done.path.stem) for path in (tmp_path / "out").glob("*.svg")}
    assert names == {"-winrate.svg", "-principles.svg", "-ratings.svg"}
    assert json.loads(done.path.read_text()) == json.loads(done.report.model_dump_json())
