"""Who judges, by which constitution: from keywords, or from a run file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlaif.api.words import named_model, plain
from rlaif.constitution import Constitution, load_constitution
from rlaif.errors import UserError
from rlaif.plainwords import Where
from rlaif.settings import JudgeSettings, RunSettings
from rlaif.yamlfile import Model, Place, Source, find_problems

Judge = str | Mapping[str, Any] | JudgeSettings
"""A name, the URL of a server, or settings as in a run file (`{"model": ..., "base_url": ...}`)."""

USUAL = "helpful-honest-harmless-concise"
"""The constitution where none is named."""


def run_of(run: str | Path | None, judge: Judge | None) -> RunSettings | None:
    """The run file that brings the judge; None where there is none. Raises UserError where `judge` names another."""
    if run is None:
        return None
    if judge is not None:
        raise UserError("takes the judge from the run file", where="run", mend="leave `judge` out")
    from rlaif.runfile import load_run

    return load_run(Path(run))


def judge_settings(run: str | Path | None, judge: Judge | None) -> JudgeSettings:
    """The judge of a run file, or the one that is named. Raises UserError where it is neither."""
    base = run_of(run, judge)
    if base is not None:
        return base.judge
    if judge is None:
        what = "does not say which judge"
        raise UserError(what, where="judge", mend='for instance judge="demo-judge", or run="run.yaml"')
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
    from rlaif.training.settingsfile import refuse_all

    refuse_all(find_problems(source, kind))
    return kind.model_validate(source.data)
