"""How a model was made, judging by the folder that its training left: its judges, its training data, its base models.

`lineage_of` collects what the folder of a policy says, following trainings on trainings, and `trained_on` the training
pairs of a reward model. Both are best effort: a folder without records, or data that moved or changed, give nothing.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import JsonValue

from rlaif.config.yaml import plain_yaml
from rlaif.data.files import read_rows
from rlaif.data.prompts import prompt_id, read_prompts
from rlaif.errors import RlaifError, UserError
from rlaif.evaluation.gold import GoldPair, read_gold
from rlaif.inference.base import name_without
from rlaif.records import content_id
from rlaif.store import sha256_of, shipped_model
from rlaif.text import loads
from rlaif.training.tokenize import text_format_of

_DEEPEST = 5
"""The longest chain of trainings that is followed."""
_MOST_ROWS = 50_000
"""The most rows of training data that are read for their prompts."""
_DATA_FILES = ("pairs.jsonl", "sft.jsonl", "prompts.jsonl", "samples.jsonl")


class Lineage(NamedTuple):
    """Where a policy comes from, judging by its folder."""

    judges: frozenset[str] = frozenset()
    """Models whose labels or grades it was trained on."""
    data: tuple[Path, ...] = ()
    """Files that it, or what it started from, was trained on."""
    bases: tuple[str, ...] = ()
    """Models that it was made from."""
    raw: bool = False
    """Its own training was on texts without a chat template."""


def lineage_of(model: str) -> Lineage:
    """The lineage that the folder of a model records; empty where there is no folder or no record."""
    return _lineage(model, _DEEPEST)


def _lineage(model: str, depth: int) -> Lineage:
    folder = shipped_model(model) or Path(model).expanduser()
    if not depth or not folder.is_dir():
        return Lineage()
    settings: Mapping[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        train_state = loads((folder / "train.json").read_text(encoding="utf-8"))
        if isinstance(train_state, dict) and isinstance(train_state.get("settings"), dict):
            settings = train_state["settings"]
    judges, bases = _read_card(folder)
    data: list[Path] = []
    for key in ("data", "prompts"):
        path = _existing_file(settings.get(key), folder)
        if path is not None:
            data.append(path)
            judges |= _row_judge(path) if key == "data" else set()
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


def _reward_judges(reward: str, settings: Mapping[str, Any], depth: int) -> set[str]:
    """The judges behind an online training: the judge that was its reward, and those of its reward models."""
    judges: set[str] = set()
    for part in reward.split(","):
        name = part.strip().rpartition("*")[0] or part.strip()
        judge = settings.get("judge")
        if name == "judge" and isinstance(judge, dict) and isinstance(judge.get("model"), str):
            judges.add(judge["model"])
        elif name != "judge":
            judges |= _lineage(name, depth - 1).judges
    return judges


def _existing_file(value: JsonValue, folder: Path) -> Path | None:
    """The data file that a training read, where it still exists."""
    if not isinstance(value, str):
        return None
    for path in (Path(value).expanduser(), folder / value):
        if path.is_file():
            return path
        if path.is_dir():
            return next((path / name for name in _DATA_FILES if (path / name).is_file()), None)
    return None


def _row_judge(path: Path) -> set[str]:
    """The judge that the first row of a preference dataset names."""
    with contextlib.suppress(RlaifError, OSError):
        row = next(read_rows(path), (0, None))[1]
        judge = row.get("judge") if isinstance(row, dict) else None
        return {judge} if isinstance(judge, str) else set()
    return set()


def _read_card(folder: Path) -> tuple[set[str], list[str]]:
    """The judges and base models in the card of a training: its rows `| judge | ... |`, and its `base_model`."""
    card = ""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        card = (folder / "README.md").read_text(encoding="utf-8")
    judges: set[str] = set()
    for line in card.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if len(cells) == 2 and cells[0] == "judge" and cells[1].startswith("`"):
            name = cells[1].split("`")[1]
            try:
                names = loads(name)
                judges |= {judge for judge in (names if isinstance(names, list) else []) if isinstance(judge, str)}
            except ValueError:
                judges.add(name)
    with contextlib.suppress(IndexError, ValueError):
        head = plain_yaml(card.split("---")[1])
        base = head.get("base_model") if isinstance(head, dict) else None
        return judges, [name for name in (base if isinstance(base, list) else [base]) if isinstance(name, str)]
    return judges, []


def trained_prompts(lineage: Lineage) -> frozenset[str]:
    """Ids of the prompts in the first rows of the data that a policy was trained on."""
    prompts: set[str] = set()
    for path in lineage.data:
        with contextlib.suppress(RlaifError, OSError):
            prompts |= {prompt.id for prompt in read_prompts(path, limit=_MOST_ROWS)}
    return frozenset(prompts)


def same_model(one: str, other: str) -> bool:
    """Whether two names mean one model; fingerprints (`@1a2b3c4d`) count where both have one, folders never."""
    first, second = _name_and_fingerprint(one), _name_and_fingerprint(other)
    fingerprints = {mark for _, mark in (first, second) if mark}
    return first[0] == second[0] and len(fingerprints) < 2


def _name_and_fingerprint(name: str) -> tuple[str, str]:
    head, at, mark = name_without(name).rpartition("@")
    return ((head if at else mark).rstrip("/").rsplit("/", 1)[-1].lower(), mark if at else "")


class TrainedOn(NamedTuple):
    """The training data of a model."""

    pairs: frozenset[str] | None
    """Their keys; None where the data are missing, changed, or not requested."""
    sha256: str
    """Hash of the file, or, for several files or a dataset, of their content."""
    raw: bool
    """The model was trained on raw text."""


def trained_on(folder: str, *, keys: bool = True) -> TrainedOn | None:
    """The data that the model in a folder was trained on, with the pairs themselves unless `keys` is false.

    None where the folder does not record them.
    """
    from rlaif.training.dataset import PAIR_FILES, file_of, pairs

    try:
        state: Any = loads((Path(folder).expanduser() / "train.json").read_text(encoding="utf-8"))
        settings, sha256 = state["settings"], str(state["data_hash"])
        data, template = str(settings["data"]), settings.get("template", "auto")
        alone = settings.get("held_data") is None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    try:
        file = Path(file_of(data, PAIR_FILES)).expanduser()
    except UserError:
        file = None
    # With held-out data the hash covers both files and cannot be compared. A dataset's name is not looked up.
    if file is None or not file.is_file() or (alone and sha256_of(file) != sha256):
        return TrainedOn(None, sha256, raw=False)
    pair_keys, raw = None, False
    with contextlib.suppress(RlaifError):  # a shape that the training reads and `read_gold` does not
        pair_keys = frozenset(map(_key, read_gold(str(file)))) if keys else None
    with contextlib.suppress(RlaifError):
        raw = template == "auto" and any(isinstance(pair.prompt, str) for pair in itertools.islice(pairs(file), 1))
    return TrainedOn(pair_keys, sha256, raw)


def overlap(trained: TrainedOn | None, pairs: Iterable[GoldPair], sha256: str | None) -> int | None:
    """How many of the pairs are in the training data; None where that is unknown."""
    if trained is None:
        return None
    if trained.pairs is not None:
        return sum(_key(pair) in trained.pairs for pair in pairs)
    return sum(1 for _ in pairs) if sha256 is not None and sha256 == trained.sha256 else None


def _key(pair: GoldPair) -> str:
    """The key of a pair: its prompt and replies, whichever of them is better."""
    return content_id(prompt_id(pair.prompt), sorted((pair.better, pair.worse)))
