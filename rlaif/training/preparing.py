"""From a data file to what a trainer takes: groups to train on, groups held out, and what became of the rows.

Held-out groups are drawn by prompt, so that all pairs of a prompt stay on one side, and by hash, so that the same ones
are held out whatever the seed. The hash is another one than that of `rlaif data export --split`: what that wrote as
training data can be split once more.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import random
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rlaif.data.repeats import hashed
from rlaif.data.turns import CUE, Turns
from rlaif.errors import UserError
from rlaif.records import content_id
from rlaif.store import sha256_of
from rlaif.training.groups import Group
from rlaif.training.intake import Intake, Report, report
from rlaif.training.learned import Forms, Learned
from rlaif.training.rows import DEMONSTRATION_FILES, PAIR_FILES, demonstrations, file_of, judged, pairs
from rlaif.training.texts import Example, LearnedTurns, Template
from rlaif.training.tokens import Tokens

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray[Any, np.dtype[Any]]

DataKind = Literal["pairs", "judged", "demonstrations"]
Told = Callable[[int], None]
"""Takes the number of rows read so far, every thousand rows."""

_STEP = 1000


class Prepared(NamedTuple):
    """What a trainer takes."""

    train: list[Group]
    held: list[Group]
    """To evaluate on; perhaps none."""
    data_hash: str
    """Of what the files hold: equal data, equal hash."""
    report: Report
    learned: Learned = Learned()
    """The form of the texts."""


class _Wanted(NamedTuple):
    """How the rows of a file are read."""

    kind: DataKind
    template: Template
    turns: LearnedTurns

    def examples(self, path: str | Path, intake: Intake) -> Iterator[Example]:
        """The rows as texts."""
        if self.kind == "demonstrations":
            return demonstrations(path, self.template, intake, self.turns)
        return (pairs if self.kind == "pairs" else judged)(path, self.template, intake)


class _Read(NamedTuple):
    """The groups of one file."""

    path: str | Path
    groups: list[Group]
    prompts: array[int]
    """64 bits of each group's prompt."""
    hash: str
    intake: Intake
    learned: Learned


def prepare(
    data: str | Path,
    tokens: Tokens,
    kind: DataKind = "pairs",
    *,
    template: Template = "auto",
    holdout: float = 0.0,
    held_data: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    turns: LearnedTurns = "last",
    told: Told | None = None,
) -> Prepared:
    """Read a file, a run's folder or a `datasets` name, and tokenize it.

    `holdout` is the share of the prompts that is held out, unless `held_data` names a file for that. `limit` takes only
    so many examples (of a pair, KTO makes two). `turns` says which replies of a demonstration are learned. `seed`
    decides which mismatched completion each group of `judged` data gets. Raises UserError where nothing is left to
    train on.
    """
    wanted = _Wanted(kind, template, turns)
    read = _read(data, tokens, wanted, limit, told)
    more: dict[str, Any]
    told_of = report(read.intake, read.path, read.groups, tokens.max_length, turns)
    if held_data is None:
        train, held = _parted(read, holdout)
        data_hash, more = read.hash, {"held": len(held)}
    else:
        other = _read(held_data, tokens, wanted, None, told)
        train, held, data_hash = read.groups, other.groups, content_id(read.hash, other.hash)
        evaluation = report(other.intake, other.path, held, tokens.max_length, turns)
        more = {"evaluation": evaluation, "shared": int(_member(other.prompts, read.prompts).sum())}
    if kind == "judged":
        # Those of the held-out groups come from the training data too, for one prompt alone may be held out.
        train, held = (_mismatched(groups, train, seed, tokens.max_length, read.path) for groups in (train, held))
    return Prepared(train, held, data_hash, told_of.model_copy(update=more), read.learned)


def _read(data: str | Path, tokens: Tokens, wanted: _Wanted, limit: int | None, told: Told | None) -> _Read:
    path = file_of(data, DEMONSTRATION_FILES if wanted.kind == "demonstrations" else PAIR_FILES)
    file, intake = Path(path).expanduser(), Intake()
    digest = None if file.is_file() else hashlib.sha256()
    examples = itertools.islice(_seen(wanted.examples(path, intake), digest, intake, told), limit)
    groups: list[Group] = []
    prompts, forms = array("Q"), Forms(tokens.template.marks[0])
    for example, group in tokens.with_examples(examples, intake):
        if wanted.kind == "judged" and groups and _twins(groups[-1], group, example):
            groups.pop()
            prompts.pop()
            intake.leave_out("same-tokens", example.line)
            continue
        groups.append(group)
        prompts.append(_key(example, wanted.turns))
        forms.add(example)
    if not groups:
        raise intake.nothing(path)
    data_hash = sha256_of(file) if digest is None else digest.hexdigest()
    return _Read(path, groups, prompts, data_hash, intake, forms.learned(tokens.template_options))


