"""Turns of a conversation as they stand in foreign data: any role, any order. What is odd is named, not corrected."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rlaif.samples.messages import ROLES, UnparsedMessagesError, content_of, messages_in, uses_tools
from rlaif.samples.transcripts import is_transcript, parse_transcript

Odd = Callable[[str], None]
"""Takes the name of a rule that the row breaks."""


class Turn(NamedTuple):
    """One turn; an unknown role stands as it was written."""

    role: str
    content: str


Turns = tuple[Turn, ...]


class UnreadableValueError(Exception):
    """A value that is no text and no conversation; the text is the rule that it breaks."""


def turns_of(value: object, role: str, odd: Odd) -> Turns:
    """The turns of a text (one turn of `role`), of a dialogue in a text, or of a list of messages.

    Raises UnreadableValueError where there are none.
    """
    if value is None or (isinstance(value, float) and value != value):  # a NaN, as tables write a missing cell
        raise UnreadableValueError("missing")
    if isinstance(value, str):
        return _of_text(value, role, odd)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise UnreadableValueError("type")
    if not value:
        raise UnreadableValueError("empty-prompt" if role == "user" else "empty-reply")
    return tuple(_turn(item, odd) for item in value)


def _of_text(text: str, role: str, odd: Odd) -> Turns:
    try:
        messages = messages_in(text)
    except UnparsedMessagesError:
        raise UnreadableValueError("unparsed-messages") from None
    if messages is not None:
        odd("messages-as-text")
        return tuple(_turn(item, odd) for item in messages)
    if is_transcript(text):
        return tuple(Turn(turn.role, turn.content) for turn in parse_transcript(text))
    return (Turn(role, text),)


def _turn(item: object, odd: Odd) -> Turn:
    if not isinstance(item, dict):
        raise UnreadableValueError("type")
    if uses_tools(item):
        raise UnreadableValueError("tool-calls")
    named = str(item.get("role", item.get("from")))
    role: str = ROLES.get(named.lower(), named)
    if named.lower() not in ROLES:
        odd("unknown-role")
    value = item.get("content", item.get("value"))
    content = content_of(value)
    if content is None:
        raise UnreadableValueError("missing" if value is None else "type")
    return Turn(role, content)


def ordered(prompt: Turns) -> bool:
    """Whether a system turn stands first only, user and assistant alternate, and the last word is the user's."""
    said = prompt[1:] if prompt and prompt[0].role == "system" else prompt
    return len(said) % 2 == 1 and all(turn.role == ("assistant" if at % 2 else "user") for at, turn in enumerate(said))


CUE = "\n\nAssistant:"
"""What asks for a reply in a dialogue that is written as one text."""


def transcript(prompt: Turns) -> str:
    """A conversation as one text, up to the cue for its next reply; the reply itself follows after a space.

    The other direction of `parse_transcript`. What the system says stands first, without a marker, as that form of
    dialogue has none for it.
    """
    marks = {"user": "\n\nHuman: ", "assistant": f"{CUE} "}
    return "".join(marks.get(turn.role, "") + turn.content for turn in prompt) + CUE
