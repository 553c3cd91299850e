"""Messages as foreign data write them: what they call the speakers, and the forms that a text comes in."""

from __future__ import annotations

import ast
import re
import warnings
from typing import Literal

from rlaif.jsontext import loads

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
