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


def revise_messages(
    prompt: Messages, reply: str, critique: str | None, request: str, *, max_chars: int = 12_000
) -> Messages:
    """Ask for `reply` rewritten under a principle's `revise` text, in the light of `critique` if there is one."""
    shown = {"conversation": conversation(prompt), "reply": reply}
    if critique is not None:
        shown["critique"] = critique
    fenced = {slot: fence(text, max_chars=max_chars) for slot, text in shown.items()}
    return load_template("revise_uncritiqued" if critique is None else "revise").ask(request=request, **fenced)
