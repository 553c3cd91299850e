"""`--template-options`: what a chat template is given, as a mapping on the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def template_options(whose: str, name: str = "--template-options") -> Callable[[_Command], _Command]:
    """Add the flag; the command gets a mapping, or None where it is not given."""
    text = f"Passed to the chat template, for instance '{{enable_thinking: false}}': {whose}"
    return click.option(name, metavar="{KEY: VALUE}", callback=_mapping, help=text)


def _mapping(ctx: click.Context, parameter: click.Parameter, value: str | None) -> dict[str, Any] | None:  # noqa: ARG001
    return None if value is None else mapping(value)


def mapping(value: str) -> dict[str, Any]:
    """A mapping from the command line. Raises click.BadParameter for what is none."""
    from rlaif.yamlcore import plain_yaml

    try:
        found = plain_yaml(value)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise click.BadParameter(f"{value!r} is no mapping: write it like '{{enable_thinking: false}}'")
    return found
