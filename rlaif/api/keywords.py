"""What the functions of the package share: keywords to settings, the judge and the constitution, progress.

Keywords are the flags of the command line in Python's spelling, or whole groups as mappings: `policy_samples=8` and
`policy={"samples": 8}` are both `--policy-samples 8`. None means not given. Error messages name keywords, not flags.
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

from rlaif.config.run_file import LATER, Value, settable
from rlaif.config.schemas import JudgeSettings, RunSettings
from rlaif.config.yaml import Model, Place, Source, Where, find_problems, key_hint
from rlaif.constitution import Constitution, load_constitution
from rlaif.errors import UserError, nearest
from rlaif.progress import Progress, Silent, show_progress, show_rows

if TYPE_CHECKING:
    from rlaif.feedback.pipeline import Report


P = ParamSpec("P")
T = TypeVar("T")
KeywordPath = tuple[str, ...]
Judge = str | Mapping[str, Any] | JudgeSettings
"""A name, the URL of a server, or settings as in a run file (`{"model": ..., "base_url": ...}`)."""

DEFAULT_CONSTITUTION = "helpful-honest-harmless-concise"
_MODELS: tuple[KeywordPath, ...] = (("policy",), ("judge",), ("held_out", "judge"))
"""Settings that name a model, where a string is enough."""
_FLAG = re.compile(r"--([a-z]+(?:-[a-z]+)*)")


def in_python(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function so that its UserErrors name keywords; an unknown keyword is a UserError too."""
    parameters = inspect.signature(function).parameters
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        for name in kwargs:
            if name not in parameters and not takes_all:
                raise UserError(f"no keyword `{name}`", where=f"{function.__name__}()", hint=key_hint(name, parameters))
        try:
            return function(*args, **kwargs)
        except UserError as error:
            is_flag = isinstance(error.where, str) and error.where.startswith("--")
            where = _with_keywords(str(error.where)) if is_flag else error.where
            message, hint = _with_keywords(error.what), _with_keywords(error.hint)
            raise UserError(message, where=where, line=error.line, hint=hint) from None  # its traceback adds nothing

    return call


def _with_keywords(text: str) -> str:
    """A message with keywords in place of flags; one that quotes a command stays as it is."""
    if "`rlaif " in text:
        return text
    text = text.replace("`--resume`", "`resume=True`")
    return _FLAG.sub(lambda flag: flag[1].replace("-", "_"), text)


def given(
    kind: type[BaseModel], keywords: Mapping[str, object], call: str, reserved: tuple[str, ...] = ()
) -> dict[KeywordPath, Value]:
    """The values of keywords, by the path of the setting in `kind`. Raises UserError on an unknown keyword.

    Messages name the function `call`; `reserved` are its other keywords, which a misspelled one may mean too.
    """
    paths = {setting.flag.removeprefix("--").replace("-", "_"): setting.path for setting in settable(kind)}
    tops = {field.alias or name for name, field in kind.model_fields.items()}
    groups = {path[:size] for path in paths.values() for size in range(1, len(path))}
    values: dict[KeywordPath, Value] = {}
    for name, raw in keywords.items():
        if raw is None:
            continue
        value = plain(raw)
        is_group = isinstance(value, Mapping) and name in tops
        path = (name,) if is_group or (name in tops and name not in paths) else paths.get(name)
        if path is None:
            hint = _spelling_hint(name, {*paths, *reserved}, {*tops, *reserved})
            raise UserError(f"no setting `{name}`", where=call, hint=hint)
        values |= dict(_leaves(path, value, name, groups))
    return values


def _spelling_hint(name: str, keywords: set[str], tops: set[str]) -> str:
    """The keyword that an unknown one resembles; without one, the choice of `tops`."""
    if name in LATER:
        return "it is set in the file"
    hint = key_hint(name, keywords | tops)
    return nearest(name, tops) if hint.startswith("known") else hint


def _leaves(
    path: KeywordPath, value: object, word: str, groups: set[KeywordPath]
) -> Iterator[tuple[KeywordPath, Value]]:
    """The single settings of a group, so that omitted ones keep their values."""
    if path in _MODELS and isinstance(value, str):
        value = named_model(value, word)
    if path in groups and isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves((*path, str(key)), inner, f"{word}.{key}", groups)
    else:
        yield path, Value(value, word)


def named_model(text: str, word: str) -> dict[str, Any]:
    """The settings of a model name, or of the URL of a server with a single model.

    Raises UserError where the server has several, ModelError where it does not respond.
    """
    if not text.startswith(("http://", "https://")):
        return {"model": text}
    from rlaif.inference.models import served_model

    return {"model": served_model(text, None, f'{word}={{"base_url": ..., "model": ...}}'), "base_url": text}


def plain(value: object) -> Any:
    """A value in YAML's types: paths as strings, tuples as lists, records as mappings of their explicit fields."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value


def one_of(value: T, choices: tuple[T, ...], word: str) -> T:
    """The value. Raises UserError where it is not one of the choices."""
    if value not in choices:
        names = [str(choice) for choice in choices if choice is not None]
        raise UserError(f"`{value}` is not known", where=word, hint=nearest(str(value), names))
    return value


def at_least_one(**numbers: int | None) -> None:
    """Raise UserError where a given number is less than 1."""
    for word, number in numbers.items():
        if number is not None and number < 1:
            raise UserError(f"must be at least 1, got {number}", where=word)


def run_of(run: str | Path | None, judge: Judge | None) -> RunSettings | None:
    """The run file that names the judge, if any. Raises UserError where `judge` names one too."""
    if run is None:
        return None
    if judge is not None:
        raise UserError("takes the judge from the run file", where="run", hint="leave `judge` out")
    from rlaif.config.run_file import load_run

    return load_run(Path(run))


def judge_settings(run: str | Path | None, judge: Judge | None) -> JudgeSettings:
    """The judge of a run file, or the named one. Raises UserError where both are missing."""
    base = run_of(run, judge)
    if base is not None:
        return base.judge
    if judge is None:
        hint = 'for instance judge="demo-judge", or run="run.yaml"'
        raise UserError("does not say which judge", where="judge", hint=hint)
    return valid(named_model(judge, "judge") if isinstance(judge, str) else plain(judge), JudgeSettings, "judge")


def constitution_of(named: str | Path | Constitution | None, base: RunSettings | None) -> Constitution:
    """The named constitution, that of the run file, or the default."""
    if isinstance(named, Constitution):
        return named
    return load_constitution(named or (base.constitution if base is not None else DEFAULT_CONSTITUTION))


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


@contextlib.contextmanager
def progress_of(quiet: bool) -> Iterator[Progress]:
    """Progress bars or lines on standard error, unless `quiet`."""
    if quiet:
        yield Silent()
        return
    with show_progress() as progress:
        yield progress


@contextlib.contextmanager
def reading(name: str, quiet: bool) -> Iterator[Callable[[int], None] | None]:
    """The progress of reading rows from `name`, unless `quiet`."""
    if quiet:
        yield None
        return
    with show_rows(name) as progress:
        yield progress


class Screen:
    """Shows the stages of a workflow on standard error (see `workflow.run.Screen`)."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet

    def stage(self, name: str) -> None:
        """Show a heading."""
        self.note(name)

    def note(self, text: str) -> None:
        """Show a line."""
        if not self._quiet:
            import click

            click.echo(text, err=True)

    def data(self, report: Report) -> None:
        """Show nothing: the caller gets the counts."""

    def progress(self) -> AbstractContextManager[Progress]:
        """Show the requests of a stage, or the steps of a training."""
        return progress_of(self._quiet)
