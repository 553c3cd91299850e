"""YAML files into pydantic models, with every mistake explained and with its line.

The reader is YAML 1.2's core schema, not PyYAML's 1.1: `no`, `on` and `12:30` are texts, `1e-5` is a number. It builds
plain data and remembers where each part was written, so that a complaint about a value can name its line. A `Source`
may also hold values from flags or the environment; a complaint about one of those names the flag instead.

pydantic's complaints are put in plain words: which key, what it must be, what was given, the nearest right name; a key
that was renamed names the new one.
"""

from __future__ import annotations

import codecs
import json
import re
import types
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeGuard, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from rlaif.errors import UserError, nearest


class CoreLoader(yaml.SafeLoader):
    """PyYAML's parser with the scalars of YAML 1.2's core schema; it only composes nodes, it constructs nothing."""


TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
CoreLoader.yaml_implicit_resolvers = {}
for _kind, (_pattern, _first) in _SCALARS.items():
    CoreLoader.add_implicit_resolver(TAG + _kind, re.compile(rf"(?:{_pattern})\Z"), _first)


class _Dumper(yaml.SafeDumper):
    """PyYAML's writer; what either version of YAML takes for no text stands in quotes."""


_Dumper.yaml_implicit_resolvers = {
    first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *CoreLoader.yaml_implicit_resolvers.get(first, [])]
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *CoreLoader.yaml_implicit_resolvers}
}


def plain_yaml(text: str) -> Any:
    """What YAML that others wrote holds. Raises ValueError for whatever is wrong with it, its depth included."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # a ValueError of its own: the 31st of February
        raise ValueError(f"not YAML: {error}") from None


def dump_yaml(data: object) -> str:
    """Plain data as YAML that reads back as it is, here and by older readers (PyYAML alone writes "08" as a number)."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    if any(mark in text for mark in "\x85\u2028\u2029"):  # line ends to YAML, which PyYAML writes as they are
        text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=False)
    return text


Model = TypeVar("Model", bound=BaseModel)

_MAX_BYTES = 5_000_000
_MAX_REPEATS = 10_000
"""Nodes that aliases may repeat before the file is taken for a bomb (a few lines can stand for billions of nodes)."""


class Place(NamedTuple):
    """Where a value was written: a file and a line, or a flag."""

    where: str
    line: int | None = None


