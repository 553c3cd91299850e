"""The ordered question of a comparison: which of two replies is better, A or B?

The order of the parts serves the server's prefix cache: fixed instructions, the conversation, the replies, and the
principle last, so that all principles of a pair, and all pairs of a prompt, share what comes before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rlaif.asking import SHIPPED, Templates
from rlaif.records import Messages
from rlaif.templates import Fence, conversation, fence, shortened

LABELS = ("A", "B")
"""What the judge may answer: the first reply, or the second."""


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
    """Ask which of two replies is better under `question` (a principle's `compare` text, or `joint_question`'s).

    With `critiques`, the notes on the first and on the second reply stand between the replies and the question.
    Without `fenced`, the replies stand there as they are: only to measure what the fences are good for. With `reasoned`
    the judge is to give its reasons first (and is shown no critiques). `kind` is the fence.
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
