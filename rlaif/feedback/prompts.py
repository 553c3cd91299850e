"""Judge prompts: the messages of comparisons, grades, rankings, critiques and revisions.

In a comparison the order of the parts serves the server's prefix cache: fixed instructions, the conversation, the
responses, and the principle last, so that all principles of a pair, and all pairs of a prompt, share what comes before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from rlaif.config.judge_templates import (
    SHIPPED,
    Fence,
    Templates,
    conversation,
    fence,
    shortened,
)
from rlaif.records import Message, Messages

LABELS = ("A", "B")
"""The judge's labels: the first response, or the second."""

DIGITS = tuple("0123456789")
"""Grades. One digit each, so that a grade is one token everywhere (10 would be two)."""

LETTERS = tuple("ABCDEFGHIJ")
"""Names of the responses in a ranking, in the order in which they are shown."""


def compare_messages(
    prompt: Messages,
    first: str,
    second: str,
    question: str,
    *,
    critiques: tuple[str, str] | None = None,
    max_chars: int = 12_000,
    fenced: bool = True,
    reasoned: bool = False,
    templates: Templates = SHIPPED,
    kind: Fence = "marks",
) -> Messages:
    """Ask which of two responses is better under `question` (a principle's `compare` text, or `joint_question`'s).

    With `critiques`, the notes on the first and on the second response stand between the responses and the question.
    Without `fenced`, the responses stand there as they are: only to measure what the fences are good for. With
    `reasoned` the judge is to give its reasons first (and is shown no critiques). `kind` is the fence.
    """

    def within(text: str) -> str:
        return fence(text, max_chars=max_chars, kind=kind)

    shown = within if fenced else partial(shortened, max_chars=max_chars)
    parts = {
        "conversation": within(conversation(prompt)),
        "first": shown(first),
        "second": shown(second),
        "question": question,
    }
    if critiques is None:
        return templates["compare_reasoned" if reasoned else "compare"].ask(kind, **parts)
    notes = [within(text) for text in critiques]
    return templates["compare_critiqued"].ask(kind, **parts, first_critique=notes[0], second_critique=notes[1])


def joint_question(questions: Sequence[str]) -> str:
    """One question for a whole constitution (`principles: all`)."""
    listed = "\n".join(f"{number}. {question}" for number, question in enumerate(questions, start=1))
    return f"Weigh all of these together, and decide which reply is better on the whole:\n{listed}"


def score_messages(
    prompt: Messages, response: str, question: str, *, max_chars: int = 12_000, templates: Templates = SHIPPED
) -> Messages:
    """Ask for a grade of one response under `question` (arXiv:2309.00267, section 2.2.2, grades 1 to 10 there)."""
    return templates["score"].ask(
        conversation=fence(conversation(prompt), max_chars=max_chars),
        reply=fence(response, max_chars=max_chars),
        question=question,
    )


def rank_messages(
    prompt: Messages,
    responses: Sequence[str],
    question: str,
    *,
    max_chars: int = 12_000,
    templates: Templates = SHIPPED,
) -> Messages:
    """Ask for the order of up to ten responses, best first."""
    shown = [
        f"Reply {letter}:\n{fence(response, max_chars=max_chars)}"
        for letter, response in zip(LETTERS, responses, strict=False)
    ]
    return templates["rank"].ask(
        conversation=fence(conversation(prompt), max_chars=max_chars), replies="\n\n".join(shown), question=question
    )


class Shot(NamedTuple):
    """A solved case that is shown first, as turns of the conversation (few-shot, arXiv:2212.08073, section 3.1)."""

    prompt: str
    response: str
    critique: str | None
    revision: str


def critique_messages(
    prompt: Messages,
    response: str,
    request: str,
    *,
    max_chars: int = 12_000,
    shots: Sequence[Shot] = (),
    templates: Templates = SHIPPED,
) -> Messages:
    """Ask for a review of `response` under a principle's `critique` text (arXiv:2212.08073, section 3.1)."""

    def ask(dialogue: Messages, text: str) -> Messages:
        fenced = _fenced({"conversation": conversation(dialogue), "reply": text}, max_chars)
        return templates["critique"].ask(request=request, **fenced)

    shown = [(ask(_user(shot.prompt), shot.response), shot.critique) for shot in shots if shot.critique is not None]
    return _turns(shown, ask(prompt, response))


def revise_messages(
    prompt: Messages,
    response: str,
    critique: str | None,
    request: str,
    *,
    max_chars: int = 12_000,
    shots: Sequence[Shot] = (),
    templates: Templates = SHIPPED,
) -> Messages:
    """Ask for `response` rewritten under a principle's `revise` text, in the light of `critique` if there is one."""

    def ask(dialogue: Messages, text: str, notes: str | None) -> Messages:
        shown = {"conversation": conversation(dialogue), "reply": text}
        if notes is None:
            return templates["revise_uncritiqued"].ask(request=request, **_fenced(shown, max_chars))
        return templates["revise"].ask(request=request, **_fenced(shown | {"critique": notes}, max_chars))

    shown = [
        (ask(_user(shot.prompt), shot.response, shot.critique if critique is not None else None), shot.revision)
        for shot in shots
        if critique is None or shot.critique is not None
    ]
    return _turns(shown, ask(prompt, response, critique))


def _fenced(shown: dict[str, str], max_chars: int) -> dict[str, str]:
    return {slot: fence(text, max_chars=max_chars) for slot, text in shown.items()}


def _user(text: str) -> Messages:
    return (Message(role="user", content=text),)


def _turns(shown: Sequence[tuple[Messages, str]], last: Messages) -> Messages:
    """The solved cases as turns before the question; the system message of a template stands at the beginning alone."""
    solved = (turn for asking, output in shown for turn in (*asking, Message(role="assistant", content=output)))
    turns = (*solved, *last)
    return (*turns[:1], *(turn for turn in turns[1:] if turn.role != "system"))
