"""The flags that name a judge, and the judge that they name: the same for every evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rlaif.plainwords import Where
    from rlaif.settings import JudgeSettings, RunSettings

DEFAULT_CONSTITUTION = "helpful-honest-harmless-concise"
"""What is judged by where nothing else is said."""

_FLAGS = {"model": "--judge", "base_url": "--base-url", "api_key_env": "--api-key-env", "launch": "--launch"}
_NAMES = ("judge", "base_url", "judge_model", "api_key_env", "launch")

_Command = TypeVar("_Command", bound=Callable[..., Any])


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
    from rlaif.runfile import load_run

    if any(flags.get(name) is not None for name in _NAMES):
        raise click.UsageError("--run takes the judge from the run file: leave out the judge's own flags")
    return load_run(run_file)


def judge_of(flags: Mapping[str, Any]) -> JudgeSettings:
    """The judge by its flags. Raises click.UsageError where they do not fit together, UserError on a wrong value."""
    from rlaif.settings import JudgeSettings
    from rlaif.yamlfile import Place, Source, validate

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


def served_model(base_url: str, api_key_env: str | None, mend: str) -> str:
    """The one model of a server. Raises UserError where it has several: `mend` is how to name one of them."""
    from rlaif.errors import UserError
    from rlaif.inference.background import blocking
    from rlaif.inference.catalogue import only_model
    from rlaif.inference.source import key_in

    key = key_in(api_key_env)
    try:
        return blocking(only_model(base_url, key))
    except UserError as error:
        raise UserError(error.what, where=error.where, mend=f"say which one with {mend}") from None
