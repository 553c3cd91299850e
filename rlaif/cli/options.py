"""Options made from settings, and those that several commands share.

Every setting is one option. Its value reaches the settings as text, so that a mistake is reported in the same words
wherever it was made; the type in the help comes from the annotation of the setting, and `SettingsCommand` shows the
common ones or all. Shared are the options of a run, of the judge of an evaluation, and `--template-options`; so is the
warning about environment variables that begin like a setting and name none.
"""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rlaif.cli.terminal import echo
from rlaif.config.run_file import Flags, Setting, load_run, settable
from rlaif.config.schemas import Metavar, RunSettings
from rlaif.config.yaml import former_names
from rlaif.errors import closest
from rlaif.inference.models import served_model

if TYPE_CHECKING:
    from rlaif.config.schemas import JudgeSettings
    from rlaif.config.yaml import Where


_TYPES: Mapping[object, str] = {bool: "BOOLEAN", int: "INTEGER", float: "FLOAT", str: "TEXT", Path: "PATH"}
_TITLES = {"lora": "LoRA", "kl": "KL divergence", "value": "Value network", "mismatch": "Sampler mismatch"}
_ALL = "rlaif.cli.options.all"
"""The key in click's `ctx.meta` that says that the help shows every option."""


class SettingOption(click.Option):
    """The option of one setting."""

    def __init__(self, setting: Setting, section: str, *, hidden: bool = False) -> None:
        default = setting.field.default
        shown = default is not None and default is not PydanticUndefined and default not in ((), {})
        text = (setting.field.description or "").replace("\n", " ") + (f"  [default: {default}]" if shown else "")
        names = [setting.flag, parameter(setting)]
        super().__init__(names, metavar=metavar_of(setting.field), help=text, hidden=hidden)
        self.setting, self.section = setting, section


def option(setting: Setting, sections: Mapping[str, str] | None = None, *, hidden: bool = False) -> SettingOption:
    """The option of a setting. `sections` has the titles for settings outside of any group, by their names."""
    *groups, name = setting.path
    title = " ".join(_TITLES.get(group, group.replace("_", " ")) for group in groups)
    title = title or (sections or {}).get(name, "run")
    return SettingOption(setting, title[0].upper() + title[1:], hidden=hidden)


def parameter(setting: Setting) -> str:
    """The name of the callback's parameter that gets the value of a setting's option."""
    return setting.flag.removeprefix("--").replace("-", "_")


def metavar_of(field: FieldInfo) -> str:
    """The type of a setting as the help shows it: `INTEGER`, `PATH`, `[both|random]`; `YAML` for a list or mapping."""
    marked = next((each.text for each in field.metadata if isinstance(each, Metavar)), None)
    return marked or _type_name(field.annotation)


def _type_name(annotation: object) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        (annotation,) = (each for each in arguments if each is not type(None))
        return _type_name(annotation)
    if origin is Literal:
        return f"[{'|'.join(map(str, arguments))}]"
    if origin is tuple and get_origin(arguments[0]) is Literal:
        return f"{_type_name(arguments[0])},..."
    return _TYPES.get(annotation, "YAML")


