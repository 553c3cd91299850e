"""Rewards of a reward model for responses: for any code (`rewards_of`), and for a file of them (`rlaif score`)."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rlaif.errors import ModelError, UserError
from rlaif.store import draft_of
from rlaif.training.batches import lay_out, split
from rlaif.training.forward import Way, choose_way, compute, mean_of
from rlaif.training.groups import Group
from rlaif.training.intake import Intake
from rlaif.training.learned import Learned
from rlaif.training.responses import USUAL, Answered, Columns, responses
from rlaif.training.rewardfigures import Figures, Scored, Tally
from rlaif.training.rewardmodel import Loaded, load
from rlaif.training.texts import Example, Template
from rlaif.training.tokens import Tokens

_ROWS = 5_000
"""Rows whose responses are sorted by length and scored together; their rewards are then written."""
_MOST = 8
"""Responses that share one prompt in a row: attention costs the square of a row's length, so more of them cost more."""


@torch.no_grad()
def rewards_of(
    model: Any,
    groups: Sequence[Group],
    *,
    tokens: int = 8192,
    way: Way | None = None,
    centered: bool = True,
    narrow: bool = False,
) -> list[float]:
    """The reward of every completion, in the order of the groups, which `way` (`forward.choose_way`) computes.

    `tokens` is what fits into memory at once. A model that was centred has its mean taken off, unless `centered` is
    false. `narrow` computes in bfloat16, and keeps weights and rewards in float32, as the training did.
    """
    if not groups:
        return []
    shared = sorted(groups, key=lambda group: -len(group.completions))
    way = way or choose_way(model, shared[:2], "rewards")  # those of several responses show whether sharing works
    device = next(model.parameters()).device
    found: dict[int, list[float]] = {}
    was_training = model.training
    model.eval()
    for part in split(groups, tokens, way.layout):
        some = [groups[at] for at in part]
        with torch.autocast(device.type, torch.bfloat16, enabled=narrow):
            rewards = iter(compute(model, lay_out(some, way.layout).to(device), way, "rewards").tolist())
        for at, group in zip(part, some, strict=True):
            found[at] = list(itertools.islice(rewards, len(group.completions)))
    model.train(was_training)
    mean = mean_of(model) if centered else 0.0
    return [reward - mean for at in range(len(groups)) for reward in found[at]]


def rewards_apart(model: Any, singles: Sequence[Group], *, tokens: int = 8192, **how: Any) -> list[float]:
    """The rewards of groups of one completion each, in their order; `how` goes to `rewards_of`.

    Equal ones are computed once, and those of one prompt share it.
    """
    equal: dict[tuple[bytes, bytes], list[int]] = {}
    for at, single in enumerate(singles):
        (completion,) = single.completions
        equal.setdefault((_bytes(single.prompt), _bytes(completion)), []).append(at)
    of_prompt: dict[bytes, list[int]] = {}
    for (prompt, _), places in equal.items():
        of_prompt.setdefault(prompt, []).append(places[0])
    parts = [part for firsts in of_prompt.values() for part in _filled(firsts, singles, tokens)]
    groups = [_joined([singles[at] for at in part]) for part in parts]
    rewards = rewards_of(model, groups, tokens=tokens, **how)
    by_first = dict(zip(itertools.chain.from_iterable(parts), rewards, strict=True))
    found = {at: by_first[places[0]] for places in equal.values() for at in places}
    return [found[at] for at in range(len(singles))]


class Apart:
    """`rewards_apart` call after call, for one model: how it computes them is found out once, and once more with the
    first prompt of several replies, as only those show whether sharing works."""

    def __init__(self, loaded: Loaded, tokens: int) -> None:
        self._model, self._tokens, self._narrow = loaded.model, tokens, loaded.narrow
        self._ways: dict[bool, Way] = {}
        """By whether replies that share a prompt were tried."""

    def __call__(self, singles: Sequence[Group]) -> list[float]:
        """The rewards of groups of one completion each, in their order."""
        if not singles:
            return []
        return rewards_apart(self._model, singles, tokens=self._tokens, way=self._way(singles), narrow=self._narrow)

    def _way(self, singles: Sequence[Group]) -> Way:
        if True in self._ways:
            return self._ways[True]
        of_prompt: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
        for single in singles:
            of_prompt.setdefault(tuple(single.prompt), {})[tuple(single.completions[0])] = None
        groups = sorted(
            (Group("", prompt, tuple(several)) for prompt, several in of_prompt.items()),
            key=lambda group: -len(group.completions),
        )
        shares = len(groups[0].completions) > 1
        if shares not in self._ways:
            self._ways[shares] = choose_way(self._model, groups[:2], "rewards")
        return self._ways[shares]


def _bytes(ids: Sequence[int]) -> bytes:
    return array("i", ids).tobytes()


def _filled(places: Sequence[int], singles: Sequence[Group], tokens: int) -> Iterator[list[int]]:
    """Groups of one prompt in parts of similar length that are computed as one row each."""
    part: list[int] = []
    used = 0
    for at in sorted(places, key=lambda at: len(singles[at].completions[0])):
        size = len(singles[at].completions[0])
        if part and (len(part) == _MOST or used + size > tokens):
            yield part
            part = []
        used = used + size if part else singles[at].tokens
        part.append(at)
    yield part


