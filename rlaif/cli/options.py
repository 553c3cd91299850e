"""The flags of every command that takes a run file, made from the settings themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from pydantic_core import PydanticUndefined

from rlaif.cli.variables import warn_of_variables
from rlaif.runfile import Setting, load_run, settable
from rlaif.settings import RunSettings


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the argument RUN.yaml and one flag a setting; the command gets `run_file` and `flags`."""
    known = {parameter(setting): setting for setting in settable()}

    def call(run_file: Path, **given: Any) -> None:
        values = {name: given.pop(name) for name in known}
        flags = {known[name].path: value for name, value in values.items() if value is not None}
        warn_of_variables()
        command(run_file=run_file, flags=flags, **given)

    call.__doc__ = command.__doc__
    call.__name__ = command.__name__
    # click keeps the parameters of a function last one first, as decorators come.
    given = getattr(command, "__click_params__", [])
    call.__click_params__ = [*given, *map(flag, reversed(list(settable())))]  # type: ignore[attr-defined]
    return click.argument("run_file", metavar="RUN.yaml", type=click.Path(path_type=Path))(call)


def settings_of(run_file: Path, flags: dict[tuple[str, ...], str]) -> RunSettings:
    """The resolved settings of a command line."""
    return load_run(run_file, flags)


def parameter(setting: Setting) -> str:
    """What a command calls the value of a setting's flag."""
    return setting.flag.removeprefix("--").replace("-", "_")


def flag(setting: Setting) -> click.Option:
    """The flag of a setting, whose text is its help."""
    default = setting.field.default
    shown = "" if default is None or default is PydanticUndefined or default in ((), {}) else f"  [default: {default}]"
    text = (setting.field.description or "").replace("\n", " ")
    return click.Option([setting.flag, parameter(setting)], metavar="VALUE", help=f"{text}{shown}")
