"""Evaluations in a folder: found, told, and held against the judge that labelled."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from rlaif.cli.workflow import _rows
from rlaif.constitution import load_constitution
from rlaif.evaluation.reports import About as JudgeAbout
from rlaif.evaluation.reports import Cost as JudgeCost
from rlaif.evaluation.reports import (
    JudgeReport,
    Length,
    Match,
    Measures,
    PolicyAbout,
    PolicyCost,
    PolicyMetrics,
    PolicyReport,
    Reason,
    Verdict,
    Violations,
)
from rlaif.inference.model_folder import identity
from rlaif.report.page import build_page
from rlaif.report.render import render
from rlaif.stats import Estimate
from tests.page.folders import HOSTILE, JUDGE, key, lines, write_run, write_training


def estimate(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.1, high=value + 0.1, pairs=20)


def policy(name: str, share: float) -> PolicyMetrics:
    return PolicyMetrics(
        name=name, model=f"{name}@1", answers=20, missing=0, length=estimate(80), truncated=0.0, blank=0.0,
        distinct_1=0.5, distinct_2=0.6, repetition=0.1, refusals=(), kl=None, kl_note="no model",
        violations=(Violations(principle="*", share=estimate(share), grade=None),), metrics={"oracle": estimate(0.9)},
    )  # fmt: skip


def write_evaluation(folder: Path, judge: str, warnings: tuple[str, ...] = ()) -> PolicyReport:
    folder.mkdir(parents=True)
    report = PolicyReport(
        made_by="rlaif 9.9", warnings=warnings, baseline="base", ratings=(),
        about=PolicyAbout(
            judge=judge, constitution="two", constitution_hash="h", prompts="p", prompts_sha256=None, prompt_count=20,
            input_issues={}, tag=None, harmful=(), violation_below=4.5, drawing={}, compare={}, pair={},
        ),
        policies=(policy("dpo", 0.2), policy("base", 0.4)),
        matches=(Match(
            policy="dpo", baseline="base", compared=20, identical=0, no_label={}, wins=estimate(0.6),
            ties=estimate(0.2), losses=estimate(0.2), win_rate=estimate(0.7), length_controlled=estimate(0.65),
            length_controlled_note="", length_slope=0.1, length_ratio=1.2, flips=0.1, principles=(), tags=(),
        ),),
        cost=PolicyCost(
            answers=40, judgements=80, grades=0, failed={}, judge_prompt_tokens=1, judge_cached_tokens=0,
            judge_completion_tokens=1, policy_tokens=1, seconds=2.0,
        ),
    )  # fmt: skip
    (folder / "dpo.v2-base.json").write_text(report.model_dump_json())
    lines(folder / "prompts.jsonl", [{"id": key("p"), "messages": [{"role": "user", "content": HOSTILE[0]}]}])
    lines(folder / "samples.jsonl", [{"id": key(name), "text": HOSTILE[1]} for name in ("x", "y")])
    lines(folder / "dpo.v2-base.comparisons.jsonl", [
        {"policy": "dpo", "baseline": "base", "prompt": key("p"), "index": at, "tag": None, "status": "labelled",
         "samples": [key("x"), key("y")], "probability": at / 20, "flip": False, "principles": {"kind": 0.25},
         "lengths": [1, 2]} for at in range(20)
    ])  # fmt: skip
    return report


def told(folder: Path) -> list[str]:
    return [each.message for each in build_page(folder).warnings]


def test_an_evaluation_alone_is_a_page(tmp_path: Path) -> None:
    report = write_evaluation(tmp_path / "evaluation", "other@1")
    page = build_page(tmp_path / "evaluation")
    assert page.about.kind == "evaluation"
    (found,) = page.policies
    assert (found.report, found.compared) == (report, 20)
    assert [each.probability for each in found.examples] == pytest.approx(
        [0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.0, 0.05, 0.1, 0.15, 0.2, 0.25]
    )
    assert (found.examples[0].response, found.examples[0].prompt) == (HOSTILE[1], f"user: {HOSTILE[0]}")
    text = render(page)
    assert '<td class="n" data-figure="win-rate">70.0% <small>60.0 to 80.0</small></td>' in text
    assert "<script>window.hacked" not in text and "<img" not in text
    assert "oracle" in text


@pytest.mark.parametrize("warnings", [(), (f"`dpo` was trained on the word of this judge, {JUDGE}",)])
def test_a_judge_of_its_own_pupils_is_told_once(tmp_path: Path, warnings: tuple[str, ...]) -> None:
    run = write_run(tmp_path / "run")
    write_evaluation(run / "evaluation", JUDGE, warnings)
    found = [each for each in told(run) if "labeled the training data" in each or "trained on the word" in each]
    assert len(found) == 1


def test_another_judge_is_no_cause_for_a_warning(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_evaluation(run / "evaluation", "other@1")
    assert [each for each in told(run) if "olicies" in each] == []


def test_a_known_evaluation_of_the_judge_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `rlaif evaluate judge` keeps them; an evaluation of another judge is no evaluation of this one."""
    run = write_run(tmp_path / "run")
    hash_of = load_constitution(str(run / "two.yaml")).hash
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "judges"
    folder.mkdir(parents=True)
    about: dict[str, Any] = {
        "judge": JUDGE, "constitution": "two", "constitution_hash": hash_of, "gold": "g", "gold_sha256": None,
        "input_issues": {}, "compare": {}, "pair": {},
    }  # fmt: skip
    measures = Measures(
        pairs=9, labelled=9, coverage=1.0, no_label={}, accuracy=None, single_order=None, kept=None, ties=None,
        flips=None, baselines=(), gain=None, subsets=(), principles=(), slot=None, calibration=None, temperature=None,
        length=Length(shorter=None, longer=None, slope=estimate(0.5), bins=()), mass=None, canaries=(),
        cost=JudgeCost(
            calls=1, prompt_tokens=1, cached_tokens=0, completion_tokens=1, calls_per_1000=None,
            prompt_tokens_per_1000=None, seconds_per_1000=None,
        ),
    )  # fmt: skip
    verdict = Verdict(level="unfit", reasons=(Reason(level="unfit", text="the canary `empty reply` wins 31%"),))
    report = JudgeReport(made_by="rlaif 9.9", about=JudgeAbout(**about), verdict=verdict, measures=measures)
    (folder / "a.json").write_text(report.model_dump_json())
    other = report.model_copy(update={"about": report.about.model_copy(update={"judge": "other"})})
    (folder / "b.json").write_text(other.model_dump_json())
    page = build_page(run)
    assert [(each.labeller, each.report.about.judge) for each in page.judges] == [(True, JUDGE)]
    found = told(run)
    assert f"Evaluation of the judge {JUDGE}: the canary `empty reply` wins 31%." in found
    assert f"The judge {JUDGE} prefers longer responses regardless of quality (slope +0.50)." in found
    assert not [each for each in found if "No evaluation of the judge" in each]
    assert render(page)
    os.utime(folder / "a.json", (1, 1))
    mended = report.model_copy(update={"verdict": Verdict(level="fit")})  # with another temperature, for instance
    (folder / "c.json").write_text(mended.model_dump_json())
    assert [each.report.verdict.level for each in build_page(run).judges] == ["fit"], "the newest on that gold file"


