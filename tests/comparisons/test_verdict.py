"""Reading verdicts out of replies without log-probabilities."""

from __future__ import annotations

import pytest

from rlaif.feedback.judge import judgement, label_mass
from rlaif.inference.base import Output, Question
from rlaif.records import Message, Sampling, Verdict


def test_label_mass_is_the_sum_of_both_probabilities() -> None:
    """exp(-1) + exp(-2) = 0.367879 + 0.135335."""
    assert label_mass((-1.0, -2.0)) == pytest.approx(0.503215, abs=1e-6)
    assert label_mass((0.0, -1e-12)) == 1.0


def test_the_first_label_is_the_first_reply() -> None:
    question = Question(
        "compare",
        "j",
        (Message(role="user", content="?"),),
        Sampling(max_tokens=1),
        labels=("A", "B"),
        about={"prompt": "p", "first": "x", "second": "y", "principle": "kind"},
    )
    record = judgement(question, Output(logprobs=(-0.1, -3.0)))
    assert (record.first, record.second, record.verdict) == ("x", "y", Verdict.FIRST)
    assert judgement(question, Output(logprobs=(-3.0, -0.1))).verdict is Verdict.SECOND
    assert judgement(question, Output(logprobs=(-1.0, -1.0))).verdict is Verdict.TIE
    assert judgement(question, Output(text="no idea")).verdict is Verdict.UNPARSED
