"""The page in its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rlaif.page.gathering import figures_of
from rlaif.page.html import render
from rlaif.page.settings import read_told, reading_of
from rlaif.store import write_text

NAME = "report.html"


def write_page(folder: Path, told: Callable[[int], None] | None = None) -> Path:
    """Write `report.html` into a folder of a run, a training or an evaluation, whole or not at all; returns its path.

    `told` hears now and then how many rows were read. Raises UserError where the folder holds nothing to report on or
    cannot be written to, RecordError where a table has a broken line.
    """
    page = figures_of(folder, told)
    path = folder / NAME
    write_text(path, render(page, reading_of(read_told(folder)).least_mass))
    return path
