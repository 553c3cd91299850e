"""Grades by pencil and paper."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.config.judge_templates import Judge
from rlaif.feedback.judge import Criterion
from rlaif.feedback.scoring import grade_logit, parse_grade, readable, score_question, score_record
from rlaif.inference.base import Output
from rlaif.records import Message, Prompt, Sample, Score

PROMPT = Prompt(id="p", messages=(Message(role="user", content="How?"),), source="here")
SAMPLE = Sample(id="s", prompt="p", index=0, text="So.", policy="x")
NEVER = -50.0


def spread(**chances: float) -> tuple[float, ...]:
    """Log-probabilities of the digits: `spread(d3=0.5)`."""
    return tuple(math.log(chances[f"d{digit}"]) if f"d{digit}" in chances else NEVER for digit in range(10))


def graded(**chances: float) -> Score:
    question = score_question(PROMPT, SAMPLE, Criterion("kind", 1.0, "Kinder?", None), Judge("j"), max_chars=1000)
    return score_record(question, Output(logprobs=spread(**chances)))


def test_a_grade_is_the_expectation_over_the_digits() -> None:
    """0.6 on 8 and 0.2 on 4, of 0.8 in all: (8 * 0.6 + 4 * 0.2) / 0.8 = 7."""
    score = graded(d8=0.6, d4=0.2)
    assert score.value == pytest.approx(7.0)
    assert score.label_mass == pytest.approx(0.8)
    assert (score.sample, score.principle, score.prompt) == ("s", "kind", "p")
    assert readable(score, min_mass=0.8) and not readable(score, min_mass=0.81)
    assert not readable(None, min_mass=0.0)


def test_odds_of_two_grades_by_hand() -> None:
    """Left 9 or 5, right 5: wins half the time, ties half: 0.75 against 0.25."""
    left, right = graded(d9=0.5, d5=0.5), graded(d5=1.0)
    assert grade_logit(left, right) == pytest.approx(math.log(3))
    assert grade_logit(right, left) == pytest.approx(-math.log(3))
    assert grade_logit(left, left) == pytest.approx(0.0)
    assert grade_logit(graded(d9=1.0), graded(d0=1.0)) == 30.0


def test_grades_in_words() -> None:
    question = score_question(PROMPT, SAMPLE, Criterion("kind", 1.0, "Kinder?", None), Judge("j"), max_chars=1000)
    high, low, none = (score_record(question, Output(text=text)) for text in ("8", "Grade: 3", "fine"))
    assert (high.value, low.value, none.value) == (8.0, 3.0, None)
    assert grade_logit(high, low) == pytest.approx(math.log(99) / 1.6)
    assert grade_logit(low, low) == 0.0
    assert not readable(none, min_mass=0.0)


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("7", 7), (" 7. ", 7), ("**7**", 7), ("Grade: 7", 7), ("The score is 7", None), ("Score is 7.", 7), ("7/9", 7),
        ("It is polite.\n\n8", 8), ("<think>2? 3?</think>5", 5), ("<think>2", None), ("10", None), ("", None),
        ("7 or 8", None), ("seven", None), ("-3", None), ("Rating: 0", 0),
    ],
)  # fmt: skip
def test_a_digit_is_read_strictly(text: str, grade: int | None) -> None:
    assert parse_grade(text) == grade


@given(st.lists(st.floats(-20, 0), min_size=10, max_size=10), st.lists(st.floats(-20, 0), min_size=10, max_size=10))
def test_turning_a_pair_round_turns_the_odds(one: list[float], other: list[float]) -> None:
    made = [Score(id="i", prompt="p", sample="s", principle="k", judge="j", value=5.0, logprobs=tuple(each))
            for each in (one, other)]  # fmt: skip
    assert grade_logit(made[0], made[1]) == pytest.approx(-grade_logit(made[1], made[0]), abs=1e-6)
