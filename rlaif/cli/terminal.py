"""The way to the terminal: nothing that people, models or servers wrote is obeyed there, or read as markup.

Every command writes through these functions, and hands rich only texts that went through `visible`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import click

from rlaif.text import visible

if TYPE_CHECKING:
    from rich.text import Text


class Styled(NamedTuple):
    """A part of a line in a style of its own."""

    text: str
    fg: str | None = None
    bold: bool = False


def echo(*parts: object, err: bool = False, nl: bool = True) -> None:
    """Write a line of these parts, control characters shown as marks."""
    click.echo("".join(map(_shown, parts)), err=err, nl=nl)


def _shown(part: object) -> str:
    if isinstance(part, Styled):
        return click.style(visible(part.text), fg=part.fg, bold=part.bold or None)
    return visible(str(part))


def secho(text: str, *, err: bool = False, bold: bool = False, fg: str | None = None) -> None:
    """A whole line in one style."""
    echo(Styled(text, fg, bold), err=err)


def emit(document: str) -> None:
    """A document that is meant for a file or another program: as it is, unless a terminal would read it."""
    click.echo(visible(document) if sys.stdout.isatty() else document, nl=False)


_WIDEST = 10_000
"""Characters of a line that any table fits in."""


def short(text: str, most: int = 60) -> str:
    """One line of at most `most` characters."""
    line = visible(" ".join(text.split()))
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def percent(share: float | None) -> str:
    """A share for people; a dash where there is none."""
    return "-" if share is None else f"{share:.0%}"


def decimal(value: float | None) -> str:
    """A probability for people; a dash where there is none."""
    return "-" if value is None else f"{value:.2f}"


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    right: Sequence[str] = (),
    cut: Sequence[str] = (),
    folded: Sequence[str] = (),
) -> None:
    """Print a table to standard output, as wide as the terminal, or wider where it cannot be narrower.

    The columns `right` are set to the right. Where the room is short, the columns `cut` lose the ends of their texts
    and the columns `folded` break them over lines; with any of the latter there is a line between two rows.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    listed = [[visible(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), show_lines=bool(folded))
    for at, name in enumerate(columns):
        rigid = name not in (*cut, *folded)
        # Of a column without line breaks, rich would still take the longest word for the least that it needs.
        least = _widest([name, *(str(row[at]) for row in listed)]) if rigid else None
        justify: Literal["left", "right"] = "right" if name in right else "left"
        table.add_column(name, justify=justify, no_wrap=rigid, min_width=least, overflow="fold")
    for row in listed:
        table.add_row(*(_cut(cell) if name in cut else cell for name, cell in zip(columns, row, strict=True)))
    console = Console(markup=False, highlight=False, emoji=False)
    width = console.measure(table, options=console.options.update(max_width=_WIDEST)).minimum
    console.width = max(console.width, width)
    console.print(table)


def _widest(cells: Sequence[str]) -> int:
    """Of all lines in them."""
    from rich.cells import cell_len

    return max((cell_len(line) for cell in cells for line in cell.splitlines()), default=0)


def _cut(cell: str | Text) -> Text:
    from rich.text import Text

    cut = Text(cell) if isinstance(cell, str) else cell
    cut.no_wrap, cut.overflow = True, "ellipsis"
    return cut