def _joined(singles: Sequence[Group]) -> Group:
    first = singles[0]
    return Group(first.id, first.prompt, tuple(single.completions[0] for single in singles))


def score(
    name: str,
    data: str | Path,
    *,
    output: Path | None = None,
    columns: Columns = USUAL,
    template: Template | None = None,
    template_options: Mapping[str, Any] | None = None,
    max_length: int | None = None,
    tokens: int = 8192,
    limit: int | None = None,
    top: int = 5,
    centered: bool = True,
    device: str = "auto",
    told: Callable[[int], None] | None = None,
) -> Figures:
    """Score the responses of a file by the reward model `name`, write a row for each to `output`, and sum them up.

    `template`, `template_options` and `max_length` are those of the model's training unless they are given. Raises
    UserError for what the user can fix, ModelError where a reward is no number.
    """
    loaded = load(name, device)
    intake, learned = Intake(), loaded.learned.asked(template)
    rows = responses(data, learned.reading, intake, columns)
    limits = loaded.tokens(max_length, template_options)
    scorer = _Scorer(loaded, limits, learned, intake, tokens, centered)
    tally = Tally(top)
    with contextlib.ExitStack() as stack:
        file = None
        if output is not None:
            draft = stack.enter_context(draft_of(output))
            # Half a surrogate pair, which UTF-8 has no bytes for, becomes the escape that JSON has for it.
            file = stack.enter_context(draft.open("w", encoding="utf-8", errors="backslashreplace", newline="\n"))
        while chunk := list(itertools.islice(rows, min(_ROWS, (limit or sys.maxsize) - intake.rows))):
            for row, scored in zip(chunk, scorer.scored(chunk), strict=True):
                tally.add(row, scored)
                if file is not None:
                    file.writelines(
                        json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in _lines(row, scored)
                    )
            if told is not None:
                told(intake.rows)
        if not tally.rewards:
            raise _nothing(intake, data)
    return tally.figures(name, str(data), intake, mean_of(loaded.model) if centered else 0.0)


def _nothing(intake: Intake, data: str | Path) -> UserError:
    why = "; ".join(f"{each.count:,} where {each.what}" for each in intake.reasons()[:3])
    mend = "raise --max-length" if "too-long" in intake.left_out else ""
    return UserError(f"no response in {intake.rows:,} rows can be scored: {why}", where=data, mend=mend)


class _Scorer:
    """Rows in, their rewards out; how the model computes them is found out once."""

    def __init__(
        self, loaded: Loaded, limits: Tokens, learned: Learned, intake: Intake, tokens: int, centered: bool
    ) -> None:
        self._model, self._limits, self._learned, self._intake = loaded.model, limits, learned, intake
        self._how: dict[str, Any] = {"tokens": tokens, "centered": centered, "narrow": loaded.narrow}

    def scored(self, rows: Sequence[Answered]) -> list[list[Scored | None]]:
        """The rewards of each row's responses; None for one that cannot be scored."""
        places = [(at, number) for at, row in enumerate(rows) for number in range(len(row.replies))]
        examples = (
            dataclasses.replace(example, id=f"{at} {number}")
            for at, number in places
            if (example := self._as_learned(rows[at].replies[number].example)) is not None
        )
        groups = {example.id: group for example, group in self._limits.with_examples(examples, self._intake)}
        rewards = self._rewards(rows, groups)
        scored = {
            key: Scored(reward, len(group.completions[0]))
            for (key, group), reward in zip(groups.items(), rewards, strict=True)
        }
        return [[scored.get(f"{at} {number}") for number in range(len(row.replies))] for at, row in enumerate(rows)]

    def _as_learned(self, example: Example | None) -> Example | None:
        """A conversation as text, for a model that learned prompts and responses as text."""
        if example is None or isinstance(example.prompt, str) or self._learned.template != "text":
            return example
        found = self._learned.example(example.id, example.prompt, example.completions[0])
        if found is None:
            self._intake.leave_out("no-form", example.line)
            return None
        return dataclasses.replace(found, line=example.line)

    def _rewards(self, rows: Sequence[Answered], groups: Mapping[str, Group]) -> list[float]:
        rewards = rewards_apart(self._model, list(groups.values()), **self._how)
        for key, reward in zip(groups, rewards, strict=True):
            if not math.isfinite(reward):
                row = rows[int(key.partition(" ")[0])]
                raise ModelError(f"the reward of `{row.id}` (line {row.line}) is {reward}: the model is broken")
        return rewards


def _lines(row: Answered, scored: Sequence[Scored | None]) -> Iterator[dict[str, Any]]:
    """What is written of a row: one line of a pair, else one of each response."""
    rewards = [None if each is None else each.reward for each in scored]
    head = {"id": row.id, "prompt": row.prompt}
    if row.paired:
        chosen, rejected = (reply.given for reply in row.replies)
        pair = {"chosen": chosen, "rejected": rejected}
        yield {**head, **pair, "chosen_reward": rewards[0], "rejected_reward": rewards[1]}
        return
    for at, (reply, reward) in enumerate(zip(row.replies, rewards, strict=True)):
        number = {"index": at} if len(row.replies) > 1 else {}
        yield {**head, **number, "response": reply.given, "reward": reward}