def test_a_measure_is_a_share_or_a_number_by_its_whole_row(tmp_path: Path) -> None:
    """A mean of 0.4 beside one of 3 is no 40%."""
    report = write_evaluation(tmp_path / "e", "judge@1")
    merits = (Estimate(value=0.4, low=-0.2, high=1.0, pairs=9), Estimate(value=3.0, low=2.0, high=4.0, pairs=9))
    policies = [
        each.model_copy(update={"metrics": {"share": estimate(0.9), "merit": merit}})
        for each, merit in zip(report.policies, merits, strict=True)
    ]
    found = {row[0]: row[1:] for row in _rows(report, policies)}
    assert found["merit"] == ["0.40 (-0.20 to 1.00)", "3.00 (2.00 to 4.00)"]
    assert all("%" in cell for cell in found["share"])
    assert "  win rate by it" in found


def test_of_two_evaluations_the_newer_is_first_and_an_earlier_model_is_marked(tmp_path: Path) -> None:
    """A training was done anew: both evaluations have a row `dpo`, of which one is of the model that is here now."""
    run = write_run(tmp_path / "run")
    model = write_training(run / "train" / "dpo")
    (model / "config.json").write_text("{}")
    now = identity(str(model))
    for at, (name, known) in enumerate((("z", "dpo@00000000"), ("a", now))):
        report = write_evaluation(run / name, "other@1")
        trained, base = report.policies
        told_now = report.model_copy(update={"policies": (trained.model_copy(update={"model": known}), base)})
        (run / name / "dpo.v2-base.json").write_text(told_now.model_dump_json())
        os.utime(run / name / "dpo.v2-base.json", (at, at))
    newer, older = build_page(run).policies
    assert (newer.path, older.path) == ("a/dpo.v2-base.json", "z/dpo.v2-base.json")
    assert (newer.stale, older.stale) == ((), ("dpo",))
    assert (newer.models, older.models) == ({"dpo": now}, {"dpo": "dpo@00000000"})
    text = render(build_page(run))
    assert text.count("now another model") == 1 and "dpo@00000000" in text
