"""Many questions in one row: what they share is read once, and each ending sees only that and itself.

All principles put to one pair of replies share everything up to the question. A row holds that common beginning and
then the different endings; the attention mask and the positions make each ending see exactly what it would see in a
row of its own, so the row teaches the same at a fraction of the cost.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlaif.comparisons.questions import LABELS
from rlaif.demo.training.examples import Example
from rlaif.demo.training.tokenizer import END


class Target(NamedTuple):
    """After the token at `at`, `token` is right; `weight` is its share in the loss."""

    at: int
    token: int
    weight: float


@dataclass(frozen=True)
class Row:
    """A common beginning (part 0) and its endings (parts 1, 2, ...), one after another."""

    ids: list[int]
    positions: list[int]
    parts: list[int]
    targets: list[Target]


class Batch(NamedTuple):
    """Rows padded to one length."""

    ids: Tensor  # (rows, length)
    positions: Tensor  # (rows, length)
    mask: Tensor  # (rows, 1, length, length), true where a token (third axis) may look (fourth axis)
    rows: Tensor  # (targets,)
    columns: Tensor  # (targets,)
    tokens: Tensor  # (targets,)
    weights: Tensor  # (targets,)


class Packer:
    """Turns groups of examples into rows of tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._end = tokenizer.convert_tokens_to_ids(END)
        self._labels = [tokenizer.encode(label, add_special_tokens=False)[0] for label in LABELS]

    def pack(self, examples: Sequence[Example]) -> Row:
        """One row of examples that share their beginning (if only the chat template's first token)."""
        coded = [self._encode(example) for example in examples]
        shared = _shared([prompt for prompt, _ in coded])
        row = Row(list(coded[0][0][:shared]), list(range(shared)), [0] * shared, [])
        for part, (example, (prompt, answer)) in enumerate(zip(examples, coded, strict=True), start=1):
            start = len(row.ids)
            ending = prompt[shared:] + answer
            row.ids.extend(ending[:-1])  # nothing is predicted after the end mark
            row.positions.extend(range(shared, shared + len(ending) - 1))
            row.parts.extend([part] * (len(ending) - 1))
            first = start + len(prompt) - shared - 1
            row.targets.extend(self._targets(example, answer, first))
        return row

    def _encode(self, example: Example) -> tuple[list[int], list[int]]:
        messages = [message.model_dump() for message in example.messages]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return prompt, [*self._tokenizer.encode(example.answer, add_special_tokens=False), self._end]

    def _targets(self, example: Example, answer: list[int], first: int) -> Iterator[Target]:
        for at, token in enumerate(answer):
            if example.tie and at == 0:
                yield from (Target(first, label, example.weight / 2) for label in self._labels)
            else:
                yield Target(first + at, token, example.weight)


def collate(rows: Sequence[Row]) -> Batch:
    """Pad rows to the longest and build the mask that keeps endings apart."""
    length = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [0] * (length - len(row.ids)) for row in rows])
    positions = torch.tensor([row.positions + [0] * (length - len(row.ids)) for row in rows])
    parts = torch.tensor([row.parts + [-1] * (length - len(row.ids)) for row in rows])
    mask = (parts[:, None, :] == 0) | (parts[:, None, :] == parts[:, :, None])
    mask &= torch.ones(length, length, dtype=torch.bool).tril()
    targets = [(at, target) for at, row in enumerate(rows) for target in row.targets]
    return Batch(
        ids,
        positions,
        mask[:, None],
        torch.tensor([at for at, _ in targets]),
        torch.tensor([target.at for _, target in targets]),
        torch.tensor([target.token for _, target in targets]),
        torch.tensor([target.weight for _, target in targets]),
    )


def batches(rows: Iterator[Row], tokens: int, *, pool: int = 12) -> Iterator[Batch]:
    """Endless batches of about `tokens` tokens; rows of like length go together to spare padding."""
    while True:
        waiting: list[Row] = []
        while sum(len(row.ids) for row in waiting) < tokens * pool:
            waiting.extend(itertools.islice(rows, 64))
        waiting.sort(key=lambda row: len(row.ids))
        yield from (collate(group) for group in _shuffled(_groups(waiting, tokens)))


def _groups(rows: Sequence[Row], tokens: int) -> Iterator[list[Row]]:
    group: list[Row] = []
    for row in rows:
        if group and len(row.ids) * (len(group) + 1) > tokens:
            yield group
            group = []
        group.append(row)
    yield group


def _shuffled(groups: Iterator[list[Row]]) -> Iterator[list[Row]]:
    found = list(groups)
    for at in torch.randperm(len(found)).tolist():
        yield found[at]


def _shared(sequences: Sequence[list[int]]) -> int:
    """Length of the common beginning, less one token: every ending keeps at least one of its own."""
    shortest = min(len(sequence) for sequence in sequences)
    same = 0
    while same < shortest - 1 and len({sequence[same] for sequence in sequences}) == 1:
        same += 1
    return same
