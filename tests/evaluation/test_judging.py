"""Whole evaluations of synthetic judges whose bias is known."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.schemas import CompareSettings, PairSettings
from rlaif.errors import UserError
from rlaif.evaluation.judge import EvaluatedJudge, Evaluation, evaluate_judge
from rlaif.evaluation.reports import JudgeReport, Measures
from rlaif.progress import Silent
from rlaif.stats import Estimate
from tests.evaluation.judges import (
    Judge,
    constitution,
    evaluated,
    first_slot,
    longer_wins,
    right_by_hash,
    write_gold,
)
from tests.fakes import unit
from tests.support import lines

PAIRS = 400


@pytest.fixture(scope="module")
def gold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gold") / "gold.jsonl"
    write_gold(path, PAIRS)
    return path


def measured(judge: Judge, gold: Path, folder: Path) -> Measures:
    return evaluated(judge, gold, folder).report.measures


def value(estimate: Estimate | None) -> float:
    assert estimate is not None
    assert estimate.low <= estimate.value <= estimate.high
    return estimate.value


def test_a_judge_that_likes_the_first_slot(gold: Path, tmp_path: Path) -> None:
    """Both orders cancel: every pair is a tie of logit 0, flips, and half of the verdicts are right."""
    done = evaluated(Judge(first_slot), gold, tmp_path)
    found = done.report.measures
    assert (value(found.accuracy), value(found.single_order), value(found.flips)) == (0.5, 0.5, 1.0)
    assert found.slot is not None and found.slot.bias is not None
    assert (value(found.slot.first), found.slot.bias.value) == (1.0, pytest.approx(2.0))
    assert (found.ties, found.kept) == (1.0, None)
    assert all(value(group.first) == 1.0 and group.flips == 1.0 for group in found.subsets)
    assert done.report.verdict.level == "unfit"


def test_a_judge_that_likes_length(gold: Path, tmp_path: Path) -> None:
    rows = lines(gold)
    longer = [len(row["chosen"]) - len(row["rejected"]) for row in rows]
    # Of equally long replies it takes the second one: 3 against -3 make a tie.
    right = sum(1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in longer) / PAIRS
    done = evaluated(Judge(longer_wins), gold, tmp_path)
    found = done.report.measures
    assert value(found.accuracy) == right
    baselines = {each.name: each.accuracy.value for each in found.baselines}
    assert baselines == pytest.approx({"longer wins": right, "shorter wins": 1 - right, "first slot wins": 0.5})
    assert (value(found.length.longer), value(found.length.shorter)) == (1.0, 0.0)
    assert found.length.slope is not None and found.length.slope.low > 0
    assert value(found.flips) == sum(gap == 0 for gap in longer) / PAIRS
    assert found.slot is not None and abs(value(found.slot.first) - 0.5) < 0.02
    assert done.report.verdict.level == "unfit"


def test_a_judge_that_is_right_in_four_of_five(gold: Path, tmp_path: Path) -> None:
    """By ln 4, so it says 0.8, and right in 0.8 it is: calibrated. The slot is worth 0.5 to it, and flips nothing."""
    rows = lines(gold)
    right = sum(unit("right", sorted((row["chosen"], row["rejected"]))) < 0.8 for row in rows) / PAIRS
    done = evaluated(Judge(right_by_hash(0.8, bias=0.5)), gold, tmp_path)
    found = done.report.measures
    assert value(found.accuracy) == right
    assert found.accuracy is not None and found.accuracy.low < 0.8 < found.accuracy.high
    assert found.flips is not None and found.flips.value == 0
    assert found.slot is not None and found.slot.bias is not None
    assert found.slot.bias.value == pytest.approx(0.5)
    assert value(found.slot.first) == 0.5
    assert found.calibration is not None
    assert found.calibration.error == pytest.approx(abs(0.8 - right), abs=1e-9)
    assert found.length.longer is not None and found.length.longer.low < 0.8 < found.length.longer.high
    assert found.length.shorter is not None and found.length.shorter.low < 0.8 < found.length.shorter.high
    assert found.length.slope is not None and found.length.slope.low < 0 < found.length.slope.high
    assert found.gain is not None and found.gain.low > 0.1
    assert found.temperature is not None and found.temperature.temperature == pytest.approx(1.0, abs=0.25)
    assert done.report.verdict.level == "fit", done.report.verdict


def test_a_coin(gold: Path, tmp_path: Path) -> None:
    """It throws anew for every order: half of the pairs flip."""
    found = measured(Judge(lambda first, second: 1.0 if unit("coin", first, second) < 0.5 else -1.0), gold, tmp_path)
    assert found.flips is not None and found.flips.low < 0.5 < found.flips.high
    assert found.accuracy is not None and found.accuracy.low < 0.5 < found.accuracy.high


def test_an_overconfident_judge_is_cooled(gold: Path, tmp_path: Path) -> None:
    """Right in 0.8, but it says sigmoid(3 ln 4): the temperature is about 3, and fixes the calibration."""

    def opinion(first: str, second: str) -> float:
        return 3 * right_by_hash(0.8)(first, second)  # type: ignore[operator]

    found = measured(Judge(opinion), gold, tmp_path / "raw").temperature
    assert found is not None and found.helps
    assert found.temperature == pytest.approx(3, rel=0.2)
    assert found.error_after < 0.05 < found.error_before
    cooled = evaluated(
        Judge(opinion), gold, tmp_path / "raw", compare=CompareSettings(temperature=found.temperature)
    ).report.measures
    assert cooled.calibration is not None and cooled.calibration.error < 0.05
    assert cooled.temperature is not None
    assert cooled.temperature.temperature == pytest.approx(found.temperature, rel=1e-3), "the same, not the rest of it"


def test_what_cannot_be_read_is_not_counted(gold: Path, tmp_path: Path) -> None:
    """A quarter of the pairs get neither label; the others are all right."""

    def opinion(first: str, second: str) -> float | None:
        if unit("mute", sorted((first, second))) < 0.25:
            return None
        return 2.0 if first.startswith("good") else -2.0

    done = evaluated(Judge(opinion), gold, tmp_path)
    found = done.report.measures
    assert value(found.accuracy) == 1.0
    assert found.no_label == {"unparsed": PAIRS - found.labelled}
    assert 0.68 < found.coverage < 0.8
    assert done.report.verdict.level == "unfit"


def same(one: EvaluatedJudge, other: EvaluatedJudge) -> bool:
    return one.report == other.report


def test_a_second_call_asks_nothing_and_says_the_same(gold: Path, tmp_path: Path) -> None:
    judge = Judge(right_by_hash(0.8))
    first = evaluated(judge, gold, tmp_path, canary_pairs=5)
    assert [tally.asked for tally in first.tallies] == [2 * PAIRS, 5 * 2 * 16], "the plain worse reply is known"
    assert len(judge.asked) == 2 * PAIRS + 160
    again = evaluated(judge, gold, tmp_path, canary_pairs=5)
    assert len(judge.asked) == 2 * PAIRS + 160
    assert again.report == first.report
    assert JudgeReport.model_validate_json(first.path.read_bytes()) == first.report
    more = evaluated(judge, gold, tmp_path, canary_pairs=6)
    assert [tally.asked for tally in more.tallies] == [0, 32], "only the sixth pair's canaries"


def test_it_goes_on_where_it_was_cut_off(gold: Path, tmp_path: Path) -> None:
    """A part of the journal and a torn line: the rest is asked, and the report is the same."""
    whole = evaluated(Judge(right_by_hash(0.8)), gold, tmp_path / "whole")
    cut = tmp_path / "cut"
    cut.mkdir()
    journal = (tmp_path / "whole/judgements.jsonl").read_bytes().splitlines(keepends=True)
    (cut / "judgements.jsonl").write_bytes(b"".join(reversed(journal[:300])) + journal[300][:40])
    judge = Judge(right_by_hash(0.8))
    resumed = evaluated(judge, gold, cut)
    assert len(judge.asked) == 2 * PAIRS - 300
    assert resumed.report.measures.accuracy == whole.report.measures.accuracy
    assert resumed.report.measures.slot == whole.report.measures.slot


def test_the_answers_of_another_order_of_the_file_are_the_same(gold: Path, tmp_path: Path) -> None:
    shuffled = tmp_path / "shuffled.jsonl"
    shuffled.write_text(
        "".join(sorted(gold.read_text().splitlines(keepends=True), key=lambda line: unit("order", line)))
    )
    first = measured(Judge(right_by_hash(0.8)), gold, tmp_path / "a")
    judge = Judge(right_by_hash(0.8))
    second = evaluated(judge, shuffled, tmp_path / "a")
    assert judge.asked == []
    assert value(second.report.measures.accuracy) == value(first.accuracy)


def test_every_evaluation_has_a_report_of_its_own(tmp_path: Path) -> None:
    """Gold files of one name, other settings, names without a Latin letter, names longer than a file's may be."""
    for name in ("hard", "easy"):
        (tmp_path / name).mkdir()
        write_gold(tmp_path / name / "gold.jsonl", 12 if name == "hard" else 13)
    hard, easy = tmp_path / "hard/gold.jsonl", tmp_path / "easy/gold.jsonl"
    judge = Judge(right_by_hash(0.8))
    warm = CompareSettings(temperature=4)
    done = [evaluated(judge, *each, **more) for *each, more in (
        (hard, tmp_path / "out", {}), (easy, tmp_path / "out", {}), (hard, tmp_path / "out", {"compare": warm}),
    )]  # fmt: skip
    for name in ("甲", "乙", "x" * 225):
        judge = Judge(right_by_hash(0.8))
        judge.name = name
        done.append(evaluated(judge, hard, tmp_path / "out"))
    assert len({each.path for each in done}) == len(done)
    assert all(JudgeReport.model_validate_json(each.path.read_bytes()) == each.report for each in done)