@dataclass(frozen=True)
class Source:
    """Data still to be validated, and where each part of it was written."""

    data: Any
    where: str
    places: Mapping[Where, Place] = field(default_factory=dict)
    """Place of every path into the data; a path that is not listed has its parent's."""
    faults: tuple[UserError, ...] = ()
    """Mistakes found while reading, such as a key given twice."""

    def place(self, path: Where) -> Place:
        """Where the value at `path` was written, or else the nearest thing around it."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return Place(self.where)

    def below(self, path: Where) -> Source:
        """What stands at `path`, as a source of its own; nothing at all, or null, is an empty mapping."""
        data = self.data
        for key in path:
            data = data.get(key) if isinstance(data, dict) else None
        inner = {place[len(path) :]: found for place, found in self.places.items() if place[: len(path)] == path}
        return Source({} if data is None else data, self.where, {(): self.place(path), **inner})

    def with_value(self, path: Where, value: object, where: str) -> Source:
        """A copy where `value` stands at `path`, written at `where` (a flag, an environment variable).

        A number in `path` is the index of a list's item that is there.
        """
        if not isinstance(self.data, dict):
            return self
        data: Any = dict(self.data)
        top = data
        for at, key in enumerate(path[:-1], start=1):
            inner = data.get(key) if isinstance(data, dict) else data[key]
            wanted: Any = list if isinstance(path[at], int) else dict
            if inner is not None and not isinstance(inner, wanted):
                name = ".".join(str(step + 1 if isinstance(step, int) else step) for step in path[:at])
                file, line = self.place(path[:at])
                raise UserError(f"`{name}` must be a mapping here", where=file, line=line, hint=f"{where} goes into it")
            data[key] = data = wanted(inner or ())
        data[path[-1]] = value
        kept = {known: place for known, place in self.places.items() if known[: len(path)] != path}
        return Source(top, self.where, {**kept, path: Place(where)}, self.faults)

    def reworded(self, path: Where, value: object) -> Source:
        """A copy where `value` says what stood at `path` before, and keeps its place."""
        place = self.place(path)
        found = self.with_value(path, value, place.where)
        return Source(found.data, found.where, {**found.places, path: place}, found.faults)


def load_yaml(path: str | Path, model_type: type[Model]) -> Model:
    """The file as a `model_type`. Raises UserError on its first mistake, and says how many more there are."""
    return validate(read_yaml(path), model_type)


def problems(path: str | Path, model_type: type[BaseModel]) -> list[UserError]:
    """Everything that is wrong with the file, in the order of its lines; nothing raised."""
    try:
        return find_problems(read_yaml(path), model_type)
    except UserError as error:
        return [error]


def validate(source: Source, model_type: type[Model]) -> Model:
    """The data as a `model_type`. Raises UserError on the first mistake, and says how many more there are."""
    refuse(find_problems(source, model_type))
    return model_type.model_validate(source.data)


def refuse(found: list[UserError], listing: str = "rlaif check") -> None:
    """Raise the first of `found`, saying how many more there are and what lists them; none, no error."""
    if not found:
        return
    first, more = found[0], len(found) - 1
    if not more:
        raise first
    rest = f"and {more} more: `{listing}` lists them all"
    hint = f"{first.hint}; {rest}" if first.hint else rest
    raise UserError(first.what, where=first.where, line=first.line, hint=hint) from first


def find_problems(source: Source, model_type: type[BaseModel]) -> list[UserError]:
    """Everything that keeps the data from being a `model_type`, in the order of its lines."""
    found = list(source.faults)
    for complaint in complaints(source.data, model_type):
        where, line = source.place(complaint.path)
        found.append(UserError(complaint.what, where=where, line=line, hint=complaint.hint))
    # What is missing is told last: an unknown key above it is often the missing one, misspelt.
    return sorted(
        found, key=lambda error: (error.what.endswith(" is missing"), str(error.where) != source.where, error.line or 0)
    )


def read_yaml(path: str | Path) -> Source:
    """Read one YAML document. Raises UserError where it cannot be read or is not YAML."""
    return parse_yaml(_text(Path(path)), str(path))


def parse_yaml(text: str, where: str) -> Source:
    """Parse one YAML document. Raises UserError with line and column where it is not YAML."""
    try:
        node = yaml.compose(text, Loader=CoreLoader)
        if node is None:
            raise UserError("the file is empty", where=where)
        builder = _Builder(where)
        data = builder.build(node, ())
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, where) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"the character U+{_code(error.character):04X} is not allowed in YAML"
        raise UserError(what, where=where, line=line, hint="delete it") from None
    except RecursionError:
        raise UserError("nested too deeply", where=where) from None
    return Source(data, where, builder.places, tuple(builder.faults))


def _text(path: Path) -> str:
    try:
        if path.is_dir():
            raise UserError("is a folder, not a file", where=path)
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise UserError(f"is too large for a YAML file ({size / 1e6:.0f} MB)", where=path, hint="5 MB is the limit")
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError("no such file", where=path) from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=path) from None
    except ValueError:  # a NUL character in the name
        raise UserError("is not a possible file name", where=repr(str(path))) from None
    return _decoded(raw, path)


def _decoded(raw: bytes, path: Path) -> str:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError("is UTF-16, not UTF-8", where=path, hint="save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError("is not UTF-8", where=path, line=line, hint="save it as UTF-8") from None


_HINTS = {
    "mapping values are not allowed": "a text with `: ` in it must stand in quotes, or below a `>-`",
    "found character '%'": "a text that starts with % must stand in quotes",
    "found character '@'": "a text that starts with @ must stand in quotes",
    "found character '`'": "a text that starts with ` must stand in quotes",
    "found unexpected end of stream": "is a quote not closed?",
    "expected <block end>": "indent lines of one level alike, and close every quote",
    "could not find expected ':'": "is a `key:` without its colon, or a quote not closed?",
    "expected ',' or": "is a bracket not closed, or does a text need quotes?",
    "found undefined alias": "a text that starts with * must stand in quotes",
    "expected alphabetic or numeric": "a text that starts with * or & must stand in quotes",
}


def _syntax_error(error: yaml.MarkedYAMLError, where: str) -> UserError:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (None, 0)
    problem = error.problem or error.context or "unreadable"
    if "'\\t'" in problem:
        return UserError(f"a tab where spaces are wanted (column {column})", where=where, line=line, hint="use spaces")
    if "but found another document" in problem:
        return UserError("a second document starts here", where=where, line=line, hint="one file, one document")
    hint = next((hint for sign, hint in _HINTS.items() if sign in problem), "")
    return UserError(f"not YAML: {problem} (column {column})", where=where, line=line, hint=hint)


def _code(character: object) -> int:
    return character if isinstance(character, int) else ord(str(character)[0])


class _Builder:
    """Turns nodes into plain data, notes the place of every path, and collects what is wrong on the way."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.places: dict[Where, Place] = {}
        self.faults: list[UserError] = []
        self._built: set[int] = set()
        self._open: set[int] = set()
        self._repeats = 0

    def build(self, node: yaml.Node, path: Where) -> object:
        """Plain data for `node`; the place of a mapping's value is its key's, set by the caller."""
        self.places.setdefault(path, Place(self.where, node.start_mark.line + 1))
        self._guard(node)
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.CollectionNode) and node.tag not in (f"{TAG}map", f"{TAG}seq"):
                self._unknown_tag(node)
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self.build(item, (*path, at)) for at, item in enumerate(node.value)]
            return self._scalar(node)
        finally:
            self._open.discard(id(node))

    def _guard(self, node: yaml.Node) -> None:
        self._repeats += id(node) in self._built
        self._built.add(id(node))
        if id(node) in self._open:
            raise UserError("an alias stands inside its own anchor", where=self.where, line=node.start_mark.line + 1)
        if self._repeats > _MAX_REPEATS:
            raise UserError("its aliases (`*name`) repeat too much", where=self.where, hint="write the values out")

    def _mapping(self, node: yaml.MappingNode, path: Where) -> dict[str, Any]:
        data: dict[str, object] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._fault("a key must be a plain text", line, "is a text in [ ] or { } not in quotes?")
                continue
            key = str(key_node.value)
            if key in data:
                first = self.places[(*path, key)].line
                self._fault(f"the key `{key}` is given twice", line, f"the first is on line {first}")
                continue
            self.places[(*path, key)] = Place(self.where, line)
            data[key] = self.build(value_node, (*path, key))
        return data

    def _scalar(self, node: yaml.Node) -> Hashable:
        text, kind = str(node.value), node.tag.removeprefix(TAG)
        try:
            match kind:
                case "str":
                    return text
                case "null":
                    return None
                case "bool":
                    return text.lower() == "true"
                case "int":
                    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
                case "float":
                    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            self._fault(f"{text[:40]!r} is not of the kind `{kind}`", node.start_mark.line + 1)
            return text
        self._unknown_tag(node)
        return text

    def _unknown_tag(self, node: yaml.Node) -> None:
        self._fault(f"the tag `{node.tag}` is not supported", node.start_mark.line + 1, "write a plain value")

    def _fault(self, what: str, line: int, hint: str = "") -> None:
        self.faults.append(UserError(what, where=self.where, line=line, hint=hint))


