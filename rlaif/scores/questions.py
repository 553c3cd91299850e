"""The question behind a grade, and the one behind a ranking of several replies."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif.asking import SHIPPED, Templates
from rlaif.records import Messages
from rlaif.templates import conversation, fence

DIGITS = tuple("0123456789")
"""Grades. One digit each, so that a grade is one token everywhere (10 would be two)."""

LETTERS = tuple("ABCDEFGHIJ")
"""Names of the replies in a ranking, in the order in which they are shown."""


def score_messages(
    prompt: Messages, reply: str, question: str, *, max_chars: int = 12_000, templates: Templates = SHIPPED
) -> Messages:
    """Ask for a grade of one reply under `question` (arXiv:2309.00267, section 2.2.2, grades 1 to 10 there)."""
    return templates["score"].ask(
        conversation=fence(conversation(prompt), max_chars=max_chars),
        reply=fence(reply, max_chars=max_chars),
        question=question,
    )


def rank_messages(
    prompt: Messages, replies: Sequence[str], question: str, *, max_chars: int = 12_000, templates: Templates = SHIPPED
) -> Messages:
    """Ask for the order of up to ten replies, best first."""
    shown = [
        f"Reply {letter}:\n{fence(reply, max_chars=max_chars)}" for letter, reply in zip(LETTERS, replies, strict=False)
    ]
    return templates["rank"].ask(
        conversation=fence(conversation(prompt), max_chars=max_chars), replies="\n\n".join(shown), question=question
    )
