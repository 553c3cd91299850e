"""Settings of a training from a file, the environment and the command line: flag, then environment, file, default."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from rlaif.errors import UserError, nearest
from rlaif.runfile import Setting, settable
from rlaif.training.settings import SETTINGS, Method, TrainSettings
from rlaif.yamlfile import Source, read_yaml, validate

_PATHS = (("model",), ("data",), ("held_data",), ("reference",), ("center_on",))
_ENVIRONMENT = "RLAIF_TRAIN_"


def settings_of(method: Method) -> list[Setting]:
    """Every setting of a method."""
    return list(settable(SETTINGS[method]))


def load_settings(
    method: Method, path: Path | None, flags: Mapping[tuple[str, ...], str], pairs: Sequence[str] = ()
) -> TrainSettings:
    """The resolved settings. `pairs` are texts `key=value` (`--set`), which beat the flags. Raises UserError."""
    known = {setting.path: setting for setting in settings_of(method)}
    source = Source({}, f"rlaif train {method}", {}, ()) if path is None else read_yaml(path)
    for relative in _PATHS:
        source = _beside(source, relative, path)
    for setting in known.values():
        variable = _ENVIRONMENT + "_".join(setting.path).upper()
        if (value := os.environ.get(variable)) is not None:
            source = _with(source, setting.path, value, variable)
    for place, value in flags.items():
        source = _with(source, place, value, known[place].flag)
    for text in pairs:
        place, value = _pair(text, {".".join(name): name for name in known})
        source = _with(source, place, value, f"--set {'.'.join(place)}")
    return validate(source, SETTINGS[method])


def _pair(text: str, known: Mapping[str, tuple[str, ...]]) -> tuple[tuple[str, ...], str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"`{text}` is not key=value", where="--set", mend="for instance --set beta=0.1")
    if name.strip() not in known:
        raise UserError(f"no setting `{name.strip()}`", where="--set", mend=nearest(name.strip(), known))
    return known[name.strip()], value


def _with(source: Source, place: tuple[str, ...], value: str, where: str) -> Source:
    """A text from outside, read as YAML where that gives a list."""
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        parsed = value
    return source.with_value(place, parsed if isinstance(parsed, list | dict) else value, where)


def _beside(source: Source, place: tuple[str, ...], path: Path | None) -> Source:
    """A path in the file that exists beside the file, made absolute."""
    value = source.data.get(place[0]) if isinstance(source.data, dict) else None
    if path is None or not isinstance(value, str) or Path(value).is_absolute() or "/" not in value:
        return source
    beside = (path.resolve().parent / value).resolve()
    return source.with_value(place, str(beside), source.place(place).where) if beside.exists() else source