def _twins(one: Group, other: Group, example: Example) -> bool:
    """Whether the two replies of a pair, the good one and the bad one, are the same tokens."""
    pair, _, side = example.id.rpartition(":")
    same = one.prompt == other.prompt and one.completions == other.completions
    return side == "rejected" and one.id == f"{pair}:chosen" and same


def _seen(examples: Iterator[Example], digest: Any, intake: Intake, told: Told | None) -> Iterator[Example]:
    """The examples; their texts go into the digest, if there is one, and the rows read so far are told."""
    next_told = _STEP
    for example in examples:
        if digest is not None:
            digest.update(repr((example.prompt, example.completions, example.values)).encode())
        if told is not None and intake.rows >= next_told:
            told(intake.rows)
            next_told = intake.rows - intake.rows % _STEP + _STEP
        yield example


def _key(example: Example, turns: LearnedTurns) -> int:
    """64 bits of a prompt; of a text that continues nothing, of the text itself. Where all replies of a conversation
    are learned, of what stands before the first one: they stay on one side."""
    prompt = example.prompt or example.completions[0]
    if turns == "all":
        prompt = _beginning(prompt)
    parts = [prompt] if isinstance(prompt, str) else [part for turn in prompt for part in turn]
    return hashed("\0".join(("held out", *parts)))


def _beginning(prompt: str | Turns) -> str | Turns:
    """A conversation up to its first reply."""
    if isinstance(prompt, str):
        return prompt.partition(CUE)[0]
    return tuple(itertools.takewhile(lambda turn: turn.role != "assistant", prompt))


def _parted(read: _Read, share: float) -> tuple[list[Group], list[Group]]:
    """The groups to train on and those of the prompts with the smallest hashes, at least one if any are asked for."""
    import numpy as np

    if not 0 <= share < 1:
        raise UserError(f"holdout is {share}, not a share from 0 to below 1")
    if share == 0:
        return read.groups, []
    prompts = np.frombuffer(read.prompts, dtype=np.uint64)
    distinct = np.unique(prompts)
    if len(distinct) < 2:
        mend = "set `holdout: 0`, or name other data to evaluate on with `held_data`"
        raise UserError("all rows have the same prompt, so that none can be held out", where=read.path, mend=mend)
    last = distinct[min(max(round(share * len(distinct)), 1), len(distinct) - 1) - 1]
    away = (prompts <= last).tolist()
    train = [group for group, out in zip(read.groups, away, strict=True) if not out]
    return train, [group for group, out in zip(read.groups, away, strict=True) if out]


def _member(prompts: array[int], others: array[int]) -> Numbers:
    import numpy as np

    return np.isin(np.frombuffer(prompts, dtype=np.uint64), np.frombuffer(others, dtype=np.uint64))


def _mismatched(
    groups: list[Group], others: list[Group], seed: int, limit: int | None, path: str | Path
) -> list[Group]:
    """Each group with the completion of another prompt as its second, from which KTO estimates a divergence.

    It is that of the next one of `others`, in an order shuffled by the seed, that has another prompt. It may be cut to
    the limit at its end: it is no example to learn from, only its likelihood counts.
    """
    if all(group.prompt == others[0].prompt for group in others):
        raise UserError("KTO needs replies to two prompts at least", where=path, mend="give rows of several prompts")
    order = list(range(len(others)))
    random.Random(seed).shuffle(order)

    def with_other(at: int, group: Group) -> Group:
        next_ones = (others[order[(at + step) % len(order)]] for step in range(len(order)))
        other = next(each for each in next_ones if each.prompt != group.prompt)
        room = None if limit is None else limit - len(group.prompt)
        return dataclasses.replace(group, completions=(*group.completions, other.completions[0][:room]))

    return [with_other(at, group) for at, group in enumerate(groups)]
