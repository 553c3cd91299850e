"""The question behind a critique, and the one behind a revision."""

from __future__ import annotations

from rlaif.records import Messages
from rlaif.templates import conversation, fence, load_template


def critique_messages(prompt: Messages, reply: str, request: str, *, max_chars: int = 12_000) -> Messages:
    """Ask for a review of `reply` under a principle's `critique` text (arXiv:2212.08073, section 3.1)."""
    return load_template("critique").ask(
        conversation=fence(conversation(prompt), max_chars=max_chars),
        reply=fence(reply, max_chars=max_chars),
        request=request,
    )


def revise_messages(prompt: Messages, reply: str, critique: str, request: str, *, max_chars: int = 12_000) -> Messages:
    """Ask for `reply` rewritten in the light of `critique`, under a principle's `revise` text."""
    return load_template("revise").ask(
        conversation=fence(conversation(prompt), max_chars=max_chars),
        reply=fence(reply, max_chars=max_chars),
        critique=fence(critique, max_chars=max_chars),
        request=request,
    )
