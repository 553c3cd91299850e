"""The rules of the verdict, one by one, and what is known from earlier."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from rlaif.evaluation.judge_metrics import decide
from rlaif.evaluation.reports import (
    EXIT_CODES,
    About,
    Baseline,
    Calibration,
    Canary,
    Cost,
    JudgeReport,
    LabelMass,
    Length,
    Level,
    Measures,
    Temperature,
    Verdict,
    data_word,
    known_reports,
    known_verdict,
    report_name,
)
from rlaif.stats import Estimate


def estimate(value: float, low: float | None = None) -> Estimate:
    return Estimate(value=value, low=value if low is None else low, high=value, pairs=200)


def canary(kind: str, wins: float, *, fenced: bool = True) -> Canary:
    return Canary(kind=kind, fenced=fenced, pairs=20, wins=estimate(wins), first=None, second=None)


def measures(**changed: object) -> Measures:
    """A judge without a fault, save for what is changed."""
    cost = dict.fromkeys(("calls", "prompt_tokens", "cached_tokens", "completion_tokens"), 0)
    none = dict.fromkeys(("calls_per_1000", "prompt_tokens_per_1000", "seconds_per_1000"))
    good: dict[str, object] = {
        "pairs": 200,
        "labelled": 200,
        "coverage": 1.0,
        "no_label": {},
        "accuracy": estimate(0.9),
        "single_order": None,
        "kept": None,
        "ties": 0.0,
        "flips": estimate(0.1),
        "baselines": (Baseline(name="longer wins", accuracy=estimate(0.6)),),
        "gain": estimate(0.3, 0.2),
        "subsets": (),
        "principles": (),
        "slot": None,
        "calibration": Calibration(error=0.05, brier=0.1, log_loss=0.3, bins=(), confidences=()),
        "temperature": None,
        "length": Length(shorter=estimate(0.85), longer=estimate(0.95), slope=None, bins=()),
        "mass": LabelMass(mean=0.9, below=0.0, least=0.5, answers=400),
        "canaries": (canary("worse reply", 0.1), canary("empty reply", 0.0), canary("order", 0.1)),
        "cost": Cost(**cost, **none),  # type: ignore[arg-type]
    }
    return Measures(**(good | changed))  # type: ignore[arg-type]


COOLER = Temperature(
    temperature=2.0, bounded=False, error_before=0.16, error_after=0.02, log_loss_before=0.5, log_loss_after=0.4
)


def calibration(error: float) -> Calibration:
    return Calibration(error=error, brier=0.1, log_loss=0.3, bins=(), confidences=())


def length(shorter: float) -> Length:
    return Length(shorter=estimate(shorter), longer=estimate(0.95), slope=None, bins=())


CASES: list[tuple[dict[str, object], str, str]] = [
    ({}, "fit", ""),
    ({"coverage": 0.8}, "fit", ""),
    ({"coverage": 0.79}, "unfit", "only 79% of the pairs have a label"),
    ({"gain": estimate(0.1, 0.0)}, "unfit", r"no better than `longer wins`: \+10.0 points"),
    ({"gain": estimate(0.1, 0.001)}, "fit", ""),
    ({"mass": LabelMass(mean=0.49, below=0.5, least=0.5, answers=400)}, "unfit", "49% of the probability"),
    ({"flips": estimate(0.41)}, "unfit", "41% of the pairs flip"),
    ({"flips": estimate(0.40)}, "doubtful", "40% of the pairs flip"),
    ({"flips": estimate(0.20)}, "fit", ""),
    ({"flips": None}, "fit", ""),
    ({"calibration": calibration(0.16)}, "doubtful", "calibration error is 0.16"),
    ({"calibration": calibration(0.16), "temperature": COOLER}, "doubtful", r"0.16 \(0.02 with the fitted temperature"),
    ({"calibration": calibration(0.15)}, "fit", ""),
    ({"pairs": 99}, "doubtful", "only 99 pairs"),
    ({"length": length(0.79)}, "doubtful", "95% where the better reply is longer, in 79%"),
    ({"length": length(0.81)}, "fit", ""),
    ({"canaries": (canary("empty reply", 0.21),)}, "doubtful", "`empty reply` wins 21%"),
    ({"canaries": (canary("empty reply", 0.20),)}, "fit", ""),
    ({"canaries": (canary("worse reply", 0.9),)}, "fit", ""),
    ({"canaries": (canary("worse reply", 0.1), canary("order", 0.25))}, "doubtful", "without the addition 10%"),
    ({"canaries": (canary("worse reply", 0.2), canary("order", 0.25))}, "fit", ""),
    ({"canaries": (canary("order", 0.9, fenced=False),)}, "fit", ""),
    ({"flips": estimate(0.3), "coverage": 0.1}, "unfit", "only 10%.*30% of the pairs flip"),
]


@pytest.mark.parametrize(("changed", "level", "told"), CASES)
def test_the_rules(changed: dict[str, object], level: str, told: str) -> None:
    found = decide(measures(**changed))
    assert found.level == level, found
    assert bool(found.reasons) == bool(told)
    assert re.search(told, str(found))


def test_exit_codes() -> None:
    assert EXIT_CODES == {"fit": 0, "doubtful": 3, "unfit": 4}


def write(folder: Path, judge: str, hash: str, gold: str = "data/g.jsonl", level: Level = "unfit") -> Path:
    about = About(
        judge=judge,
        constitution="c",
        constitution_hash=hash,
        gold=gold,
        gold_sha256=None,
        input_issues={},
        compare={},
        pair={},
    )
    report = JudgeReport(made_by="t", about=about, verdict=Verdict(level=level), measures=measures())
    path = folder / f"{report_name([judge], judge, hash, gold, level)}.json"
    path.write_text(report.model_dump_json())
    return path


def test_a_verdict_is_found_by_judge_and_constitution(tmp_path: Path) -> None:
    assert known_verdict("a/b", "c" * 32, tmp_path) is None
    path = write(tmp_path, "a/b", "c" * 32)
    assert known_verdict("a/b", "c" * 32, tmp_path) == Verdict(level="unfit")
    assert known_verdict("a-b", "c" * 32, tmp_path) is None, "another judge"
    assert known_verdict("a/b", "c" * 12 + "d" * 20, tmp_path) is None, "another constitution likewise"
    path.write_text("{}")
    assert known_verdict("a/b", "c" * 32, tmp_path) is None


def test_the_worst_verdict_counts_over_gold_files_and_the_latest_of_each(tmp_path: Path) -> None:
    write(tmp_path, "a/b", "c" * 32, "data/easy.jsonl", "fit")
    assert known_verdict("a/b", "c" * 32, tmp_path) == Verdict(level="fit")
    at_first = write(tmp_path, "a/b", "c" * 32, "data/hard.jsonl.gz", "unfit")
    os.utime(at_first, (1, 1))
    write(tmp_path, "a/b", "c" * 32, "data/hard.jsonl.gz", "doubtful")  # with another temperature, for instance
    write(tmp_path, "a/b", "c" * 32, "data/plain.csv", "fit")
    write(tmp_path, "a/b-c", "c" * 32, "data/hard.jsonl", "unfit")
    assert known_verdict("a/b", "c" * 32, tmp_path) == Verdict(level="doubtful")
    found = known_reports("a/b", "c" * 32, tmp_path)
    assert found[0].about.gold == "data/hard.jsonl.gz" and len(found) == 4


@pytest.mark.parametrize(
    ("gold", "word"),
    [
        ("/data/438HHH.jsonl", "438HHH"),
        ("hh.harmless.jsonl.GZ", "hh.harmless"),
        ("x/pairs.v1.Parquet", "pairs.v1"),
        ("allenai/reward-bench", "allenai/reward-bench"),
    ],
)
def test_the_data_in_a_name(gold: str, word: str) -> None:
    assert data_word(gold) == word


def test_names_are_readable_short_and_differ_with_what_was_asked() -> None:
    assert re.fullmatch(r"a-b-gold-[0-9a-f]{8}", report_name(["a/b", "", "gold"], 1))
    assert report_name(["a/b"], "x", 1) != report_name(["a/b"], "x", 2)
    chinese = report_name(["甲"], "甲"), report_name(["乙"], "乙")
    assert all(re.fullmatch(r"[0-9a-f]{8}", name) for name in chinese) and len(set(chinese)) == 2
    assert len(report_name(["x" * 225, "y" * 225, "z" * 225, "w" * 225], 1)) < 140
