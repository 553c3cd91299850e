"""Flags made from the settings, and those that name a judge: the same for every command.

Environment variables that look like settings and are none: a mistyped one would be passed over in silence.

`--template-options`: what a chat template is given, as a mapping on the command line.

The flags of every command that takes a run file, made from the settings themselves.

The flags that name a judge, and the judge that they name: the same for every evaluation.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from pydantic_core import PydanticUndefined

from rlaif.cli.terminal import echo
from rlaif.config.run_file import Setting, load_run, settable
from rlaif.config.schemas import RunSettings
from rlaif.inference.models import served_model

if TYPE_CHECKING:
    from rlaif.config.messages import Where
    from rlaif.config.schemas import JudgeSettings

_PREFIX = "RLAIF_"
_KEY = "_KEY"
"""How a variable may end that a user has put an API key in: `api_key_env` takes any name, and no setting ends so."""


def warn_of_variables() -> None:
    """A line on standard error for every variable that begins with RLAIF_ and names no setting."""
    given = {name for name in os.environ if name.startswith(_PREFIX) and not name.endswith(_KEY)}
    known = _known() if given else set()
    for name in sorted(given - known):
        close = difflib.get_close_matches(name, sorted(known), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        echo(f"note: the environment variable {name} names no setting and is passed over{hint}", err=True)


def _known() -> set[str]:
    """The variables of a run's settings, of every training's, and the one that says where vLLM is."""
    from rlaif.config.run_file import settable
    from rlaif.inference.vllm_process import PYTHON_VARIABLE
    from rlaif.rl.config import OnlineSettings
    from rlaif.training.config import SETTINGS, CommonSettings, variable_of

    kinds: list[type[CommonSettings]] = [*SETTINGS.values(), OnlineSettings]
    trainings = {variable_of(setting) for kind in kinds for setting in settable(kind)}
    return {setting.variable for setting in settable()} | trainings | {PYTHON_VARIABLE}


_Command = TypeVar("_Command", bound=Callable[..., Any])


def template_options(whose: str, name: str = "--template-options") -> Callable[[_Command], _Command]:
    """Add the flag; the command gets a mapping, or None where it is not given."""
    text = f"Passed to the chat template, for instance '{{enable_thinking: false}}': {whose}"
    return click.option(name, metavar="{KEY: VALUE}", callback=_mapping, help=text)


def _mapping(ctx: click.Context, parameter: click.Parameter, value: str | None) -> dict[str, Any] | None:  # noqa: ARG001
    return None if value is None else mapping(value)


def mapping(value: str) -> dict[str, Any]:
    """A mapping from the command line. Raises click.BadParameter for what is none."""
    from rlaif.config.yaml import plain_yaml

    try:
        found = plain_yaml(value)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise click.BadParameter(f"{value!r} is no mapping: write it like '{{enable_thinking: false}}'")
    return found


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


DEFAULT_CONSTITUTION = "helpful-honest-harmless-concise"
"""What is judged by where nothing else is said."""

_FLAGS = {"model": "--judge", "base_url": "--base-url", "api_key_env": "--api-key-env", "launch": "--launch"}
_NAMES = ("judge", "base_url", "judge_model", "api_key_env", "launch")


def judge_options(command: _Command) -> _Command:
    """Add the flags; the command gets `judge`, `base_url`, `judge_model`, `api_key_env`, `launch`, `run_file` and
    `constitution`, each None where it is not given."""
    return _with_options(command, "--judge-model", "--model")


def judge_options_beside_a_model(command: _Command) -> _Command:
    """The same for a command whose `--model` is something else."""
    return _with_options(command, "--judge-model")


def judge_options_beside_a_constitution(command: _Command) -> _Command:
    """The same but for `constitution`, for a command that is about one."""
    return _judge_options(command, "--judge-model", "--model")


def _with_options(command: _Command, *model: str) -> _Command:
    judged_by = f"What is judged by.  [default: with --run that of the run file, else {DEFAULT_CONSTITUTION}]"
    named = click.option("--constitution", metavar="NAME|FILE", help=judged_by)(command)
    return _judge_options(named, *model)


def _judge_options(command: _Command, *model: str) -> _Command:
    path = click.Path(path_type=Path)
    for option in (
        click.option(
            "--run",
            "run_file",
            metavar="RUN.yaml",
            type=path,
            help="Take judge, settings and, where none is named, constitution from a run file.",
        ),
        click.option(
            "--launch", type=click.Choice(["vllm"]), help="Start `vllm serve` with the judge, and stop it afterwards."
        ),
        click.option("--api-key-env", metavar="NAME", help="Environment variable that holds the server's API key."),
        click.option(
            *model, "judge_model", metavar="NAME", help="Where --judge is a URL: the model, if the server has several."
        ),
        click.option("--base-url", metavar="URL", help="OpenAI-compatible server that has the judge."),
        click.option(
            "--judge",
            metavar="MODEL|URL",
            help="A shipped name, a folder, a hub name, a server's name for it, or a URL.",
        ),
    ):
        command = option(command)
    return command


def run_of(run_file: Path, flags: Mapping[str, Any]) -> RunSettings:
    """The run file that brings the judge. Raises click.UsageError where flags name another one."""
    from rlaif.config.run_file import load_run

    if any(flags.get(name) is not None for name in _NAMES):
        raise click.UsageError("--run takes the judge from the run file: leave out the judge's own flags")
    return load_run(run_file)


def judge_of(flags: Mapping[str, Any]) -> JudgeSettings:
    """The judge by its flags. Raises click.UsageError where they do not fit together, UserError on a wrong value."""
    from rlaif.config.schemas import JudgeSettings
    from rlaif.config.yaml import Place, Source, validate

    name = flags["judge"]
    if name is None:
        raise click.UsageError("name the judge with --judge MODEL|URL, or take it from a run file with --run RUN.yaml")
    given = {"model": name, **{key: flags[key] for key in ("base_url", "api_key_env", "launch")}}
    if name.startswith(("http://", "https://")):
        if flags["base_url"] is not None:
            raise click.UsageError("--judge is a URL already: leave out --base-url")
        given |= {"base_url": name, "model": flags["judge_model"] or "(asked of the server)"}
    elif flags["judge_model"] is not None:
        raise click.UsageError("--judge-model goes with a --judge that is a URL: name the model in --judge")
    data = {key: value for key, value in given.items() if value is not None}
    places: dict[Where, Place] = {(key,): Place(flag) for key, flag in _FLAGS.items()}
    settings = validate(Source(data, "the judge's flags", places), JudgeSettings)
    if settings.base_url == name and flags["judge_model"] is None:
        return settings.model_copy(update={"model": served_model(name, settings.api_key_env, "--judge-model NAME")})
    return settings