class SettingsCommand(click.Command):
    """A command with an option for each of many settings.

    `--help` shows the options that are no settings and the `common` settings (dotted names, as in `policy.samples`);
    `--help-all` shows all. Settings stand in sections, one for each group of settings.
    """

    def __init__(self, *args: Any, common: Collection[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._common = frozenset(common)
        show_all = click.Option(
            ["--help-all"], is_flag=True, is_eager=True, expose_value=False, callback=_show_all,
            help="Show all options and exit.",
        )  # fmt: skip
        self.params.append(show_all)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Raises click.UsageError with the name of today for an option that was renamed."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            current = self._former_flags().get(error.option_name)
            if current is None:
                raise
            text = f"No such option '{error.option_name}'; it is now called '{current}'."
            raise click.UsageError(text, error.ctx) from None

    def _settings(self) -> Iterator[SettingOption]:
        return (each for each in self.params if isinstance(each, SettingOption) and not each.hidden)

    def _former_flags(self) -> dict[str, str]:
        settings = [each.setting for each in self._settings()]
        return {Setting(path, one.field).flag: one.flag for one in settings for path in former_names(one.path)}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of the command itself, then the settings section by section."""
        settings = list(self._settings())
        shown = [each for each in settings if ctx.meta.get(_ALL) or ".".join(each.setting.path) in self._common]
        options = [each for each in self.get_params(ctx) if isinstance(each, click.Option)]
        _write("Options", [each for each in options if not isinstance(each, SettingOption)], ctx, formatter)
        for section in dict.fromkeys(each.section for each in shown):
            _write(section, [each for each in shown if each.section == section], ctx, formatter)
        if len(shown) < len(settings):
            formatter.write_paragraph()
            formatter.write_text(f"These are the {len(shown)} common settings; --help-all lists all {len(settings)}.")


def _show_all(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:  # noqa: ARG001 - click's signature
    if value and not ctx.resilient_parsing:
        ctx.meta[_ALL] = True
        echo(ctx.get_help())
        ctx.exit()


def _write(
    title: str, parameters: Sequence[click.Parameter], ctx: click.Context, formatter: click.HelpFormatter
) -> None:
    rows = [row for each in parameters if (row := each.get_help_record(ctx)) is not None]
    if rows:
        with formatter.section(title):
            formatter.write_dl(rows)


_PREFIX = "RLAIF_"
_KEY = "_KEY"
"""The end of a variable that holds an API key: `api_key_env` takes any name, and no setting ends so."""


def warn_of_variables() -> None:
    """A line on standard error for every variable that begins with RLAIF_ and names no setting."""
    given = {name for name in os.environ if name.startswith(_PREFIX) and not name.endswith(_KEY)}
    known, former = _variables() if given else (set(), {})
    for name in sorted(given - known):
        hint = ""
        if name in former:
            hint = f"; it is now called {former[name]}"
        elif close := closest(name.removeprefix(_PREFIX), (each.removeprefix(_PREFIX) for each in known)):
            hint = f"; did you mean {_PREFIX}{close}?"
        echo(f"note: the environment variable {name} names no setting and is ignored{hint}", err=True)


def _variables() -> tuple[set[str], dict[str, str]]:
    """The variables of a run's settings, of every training's, and the one that says where vLLM is; and the former names
    of some, with their names today."""
    from rlaif.inference.vllm_process import PYTHON_VARIABLE
    from rlaif.rl.config import OnlineSettings
    from rlaif.training.config import SETTINGS, CommonSettings, variable_of

    kinds: list[type[CommonSettings]] = [*SETTINGS.values(), OnlineSettings]
    trainings = [setting for kind in kinds for setting in settable(kind)]
    known = {each.variable for each in settable()} | {variable_of(each) for each in trainings} | {PYTHON_VARIABLE}
    former: dict[str, str] = {}
    for setting in settable():
        former |= {Setting(path, setting.field).variable: setting.variable for path in former_names(setting.path)}
    for setting in trainings:
        former |= {
            variable_of(Setting(path, setting.field)): variable_of(setting) for path in former_names(setting.path)
        }
    return known, former


_Command = TypeVar("_Command", bound=Callable[..., Any])


def template_options(whose: str, name: str = "--template-options") -> Callable[[_Command], _Command]:
    """Add `--template-options`, or another flag for it; the command gets a mapping, or None."""
    text = f"Passed to the chat template, for instance '{{enable_thinking: false}}': {whose}"
    return click.option(name, metavar="{KEY: VALUE}", callback=_mapping, help=text)


def _mapping(ctx: click.Context, parameter: click.Parameter, value: str | None) -> dict[str, Any] | None:  # noqa: ARG001
    return None if value is None else mapping(value)


def mapping(value: str) -> dict[str, Any]:
    """A mapping from the command line. Raises click.BadParameter for what is none."""
    from rlaif.config.yaml import plain_yaml

    try:
        options = plain_yaml(value)
    except ValueError:
        options = None
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise click.BadParameter(f"{value!r} is no mapping: write it like '{{enable_thinking: false}}'")
    return options


COMMON = frozenset({
    "constitution", "prompts.path", "prompts.limit", "policy.model", "policy.base_url", "policy.samples",
    "policy.max_tokens", "judge.model", "judge.base_url", "judge.api_key_env", "compare.principles", "compare.orders",
    "pair.select", "pair.margin", "output",
})  # fmt: skip
"""The settings that the help of a command with a run file shows; `--help-all` shows all."""


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
    call.__click_params__ = [*given, *map(option, reversed(list(settable())))]  # type: ignore[attr-defined]
    return click.argument("run_file", metavar="RUN.yaml", type=click.Path(path_type=Path))(call)


def settings_of(run_file: Path, flags: Flags) -> RunSettings:
    """The resolved settings of a command line."""
    return load_run(run_file, flags)


DEFAULT_CONSTITUTION = "helpful-honest-harmless-concise"
"""The constitution of an evaluation that names none."""

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
    text = f"Constitution to judge by.  [default: with --run that of the run file, else {DEFAULT_CONSTITUTION}]"
    return _judge_options(click.option("--constitution", metavar="NAME|FILE", help=text)(command), *model)


def _judge_options(command: _Command, *model: str) -> _Command:
    path = click.Path(path_type=Path)
    for add in (
        click.option(
            "--run",
            "run_file",
            metavar="RUN.yaml",
            type=path,
            help="Run file that gives the judge, its settings and, unless --constitution is set, the constitution.",
        ),
        click.option(
            "--launch", type=click.Choice(["vllm"]), help="Start `vllm serve` with the judge, and stop it afterwards."
        ),
        click.option("--api-key-env", metavar="NAME", help="Environment variable that holds the server's API key."),
        click.option(
            *model,
            "judge_model",
            metavar="NAME",
            help="Model on the server, if --judge is the URL of one with several.",
        ),
        click.option("--base-url", metavar="URL", help="OpenAI-compatible server of the judge."),
        click.option(
            "--judge",
            metavar="MODEL|URL",
            help="Judge model: a shipped name, a folder, a hub name, its name on the server, or a URL.",
        ),
    ):
        command = add(command)
    return command


def run_of(run_file: Path, flags: Mapping[str, Any]) -> RunSettings:
    """The settings of the run file that `--run` names. Raises click.UsageError where flags name another one."""
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
