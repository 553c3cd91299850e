"""What trainings and the evaluation of a run file name, looked for on the disk before anything is spent.

Nothing is loaded and no hub asked: `owner/name` may be there. What lies in the run's folder the run may make itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from rlaif.constitution import load_constitution
from rlaif.errors import UserError
from rlaif.evaluation.policies.settings import EvaluateSettings
from rlaif.inference.folder import require_model
from rlaif.online.rewards.choose import require_reward
from rlaif.online.settings import OnlineSettings
from rlaif.plainwords import Where
from rlaif.samples.rows import require_rows
from rlaif.settings import JudgeSettings, RunSettings
from rlaif.training.rows import DEMONSTRATION_FILES, PAIR_FILES, file_of
from rlaif.training.settings import CommonSettings
from rlaif.yamlfile import Source

_Look = tuple[Where, str | None, Callable[[str], object]]
"""Where a name stands, the name, and what raises UserError where nothing can be behind it."""


def files_of(setting: str, method: str) -> tuple[str, ...]:
    """What the trainer of a method reads of a folder that this setting names; nothing of a model's."""
    if setting == "prompts":
        return ("prompts.jsonl",)
    if setting == "center_on" or (setting in ("data", "held_data") and method == "sft"):
        return DEMONSTRATION_FILES
    return PAIR_FILES if setting in ("data", "held_data") else ()


def missing_of_training(settings: CommonSettings, source: Source, run: RunSettings) -> Iterator[UserError]:
    """What a training names and nobody will find."""
    for name in type(settings).model_fields:
        if files := files_of(name, settings.method):
            yield from _missing(((name,), getattr(settings, name), partial(_require_rows_in, files)), source, run)
    for name in ("model", "reference"):
        yield from _missing(((name,), getattr(settings, name, None), require_model), source, run)
    if isinstance(settings, OnlineSettings):
        for look in _online(settings, run):
            yield from _missing(look, source, run)


def missing_of_evaluation(
    settings: EvaluateSettings, gold: str | None, source: Source, run: RunSettings
) -> Iterator[UserError]:
    """What the evaluation names and nobody will find; `gold` are pairs for reward models."""
    looks: list[_Look] = [
        (("prompts", "path"), settings.prompts.path, require_rows),
        (("reward_gold",), gold, require_rows),
        (("judge", "model"), _in_process(settings.judge), require_model),
    ]
    for look in looks:
        yield from _missing(look, source, run)


def _require_rows_in(files: tuple[str, ...], value: str) -> None:
    require_rows(file_of(value, files))


def _online(settings: OnlineSettings, run: RunSettings) -> Iterator[_Look]:
    yield ("reward",), settings.reward, lambda spec: require_reward(spec, lambda name: _is_known(name, run))
    yield ("value", "model"), settings.value.model, require_model
    yield ("judge", "model"), _in_process(settings.judge), require_model
    yield ("held_out", "judge", "model"), _in_process(settings.held_out.judge), require_model
    yield ("constitution",), settings.constitution, load_constitution


def _in_process(judge: JudgeSettings | None) -> str | None:
    """The model of a judge that no server has."""
    return judge.model if judge is not None and judge.base_url is None and judge.launch is None else None


def _missing(look: _Look, source: Source, run: RunSettings) -> Iterator[UserError]:
    path, value, require = look
    if value is None or _is_known(value, run):
        return
    try:
        require(value)
    except UserError as error:
        where, line = source.place(path)
        told = error.what if value in error.what else f"{value}: {error.what}"
        yield UserError(told, where=where, line=line, mend=error.mend)


def _is_known(value: str, run: RunSettings) -> bool:
    """Whether the run names it too, which is looked at there, or makes it."""
    models = [each.model for each in (run.policy, *run.judges) if each is not None]
    if value in (run.constitution, *models):
        return True
    try:
        return Path(value).expanduser().resolve().is_relative_to(run.folder.resolve())
    except (OSError, ValueError, RuntimeError):  # what cannot be a path
        return False
