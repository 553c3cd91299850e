"""The flags of every command that takes a run file, made from the settings themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from pydantic_core import PydanticUndefined

from rlaif.runfile import Setting, load_run, settable
from rlaif.settings import RunSettings


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the argument RUN.yaml and one flag a setting; the command gets `run_file` and `flags`."""
    known = {_parameter(setting): setting for setting in settable()}

    def call(run_file: Path, **given: Any) -> None:
        values = {name: given.pop(name) for name in known}
        flags = {known[name].path: value for name, value in values.items() if value is not None}
        command(run_file=run_file, flags=flags, **given)

    call.__doc__ = command.__doc__
    call.__name__ = command.__name__
    call.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    wrapped: Callable[..., None] = call
    for setting in reversed(list(settable())):
        wrapped = _option(setting)(wrapped)
    return click.argument("run_file", metavar="RUN.yaml", type=click.Path(path_type=Path))(wrapped)


def settings_of(run_file: Path, flags: dict[tuple[str, ...], str]) -> RunSettings:
    """The resolved settings of a command line."""
    return load_run(run_file, flags)


def _parameter(setting: Setting) -> str:
    return setting.flag.removeprefix("--").replace("-", "_")


def _option(setting: Setting) -> Callable[[Callable[..., None]], Callable[..., None]]:
    default = setting.field.default
    shown = "" if default is None or default is PydanticUndefined or default in ((), {}) else f"  [default: {default}]"
    text = (setting.field.description or "").replace("\n", " ")
    return click.option(setting.flag, _parameter(setting), metavar="VALUE", help=f"{text}{shown}")
