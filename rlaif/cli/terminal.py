"""The way to the terminal: nothing that people, models or servers wrote is obeyed there.

Every command writes through these two functions, and hands rich texts that went through `visible`.
"""

from __future__ import annotations

import sys

import click

from rlaif.text import visible


def echo(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Write a line, control characters shown as marks."""
    click.echo(visible(str(text)), err=err, nl=nl)


def secho(text: str, *, err: bool = False, bold: bool = False, fg: str | None = None) -> None:
    """The same with a style."""
    click.secho(visible(text), err=err, bold=bold, fg=fg)


def emit(document: str) -> None:
    """A document that is meant for a file or another program: as it is, unless a terminal would read it."""
    click.echo(visible(document) if sys.stdout.isatty() else document, nl=False)
