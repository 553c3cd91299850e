"""The trainings in a folder: their settings, their progress, and their logged metrics."""

from __future__ import annotations

import contextlib
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
"""Levels below a folder in which the report looks for trainings and evaluations."""
_ORDER = {"sft": 0, "reward": 1, "dpo": 2, "ppo": 3}
_LABELS = {
    "loss": "loss",
    "accuracy": "accuracy: chosen above rejected",
    "margin": "margin: chosen less rejected",
    "brier": "Brier score",
    "rewards/chosen": "reward of chosen",
    "rewards/rejected": "reward of rejected",
    "rewards/good": "reward of good responses",
    "rewards/bad": "reward of bad responses",
    "reward": "reward",
    "kl": "KL to the reference, nats per response",
    "entropy": "entropy, nats per token",
    "length": "tokens per response",
    "truncated": "responses cut at the token limit",
    "distinct_2": "distinct-2: share of distinct word pairs",
    "unscored": "responses without a score, left out",
}
"""The metrics on the page, and how it calls them."""
_OFFLINE_LABELS = {"kl": "distance from the reference, times beta"}
"""Other labels where the training learns from rows of data."""
_INPUTS = ("model", "data", "prompts", "reward", "output")
"""Settings with flags of their own."""


def folders(root: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The folder itself and those below it, by name, except checkpoints and hidden ones."""
    yield root
    try:
        below = sorted(root.iterdir()) if depth else []
    except OSError:  # not readable for this user, and no part of the report
        return
    for path in below:
        if path.is_dir() and not path.is_symlink() and not path.name.startswith((".", "checkpoint-")):
            yield from folders(path, depth - 1)


def read_trainings(root: Path, files: Mapping[str, str]) -> list[Training]:
    """Every training in `root` and up to two levels below; `files` are the hashes of the run's data."""
    trainings = [_read_training(root, folder, files) for folder in folders(root) if (folder / "train.json").is_file()]
    return sorted(trainings, key=lambda training: (_ORDER.get(training.method, 9), training.name))


def _read_training(root: Path, folder: Path, files: Mapping[str, str]) -> Training:
    start, metrics = document(folder / "train.json"), document(folder / "metrics.json")
    given = start.get("settings")
    settings: dict[str, JsonValue] = _without_secrets(given) if isinstance(given, dict) else {}
    method = str(start.get("method") or "?")
    history = _history(folder)
    steps = metrics.get("steps") or max((line["step"] for line in history), default=None)
    planned = settings.get("steps") if method == "ppo" else settings.get("max_steps")
    overrides = _overrides(method, settings)
    status: Literal["finished", "stopped", "unfinished", "damaged"] = "finished" if metrics else "unfinished"
    if metrics and isinstance(planned, int) and isinstance(steps, int | float) and steps < planned:
        status = "stopped"
    if not settings:
        status = "damaged"
    data_hash = str(start.get("data_hash") or "")
    return Training(
        name=folder.relative_to(root).as_posix() if folder != root else ".",
        method=method,
        kind=str(settings.get("loss") or settings.get("algorithm") or method),
        status=status,
        model=name_of(str(settings.get("model") or "?")),
        settings=settings,
        overrides=overrides,
        data_hash=data_hash,
        data_note=_data_note(root, settings, data_hash, files),
        version=str(start.get("version") or ""),
        steps=None if steps is None else int(steps),
        planned=planned if isinstance(planned, int) else None,
        seconds=metrics.get("seconds"),
        metrics=_labeled_metrics(method, metrics or {name: value for line in history for name, value in line.items()}),
        alarms=tuple(str(alarm) for alarm in metrics.get("alarms") or ()),
        held_out=tuple(
            {
                "step": float(line["step"]),
                "win_rate": line["held_out/win_rate"],
                "length_controlled": _finite(line.get("held_out/length_controlled")),
            }
            for line in history
            if isinstance(line.get("held_out/win_rate"), float)
        ),
        history=tuple(history),
        command=_command(method, folder, settings, overrides, resume=status == "unfinished"),
    )


def _history(folder: Path) -> list[dict[str, Any]]:
    """The lines of the log that have a step, up to the first broken line."""
    history = []
    with contextlib.suppress(RlaifError):
        for line in rows(folder / "log.jsonl"):
            if isinstance(line.get("step"), int | float):
                history.append(line)
    return history


def _labeled_metrics(method: str, metrics: Mapping[str, Any]) -> dict[str, tuple[float | None, float | None]]:
    labels = _LABELS if method == "ppo" else _LABELS | _OFFLINE_LABELS
    values = {
        label: (_finite(metrics.get(name)), _finite(metrics.get(f"eval_{name}"))) for name, label in labels.items()
    }
    return {label: pair for label, pair in values.items() if pair != (None, None)}


def _finite(value: object) -> float | None:
    """A finite number; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_secrets(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_secrets(inner) for inner in value]
    return without_secrets(value) if isinstance(value, str) else value


def _data_note(root: Path, settings: Mapping[str, JsonValue], data_hash: str, files: Mapping[str, str]) -> str:
    same = [name for name, file_hash in files.items() if file_hash == data_hash]
    if same:
        return f"{same[0]} of this folder, in its current state"
    given = settings.get("data")
    if isinstance(given, str) and not settings.get("held_data"):
        path = Path(given)
        is_file_here = path.name in files and path.resolve().parent == root.resolve()
        if is_file_here or (path.resolve() == root.resolve() and files):
            return "changed since: this folder now holds other data"
    return ""


def _overrides(method: str, settings: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The settings that differ from the defaults, groups as `group.key`; all of them where the defaults are unknown."""
    from rlaif.rl.config import OnlineSettings

    offline: Mapping[Any, type[CommonSettings]] = SETTINGS
    kind = OnlineSettings if method == OnlineSettings.method else offline.get(method)
    inputs = {name: "-" for name in _INPUTS if kind is not None and name in kind.model_fields}
    defaults = _flat(kind.model_validate(inputs).model_dump(mode="json")) if kind is not None else {}
    return {
        name: value
        for name, value in _flat(settings).items()
        if name not in _INPUTS and value not in (None, [], {}) and value != defaults.get(name)
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _command(
    method: str, folder: Path, settings: Mapping[str, JsonValue], overrides: Mapping[str, JsonValue], *, resume: bool
) -> str:
    """The command that repeats the training exactly."""
    if not settings:
        return ""
    words = ["rlaif", "train", method]
    for name in ("model", "data", "prompts", "reward"):
        if isinstance(settings.get(name), str):
            words += [f"--{name}", str(settings[name])]
    words += ["--output", str(folder)]
    flags = dict(overrides)
    judge = settings.get("judge")
    if isinstance(judge, dict):  # a group without a default as a whole, whose parts have defaults
        from rlaif.config.schemas import JudgeSettings

        defaults = JudgeSettings(model="-").model_dump(mode="json")
        for name, value in judge.items():
            if name != "model" and value == defaults.get(name):
                flags.pop(f"judge.{name}", None)
    for name, value in flags.items():
        words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join([*words, *(["--resume"] if resume else [])])