def test_the_time_is_that_of_the_same_questions(tmp_path: Path) -> None:
    """A second call with another margin knows what the answers took; one that reads them in another way does not."""
    write_gold(tmp_path / "gold.jsonl", 12)
    judge = Judge(right_by_hash(0.8))
    first, margin, one = (
        evaluated(judge, tmp_path / "gold.jsonl", tmp_path / "out", **more).report.measures.cost.seconds_per_1000
        for more in ({}, {"pair": PairSettings(margin=0.2)}, {"compare": CompareSettings(orders="random")})
    )
    assert first is not None and margin == first and one is None


def test_cost_and_pairs_file(gold: Path, tmp_path: Path) -> None:
    done = evaluated(Judge(right_by_hash(0.8)), gold, tmp_path, limit=50)
    cost = done.report.measures.cost
    assert (cost.calls, cost.prompt_tokens, cost.cached_tokens, cost.completion_tokens) == (100, 10000, 4000, 100)
    assert (cost.calls_per_1000, cost.prompt_tokens_per_1000) == (2000, 200_000)
    assert cost.seconds_per_1000 is not None and cost.seconds_per_1000 > 0
    rows = lines(done.path.with_suffix(".pairs.jsonl"))
    assert [row["source"] for row in rows] == [f"{gold}:{at}" for at in range(1, 51)]
    assert all(abs(row["logit"]) == pytest.approx(math.log(4)) for row in rows)


