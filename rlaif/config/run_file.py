"""A run file with what flags and the environment change in it: flag, then environment, then file, then default.

Paths in the file are relative to the file, paths in flags to the working directory; both become absolute here, so that
the resolved settings saved in the run folder can be run again from anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rlaif.config.schemas import RunSettings
from rlaif.config.yaml import Source, Where, dump_yaml, key_hint, parse_yaml, read_yaml, validate
from rlaif.errors import UserError
from rlaif.store import write_text

_PATHS = (
    ("constitution",),
    ("prompts", "path"),
    ("revise", "helpful", "path"),
    ("policy", "model"),
    ("judge", "model"),
    ("judge", "templates"),
)
"""Settings that may be paths."""

SAVED = "run.yaml"
"""What a run folder's own run file is called."""

LATER = ("train", "evaluate")
"""Sections of a run file that `rlaif run` reads, for what comes after the data (see `rlaif.workflow.plan`)."""


class Value(NamedTuple):
    """A setting's value from Python code; a flag's is a text."""

    value: object
    where: str
    """What the caller named it, for messages."""


Flags = Mapping[tuple[str, ...], "str | Value"]
"""What is said beside the file, by the path of the setting."""


class Setting(NamedTuple):
    """One setting that can be given by flag and environment variable."""

    path: tuple[str, ...]
    field: FieldInfo

    @property
    def flag(self) -> str:
        """`--policy-samples`; a `path` is plain `--prompts`."""
        words = self.path[:-1] if self.path[-1] == "path" else self.path
        return "--" + "-".join(words).replace("_", "-")

    @property
    def variable(self) -> str:
        """`RLAIF_POLICY_SAMPLES`."""
        return "RLAIF_" + self.flag.removeprefix("--").replace("-", "_").upper()


def settable(model: type[BaseModel] = RunSettings, within: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Every single setting of `model`, groups entered, in the order of the file."""
    for key, field in model.model_fields.items():
        name = field.alias or key
        group = next((t for t in (field.annotation, *get_args(field.annotation)) if _is_group(t)), None)
        if group is None:
            yield Setting((*within, name), field)
        else:
            yield from settable(group, (*within, name))


def _is_group(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def read_run(path: Path | None, flags: Flags | None = None) -> Source:
    """The settings as they stand after flags and environment, not yet validated; without a file, those alone."""
    found = Source({}, "the settings") if path is None else read_yaml(path)
    source = _long_form(_long_form(_without_later(found), ("prompts",)), ("revise", "helpful"))
    if path is not None and _lies_in_its_run(path):
        source = source.reworded(("output",), str(path.resolve().parent))
    if path is not None:
        for setting in (*_PATHS, *_panel_paths(source)):
            source = absolute(source, setting, path.resolve().parent)
    known = {each.path: each for each in settable()}
    for each in known.values():
        if (text := os.environ.get(each.variable)) is not None:
            source = _overridden(source, each.path, text, each.variable)
    for place, value in (flags or {}).items():
        source = _overridden(source, place, value, known[place].flag if place in known else ".".join(place))
    return source


def _lies_in_its_run(path: Path) -> bool:
    """Whether this is the run file that a run has saved beside its tables: it is about that folder, which may have been
    copied or moved since."""
    tables = ("samples.jsonl", "judgements.jsonl", "pairs.jsonl", "manifest.json")
    return path.name == SAVED and any((path.resolve().parent / name).is_file() for name in tables)


def read_later(path: Path) -> dict[str, Source]:
    """The sections of a run file that are not about the data, as far as it has them."""
    source = read_yaml(path)
    return {key: source.below((key,)) for key in LATER if isinstance(source.data, dict) and key in source.data}


def _without_later(source: Source) -> Source:
    """Without those sections; an unknown key is a mistake that is told here, beside the names of all sections."""
    if not isinstance(source.data, dict):
        return source
    own = {field.alias or key for key, field in RunSettings.model_fields.items()}
    kept = {key: value for key, value in source.data.items() if key in own}
    faults = list(source.faults)
    for key in source.data.keys() - own - set(LATER):
        where, line = source.place((key,))
        faults.append(UserError(f"unknown key `{key}`", where=where, line=line, hint=key_hint(key, own | set(LATER))))
    return Source(kept, source.where, source.places, tuple(faults))


def load_run(path: Path, flags: Flags | None = None) -> RunSettings:
    """The resolved settings of a run. Raises UserError on the first mistake."""
    return validate(read_run(path, flags), RunSettings)


def save_run(settings: RunSettings, path: Path) -> None:
    """Write the resolved settings, in a form that can be run again."""
    data = settings.plain()
    data["output"] = str(Path(settings.output).resolve())
    text = "# The resolved settings of this run; `rlaif generate` takes this file too.\n"
    text += dump_yaml(data)
    write_text(path, text)


def _overridden(source: Source, path: tuple[str, ...], value: str | Value, where: str) -> Source:
    if isinstance(value, Value):
        source = source.with_value(_of_first_judge(source, path), *value)
        inner = _panel_paths(source) if path == ("judge",) else [_of_first_judge(source, path)]
        for place in inner if path in (*_PATHS, ("judge",)) else ():
            source = absolute(source, place, Path.cwd())
        return source
    place = _of_first_judge(source, path)
    source = source.with_value(place, _parsed(value, path), where)
    return absolute(source, place, Path.cwd()) if path in _PATHS else source


def _parsed(text: str, path: tuple[str, ...]) -> object:
    """A flag's text, read as YAML where it is a list or a mapping and the setting is not plain text: `--judge-model
    1e3` stays a name, `--policy-system "[Be brief]"` a sentence."""
    kind = next((each.field.annotation for each in settable() if each.path == path), None)
    if kind in (str, str | None):
        return text
    try:
        data = parse_yaml(text, "").data
    except UserError:
        return text
    return data if isinstance(data, list | dict) else text


def _panel_paths(source: Source) -> list[Where]:
    """The settings of a panel's judges that may be paths."""
    judges = source.data.get("judge") if isinstance(source.data, dict) else None
    found = range(len(judges)) if isinstance(judges, list) else ()
    return [("judge", at, name) for at in found for name in ("model", "templates")]


def _of_first_judge(source: Source, path: tuple[str, ...]) -> Where:
    """Where a setting stands: those of the judge, in a panel, at its first judge."""
    return ("judge", 0, *path[1:]) if path[0] == "judge" and path[1:] and _panel_paths(source) else path


def _at(source: Source, path: Where) -> object:
    """What stands at `path`; None where nothing does."""
    value = source.data
    for step in path:
        if isinstance(value, dict):
            value = value.get(step)
        else:
            value = value[step] if isinstance(value, list) and isinstance(step, int) else None
    return value


def _long_form(source: Source, path: tuple[str, ...]) -> Source:
    """`prompts: FILE` as `prompts: {path: FILE}`, so that flags can add to it."""
    value = _at(source, path)
    return source.reworded(path, {"path": value}) if isinstance(value, str) else source


def absolute(source: Source, path: Where, base: Path) -> Source:
    """A path that exists under `base` made absolute, its place in the file kept; anything else left as it is."""
    value = _at(source, path)
    if not isinstance(value, str) or not value or "\0" in value or Path(value).is_absolute():
        return source
    looks_like_path = "/" in value or Path(value).suffix != "" or path[-1] == "templates"  # never the name of anything
    if not (looks_like_path and (base / value).exists()):
        return source
    return source.reworded(path, str((base / value).resolve()))