Where = tuple[str | int, ...]
"""A path into nested data: keys and list indices."""


class Complaint(NamedTuple):
    """One thing wrong with the data at `path`."""

    path: Where
    what: str
    hint: str = ""


RENAMED: Mapping[str, str] = {
    "meetings": "matchups",
    "meters": "metrics",
    "slot_bias": "position_bias",
    "tokens": "max_tokens_per_pass",
    "keep": "checkpoints_to_keep",
    "center_on": "center_dataset",
    "watch": "monitor",
    "per": "loss_normalization",
    "place": "apply_to",
    "ahead": "async_rollout",
}
"""Former names of settings, and their names today. One of them holds only where the new name is known."""


def former_names(path: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The paths under which the setting at `path` was known before: `kl.place` of `kl.apply_to`."""
    for at, name in enumerate(path):
        for former, current in RENAMED.items():
            if name == current:
                yield (*path[:at], former, *path[at + 1 :])


def key_hint(name: str, known: Collection[str]) -> str:
    """The hint of an unknown-key error: the name that the setting has today, else as `nearest`.

    Keys of groups may be joined by dots, as for `--set`.
    """
    renamed = next((each for each in known if tuple(name.split(".")) in former_names(each.split("."))), None)
    return nearest(name, known) if renamed is None else f"it is now called `{renamed}`"


def located(title: str, found: Iterable[tuple[Where, str]]) -> ValidationError:
    """An error for a validator to raise that names, for each of several faults, its path below the validated value."""
    errors = [
        InitErrorDetails(type=PydanticCustomError("located", "{what}", {"what": what}), loc=path, input=None)
        for path, what in found
    ]
    return ValidationError.from_exception_data(title, errors)


def complaints(data: object, model_type: type[BaseModel]) -> list[Complaint]:
    """Everything that keeps `data` from being a `model_type`."""
    details: list[ErrorDetails] = []
    try:
        model_type.model_validate(data)
    except ValidationError as error:
        details += error.errors(include_url=False)
    details = [detail for detail in details if not _echo(detail)] + _truths_as_numbers(data, model_type)
    faults = [_Fault.of(detail, data) for detail in details]
    return [_complain(group, data, model_type) for group in _settle(faults)]


def _echo(detail: ErrorDetails) -> bool:
    """pydantic calls a list too short also where only its items are wrong, and says that already."""
    value = detail["input"]
    return (
        detail["type"] == "too_short" and isinstance(value, (list, tuple)) and len(value) >= detail["ctx"]["min_length"]
    )


def _truths_as_numbers(data: object, model_type: type[BaseModel]) -> list[ErrorDetails]:
    """The places where true or false stands for a number: pydantic takes them for 1 and 0 unless it is strict.

    Strict throughout would be too much: it refuses the texts that flags and environment variables bring as numbers.
    Its JSON mode takes lists for tuples and texts for paths, so that it looks as deep as the other.
    """
    try:
        model_type.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
        return [one for one in details if one["type"] in ("int_type", "float_type") and isinstance(one["input"], bool)]
    return []


class _Fault(NamedTuple):
    """One of pydantic's errors, its location parted into steps through the data and tags of a union's branches."""

    steps: tuple[tuple[str | int, bool], ...]
    """Each with whether it is a tag."""
    detail: ErrorDetails

    @classmethod
    def of(cls, detail: ErrorDetails, data: object) -> _Fault:
        steps: list[tuple[str | int, bool]] = []
        for at, step in enumerate(detail["loc"]):
            known, inner = _step(data, step)
            missing = detail["type"] == "missing" and at == len(detail["loc"]) - 1
            steps.append((step, not known and not missing))
            data = inner if known else data
        return cls(tuple(steps), detail)

    @property
    def path(self) -> Where:
        return tuple(step for step, tag in self.steps if not tag)

    @property
    def tag_at(self) -> int | None:
        """Index of the first tag."""
        return next((at for at, (_, tag) in enumerate(self.steps) if tag), None)


def _step(data: object, step: str | int) -> tuple[bool, object]:
    """Whether `data` has something at `step`, and what."""
    if isinstance(data, dict):
        return step in data, data.get(step)
    if isinstance(data, (list, tuple)) and isinstance(step, int) and step < len(data):
        return True, data[step]
    return False, None


def _settle(faults: Iterable[_Fault]) -> Iterator[list[_Fault]]:
    """Groups of faults that make one complaint: of a union, the branch that came nearest speaks, or all in one."""
    unions: dict[tuple[object, ...], list[_Fault]] = {}
    for fault in faults:
        at = fault.tag_at
        key = ("plain", id(fault)) if at is None else fault.steps[:at]
        unions.setdefault(key, []).append(fault)
    for group in unions.values():
        at = group[0].tag_at
        if at is None:
            yield group
            continue
        deeper = _nearest_branch(group, at)
        if deeper:
            yield from _settle(deeper)
        else:
            yield group


def _nearest_branch(group: list[_Fault], at: int) -> list[_Fault]:
    """The faults of the branch that took the value's shape and then found the least wrong; their tag taken off."""
    branches: dict[object, list[_Fault]] = {}
    for fault in group:
        branches.setdefault(fault.steps[at][0], []).append(fault)
    fitting = [branch for branch in branches.values() if not any(_wrong_shape(fault, at) for fault in branch)]
    if not fitting and len(branches) > 1:
        return []
    best = min(fitting or branches.values(), key=len)
    return [fault._replace(steps=fault.steps[:at] + fault.steps[at + 1 :]) for fault in best]


def _wrong_shape(fault: _Fault, at: int) -> bool:
    """The branch refused the value itself, not something inside it."""
    return len(fault.steps) == at + 1 and (fault.detail["type"] in _WANTED or fault.detail["type"] in _CHOICES)


_WANTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping (`key: value` lines)",
    "model_type": "a mapping (`key: value` lines)",
    "model_attributes_type": "a mapping (`key: value` lines)",
    "path_type": "a path",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}
