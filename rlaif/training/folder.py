"""The folder of a training: what it was begun with, whether it may go on, what it came to.

train.json      method, settings, hashes of data and model: written first, and asked when a training goes on
checkpoint-N/   to go on from
log.jsonl       every line of the log
metrics.json    what it came to: written last, so that it is there means that the training is finished
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue

from rlaif import __version__
from rlaif.errors import UserError
from rlaif.records import Record
from rlaif.store import write_json, write_text
from rlaif.training.settings import Method, TrainSettings

_BEGUN, _LOG, _DONE = "train.json", "log.jsonl", "metrics.json"
_FREE = frozenset({"output", "tokens", "log_steps", "save_steps", "keep", "report_to", "reference_cache", "device"})
"""Settings that may change when a training goes on: the result does not depend on them."""


class Begun(Record):
    """What a training was begun with."""

    method: Method
    settings: dict[str, JsonValue]
    data_hash: str
    model_hash: str
    version: str = __version__


def claim(folder: Path, resume: bool) -> None:
    """Make sure that a training may write here. Raises UserError where another one, finished or not, has.

    Of several processes the first one looks, as the others may come when it has begun to write.
    """
    if not _first():
        return
    if folder.exists() and not folder.is_dir():
        raise UserError("is a file", where=folder, mend="name a folder")
    begun, done = (folder / _BEGUN).exists(), (folder / _DONE).exists()
    if done:
        raise UserError(
            "holds a finished training", where=folder, mend="name another folder with `output`, or remove it"
        )
    if resume and not begun:
        raise UserError("holds no training to go on with", where=folder, mend="leave `--resume` out")
    if begun and not resume:
        raise UserError("holds an unfinished training", where=folder, mend="go on with `--resume`, or remove it")
    if not begun and folder.exists() and any(folder.iterdir()):
        raise UserError("is not empty", where=folder, mend="name another folder with `output`")


def begin(settings: TrainSettings, begun: Begun, resume: bool) -> Path | None:
    """Write down what a training is begun with; of one that goes on, its last checkpoint, or None where it has none.

    Raises UserError where the settings or the data are not those that it was begun with.
    """
    folder = settings.folder
    if not resume:
        if _first():
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / _BEGUN, begun.model_dump(mode="json"))
        return None
    before = Begun.model_validate_json((folder / _BEGUN).read_text(encoding="utf-8"))
    changed = _changed(before, begun)
    if changed:
        mend = "set it back, or start again in another folder"
        raise UserError(f"was begun with {'; '.join(changed)}", where=folder / _BEGUN, mend=mend)
    return last_checkpoint(folder)


def _first() -> bool:
    """Whether this is the first of several processes: launchers number them in RANK."""
    return os.environ.get("RANK", "0") == "0"


def _changed(before: Begun, now: Begun) -> list[str]:
    names = sorted((before.settings.keys() | now.settings.keys()) - _FREE - {"data", "held_data", "model"})
    told = [
        f"`{name}: {json.dumps(before.settings.get(name))}`, not {json.dumps(now.settings.get(name))}"
        for name in names
        if before.settings.get(name) != now.settings.get(name)
    ]
    told += ["other data"] if before.data_hash != now.data_hash else []
    told += ["another model"] if before.model_hash != now.model_hash else []
    return told + ([f"`rlaif train {before.method}`"] if before.method != now.method else [])


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps that is there whole."""
    found = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").exists()]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def remove_checkpoints(folder: Path) -> None:
    """Of a finished training: nothing goes on from them, and each holds the weights three times over."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)


def write_log(folder: Path, lines: Sequence[Mapping[str, JsonValue]]) -> None:
    """Write the log."""
    write_text(folder / _LOG, "".join(json.dumps(line) + "\n" for line in lines))


def finish(folder: Path, metrics: Mapping[str, JsonValue]) -> None:
    """Write what the training came to."""
    write_json(folder / _DONE, dict(metrics))
