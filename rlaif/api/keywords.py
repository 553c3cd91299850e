"""From keywords to settings, who judges, and progress: what the functions share.

Progress of the functions: what the commands show of it on standard error, or nothing at all.

From keywords to settings: the names of the commands' flags, or whole groups as mappings; mistakes in Python's words.

`policy_samples=8` is `--policy-samples 8`, and so is `policy={"samples": 8}`. A keyword that is None is not given.

Who judges, by which constitution: from keywords, or from a run file.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from pydantic import BaseModel

from rlaif.config.messages import Where, key_hint
from rlaif.config.run_file import LATER, Value, settable
from rlaif.config.schemas import JudgeSettings, RunSettings
from rlaif.config.yaml import Model, Place, Source, find_problems
from rlaif.constitution import Constitution, load_constitution
from rlaif.errors import UserError, nearest
from rlaif.progress import Progress, Silent, show_progress, show_rows

if TYPE_CHECKING:
    from rlaif.feedback.pipeline import Report


@contextlib.contextmanager
def progress_of(quiet: bool) -> Iterator[Progress]:
    """Bars or lines, or nothing."""
    if quiet:
        yield Silent()
        return
    with show_progress() as progress:
        yield progress


@contextlib.contextmanager
def reading(what: str, quiet: bool) -> Iterator[Callable[[int], None] | None]:
    """For rows that are read."""
    if quiet:
        yield None
        return
    with show_rows(what) as progress:
        yield progress


class Screen:
    """For the whole loop."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet

    def stage(self, name: str) -> None:
        """A heading."""
        self.note(name)

    def note(self, text: str) -> None:
        """A line."""
        if not self._quiet:
            import click

            click.echo(text, err=True)

    def data(self, report: Report) -> None:
        """Nothing: the caller gets the counts."""

    def progress(self) -> AbstractContextManager[Progress]:
        """For a stage's questions, or a training."""
        return progress_of(self._quiet)


P = ParamSpec("P")
T = TypeVar("T")
KeywordPlace = tuple[str, ...]

_MODELS: tuple[KeywordPlace, ...] = (("policy",), ("judge",), ("held_out", "judge"))
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
                raise UserError(f"no keyword `{name}`", where=f"{function.__name__}()", hint=key_hint(name, known))
        try:
            return function(*args, **kwargs)
        except UserError as error:
            found = UserError(
                _spoken(error.what), where=_spoken_place(error.where), line=error.line, hint=_spoken(error.hint)
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
) -> dict[KeywordPlace, Value]:
    """What keywords say, by the path of the setting in `kind`. Raises UserError on one that it does not have.

    `call` is the function for messages, `others` its own keywords, which a mistyped one may mean too.
    """
    known = {_keyword(setting.flag): setting.path for setting in settable(kind)}
    tops = {field.alias or name for name, field in kind.model_fields.items()}
    groups = {path[:size] for path in known.values() for size in range(1, len(path))}
    found: dict[KeywordPlace, Value] = {}
    for name, raw in keywords.items():
        if raw is None:
            continue
        value = plain(raw)
        whole = isinstance(value, Mapping) and name in tops
        path = (name,) if whole or (name in tops and name not in known) else known.get(name)
        if path is None:
            raise UserError(f"no setting `{name}`", where=call, hint=_meant(name, {*known, *others}, {*tops, *others}))
        found |= dict(_leaves(path, value, name, groups))
    return found


def _meant(name: str, known: set[str], few: set[str]) -> str:
    """The mending of an unknown keyword: the one that is meant, or where none is like it the `few` to look among."""
    if name in LATER:
        return "it is set in the file"
    hint = key_hint(name, known | few)
    return nearest(name, few) if hint.startswith("known") else hint


def _keyword(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _leaves(
    path: KeywordPlace, value: object, word: str, groups: set[KeywordPlace]
) -> Iterator[tuple[KeywordPlace, Value]]:
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
    from rlaif.inference.models import served_model

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
        raise UserError(f"`{value}` is not known", where=word, hint=nearest(str(value), names))
    return value


def at_least_one(**numbers: int | None) -> None:
    """Raise UserError where a number is given and less than 1."""
    for word, number in numbers.items():
        if number is not None and number < 1:
            raise UserError(f"must be at least 1, got {number}", where=word)


Judge = str | Mapping[str, Any] | JudgeSettings
"""A name, the URL of a server, or settings as in a run file (`{"model": ..., "base_url": ...}`)."""

USUAL = "helpful-honest-harmless-concise"
"""The constitution where none is named."""


def run_of(run: str | Path | None, judge: Judge | None) -> RunSettings | None:
    """The run file that brings the judge; None where there is none. Raises UserError where `judge` names another."""
    if run is None:
        return None
    if judge is not None:
        raise UserError("takes the judge from the run file", where="run", hint="leave `judge` out")
    from rlaif.config.run_file import load_run

    return load_run(Path(run))


def judge_settings(run: str | Path | None, judge: Judge | None) -> JudgeSettings:
    """The judge of a run file, or the one that is named. Raises UserError where it is neither."""
    base = run_of(run, judge)
    if base is not None:
        return base.judge
    if judge is None:
        what = "does not say which judge"
        raise UserError(what, where="judge", hint='for instance judge="demo-judge", or run="run.yaml"')
    return valid(named_model(judge, "judge") if isinstance(judge, str) else plain(judge), JudgeSettings, "judge")


def constitution_of(named: str | Path | Constitution | None, base: RunSettings | None) -> Constitution:
    """The one that is named, that of the run file, or the usual one."""
    if isinstance(named, Constitution):
        return named
    return load_constitution(named or (base.constitution if base is not None else USUAL))


def valid(data: Any, kind: type[Model], word: str) -> Model:
    """Settings from a mapping, whose keyword is `word`. Raises UserError with all mistakes in one line."""
    places: dict[Where, Place] = {(): Place(word)}
    if isinstance(data, dict):
        places |= {(key,): Place(f"{word}.{key}".lstrip(".")) for key in data}
    return checked(Source(data, word, places), kind)


def checked(source: Source, kind: type[Model]) -> Model:
    """The data as a `kind`. Raises UserError with all mistakes in one line."""
    from rlaif.training.config import refuse_all

    refuse_all(find_problems(source, kind))
    return kind.model_validate(source.data)
