"""Texts of others: made fit to be shown, read as JSON within bounds, and freed of a reasoning model's thoughts.

Texts of others, made fit to be shown.

JSON that others wrote: whatever is wrong with it is a ValueError, its depth included.

`json.loads` raises RecursionError for text that is nested too deeply, which is no ValueError and ends a program that
was ready for broken JSON; what it can still read may be too deep for whoever prints or writes it again.

The marks of a reasoning model's thoughts, and what it says outside of them: no thought is a verdict or a reply.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tabs and line breaks, DEL, C1: what a terminal obeys
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks, embeddings and overrides of the direction of writing
    "\u2028\u2029]"  # separators that some terminals take for line breaks
)


def visible(text: str) -> str:
    """`text` with what would move a cursor, set a title, hide or reorder letters shown as a mark like `\\x1b`.

    Line breaks and tabs stay. What JSON may hold raw gets JSON's own marks (`\\u202e`): a document remains one.
    """
    return _CONTROL.sub(_mark, text)


def one_line(text: str) -> str:
    """The same for a message of one line: a line break in it would make the rest look like a message of its own."""
    return visible(text).replace("\n", "\\n")


def _mark(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x20 else f"\\u{code:04x}"


MOST_LEVELS = 200
"""Of lists and mappings inside each other, as pydantic's own reader has it. Nothing that people write comes near."""


def loads(text: str | bytes, *, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value that `text` holds. Raises ValueError for what is no JSON, and for more than `MOST_LEVELS` levels."""
    try:
        value = json.loads(text, object_pairs_hook=object_pairs_hook)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:
        raise ValueError("a number in it has thousands of digits") from None
    if _may_be_deep(text) and _is_deep(value):
        raise ValueError(f"nested more than {MOST_LEVELS} levels deep")
    return value


def _may_be_deep(text: str | bytes) -> bool:
    """Whether there are brackets enough; counting them takes a hundredth of the time of reading."""
    if isinstance(text, str):
        return text.count("[") + text.count("{") > MOST_LEVELS
    return text.count(b"[") + text.count(b"{") > MOST_LEVELS


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MOST_LEVELS):
        level = [inner for outer in level for inner in _inside(outer) if isinstance(inner, list | dict)]
        if not level:
            return False
    return True


def _inside(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


_NAMES = "(?:seed:)?(?:think|thinking|thoughts?|reasoning|scratchpad)"
_OPEN_TAGS = rf"<\s*{_NAMES}\s*>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|START_THINKING\|>"
_CLOSE_TAGS = rf"<\s*/\s*{_NAMES}\s*>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|END_THINKING\|>"
_OPENS = rf"{_OPEN_TAGS}|<\|channel\|>(?:analysis|commentary)"
_CLOSES = rf"{_CLOSE_TAGS}|<\|channel\|>final(?:<\|message\|>)?"
_TAG = re.compile(rf"(?P<open>{_OPENS})|(?P<close>{_CLOSES})", re.IGNORECASE)
_BEGINS = re.compile(rf"\s*(?:{_OPENS}|<think)", re.IGNORECASE)

TAG = re.compile(rf"{_OPEN_TAGS}|{_CLOSE_TAGS}", re.IGNORECASE)
"""Where a thought begins or ends in a response."""
OPEN_AT_END = re.compile(rf"(?:{_OPEN_TAGS})\s*\Z", re.IGNORECASE)
"""The end of a prompt that begins a thought."""
CLOSED_AT_END = re.compile(rf"(?:{_CLOSE_TAGS})\s*\Z", re.IGNORECASE)
"""The end of a prompt behind which no thought is to come."""

_BARE_CHANNEL, _BARE_FINAL = "analysis", "assistantfinal"
"""What is left of a thinking channel and of the one after it where a server drops special tokens from the text."""


def begins_with_thinking(text: str) -> bool:
    """Whether a thought is the first thing in `text`, be its tag cut off after `<think`."""
    return _BEGINS.match(text) is not None


def without_thinking(text: str) -> str:
    """What is said outside of thinking; nothing after thinking that never ended.

    A closing tag without an opening one ends thinking too: some chat templates open it in the prompt.
    """
    if text.startswith(_BARE_CHANNEL):
        _, final, said_last = text.partition(_BARE_FINAL)
        text = said_last if final else text
    said: list[str] = []
    at, thinking = 0, False
    for tag in _TAG.finditer(text):
        if tag["close"] and not thinking:
            said.clear()
        elif not thinking:
            said.append(text[at : tag.start()])
        at, thinking = tag.end(), bool(tag["open"]) or (thinking and not tag["close"])
    return "".join(said) + ("" if thinking else text[at:])
