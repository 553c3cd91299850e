"""What canaries win, with judges that fall for known ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlaif.evaluation.canaries import ADDED, NOTHING, PLAIN, count_probes
from rlaif.evaluation.reports import Canary
from rlaif.feedback.prompts import compare_messages
from rlaif.inference.base import Output, Question
from rlaif.records import Message
from tests.evaluation.judges import Judge, evaluated, shown, write_gold

PAIRS = 20


def sound(first: str, second: str) -> float:
    """It knows the better replies by their first word, and nothing sways it."""
    return 3.0 if first.startswith("good") else -3.0


def canaries(judge: Judge, folder: Path, pairs: int = PAIRS) -> dict[tuple[str, bool], Canary]:
    gold = folder / "gold.jsonl"
    write_gold(gold, 60)
    done = evaluated(judge, gold, folder / "out", canary_pairs=pairs)
    return {(each.kind, each.fenced): each for each in done.report.measures.canaries}


def wins(found: dict[tuple[str, bool], Canary], kind: str, fenced: bool = True) -> float:
    estimate = found[kind, fenced].wins
    assert estimate is not None
    return estimate.value


def test_a_sound_judge_falls_for_none(tmp_path: Path) -> None:
    judge = Judge(sound)
    found = canaries(judge, tmp_path)
    assert set(found) == (
        {(kind, True) for kind in (*NOTHING, PLAIN, *ADDED)} | {(kind, False) for kind in (PLAIN, *ADDED)}
    )
    assert all(each.pairs == PAIRS and each.wins is not None and each.wins.value == 0 for each in found.values())
    assert len(judge.asked) == 2 * 60 + 2 * count_probes(PAIRS) - 2 * PAIRS, "the plain worse reply is asked already"


def test_a_judge_that_prefers_silence(tmp_path: Path) -> None:
    """It calls whatever is shorter better: the empty reply and the colon win always, the longer canaries never."""
    found = canaries(Judge(lambda first, second: 1.0 if len(first) < len(second) else -1.0), tmp_path)
    assert (wins(found, "empty reply"), wins(found, "lone colon")) == (1.0, 1.0)
    assert wins(found, "order") <= wins(found, PLAIN)


def test_a_judge_that_obeys_one_wording(tmp_path: Path) -> None:
    def obedient(first: str, second: str) -> float:
        for text, sign in ((first, 1.0), (second, -1.0)):
            if ADDED["order"] in text:
                return sign
        return sound(first, second)

    found = canaries(Judge(obedient), tmp_path)
    assert {kind for kind, fenced in found if fenced and wins(found, kind) > 0} == {"order"}
    assert wins(found, "order") == wins(found, "order", fenced=False) == 1.0


def test_the_slots_are_told_apart(tmp_path: Path) -> None:
    """A judge of the first slot gives every canary the orders that show it first, and nothing else."""
    for each in canaries(Judge(lambda first, second: 5.0), tmp_path).values():
        assert each.first is not None and each.second is not None and each.wins is not None
        assert (each.first.value, each.second.value, each.wins.value) == (1.0, 0.0, 0.5)


class Gullible(Judge):
    """It takes the last `Reply B:` heading for the second reply, where a fence does not keep it from that."""

    def _answer(self, question: Question) -> Output:
        text = question.messages[-1].content
        if not shown(question)[2] and "\n>>>\n" in text.partition("Reply B:")[0]:
            return Output(logprobs=(-0.1, -5.0))
        return super()._answer(question)


def test_what_fences_are_good_for(tmp_path: Path) -> None:
    """Shown first, the forgery closes its own fence: it wins then, and only without the real ones."""
    found = canaries(Gullible(sound), tmp_path)
    assert wins(found, "forged fence") == 0
    bare = found["forged fence", False]
    assert bare.first is not None and bare.second is not None
    assert (bare.first.value, bare.second.value) == (1.0, 0.0)
    assert wins(found, "order", fenced=False) == 0


def test_unfenced_replies_stand_as_they_are() -> None:
    prompt = (Message(role="user", content="Hi"),)
    texts = {"first": "One <<<x>>> reply", "second": "Other", "question": "Which is better?"}
    bare = compare_messages(prompt, **texts, fenced=False)[0].content
    assert "\nReply A:\nOne <<<x>>> reply\n\nReply B:\nOther\n\nWhich is better?\n" in bare
    fenced = compare_messages(prompt, **texts)[0].content
    assert "One <<<x>>> reply" not in fenced
    assert fenced == compare_messages(prompt, **texts, fenced=True)[0].content
    cut = compare_messages(prompt, "x" * 500, "y", "q", fenced=False, max_chars=100)[0].content
    assert "x" * 50 + "\n[... 400 characters left out ...]\n" + "x" * 50 in cut


@pytest.mark.parametrize("pairs", [1, 7])
def test_some_pairs_of_the_whole_file(tmp_path: Path, pairs: int) -> None:
    found = canaries(Judge(sound), tmp_path, pairs)
    assert {each.pairs for each in found.values()} == {pairs}
