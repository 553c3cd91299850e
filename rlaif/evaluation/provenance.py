"""Where a model comes from, as far as its folder and its servers tell.

What is known of how a policy was made, from the folder that its training left: its judges, its prompts, its base.

What a reward model was trained on, as far as its folder tells and the data still lie where they did.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import JsonValue

from rlaif.config.shipped import shipped_model
from rlaif.config.yaml import plain_yaml
from rlaif.data.files import read_rows
from rlaif.data.prompts import prompt_id, read_prompts
from rlaif.errors import RlaifError, UserError
from rlaif.evaluation.gold import GoldPair, read_gold
from rlaif.inference.base import name_without
from rlaif.records import content_id
from rlaif.store import sha256_of
from rlaif.text import loads
from rlaif.training.text_format import text_format_of

_DEEPEST = 5
"""Trainings on trainings that are followed."""
_MOST_ROWS = 50_000
"""Rows of training data that are looked through for the prompts."""
_DATA_FILES = ("pairs.jsonl", "sft.jsonl", "prompts.jsonl", "samples.jsonl")


class Lineage(NamedTuple):
    """Where a policy comes from, as far as its folder tells."""

    judges: frozenset[str] = frozenset()
    """Models whose labels or grades it was trained on."""
    data: tuple[Path, ...] = ()
    """Files that it, or what it started from, was trained on."""
    bases: tuple[str, ...] = ()
    """Models that it was made from."""
    raw: bool = False
    """Its own training was on texts without a chat template."""


def lineage_of(model: str) -> Lineage:
    """What the folder of a model says; nothing of a model without one, or of a folder that tells nothing."""
    return _lineage(model, _DEEPEST)


def _lineage(model: str, depth: int) -> Lineage:
    folder = shipped_model(model) or Path(model).expanduser()
    if not depth or not folder.is_dir():
        return Lineage()
    settings = _settings(folder)
    judges, bases = set(_card_judges(folder)), list(_card_bases(folder))
    data: list[Path] = []
    for key in ("data", "prompts"):
        path = _file(settings.get(key), folder)
        if path is not None:
            data.append(path)
            judges |= set(_row_judges(path)) if key == "data" else set()
    reward = settings.get("reward")
    if isinstance(reward, str):
        judges |= _reward_judges(reward, settings, depth)
    start = settings.get("model")
    if isinstance(start, str):
        bases.append(start)
        under = _lineage(start, depth - 1)
        judges, bases, data = judges | under.judges, [*bases, *under.bases], [*data, *under.data]
    raw = text_format_of(folder).template in ("text", "plain")
    return Lineage(frozenset(judges), tuple(dict.fromkeys(data)), tuple(dict.fromkeys(bases)), raw)


def _settings(folder: Path) -> Mapping[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        begun = loads((folder / "train.json").read_text(encoding="utf-8"))
        if isinstance(begun, dict) and isinstance(begun.get("settings"), dict):
            return dict(begun["settings"])
    return {}


def _reward_judges(reward: str, settings: Mapping[str, Any], depth: int) -> set[str]:
    """Of an online training: the judge where it was the reward, and those behind its reward models."""
    found: set[str] = set()
    for part in reward.split(","):
        name = part.strip().rpartition("*")[0] or part.strip()
        judge = settings.get("judge")
        if name == "judge" and isinstance(judge, dict) and isinstance(judge.get("model"), str):
            found.add(judge["model"])
        elif name != "judge":
            found |= _lineage(name, depth - 1).judges
    return found


def _file(value: JsonValue, folder: Path) -> Path | None:
    """The file that a training was given, where it still is."""
    if not isinstance(value, str):
        return None
    for path in (Path(value).expanduser(), folder / value):
        if path.is_file():
            return path
        if path.is_dir():
            return next((path / name for name in _DATA_FILES if (path / name).is_file()), None)
    return None


def _row_judges(path: Path) -> Iterator[str]:
    """What the first row of a preference dataset calls its judge."""
    with contextlib.suppress(RlaifError, OSError):
        row = next(read_rows(path), (0, None))[1]
        judge = row.get("judge") if isinstance(row, dict) else None
        yield from ([judge] if isinstance(judge, str) else [])


def _card(folder: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return (folder / "README.md").read_text(encoding="utf-8")
    return ""


def _card_judges(folder: Path) -> Iterator[str]:
    """The row `| judge | ... |` of the card that a training writes."""
    for line in _card(folder).splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if len(cells) == 2 and cells[0] == "judge" and cells[1].startswith("`"):
            name = cells[1].split("`")[1]
            with contextlib.suppress(ValueError):
                listed = loads(name)
                yield from (each for each in (listed if isinstance(listed, list) else []) if isinstance(each, str))
                continue
            yield name


def _card_bases(folder: Path) -> Iterator[str]:
    with contextlib.suppress(IndexError, ValueError):
        head = plain_yaml(_card(folder).split("---")[1])
        base = head.get("base_model") if isinstance(head, dict) else None
        yield from (each for each in (base if isinstance(base, list) else [base]) if isinstance(each, str))


def trained_prompts(lineage: Lineage) -> frozenset[str]:
    """Ids of the prompts in the data that a policy was trained on, of so many rows as are quickly read."""
    found: set[str] = set()
    for path in lineage.data:
        with contextlib.suppress(RlaifError, OSError):
            found |= {prompt.id for prompt in read_prompts(path, limit=_MOST_ROWS)}
    return frozenset(found)


def same_model(one: str, other: str) -> bool:
    """Whether two names mean one model: fingerprints (`@1a2b3c4d`) count where both have one, folders never."""
    first, second = _named(one), _named(other)
    marks = {mark for _, mark in (first, second) if mark}
    return first[0] == second[0] and len(marks) < 2


def _named(name: str) -> tuple[str, str]:
    head, at, mark = name_without(name).rpartition("@")
    return ((head if at else mark).rstrip("/").rsplit("/", 1)[-1].lower(), mark if at else "")


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
        file, template = _provenance_file(str(settings["data"])), settings.get("template", "auto")
        alone = settings.get("held_data") is None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    # Where rows to evaluate on were given too, the hash is of both, and cannot be compared.
    if file is None or (alone and sha256_of(file) != sha256):
        return TrainedOn(None, sha256, raw=False)
    return TrainedOn(_keys(file) if keys else None, sha256, template == "auto" and _raw(file))


def _provenance_file(data: str) -> Path | None:
    """The file that was read; the name of a dataset is not looked up for this."""
    from rlaif.training.dataset import PAIR_FILES, file_of

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
    from rlaif.training.dataset import pairs

    try:
        return any(isinstance(each.prompt, str) for each in itertools.islice(pairs(path), 1))
    except RlaifError:
        return False