_CHOICES = ("literal_error", "enum")

NAME_PATTERN = r"^[a-z][a-z0-9-]*$"
"""What may be a name in files, columns and commands."""
_FORMS = {NAME_PATTERN: "lower-case letters, digits and hyphens, a letter first"}


def _complain(group: list[_Fault], data: object, model_type: type[BaseModel]) -> Complaint:
    fault = group[0]
    kind, value, path = fault.detail["type"], fault.detail["input"], fault.path
    name = _name(path, data)
    if kind == "extra_forbidden":
        inside = f" in {_name(path[:-1], data)}" if path[:-1] else ""
        return Complaint(path, f"unknown key `{path[-1]}`{inside}", key_hint(str(path[-1]), _keys(model_type, fault)))
    if kind == "missing":
        return Complaint(path, f"{name} is missing")
    if kind in ("string_too_short", "too_short") and not (value.strip() if isinstance(value, str) else value):
        return Complaint(path, f"{name} is empty")
    wants = list(dict.fromkeys(_wanted(one.detail) for one in group))
    if not all(wants):
        message = fault.detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        return Complaint(path, f"{name}: {message}" if kind in ("value_error", "assertion_error") else message)
    if value is None:
        return Complaint(path, f"{name} is empty", f"it must be {' or '.join(wants)}")
    return Complaint(path, f"{name} must be {' or '.join(wants)}, got {_shown(value)}", _mend(kind, fault.detail))


