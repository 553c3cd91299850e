"""Reading what others wrote, line by line: fast where there are millions, and patient with what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydantic_core

from rlaif.errors import RecordError
from rlaif.jsontext import loads

Rows = Callable[[Path], Iterator[dict[str, Any]]]
"""A way to read a table."""

_EVERY = 5000


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a JSONL table as plain data; nothing where there is no such file.

    A torn last line is passed over, as the next writer will cut it off. Raises RecordError on any other broken line.
    """
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = pydantic_core.from_json(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return
                raise RecordError(path, number, str(error)) from None
            if not isinstance(row, dict):
                raise RecordError(path, number, "this line is not a record of this table")
            yield row


def counted(told: Callable[[int], None]) -> Rows:
    """`rows` that tells, now and then, how many rows were read so far in all tables together."""
    total = 0

    def read(path: Path) -> Iterator[dict[str, Any]]:
        nonlocal total
        for row in rows(path):
            total += 1
            if total % _EVERY == 0:
                told(total)
            yield row

    return read


def document(path: Path) -> dict[str, Any]:
    """A JSON file as plain data; empty where there is none, or none that can be read."""
    try:
        found = loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def key_of(identity: str) -> int:
    """The first half of an id as a number: 64 bits tell a million ids apart, at a tenth of the memory."""
    return int(identity[:16], 16)


def within(value: Any, *names: str) -> Any:
    """The value at the end of a path of keys; None where the path breaks off."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value
