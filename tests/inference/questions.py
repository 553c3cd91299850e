"""Questions for the tests of the models."""

from __future__ import annotations

from rlaif.inference.base import Question
from rlaif.records import Message, Sampling

LABELS = ("A", "B")


def label_question(text: str = "Which is better, A or B?", model: str = "fake") -> Question:
    """One that asks for the log-probabilities of A and B."""
    return Question("compare", model, (Message(role="user", content=text),), Sampling(max_tokens=1), labels=LABELS)


def label_questions(count: int, model: str = "fake") -> list[Question]:
    """Different ones."""
    return [label_question(f"Pair {number}: which is better, A or B?", model) for number in range(count)]


def text_question(
    text: str = "Say something.", *, model: str = "fake", seed: int | None = None, temperature: float = 0.0
) -> Question:
    """One that asks for a text."""
    sampling = Sampling(max_tokens=8, temperature=temperature, seed=seed)
    return Question("sample", model, (Message(role="user", content=text),), sampling)


def reasoned_question(short: Question) -> Question:
    """A label question with room for reasons before the label."""
    return Question("compare_reasoned", short.model, short.messages, Sampling(max_tokens=8), labels=short.labels)
