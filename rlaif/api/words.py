"""From keywords to settings: the names of the commands' flags, or whole groups as mappings; mistakes in Python's words.

`policy_samples=8` is `--policy-samples 8`, and so is `policy={"samples": 8}`. A keyword that is None is not given.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pydantic import BaseModel

from rlaif.errors import UserError, nearest
from rlaif.runfile import LATER, Value, settable

P = ParamSpec("P")
T = TypeVar("T")
Where = tuple[str, ...]

_MODELS: tuple[Where, ...] = (("policy",), ("judge",), ("held_out", "judge"))
"""Settings that name a model, for which a text will do."""
_FLAG = re.compile(r"--([a-z]+(?:-[a-z]+)*)")


def in_python(function: Callable[P, T]) -> Callable[P, T]:
    """The function, whose mistakes are told with the names of keywords: also a keyword that it does not have."""
    known = inspect.signature(function).parameters
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values())

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        for name in kwargs:
            if name not in known and not takes_all:
                raise UserError(f"no keyword `{name}`", where=f"{function.__name__}()", mend=nearest(name, known))
        try:
            return function(*args, **kwargs)
        except UserError as error:
            found = UserError(
                _spoken(error.what), where=_spoken_place(error.where), line=error.line, mend=_spoken(error.mend)
            )
            raise found from None  # a traceback tells nothing more of what is wrong

    return call


def _spoken(text: str) -> str:
    """The flags of a message as keywords; a command that it quotes stays as it is."""
    if "`rlaif " in text:
        return text
    text = text.replace("`--resume`", "`resume=True`")
    return _FLAG.sub(lambda flag: flag[1].replace("-", "_"), text)


def _spoken_place(where: str | Path | None) -> str | Path | None:
    return _spoken(where) if isinstance(where, str) and where.startswith("--") else where


def given(
    kind: type[BaseModel], keywords: Mapping[str, object], call: str, others: tuple[str, ...] = ()
) -> dict[Where, Value]:
    """What keywords say, by the path of the setting in `kind`. Raises UserError on one that it does not have.

    `call` is the function for messages, `others` its own keywords, which a mistyped one may mean too.
    """
    known = {_keyword(setting.flag): setting.path for setting in settable(kind)}
    tops = {field.alias or name for name, field in kind.model_fields.items()}
    groups = {path[:size] for path in known.values() for size in range(1, len(path))}
    found: dict[Where, Value] = {}
    for name, raw in keywords.items():
        if raw is None:
            continue
        value = plain(raw)
        whole = isinstance(value, Mapping) and name in tops
        path = (name,) if whole or (name in tops and name not in known) else known.get(name)
        if path is None:
            raise UserError(f"no setting `{name}`", where=call, mend=_meant(name, {*known, *others}, {*tops, *others}))
        found |= dict(_leaves(path, value, name, groups))
    return found


def _meant(name: str, known: set[str], few: set[str]) -> str:
    """The mending of an unknown keyword: the one that is meant, or where none is like it the `few` to look among."""
    if name in LATER:
        return "it is set in the file"
    mend = nearest(name, known | few)
    return nearest(name, few) if mend.startswith("known") else mend


def _keyword(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _leaves(path: Where, value: object, word: str, groups: set[Where]) -> Iterator[tuple[Where, Value]]:
    """Single settings, so that those of a group that are not given stay as they are."""
    if path in _MODELS and isinstance(value, str):
        value = named_model(value, word)
    if path in groups and isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves((*path, str(key)), inner, f"{word}.{key}", groups)
    else:
        yield path, Value(value, word)


def named_model(text: str, word: str) -> dict[str, Any]:
    """The settings that a text stands for: a model, or the URL of a server that has only one.

    Raises UserError where it has several, ModelError where it does not answer.
    """
    if not text.startswith(("http://", "https://")):
        return {"model": text}
    from rlaif.cli.judgeflags import served_model

    return {"model": served_model(text, None, f'{word}={{"base_url": ..., "model": ...}}'), "base_url": text}


def plain(value: object) -> Any:
    """A value as YAML has it: paths as texts, tuples as lists, records as mappings of what was set in them."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value


def one_of(value: T, known: tuple[T, ...], word: str) -> T:
    """The value. Raises UserError where it is none of those that are known."""
    if value not in known:
        names = [str(each) for each in known if each is not None]
        raise UserError(f"`{value}` is not known", where=word, mend=nearest(str(value), names))
    return value


def at_least_one(**numbers: int | None) -> None:
    """Raise UserError where a number is given and less than 1."""
    for word, number in numbers.items():
        if number is not None and number < 1:
            raise UserError(f"must be at least 1, got {number}", where=word)
