"""Options made from settings: their flags, types and sections, and the command class that shows them in its help.

Every setting is one option. Its value reaches the settings as text, so that a mistake is reported in the same words
wherever it was made; the type in the help comes from the annotation of the setting.
"""

from __future__ import annotations

import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rlaif.cli.terminal import echo
from rlaif.config.messages import former_names
from rlaif.config.run_file import Setting
from rlaif.config.schemas import Metavar

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
