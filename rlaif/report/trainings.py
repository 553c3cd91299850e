"""The trainings in a folder: what each was begun with, how far it came, and what it logged."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue

from rlaif.config.secrets import without_secrets
from rlaif.errors import RlaifError
from rlaif.report.run_data import document, rows
from rlaif.report.view import Training
from rlaif.training.card import name_of
from rlaif.training.config import SETTINGS, CommonSettings

DEPTH = 2
"""Folders are looked for so many levels below."""
_FIGURES = {
    "loss": "loss",
    "accuracy": "accuracy: chosen above rejected",
    "margin": "margin: chosen less rejected",
    "brier": "Brier score",
    "rewards/chosen": "reward of chosen",
    "rewards/rejected": "reward of rejected",
    "rewards/good": "reward of good answers",
    "rewards/bad": "reward of bad answers",
    "reward": "reward",
    "kl": "divergence from the start, nats an answer",
    "entropy": "entropy, nats a token",
    "length": "tokens of an answer",
    "truncated": "answers that met the limit",
    "distinct_2": "distinct pairs of words",
    "unscored": "answers without a score, left out",
}
_LOST = {"kl": "distance from the reference, times beta"}
"""What else a figure is called where the training goes through rows."""
_NEEDED = ("model", "data", "prompts", "reward", "output")


def folders(root: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The folder itself and those below it, by name; checkpoints and hidden ones are passed over."""
    yield root
    try:
        below = sorted(root.iterdir()) if depth else []
    except OSError:  # not ours to read, and no part of the report
        return
    for path in below:
        if path.is_dir() and not path.is_symlink() and not path.name.startswith((".", "checkpoint-")):
            yield from folders(path, depth - 1)


def read_trainings(root: Path, files: Mapping[str, str]) -> list[Training]:
    """Every training in `root` and up to two levels below; `files` are the hashes of the run's own data."""
    found = []
    for folder in folders(root):
        if (folder / "train.json").is_file():
            found.append(_training(root, folder, files))
    return sorted(found, key=lambda each: (_ORDER.get(each.method, 9), each.name))


_ORDER = {"sft": 0, "reward": 1, "dpo": 2, "ppo": 3}


def _training(root: Path, folder: Path, files: Mapping[str, str]) -> Training:
    begun, metrics = document(folder / "train.json"), document(folder / "metrics.json")
    given = begun.get("settings")
    settings: dict[str, JsonValue] = _shown(given) if isinstance(given, dict) else {}
    method = str(begun.get("method") or "?")
    history = [line for line in _log(folder) if isinstance(line.get("step"), int | float)]
    steps = metrics.get("steps") or max((line["step"] for line in history), default=None)
    alarms = tuple(str(each) for each in metrics.get("alarms") or ())
    planned = settings.get("steps") if method == "ppo" else settings.get("max_steps")
    told = _told(method, settings)
    status: Literal["finished", "stopped", "unfinished", "damaged"] = "finished" if metrics else "unfinished"
    if metrics and isinstance(planned, int) and isinstance(steps, int | float) and steps < planned:
        status = "stopped"
    if not settings:
        status = "damaged"
    data_hash = str(begun.get("data_hash") or "")
    return Training(
        name=folder.relative_to(root).as_posix() if folder != root else ".",
        method=method,
        kind=str(settings.get("loss") or settings.get("algorithm") or method),
        status=status,
        model=name_of(str(settings.get("model") or "?")),
        settings=settings,
        told=told,
        data_hash=data_hash,
        data_note=_about_data(root, settings, data_hash, files),
        version=str(begun.get("version") or ""),
        steps=None if steps is None else int(steps),
        planned=planned if isinstance(planned, int) else None,
        seconds=metrics.get("seconds"),
        figures=_figures(method, metrics or _last(history)),
        alarms=alarms,
        held_out=tuple(_held_out(history)),
        history=tuple(history),
        command=_command(method, folder, settings, told, resume=status == "unfinished"),
    )


def _log(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of the log up to a broken one."""
    try:
        yield from rows(folder / "log.jsonl")
    except RlaifError:
        return


def _last(history: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in history:
        found |= line
    return found


def _figures(method: str, metrics: Mapping[str, Any]) -> dict[str, tuple[float | None, float | None]]:
    found = {}
    for name, told in _FIGURES.items():
        both = (_number(metrics.get(name)), _number(metrics.get(f"eval_{name}")))
        if both != (None, None):
            found[told if method == "ppo" else _LOST.get(name, told)] = both
    return found


def _number(value: object) -> float | None:
    """A finite number; None of anything else."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None  # type: ignore[arg-type]


def _held_out(history: list[dict[str, Any]]) -> Iterator[dict[str, float | None]]:
    for line in history:
        if isinstance(line.get("held_out/win_rate"), float):
            yield {
                "step": float(line["step"]),
                "win_rate": line["held_out/win_rate"],
                "length_controlled": _number(line.get("held_out/length_controlled")),
            }


def _shown(value: Any) -> Any:
    """Settings as they can be shown."""
    if isinstance(value, dict):
        return {name: _shown(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_shown(inner) for inner in value]
    return without_secrets(value) if isinstance(value, str) else value


def _about_data(root: Path, settings: Mapping[str, JsonValue], data_hash: str, files: Mapping[str, str]) -> str:
    same = [name for name, known in files.items() if known == data_hash]
    if same:
        return f"{same[0]} of this folder, as it is now"
    given = settings.get("data")
    if isinstance(given, str) and not settings.get("held_data"):
        path = Path(given)
        known = path.name in files and path.resolve().parent == root.resolve()
        if known or (path.resolve() == root.resolve() and files):
            return "changed since: this folder's data are other ones now"
    return ""


def _told(method: str, settings: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The settings that differ from the defaults, groups as `group.key`; all of them where the defaults are unknown."""
    from rlaif.rl.config import OnlineSettings

    rows_of: Mapping[Any, type[CommonSettings]] = SETTINGS
    kind = OnlineSettings if method == OnlineSettings.method else rows_of.get(method)
    given = {name: "-" for name in _NEEDED if kind is not None and name in kind.model_fields}
    defaults = _flat(kind.model_validate(given).model_dump(mode="json")) if kind is not None else {}
    return {
        name: value
        for name, value in _flat(settings).items()
        if name not in _NEEDED and value not in (None, [], {}) and value != defaults.get(name)
    }


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return found


def _command(
    method: str, folder: Path, settings: Mapping[str, JsonValue], told: Mapping[str, JsonValue], *, resume: bool
) -> str:
    """What makes the training again, word for word."""
    if not settings:
        return ""
    words = ["rlaif", "train", method]
    for name in ("model", "data", "prompts", "reward"):
        if isinstance(settings.get(name), str):
            words += [f"--{name}", str(settings[name])]
    words += ["--output", str(folder)]
    for name, value in _with_defaults_of_groups(told, settings).items():
        words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join([*words, *(["--resume"] if resume else [])])


def _with_defaults_of_groups(told: Mapping[str, JsonValue], settings: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Of a group that has no default (a judge), what was asked of the user; the rest of it has defaults of its own."""
    found = dict(told)
    judge = settings.get("judge")
    if isinstance(judge, dict):
        from rlaif.config.schemas import JudgeSettings

        usual = JudgeSettings(model="-").model_dump(mode="json")
        for name, value in judge.items():
            if name != "model" and value == usual.get(name):
                found.pop(f"judge.{name}", None)
    return found
