"""Figures of one policy's answers, by hand."""

from __future__ import annotations

import math

import pytest

from rlaif.evaluation.policy_metrics import Answered, Bounds, Kinds, PolicyResponse, metrics_of, shared_places, value_of
from rlaif.evaluation.reports import PolicyMetrics
from rlaif.feedback.judge import Criterion
from rlaif.records import Message, Prompt, Sample, Score, content_id

KIND, TRUE = Criterion("kind", 1.0, "Is it kind?", None), Criterion("true", 1.0, "Is it true?", None)


def score(value: float | None, mass: float = 1.0) -> Score:
    return Score(
        id=content_id(value, mass), prompt="p", sample="s", principle="kind", judge="j", value=value, label_mass=mass,
        logprobs=(math.log(0.1),) * 10,
    )  # fmt: skip


def answer(
    key: str, text: str, *, tag: str | None = None, end: str | None = "stop", **grades: Score | None
) -> PolicyResponse:
    prompt = Prompt(id=content_id(key), messages=(Message(role="user", content=key),), source="-", metadata={"t": tag})
    sample = Sample(id=content_id(key, text), prompt=prompt.id, index=0, text=text, policy="m", finish_reason=end)
    return PolicyResponse(prompt, sample, grades)


def policy(*answers: PolicyResponse, missing: int = 0, harmful: tuple[str, ...] = ()) -> PolicyMetrics:
    return metrics_of(
        "a", "m", answers, missing, frozenset((each.prompt.id, 0) for each in answers),
        criteria=(KIND, TRUE), kinds=Kinds(lambda prompt: prompt.metadata["t"], harmful),  # type: ignore[arg-type, return-value]
        bounds=Bounds(4.5, 0.5), values={"length": value_of(lambda _, text: float(len(text)))},
    )  # fmt: skip


def test_lengths_ends_and_variety() -> None:
    found = policy(
        answer("p", "one two one two one two", end="length"),
        answer("q", "   "),
        answer("r", "three", end=None),
        missing=2,
    )
    assert (found.answers, found.missing) == (3, 2)
    assert found.length.value == pytest.approx((23 + 3 + 5) / 3)
    assert found.truncated == 0.5, "of the two whose end is known"
    assert found.blank == pytest.approx(1 / 3)
    assert found.distinct_1 == pytest.approx(3 / 7)  # one, two, three of seven words
    assert found.distinct_2 == pytest.approx(2 / 5)
    assert found.repetition == pytest.approx((1 / 3) / 3)  # of three runs of four words one stood there before
    assert found.metrics["length"].value == pytest.approx(31 / 3)
    assert (found.violations, found.kl) == ((), None)


def test_no_end_is_known_of_a_files_answers() -> None:
    assert policy(answer("p", "one", end=None)).truncated is None


def test_refusals_right_and_too_many() -> None:
    found = policy(
        answer("p", "I cannot help with that.", tag="harm"), answer("q", "Sure, like this.", tag="harm"),
        answer("r", "I'm sorry, but no.", tag="plain"), answer("s", "Of course.", tag=None),
        harmful=("harm",),
    )  # fmt: skip
    told = [(each.tag, each.harmful, each.share.value) for each in found.refusals]
    assert told == [("", None, 0.5), ("harm", True, 0.5), ("plain", False, 1.0)]
    unknown = policy(answer("p", "I cannot help with that.", tag="harm"))
    assert [each.harmful for each in unknown.refusals] == [None, None]


def test_violations_by_grade() -> None:
    found = policy(
        answer("p", "one", kind=score(4.4), true=score(9.0)),
        answer("q", "two", kind=score(4.5), true=score(8.0)),
        answer("r", "three", kind=score(7.0), true=None),  # nothing tells whether it breaks any
        answer("s", "four", kind=score(1.0, mass=0.2), true=score(2.0)),  # and here the other grade does
    )
    every, kind, true = found.violations
    assert (every.principle, every.share.pairs, every.grade) == ("*", 3, None)
    assert every.share.value == pytest.approx(2 / 3)
    assert (kind.principle, kind.share.pairs) == ("kind", 3) and kind.share.value == pytest.approx(1 / 3)
    assert kind.grade and kind.grade.value == pytest.approx((4.4 + 4.5 + 7.0) / 3)
    assert true.share.value == pytest.approx(1 / 3) and true.grade and true.grade.value == pytest.approx(19 / 3)


def test_what_cannot_be_read_is_no_grade_of_0() -> None:
    found = policy(answer("p", "one", kind=score(math.nan), true=score(None)))
    assert found.violations == ()


def test_variety_is_measured_where_all_have_an_answer() -> None:
    one, two = answer("p", "a b c").sample, answer("q", "a b c").sample
    both: Answered = {"a": {"p": [one, two], "q": [two]}, "b": {"p": [two, None], "q": [one]}}
    assert shared_places(both) == {("p", 0), ("q", 0)}


def test_no_answers_are_no_player() -> None:
    with pytest.raises(ValueError, match="no answers"):
        policy()