def _wanted(detail: ErrorDetails) -> str:
    """What the value must be, after `must be`; empty for a kind of error that carries its own message."""
    if detail["type"] in _CHOICES:
        return "one of " + ", ".join(f"`{choice}`" for choice in _choices(detail))
    context = detail.get("ctx", {})
    if detail["type"] == "string_pattern_mismatch":
        return _FORMS.get(context["pattern"], f"text of the form {context['pattern']}")
    plain = {key: f"{value:g}" if isinstance(value, float) else value for key, value in context.items()}
    return _WANTED.get(detail["type"], "").format_map(plain)


def _choices(detail: ErrorDetails) -> list[str]:
    """The allowed values; pydantic tells them as `'a', 'b' or 'c'`."""
    expected = str(detail.get("ctx", {}).get("expected", ""))
    return [choice.strip(" '") for part in expected.split(",") for choice in part.split(" or ")]


def _mend(kind: str, detail: ErrorDetails) -> str:
    value = detail["input"]
    if kind in _CHOICES and isinstance(value, str):
        hint = nearest(value, _choices(detail))
        return hint if hint.startswith("did") else ""
    if kind == "string_type" and isinstance(value, (bool, int, float)):
        return f'put it in quotes: "{json.dumps(value)}"'
    if kind == "string_pattern_mismatch" and detail.get("ctx", {})["pattern"] == NAME_PATTERN:
        name = re.sub(r"[^a-z0-9]+", "-", str(value).lower()).strip("-0123456789")
        return f"did you mean `{name}`?" if name else ""
    if kind in ("list_type", "tuple_type"):
        return "write `- ` before every item, or [a, b]"
    return ""


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _name(path: Where, data: object) -> str:
    """`principles[no-slurs].weight`: list items by their id where they have one, by number from 1 where not."""
    text = ""
    for step in path:
        _, data = _step(data, step)
        if isinstance(step, int):
            named = data.get("id") if isinstance(data, dict) else None
            text += f"[{named if isinstance(named, str) and named else step + 1}]"
        else:
            text += f".{step}" if text else step
    return f"`{text}`" if text else "the whole"


def _keys(model_type: type[BaseModel], fault: _Fault) -> set[str]:
    """The keys that the model around the fault knows."""
    found: list[object] = [model_type]
    for step in fault.detail["loc"][:-1]:
        found = [inner for one in found for inner in _inside(one, step)]
    return {alias or name for one in found if _is_model(one) for name, alias in _fields(one)}


def _inside(kind: object, step: str | int) -> list[object]:
    """The types that a value of type `kind` has at `step`."""
    if _is_model(kind):
        fields = {alias or name: name for name, alias in _fields(kind)}
        if step in fields:
            return _branches(kind.model_fields[fields[str(step)]].annotation)
        return [kind] if kind.__name__ == step else []  # a union's tag
    return [branch for inner in get_args(kind) if inner is not Ellipsis for branch in _branches(inner)]


def _branches(kind: object) -> list[object]:
    """The alternatives of a union, without annotations; any other type alone."""
    if get_origin(kind) is Annotated:
        return _branches(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return [branch for one in get_args(kind) for branch in _branches(one)]
    return [kind]


def _is_model(kind: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _fields(model: type[BaseModel]) -> list[tuple[str, str | None]]:
    return [(name, info.alias) for name, info in model.model_fields.items()]
