"""From hand-made judgements to what is said about a gold pair."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from rlaif.config.judge_templates import Judge
from rlaif.config.schemas import CompareSettings, PairSettings
from rlaif.constitution import Constitution, Principle
from rlaif.errors import UserError
from rlaif.evaluation.gold import Case, GoldPair, JudgedPair, cases, judged_pair, questions_of
from rlaif.feedback.judge import WHOLE, compare_questions
from rlaif.records import Judgement, Message, Verdict, content_id

RULES = Constitution(
    name="rules",
    principles=(
        Principle(id="kind", compare="Which reply is kinder?", weight=3),
        Principle(id="true", compare="Which reply is truer?"),
    ),
)
ASKED = (Message(role="user", content="How are you?"),)


def gold(**more: str) -> GoldPair:
    return GoldPair(id=content_id("g"), prompt=ASKED, better="Well, thank you.", worse="Go away.", source="f:1", **more)


def case_of(compare: CompareSettings, **more: str) -> Case:
    (case,) = cases([gold(**more)], RULES, compare)
    return case


def judged(said: Mapping[tuple[str, bool], tuple[float, float] | str | None], **settings: object) -> JudgedPair:
    """What comes of probabilities of A and B, by principle and whether the better reply is shown first."""
    compare = CompareSettings(**{"principles": "each", **settings})  # type: ignore[arg-type]
    case = case_of(compare)
    questions = questions_of(case, compare, Judge("j"))
    answers = {}
    for question in questions:
        about = question.about
        told = said[str(about["principle"]), about["first"] == case.matchup.left.id]
        if told is None:
            continue
        text = told if isinstance(told, str) else ""
        answers[question.id] = Judgement(
            id=question.id,
            prompt=case.prompt.id,
            first=str(about["first"]),
            second=str(about["second"]),
            principle=str(about["principle"]),
            judge="j",
            verdict=Verdict(text) if text else Verdict.TIE,
            logprobs=None if isinstance(told, str) else (math.log(told[0]), math.log(told[1])),
            label_mass=None if isinstance(told, str) else sum(told),
        )
    return judged_pair(case, questions, answers.get, compare, PairSettings())


def test_both_orders_and_principles_by_weight() -> None:
    """Kind: +ln 4 first, and shown second A gets 0.2 of 1, so +ln 4 again. True: +ln 4, then -ln 4: 0.
    By order (3 * ln 4 ± ln 4) / 4, together 3/4 ln 4.
    """
    found = judged(
        {
            ("kind", True): (0.8, 0.2),
            ("kind", False): (0.2, 0.8),
            ("true", True): (0.4, 0.1),
            ("true", False): (0.4, 0.1),
        }
    )
    four = math.log(4)
    assert found.logit == pytest.approx(0.75 * four)
    assert found.orders == pytest.approx((four, 0.5 * four))
    assert found.own == {"kind": pytest.approx(four), "true": pytest.approx(0.0, abs=1e-12)}
    assert sorted(found.slots) == pytest.approx([-four, four, four, four])
    assert sorted(found.masses) == pytest.approx([0.5, 0.5, 1.0, 1.0])
    assert (found.status, found.flip, found.better_first) == ("labelled", False, 0.5)
    assert found.lengths == (16, 8)


def test_a_flip_keeps_its_label() -> None:
    """3 and -1 by the better reply: mean 1, whatever `pair.flips` says."""
    first, second = (math.exp(3) / (1 + math.exp(3)), 1 / (1 + math.exp(3))), (0.731058578630005, 0.268941421369995)
    said = {(name, True): first for name in ("kind", "true")} | {(name, False): second for name in ("kind", "true")}
    found = judged(said)  # type: ignore[arg-type]
    assert (found.flip, found.status) == (True, "labelled")
    assert found.logit == pytest.approx(1.0)


def test_no_label() -> None:
    low = judged({(name, first): (0.2, 0.1) for name in ("kind", "true") for first in (True, False)})
    assert (low.logit, low.status, low.orders, low.slots) == (None, "unparsed", (), ())
    assert low.own == {"kind": None, "true": None}
    assert len(low.masses) == 4
    said: dict[tuple[str, bool], tuple[float, float] | str | None] = {
        (name, first): (0.8, 0.2) for name in ("kind", "true") for first in (True, False)
    }
    missing = judged(said | {("true", False): None})
    assert (missing.logit, missing.status) == (None, "failed")
    assert len(missing.slots) == 3, "single verdicts are still told"


def test_text_verdicts_have_no_mass() -> None:
    found = judged({(name, first): "first" for name in ("kind", "true") for first in (True, False)})
    assert (found.logit, found.status, found.masses, found.flip) == (0.0, "tie", (), True)


def test_the_temperature_divides_labels() -> None:
    said = {(name, first): (0.8, 0.2) if first else (0.2, 0.8) for name in ("kind", "true") for first in (True, False)}
    found = judged(said, temperature=2.0)  # type: ignore[arg-type]
    assert found.logit == pytest.approx(math.log(4) / 2)
    assert [abs(each) for each in found.slots] == pytest.approx([math.log(4) / 2] * 4)
    assert found.own["true"] == pytest.approx(math.log(4) / 2)


def test_one_order() -> None:
    found = judged({(name, first): (0.8, 0.2) for name in ("kind", "true") for first in (True, False)}, orders="random")
    assert len(found.orders) == 1
    assert found.better_first in (0.0, 1.0)
    assert found.logit == pytest.approx(math.log(4) if found.better_first else -math.log(4))


def test_which_principles_are_asked() -> None:
    def asked(principles: str, **more: str) -> list[str]:
        return [each.id for each in case_of(CompareSettings(principles=principles), **more).matchup.criteria]  # type: ignore[arg-type]

    assert asked("each") == ["kind", "true"]
    assert asked("all") == [WHOLE]
    assert len(asked("one")) == 1
    assert [asked(how, principle="true") for how in ("one", "each", "all")] == [["true"]] * 3
    with pytest.raises(UserError, match=r"f:1: `rules` has no principle `truth`; did you mean `true`"):
        asked("one", principle="truth")


def test_the_questions_are_those_of_a_run() -> None:
    compare = CompareSettings()
    case = case_of(compare)
    of_a_run = list(compare_questions(case.prompt, [case.matchup], compare, Judge("j")))
    assert [question.id for question in questions_of(case, compare, Judge("j"))] == [
        question.id for question in of_a_run
    ]
    assert {(question.about["first"], question.about["second"]) for question in of_a_run} == {
        (case.matchup.left.id, case.matchup.right.id),
        (case.matchup.right.id, case.matchup.left.id),
    }
