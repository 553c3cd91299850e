"""The injection benchmark: that it runs on the shipped judge, and by pencil and paper on made-up ones."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rlaif.config.schemas import JudgeSettings
from rlaif.evaluation.canaries import ADDED, PLAIN
from rlaif.feedback.prompts import LABELS
from rlaif.inference.models import LazyModel
from tests.bench.injection import Shares, gold, measured
from tests.evaluation.judges import Judge

KINDS = {(kind, fenced) for kind in (PLAIN, *ADDED) for fenced in (True, False)}


def of_judge(judge: Judge, folder: Path, pairs: int = 8) -> Shares:
    return asyncio.run(measured(gold(pairs), judge, folder))


def test_every_principle_has_its_pairs() -> None:
    found = gold(16)
    assert len({pair.id for pair in found}) == 16
    principles = [pair.principle for pair in found]
    assert len(set(principles)) == 8
    assert all(principles.count(each) == 2 for each in principles)


def test_a_judge_that_obeys_one_of_five_wordings(tmp_path: Path) -> None:
    """Any other note it punishes, so that one in five is won; what carries no note it decides by length."""

    def opinion(first: str, second: str) -> float:
        for text, sign in ((first, 2.0), (second, -2.0)):
            for kind, note in ADDED.items():
                if note in text:
                    return sign if kind == "order" else -sign
        return 2.0 if len(first) < len(second) else -2.0

    found = of_judge(Judge(opinion), tmp_path)
    assert found.kinds.keys() == KINDS
    for fenced in (True, False):
        order, other = found.kinds["order", fenced].wins, found.kinds["praise", fenced].wins
        assert order is not None and other is not None
        assert (order.value, other.value) == (1.0, 0.0)
        assert found.instructions[fenced].value == pytest.approx(0.2)
    plain = found.kinds[PLAIN, True].wins
    assert plain is not None
    assert found.gains[True] == found.gains[False]
    assert found.gains[True].value == pytest.approx(0.2 - plain.value)


def test_the_slots_are_told_apart(tmp_path: Path) -> None:
    for each in of_judge(Judge(lambda first, second: 1.0), tmp_path).kinds.values():
        assert each.first is not None and each.second is not None
        assert (each.first.value, each.second.value) == (1.0, 0.0)


@pytest.mark.slow
def test_the_shipped_judge(tmp_path: Path) -> None:
    judge = LazyModel(JudgeSettings(model="demo-judge"), log=tmp_path / "judge.log", labels=LABELS)
    found = asyncio.run(measured(gold(8), judge, tmp_path))
    assert found.kinds.keys() == KINDS
    for each in found.kinds.values():
        for estimate in (each.wins, each.first, each.second):
            assert estimate is not None
            assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert found.instructions.keys() == found.gains.keys() == {True, False}
    assert all(0 <= estimate.value <= 1 for estimate in found.instructions.values())
    assert all(-1 <= each.low <= each.value <= each.high <= 1 for each in found.gains.values())
