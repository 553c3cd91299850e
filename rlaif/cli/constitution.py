"""`rlaif constitution`: everything about constitution files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import click

from rlaif.cli.lazy import Entry, LazyGroup


class _Commands(LazyGroup):
    entries: ClassVar[Mapping[str, Entry]] = {
        "list": Entry("rlaif.cli.constitution_files", "list_", "The constitutions that ship with the package."),
        "show": Entry("rlaif.cli.constitution_files", "show", "The principles of one, as a table or as JSON."),
        "new": Entry("rlaif.cli.constitution_files", "new", "A commented file to start from."),
        "schema": Entry("rlaif.cli.constitution_files", "schema", "The JSON Schema that editors check by."),
        "check": Entry("rlaif.cli.constitution_check", "check", "Mistakes and weak spots, with their lines."),
        "test": Entry("rlaif.cli.constitution_test", "test", "Put each principle's examples to a judge."),
        "diff": Entry("rlaif.cli.constitution_diff", "diff", "What changed, and which labels of a run it moves."),
        "coverage": Entry("rlaif.cli.constitution_coverage", "coverage", "What each principle decided in a run."),
        "import": Entry("rlaif.cli.constitution_import", "import_", "A constitution from other projects' formats."),
    }


@click.command(cls=_Commands)
def constitution() -> None:
    """Write, check, test and compare constitutions.

    NAME|FILE is a constitution that ships with the package, or the path of a YAML file.
    """
