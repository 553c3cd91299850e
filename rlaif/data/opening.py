"""Files of preference data, opened: how their rows are read, and the rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from rlaif.data.shapes import Shape, recognise
from rlaif.data.winners import settle_winner
from rlaif.samples.rows import Rows, read_rows

_TRIED = 20
"""Rows that the shape of a file is looked for in, for the first may lack a value."""
F = TypeVar("F")


class Opened(NamedTuple):
    """A file whose rows can be read."""

    shape: Shape | None
    """None where it is of no known one."""
    rows: Rows
    """All of them."""


def open_rows(path: str | Path) -> Opened:
    """A file of preference data. Raises UserError where it does not say which of two responses is better.

    Where the rows hold two numbered responses, the whole file is read once before, for what its winners mean.
    """
    return Opened(*first_known(path, recognise))


def first_known(path: str | Path, known: Callable[[object], F | None]) -> tuple[F | None, Rows]:
    """What one of the first rows of a file is known as, and all rows. Raises UserError as `open_rows` does."""
    rows = read_rows(path)
    tried = list(itertools.islice(rows, _TRIED))
    found = next((form for _, row in tried if (form := known(row)) is not None), None)
    if isinstance(found, Shape):
        found = settled(found, path)  # type: ignore[assignment]
    return found, itertools.chain(tried, rows)


def settled(shape: Shape, path: str | Path) -> Shape:
    """The shape with the meaning of its winner's column, which the whole file says."""
    if shape.sided is None or shape.winner is not None:
        return shape
    return replace(shape, winner=settle_winner(shape.sided, _values(path), str(path)))


def _values(path: str | Path) -> Iterator[object]:
    return (row for _, row in read_rows(path))
