"""The items of a JSON list, read piece by piece: memory holds one item, never the file."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Protocol

from rlaif.errors import UserError

_PIECE = 65_536
_SPACE = re.compile(r"[ \t\r\n]*")
_OPEN_END = 16
"""An error nearer than this to the end of what is read so far may come of the end itself."""


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


Mistake = Callable[[str, int], UserError]
"""Makes the error of a file from what is wrong, and the line."""


class JsonList:
    """One list in a stream of UTF-8 text."""

    def __init__(self, stream: _Stream, mistake: Mistake, largest: int) -> None:
        self._stream, self._mistake, self._largest = stream, mistake, largest
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at = "", 0
        self._line, self._column = 1, 0
        """Of the place that is looked at: its line, and the characters before it there."""
        self._ended = False

    def items(self) -> Iterator[tuple[int, object]]:
        """The items, each with the line that it begins on. Raises the error of the file where it is none."""
        self._skip()
        self._take()  # the bracket, by which the file was known for a list
        self._skip()
        while self._peek() != "]":
            yield self._line, self._item()
            self._skip()
            if self._peek() not in (",", "]"):
                raise self._mistake("not JSON: `,` or `]` is missing after an item", self._line)
            if self._peek() == ",":
                self._take()
                self._skip()
        self._take()
        line = self._line
        self._skip()
        if self._peek():
            raise self._mistake("goes on after the end of its list", line)

    def _item(self) -> object:
        decode = json.JSONDecoder().raw_decode
        while True:
            try:
                value, end = decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _OPEN_END
                if self._ended or not cut:
                    raise self._wrong(error) from None
            except (RecursionError, ValueError) as error:  # too deep, or a number of thousands of digits
                raise self._mistake(f"not usable JSON: {error}", self._line) from None
            else:
                if end < len(self._text) or self._ended:  # else a number may go on
                    self._require(end - self._at)
                    self._advance(end)
                    return value
            self._require(len(self._text) - self._at)
            self._more(max(_PIECE, len(self._text) - self._at))  # twice as much: each character is read a few times

    def _require(self, size: int) -> None:
        if size > self._largest:
            raise self._mistake(f"the item is longer than {self._largest // 1_000_000} MB", self._line)

    def _wrong(self, error: json.JSONDecodeError) -> UserError:
        line = self._line + self._text.count("\n", self._at, error.pos)
        start = self._text.rfind("\n", self._at, error.pos)
        column = error.pos - start if start >= 0 else self._column + error.pos - self._at + 1
        return self._mistake(f"not JSON: {error.msg} (column {column})", line)

    def _skip(self) -> None:
        """Go on to what is no space."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._advance(space.end() if space else self._at)
            if self._at < len(self._text) or self._ended:
                return
            self._more(_PIECE)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> None:
        self._advance(self._at + 1)

    def _advance(self, end: int) -> None:
        self._line += self._text.count("\n", self._at, end)
        start = self._text.rfind("\n", self._at, end)
        self._column = end - start - 1 if start >= 0 else self._column + end - self._at
        self._at = end

    def _more(self, size: int) -> None:
        """Read on; what was passed is dropped."""
        raw = self._stream.read(size)
        try:
            text = self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            line = self._line + self._text.count("\n", self._at) + error.object[: error.start].count(b"\n")
            raise self._mistake(f"is not UTF-8 (byte 0x{error.object[error.start]:02X})", line) from None
        if "\0" in text:
            line = self._line + self._text.count("\n", self._at) + text[: text.index("\0")].count("\n")
            raise self._mistake("holds NUL bytes", line)
        self._text, self._at, self._ended = self._text[self._at :] + text, 0, not raw
