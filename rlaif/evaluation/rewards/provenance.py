"""What a reward model was trained on, as far as its folder tells and the data still lie where they did."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.errors import RlaifError, UserError
from rlaif.evaluation.gold import GoldPair, read_gold
from rlaif.jsontext import loads
from rlaif.records import content_id
from rlaif.samples.inputs import prompt_id
from rlaif.store import sha256_of


class TrainedOn(NamedTuple):
    """The training data of a model."""

    pairs: frozenset[str] | None
    """Their keys; None where the data are not to be found, are no longer the same, or were not wanted."""
    sha256: str
    """Hash of the file; of several files, or a dataset, of what they hold."""
    raw: bool
    """They are raw text, and were learned as such."""


def trained_on(folder: str, *, keys: bool = True) -> TrainedOn | None:
    """The data that the model in a folder was trained on, with the pairs themselves unless `keys` is false.

    None where the folder does not tell.
    """
    try:
        begun: Any = loads((Path(folder).expanduser() / "train.json").read_text(encoding="utf-8"))
        settings, sha256 = begun["settings"], str(begun["data_hash"])
        file, template = _file(str(settings["data"])), settings.get("template", "auto")
        alone = settings.get("held_data") is None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    # Where rows to evaluate on were given too, the hash is of both, and cannot be compared.
    if file is None or (alone and sha256_of(file) != sha256):
        return TrainedOn(None, sha256, raw=False)
    return TrainedOn(_keys(file) if keys else None, sha256, template == "auto" and _raw(file))


def _file(data: str) -> Path | None:
    """The file that was read; the name of a dataset is not looked up for this."""
    from rlaif.training.rows import PAIR_FILES, file_of

    try:
        path = Path(file_of(data, PAIR_FILES)).expanduser()
    except UserError:
        return None
    return path if path.is_file() else None


def overlap(trained: TrainedOn | None, pairs: Iterable[GoldPair], sha256: str | None) -> int | None:
    """How many of the pairs stand in the training data; None where that cannot be told."""
    if trained is None:
        return None
    if trained.pairs is not None:
        return sum(_key(pair) in trained.pairs for pair in pairs)
    return sum(1 for _ in pairs) if sha256 is not None and sha256 == trained.sha256 else None


def _keys(path: Path) -> frozenset[str] | None:
    try:
        return frozenset(map(_key, read_gold(str(path))))
    except RlaifError:
        return None  # of another shape: the training could read it, and this cannot


def _key(pair: GoldPair) -> str:
    """By prompt and replies alone, whichever of them is called better."""
    return content_id(prompt_id(pair.prompt), sorted((pair.better, pair.worse)))


def _raw(path: Path) -> bool:
    """Whether the trainer took the rows as raw text."""
    from rlaif.training.rows import pairs

    try:
        return any(isinstance(each.prompt, str) for each in itertools.islice(pairs(path), 1))
    except RlaifError:
        return False