def test_one_order_and_all_principles(gold: Path, tmp_path: Path) -> None:
    compare = CompareSettings(orders="random", principles="all")
    done = evaluated(Judge(first_slot), gold, tmp_path, compare=compare, limit=100)
    found = done.report.measures
    assert (found.cost.calls, found.flips, [group.name for group in found.principles]) == (100, None, ["*"])
    assert value(found.accuracy) == {each.name: each.accuracy.value for each in found.baselines}["first slot wins"]
    assert found.slot is not None and (found.slot.first.value, found.slot.bias) == (1.0, None)


def test_flips_that_a_run_keeps(gold: Path, tmp_path: Path) -> None:
    """Slot bias 2 against a merit of ln 4: every pair flips."""
    judge = Judge(right_by_hash(0.8, bias=2.0))
    dropped = evaluated(judge, gold, tmp_path, limit=60).report.measures
    kept = evaluated(judge, gold, tmp_path, limit=60, pair=PairSettings(flips="soft")).report.measures
    assert dropped.kept is None
    assert kept.kept is not None and kept.kept.pairs == 60


def test_mistakes_come_before_questions(tmp_path: Path) -> None:
    path = tmp_path / "gold.jsonl"
    rows = write_gold(path, 3)
    path.write_text(path.read_text() + '{"prompt": "x", "chosen": "a", "rejected": "b", "principle": "nonsense"}\n')
    assert len(rows) == 3
    judge = Judge(first_slot)
    with pytest.raises(UserError, match=r"gold.jsonl:4: `harmless` has no principle `nonsense`"):
        evaluated(judge, path, tmp_path / "out")
    assert judge.asked == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("compare", [{}, {"orders": "random"}, {"principles": "each"}])
def test_how_many_questions_there_are_is_told_before_any_is_written(compare: dict[str, Any], tmp_path: Path) -> None:
    write_gold(tmp_path / "gold.jsonl", 6)
    told: list[int] = []

    class Hearing(Silent):
        def begin(self, stage: str, most: int) -> None:
            told.append(most)

    judge = Judge(right_by_hash(0.8))
    wanted = Evaluation(str(tmp_path / "gold.jsonl"), constitution(), CompareSettings(**compare), canary_pairs=0)
    asyncio.run(evaluate_judge(wanted, judge, tmp_path / "out", progress=Hearing(), plots=False))
    assert told == [len(judge.asked)]
