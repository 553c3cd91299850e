"""How far the errors of judges go together, by a simulation whose truth is known, and beside each other in a folder."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from rlaif.evaluation.judge_metrics import error_correlation
from rlaif.feedback.agreement import effective_judges
from tests.evaluation.judges import Judge, evaluated, write_gold
from tests.fakes import unit


@pytest.mark.finding(5)
@pytest.mark.parametrize(("shared", "worth"), [(0.0, 5.0), (0.5, 5 / (1 + 4 * 0.5))])
def test_errors_tell_what_judges_are_worth(shared: float, worth: float) -> None:
    """Five judges of the same skill: errors of their own are worth five, half of the noise in common 1.7."""
    rng = random.Random(1)
    common = [rng.gauss(0, 1) for _ in range(5000)]
    judges = [
        {
            str(at): 1.0 + math.sqrt(shared) * each + math.sqrt(1 - shared) * rng.gauss(0, 1)
            for at, each in enumerate(common)
        }
        for _ in range(5)
    ]
    found = [error_correlation(judges[one], judges[two]) for one in range(5) for two in range(one)]
    known = [each for each in found if each is not None]
    assert len(known) == 10 and sum(known) / 10 == pytest.approx(shared, abs=0.02)
    assert effective_judges(5, sum(known) / 10) == pytest.approx(worth, rel=0.08)


def test_of_too_few_pairs_nothing_is_told() -> None:
    few = {str(at): float(at) for at in range(29)}
    assert error_correlation(few, few) is None
    assert error_correlation({str(at): 1.0 for at in range(50)}, {str(at): float(at) for at in range(50)}) is None


@pytest.mark.finding(5)
def test_judges_on_the_same_pairs_stand_beside_each_other(tmp_path: Path) -> None:
    """One that is wrong where the first one is, and one that is wrong elsewhere; the first stands alone."""
    gold, folder = tmp_path / "gold.jsonl", tmp_path / "judges"
    write_gold(gold, 120)

    def judge(name: str, seed: str) -> Judge:
        def opinion(first: str, second: str) -> float:
            right = 1.0 if first.startswith("good") else -1.0
            return right * (1.0 if unit(seed, sorted((first, second))) < 0.8 else -1.0)

        return Judge(opinion, name=name)

    assert evaluated(judge("one", "a"), gold, folder).report.shared_errors == ()
    assert [each.judge for each in evaluated(judge("two", "a"), gold, folder).report.shared_errors] == ["one"]
    alike, other = evaluated(judge("three", "b"), gold, folder).report.shared_errors
    assert (alike.judge, other.judge, alike.pairs) == ("one", "two", 120)
    assert abs(alike.correlation) < 0.3 and alike.worth > 1.5
    again = evaluated(judge("two", "a"), gold, folder).report.shared_errors
    assert (
        again[0].judge == "one" and again[0].correlation == pytest.approx(1.0) and again[0].worth == pytest.approx(1.0)
    )
