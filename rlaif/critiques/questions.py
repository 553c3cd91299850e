"""The question behind a critique, and the one behind a revision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rlaif.asking import SHIPPED, Templates
from rlaif.records import Message, Messages
from rlaif.templates import conversation, fence


class Shot(NamedTuple):
    """A solved case that is shown first, as turns of the conversation (few-shot, arXiv:2212.08073, section 3.1)."""

    prompt: str
    reply: str
    critique: str | None
    revision: str


def critique_messages(
    prompt: Messages,
    reply: str,
    request: str,
    *,
    max_chars: int = 12_000,
    shots: Sequence[Shot] = (),
    templates: Templates = SHIPPED,
) -> Messages:
    """Ask for a review of `reply` under a principle's `critique` text (arXiv:2212.08073, section 3.1)."""

    def asked(talk: Messages, said: str) -> Messages:
        fenced = _fenced({"conversation": conversation(talk), "reply": said}, max_chars)
        return templates["critique"].ask(request=request, **fenced)

    shown = [(asked(_user(shot.prompt), shot.reply), shot.critique) for shot in shots if shot.critique is not None]
    return _turns(shown, asked(prompt, reply))


def revise_messages(
    prompt: Messages,
    reply: str,
    critique: str | None,
    request: str,
    *,
    max_chars: int = 12_000,
    shots: Sequence[Shot] = (),
    templates: Templates = SHIPPED,
) -> Messages:
    """Ask for `reply` rewritten under a principle's `revise` text, in the light of `critique` if there is one."""

    def asked(talk: Messages, said: str, notes: str | None) -> Messages:
        shown = {"conversation": conversation(talk), "reply": said}
        if notes is None:
            return templates["revise_uncritiqued"].ask(request=request, **_fenced(shown, max_chars))
        return templates["revise"].ask(request=request, **_fenced(shown | {"critique": notes}, max_chars))

    shown = [
        (asked(_user(shot.prompt), shot.reply, shot.critique if critique is not None else None), shot.revision)
        for shot in shots
        if critique is None or shot.critique is not None
    ]
    return _turns(shown, asked(prompt, reply, critique))


def _fenced(shown: dict[str, str], max_chars: int) -> dict[str, str]:
    return {slot: fence(text, max_chars=max_chars) for slot, text in shown.items()}


def _user(text: str) -> Messages:
    return (Message(role="user", content=text),)


def _turns(shown: Sequence[tuple[Messages, str]], last: Messages) -> Messages:
    """The solved cases as turns before the question; the system message of a template stands at the beginning alone."""
    solved = (turn for asked, answer in shown for turn in (*asked, Message(role="assistant", content=answer)))
    turns = (*solved, *last)
    return (*turns[:1], *(turn for turn in turns[1:] if turn.role != "system"))
