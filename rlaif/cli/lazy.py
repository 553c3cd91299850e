"""Groups of commands that know each command by name and a line of help only; its module is loaded when it is run."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import click


class Entry(NamedTuple):
    """A command of a group."""

    module: str
    name: str
    """What the command is called in that module."""
    help: str
    """Its line in the overview."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    entries: ClassVar[Mapping[str, Entry]] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names, in the order of the overview."""
        return list(self.entries)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        """The command of this name, its module imported now."""
        if name not in self.entries:
            return None
        entry = self.entries[name]
        command = getattr(importlib.import_module(entry.module), entry.name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that was asked for. Raises UsageError with the nearest name where there is none."""
        if args and args[0] not in self.entries and not args[0].startswith("-"):
            from rlaif.errors import nearest

            raise click.UsageError(f"no command `{args[0]}`; {nearest(args[0], self.entries)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the overview without importing any command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self.entries.items()])
