"""The ordered question of a comparison: which of two replies is better, A or B?

The order of the parts serves the server's prefix cache: fixed instructions, the conversation, the replies, and the
principle last, so that all principles of a pair, and all pairs of a prompt, share what comes before.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlaif.records import Messages
from rlaif.templates import conversation, fence, load_template, shortened

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
) -> Messages:
    """Ask which of two replies is better under `question` (a principle's `compare` text, or `joint_question`'s).

    With `critiques`, the notes on the first and on the second reply stand between the replies and the question.
    Without `fenced`, the replies stand there as they are: only to measure what the fences are good for. With `reasoned`
    the judge is to give its reasons first (and is shown no critiques).
    """
    shown = fence if fenced else shortened
    parts = {
        "conversation": fence(conversation(prompt), max_chars=max_chars),
        "first": shown(first, max_chars=max_chars),
        "second": shown(second, max_chars=max_chars),
        "question": question,
    }
    if critiques is None:
        return load_template("compare_reasoned" if reasoned else "compare").ask(**parts)
    notes = [fence(text, max_chars=max_chars) for text in critiques]
    return load_template("compare_critiqued").ask(**parts, first_critique=notes[0], second_critique=notes[1])


def joint_question(questions: Sequence[str]) -> str:
    """One question for a whole constitution (`principles: all`)."""
    listed = "\n".join(f"{number}. {question}" for number, question in enumerate(questions, start=1))
    return f"Weigh all of these together, and decide which reply is better on the whole:\n{listed}"
