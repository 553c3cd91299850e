"""The way to the terminal: nothing that people, models or servers wrote is obeyed there.

Every command writes through these functions, and hands rich only texts that went through `visible`.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import click

from rlaif.text import visible


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
