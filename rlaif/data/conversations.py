"""Conversations as foreign data write them: messages, transcripts, turns in any order.

Messages as foreign data write them: what they call the speakers, and the forms that a text comes in.

Dialogues written as one text: `\n\nHuman: ...\n\nAssistant: ...`, as in the hh-rlhf data.

Turns of a conversation as they stand in foreign data: any role, any order. What is odd is named, not corrected.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable
from itertools import groupby, pairwise
from typing import Literal, NamedTuple

from rlaif.records import Message, Messages
from rlaif.text import loads

Role = Literal["system", "user", "assistant"]

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
"""The speaker behind each name, in small letters."""
TOOL_ROLES = frozenset({"tool", "function", "ipython", "observation", "function_call", "function_response", "tool_call",
                        "tool_response"})  # fmt: skip
"""Roles of what a tool is asked, or answers."""
_CALLS = ("tool_calls", "function_call")
_TOOL_PARTS = frozenset({"tool_use", "tool_result", "tool_call", "function_call"})
SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
"""Columns that hold the system prompt of a row whose prompt stands in another one (OpenOrca's form)."""

_WRITTEN = re.compile(r"""(?:array\(\s{0,9})?\[?\s{0,99}\{\s{0,99}['"]\w{1,99}['"]\s{0,9}:""")
_ROLE = re.compile(r"""['"](?:role|from)['"]\s*:""")
_CONTENT = re.compile(r"""['"](?:content|value|tool_calls|function_call)['"]\s*:""")
_MOST_PYTHON = 1_000_000
"""Characters of a text that is read as Python, whose tree takes many times as much memory."""


class UnparsedMessagesError(Exception):
    """A text in which a table wrote down messages in a form that cannot be read back."""


def content_of(value: object) -> str | None:
    """A message's text: plain, or in the parts that some chat formats cut it into. None where it is no text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in value):
        return "".join(part["text"] for part in value)
    return None


def uses_tools(message: dict[str, object]) -> bool:
    """Whether a message calls a tool or is what one answered: more than its text."""
    said = str(message.get("role", message.get("from"))).lower()
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    return (
        said in TOOL_ROLES
        or any(message.get(name) for name in _CALLS)
        or any(isinstance(part, dict) and part.get("type") in _TOOL_PARTS for part in parts)
    )


def messages_in(text: str) -> list[object] | None:
    """The messages that a table wrote down in a text, as JSON or as Python; None where it is some other text.

    Raises UnparsedMessagesError where it looks like messages and cannot be read back: cut off, or as arrays print.
    """
    if text[:1] not in "[{ \n\ta" or _WRITTEN.match(text.lstrip()) is None or text.rstrip()[-1] not in "]})":
        return None
    if _ROLE.search(text) is None or _CONTENT.search(text) is None:
        return None
    value = _parsed(text.strip())
    items = [value] if isinstance(value, dict) else value
    if isinstance(items, list):
        return items if all(map(_is_message, items)) else None  # a text may well be a list of other objects
    raise UnparsedMessagesError


def _is_message(item: object) -> bool:
    if not isinstance(item, dict):
        return False
    said = "content" in item or any(name in item for name in _CALLS)
    return ("role" in item and said) or ("from" in item and "value" in item)


def _parsed(text: str) -> object:
    try:
        value: object = loads(text)
        return value
    except ValueError:
        pass
    if len(text) > _MOST_PYTHON:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a backslash that is no escape
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


def system_of(row: object) -> str | None:
    """The system prompt that a row holds in a column of its own."""
    if not isinstance(row, dict):
        return None
    texts = (row.get(name) for name in SYSTEM_COLUMNS)
    return next((text for text in texts if isinstance(text, str) and text.strip()), None)


_MARK = re.compile(r"\n\n(Human|Assistant):")
_LOOSE_MARK = re.compile(r"\n(Human|Assistant):")


def is_transcript(text: str) -> bool:
    """Whether a text is a dialogue rather than one person's words."""
    head = text.lstrip()
    return head.startswith("Human:") and (text.startswith("\n\n") or "\n\nAssistant:" in text)


def parse_transcript(text: str) -> Messages:
    """The turns of a dialogue, as they are marked: one speaker may stand there twice in a row.

    Only a marker at the start of a paragraph begins a turn, so that a `Human:` or a colon inside a text stays there.
    Where that leaves one speaker twice in a row, single line breaks are tried too (few-shot prompts mix both), and
    taken if the speakers then alternate. An empty last turn, the cue for an answer, is kept.
    """
    strict = _turns(_MARK, text)
    loose = strict if alternate(strict) else _turns(_LOOSE_MARK, text)
    return loose if alternate(loose) else strict


def cut_dangling(text: str) -> str:
    """An answer without the `Human:` at its end, where a model began to write the next turn."""
    answer, line, last = text.rstrip().rpartition("\n")
    return answer.rstrip() if line and last.strip() == "Human:" else text


def _turns(mark: re.Pattern[str], text: str) -> Messages:
    parts = mark.split("\n\n" + text.lstrip())[1:]
    return tuple(
        Message(role="user" if name == "Human" else "assistant", content=said.strip())
        for name, said in zip(parts[::2], parts[1::2], strict=True)
    )


def alternate(turns: Messages) -> bool:
    """Whether no speaker speaks twice in a row."""
    return all(one.role != other.role for one, other in pairwise(turns))


def joined(turns: Messages) -> Messages:
    """The turns with those of one speaker in a row made one."""
    runs = [list(run) for _, run in groupby(turns, key=lambda turn: turn.role)]
    return tuple(
        Message(role=run[0].role, content="\n\n".join(turn.content for turn in run if turn.content)) for run in runs
    )


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
