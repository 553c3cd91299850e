"""`rlaif data`: everything about files of preference data, ours or anybody's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import click

from rlaif.cli.lazy import Entry, LazyGroup


class _Commands(LazyGroup):
    entries: ClassVar[Mapping[str, Entry]] = {
        "check": Entry("rlaif.cli.data_check", "check", "What would spoil a training on a file, with its lines."),
        "export": Entry("rlaif.cli.data_export", "export", "A dataset for TRL or OpenRLHF, with its card."),
    }


@click.command(cls=_Commands)
def data() -> None:
    """Check and export preference data.

    FILE is JSONL, JSON or CSV (also with .gz), Parquet, or a `datasets` name (owner/name or owner/name:split).
    """
