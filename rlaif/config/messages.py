"""pydantic's complaints in plain words: which key, what it must be, what was given, the nearest right name."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, NamedTuple, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from rlaif.errors import nearest

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
