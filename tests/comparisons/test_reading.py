"""Awkward replies of judges without log-probabilities, each with how a careful person would read it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.feedback.verdict_reader import parse_verdict
from rlaif.records import Verdict
from rlaif.text import without_thinking

A, B, TIE, NONE = Verdict.FIRST, Verdict.SECOND, Verdict.TIE, Verdict.UNPARSED

CORPUS: list[tuple[str, Verdict]] = [
    # Only a label, dressed up.
    ("A", A),
    (" b.", B),
    ("**B**", B),
    ("(A)", A),
    ("[[B]]", B),
    ("`A`", A),
    ('"B"', B),
    ("“A”", A),
    ("Reply A", A),
    ("Response B.", B),
    ("Option A:", A),
    ("The reply B", B),
    ("# A", A),
    ("> **B**", B),
    ("tie", TIE),
    ("A!", A),
    # Only a word that is no label.
    ("Neither", NONE),
    ("Both", NONE),
    ("AB", NONE),
    ("C", NONE),
    ("1", NONE),
    ("", NONE),
    ("   \n ", NONE),
    # Stated verdicts.
    ("Verdict: A", A),
    ("The answer is B.", B),
    ("**Verdict:** B", B),
    ("**Verdict: A**", A),
    ("Final verdict - A", A),
    ("My answer: reply B, since it is kinder.", B),
    ("Answer=A", A),
    ("ANSWER: b", B),
    ("Winner: Response A", A),
    ("The better reply is B because it answers the question.", B),
    ("Better response: A", A),
    ("Judgment: B", B),
    ("Verdict: tie", TIE),
    ("The answer is A, not B.", A),
    ("Verdict: “B”", B),
    ("My choice is **A**", A),
    # Reasons first, the verdict last.
    ("Reply A insults the person. Reply B does not.\n\nB", B),
    ("A is longer, B is clearer.\n\nVerdict: B", B),
    ("Reply B is rude.\n**A**", A),
    ("Let me think.\n\n1. A is fine.\n2. B is better.\n\nFinal answer: B", B),
    ("Reply A names a source, reply B none.\n[[A]]", A),
    ("So we get \\boxed{B}", B),
    ("The final answer is $\\boxed{\\text{A}}$.", A),
    # Changed minds: the last one counts, on the menu or not.
    ("Verdict: A ... on reflection, verdict: B", B),
    ("Verdict: A ... verdict: neither", NONE),
    ("Answer: B\nWait. Answer: A", A),
    ("Verdict: B\n\nOn second thought I cannot decide. Verdict: unclear", NONE),
    # The instructions over again.
    ("Answer A or B.", NONE),
    ("Verdict: A or B", NONE),
    ("Answer with one of these and nothing else: A, B", NONE),
    ("Verdict: A/B", NONE),
    ("Verdict: (A) or (B)?", NONE),
    ("Answer A or B.\nAnswer: B", B),
    ("End with a line `Verdict: A` or `Verdict: B`.", NONE),
    # Negations and hedges.
    ("The answer is not A", NONE),
    ("Not A", NONE),
    ("Verdict: not B", NONE),
    ("I would not say A.", NONE),
    ("The answer is either A or B.", NONE),
    ("Verdict: both A and B", NONE),
    ("Answer: A and B are equally good", NONE),
    # Prose with letters in it.
    ("A good reply would be kinder.", NONE),
    ("Both are fine.", NONE),
    ("Reply A is better.", NONE),
    ("I prefer B.", NONE),
    ("A is worse than B", NONE),
    ("Verdict: Apples", NONE),
    ("Vitamin A and vitamin B", NONE),
    ("The answer A person needs is on page 3.", NONE),
    # The article is no label.
    ("Verdict: a tie", TIE),
    ("My answer is a tie.", TIE),
    ("A tie", TIE),
    ("a tie.", TIE),
    ("Verdict: A tie", TIE),
    ("Verdict: a draw", NONE),
    ("Verdict: A close call", NONE),
    ("Answer: a good reply would be B", NONE),
    ("Reply A is vague. Reply B is exact.\nVerdict: B\n(The other answer is a bit too long.)", B),
    ("Verdict: A\n(The better reply is a matter of taste.)", A),
    ("Verdict: A because it is kind", A),
    ("Verdict: A is kinder", A),
    ("Verdict: b\nThat is all.", B),
    ("The answer is a.", A),
    # Comparisons that do not say which is better by standing first.
    ("Verdict: A < B", NONE),
    ("Verdict: A = B", NONE),
    ("Verdict: A=B", NONE),
    ("Verdict: A ≈ B", NONE),
    ("Verdict: A > B", A),
    ("<answer>Verdict: A</answer>", A),
    # Thinking.
    ("<think>Verdict: A would be wrong.</think>\nB", B),
    ("<think>A? B? A.</think>Verdict: A", A),
    ("<think>Surely the answer is A", NONE),
    ("the reply A is rude, so B</think>\n\nB", B),
    ("<thinking>Answer: B</thinking>", NONE),
    ("<reasoning>\nAnswer: A\n</reasoning>\nAnswer: B", B),
    ("[THINK]B it is[/THINK]A", A),
    ("<|channel|>analysis A is good <|channel|>final<|message|>B", B),
    ("<think>one</think> A <think>two", A),
    # Cut off.
    ("Verdict:", NONE),
    ("The better reply is", NONE),
    ("Verdict: **", NONE),
    # Other languages.
    ("Antwort: A", A),
    ("Die Antwort ist B.", B),
    ("La réponse est A", A),
    ("Respuesta: B", B),
    ("Risposta: A", A),
    ("Ответ: B", B),
    ("答案：A", A),
    ("答案是 B。", B),
    ("Weder A noch B", NONE),
]


@pytest.mark.parametrize(("text", "verdict"), CORPUS)
def test_a_careful_reading(text: str, verdict: Verdict) -> None:
    assert parse_verdict(text) is verdict


def test_the_corpus_is_large() -> None:
    assert len({text for text, _ in CORPUS}) == len(CORPUS) >= 80


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    assert parse_verdict(text) in Verdict


@given(st.text(alphabet="AB verdict:\n<think>/", max_size=80))
def test_what_is_thought_never_counts(text: str) -> None:
    assert parse_verdict(f"<think>{text.replace('</think>', '')}") is Verdict.UNPARSED
    assert without_thinking(f"<think>{text.replace('</think>', '')}</think>x") == "x"


def test_long_replies_are_read_quickly() -> None:
    """No pattern may backtrack badly: this takes milliseconds, or hours."""
    assert parse_verdict("answer " * 20_000) is Verdict.UNPARSED
    assert parse_verdict("**" * 20_000) is Verdict.UNPARSED
    assert parse_verdict("A is kinder than B. " * 5_000 + "\nVerdict: A") is Verdict.FIRST
