"""Messages as foreign data write them: what they call the speakers, and the forms that a text comes in."""

from __future__ import annotations

from typing import Literal

Role = Literal["system", "user", "assistant"]

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
"""The speaker behind each name, in small letters."""
SYSTEM_COLUMNS = ("system", "system_prompt")
"""Columns that hold the system prompt of a row whose prompt stands in another one (OpenOrca's form)."""


def content_of(value: object) -> str | None:
    """A message's text: plain, or in the parts that some chat formats cut it into. None where it is no text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in value):
        return "".join(part["text"] for part in value)
    return None


def system_of(row: object) -> str | None:
    """The system prompt that a row holds in a column of its own."""
    if not isinstance(row, dict):
        return None
    texts = (row.get(name) for name in SYSTEM_COLUMNS)
    return next((text for text in texts if isinstance(text, str) and text.strip()), None)
