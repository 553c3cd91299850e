"""Texts of others, made fit to be shown."""

from __future__ import annotations

import re

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
