"""Settings of a training from a file, the environment and the command line: flag, then environment, file, default."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar, get_origin

from rlaif.errors import UserError, nearest
from rlaif.runfile import Flags, Setting, Value, absolute, settable
from rlaif.training.settings import CommonSettings
from rlaif.yamlcore import plain_yaml
from rlaif.yamlfile import Source, find_problems, read_yaml

_PATHS = (
    ("model",), ("data",), ("held_data",), ("reference",), ("center_on",), ("prompts",), ("reward",), ("constitution",),
    ("judge", "model"), ("held_out", "judge", "model"),
)  # fmt: skip
"""Settings that may be paths."""
_ENVIRONMENT = "RLAIF_TRAIN_"


Settings = TypeVar("Settings", bound=CommonSettings)


def load_settings(
    kind: type[Settings],
    path: Path | None,
    flags: Flags,
    pairs: Sequence[str] = (),
) -> Settings:
    """The resolved settings. `pairs` are texts `key=value` (`--set`), which beat the flags. Raises UserError.

    Paths in the file are relative to the file where something is there, all others to the working directory.
    """
    known = {setting.path: setting for setting in settable(kind)}
    source = Source({}, f"rlaif train {kind.method}", {}, ()) if path is None else read_yaml(path)
    if path is not None:
        source = absolute_paths(source, path.resolve().parent)
    for setting in known.values():
        variable = variable_of(setting)
        if (told := os.environ.get(variable)) is not None:
            source = _with(source, setting, told, variable)
    for name, given in flags.items():
        if isinstance(given, Value):
            source = source.with_value(name, *given)
        else:
            source = _with(source, known[name], given, known[name].flag)
    for text in pairs:
        place, value = _pair(text, {".".join(name): name for name in known})
        source = _with(source, known[place], value, f"--set {'.'.join(place)}")
    refuse_all(find_problems(source, kind))
    return kind.model_validate(source.data)


def variable_of(setting: Setting) -> str:
    """The environment variable of a training's setting: `RLAIF_TRAIN_BETA`."""
    return _ENVIRONMENT + "_".join(setting.path).upper()


def absolute_paths(source: Source, base: Path) -> Source:
    """Everything that exists under `base` made absolute, also the parts of a sum of rewards."""
    for path in _PATHS:
        source = absolute(source, path, base)
    reward = source.data.get("reward")
    if not isinstance(reward, str) or Path(reward).is_absolute() or {",", "*"} & set(str(base)):  # these part a sum
        return source
    parts = re.split(r"([,*])", reward)
    return source.reworded(("reward",), "".join(_absolute_reward(each, base) for each in parts))


def _absolute_reward(text: str, base: Path) -> str:
    """A function's file keeps the function's name."""
    name = text.strip()
    file, colon, function = name.rpartition(":") if ".py:" in name else (name, "", "")
    looks_like_path = "/" in file or Path(file).suffix == ".py"
    return f"{(base / file).resolve()}{colon}{function}" if looks_like_path and (base / file).exists() else text


def refuse_all(found: Sequence[UserError]) -> None:
    """Raise the mistakes, if there are any: no command lists them, so that all of them are told, in one line."""
    if not found:
        return
    first, *others = found
    mend = "; ".join([*([first.mend] if first.mend else []), *(f"also {each}" for each in others)])
    raise UserError(first.what, where=first.where, line=first.line, mend=mend)


def _pair(text: str, known: Mapping[str, tuple[str, ...]]) -> tuple[tuple[str, ...], str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"`{text}` is not key=value", where="--set", mend="for instance --set beta=0.1")
    if name.strip() not in known:
        raise UserError(f"no setting `{name.strip()}`", where="--set", mend=nearest(name.strip(), known))
    return known[name.strip()], value


def _with(source: Source, setting: Setting, value: str, where: str) -> Source:
    """A text from outside, read as YAML where that gives a list; a list may also be written with commas alone."""
    try:
        parsed = plain_yaml(value)
    except ValueError:
        parsed = value
    if not isinstance(parsed, list | dict):
        listed = get_origin(setting.field.annotation) is tuple
        parsed = [part.strip() for part in value.split(",") if part.strip()] if listed else value
    return source.with_value(setting.path, parsed, where)
