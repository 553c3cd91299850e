"""Many questions in one row: what they share is read once, and each ending sees only that and itself.

All principles put to one pair of replies share everything up to the question. A row holds that common beginning and
then the different endings; the attention mask and the positions make each ending see exactly what it would see in a
row of its own, so the row teaches the same at a fraction of the cost.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from rlaif.feedback.prompts import DIGITS, LABELS, LETTERS
from tools.train_demo_models.examples import Example
from tools.train_demo_models.marks import Mark, Marks, marks_of
from tools.train_demo_models.sources import Kind, Source, decides, sources
from tools.train_demo_models.tokenizer import END

_HEAD = 4
"""Tokens at the beginning of a text that say the most: in a review they name the fault."""
BLANK = 0
"""The padding token, which no text contains."""
_AFTER_LABEL = 0.2
"""Weight of the end mark after a label, which is always the same."""


class Target(NamedTuple):
    """After the token at `at`, `token` is right; `weight` is its share in the loss."""

    at: int
    token: int
    weight: float
    both: tuple[bool, ...] = ()
    """At a label: the faults of the first reply, then of the second."""
    look: int = 0
    """At a label: where the other reply ends, the worse one."""
    source: Source | None = None
    """Of a token of a text."""


@dataclass(frozen=True)
class Row:
    """A common beginning (part 0) and its endings (parts 1, 2, ...), one after another."""

    ids: list[int]
    positions: list[int]
    parts: list[int]
    targets: list[Target]
    marks: Marks


class Asked(NamedTuple):
    """What a side task asks for at some tokens of a batch."""

    rows: Tensor  # (marks,)
    columns: Tensor  # (marks,)
    right: Tensor  # the right answers: (marks, flags), 1 for true, or (marks,), a number


class Batch(NamedTuple):
    """Rows padded to one length."""

    ids: Tensor  # (rows, length)
    positions: Tensor  # (rows, length)
    mask: Tensor  # (rows, 1, length, length), true where a token (third axis) may look (fourth axis)
    rows: Tensor  # (targets,)
    columns: Tensor  # (targets,)
    tokens: Tensor  # (targets,)
    weights: Tensor  # (targets,)
    is_label: Tensor  # (targets,) whether the target is a label
    both: Tensor  # (labels, 2 * principles), 1 for a fault
    sentences: Asked  # flags
    replies: Asked  # flags
    topics: Asked  # topic numbers
    topic_looks: Asked  # columns to look at
    reply_looks: Asked  # likewise, from the ends of replies
    start_looks: Asked  # likewise, from the ends of sentences
    verdict_looks: Asked  # likewise, from the labels
    copied_looks: Asked  # likewise, from the tokens of texts, by the kind of their source
    begun_looks: Asked
    new_looks: Asked


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
        row = Row(list(coded[0][0][:shared]), list(range(shared)), [0] * shared, [], self._marks(examples[0], shared))
        for part, (example, (prompt, answer)) in enumerate(zip(examples, coded, strict=True), start=1):
            start = len(row.ids)
            ending = prompt[shared:] + answer
            row.ids.extend(ending[:-1])  # nothing is predicted after the end mark
            row.positions.extend(range(shared, shared + len(ending) - 1))
            row.parts.extend([part] * (len(ending) - 1))
            first = start + len(prompt) - shared - 1
            row.targets.extend(self._targets(example, answer, first, row.marks))
        return row

    def _marks(self, example: Example, end: int) -> Marks:
        """The marks among the first `end` tokens of a question that shows replies."""
        if not example.shown:
            return Marks()
        text = self._text(example)
        offsets = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return marks_of(text, offsets, example.prompt, example.shown).before(end)

    def _text(self, example: Example) -> str:
        messages = [message.model_dump() for message in example.messages]
        text: str = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text

    def _encode(self, example: Example) -> tuple[list[int], list[int]]:
        text = self._text(example)
        prompt: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return prompt, [*self._tokenizer.encode(example.answer, add_special_tokens=False), self._end]

    def _targets(self, example: Example, answer: list[int], first: int, marks: Marks) -> Iterator[Target]:
        if not example.compares:
            found = self._sources(example, marks)
            for at, token in enumerate(answer):
                heavy = at < _HEAD or decides(found, at)
                yield Target(first + at, token, example.head if heavy else example.weight, source=found[at])
            return
        both = tuple(itertools.chain.from_iterable(mark.faults for mark in marks.replies))
        for at, token in enumerate(answer):
            if at > 0:
                yield Target(first + at, token, _AFTER_LABEL)
            elif example.tie:
                yield from (self._verdict(first, label, example.weight / 2, both, marks) for label in self._labels)
            else:
                yield self._verdict(first, token, example.weight, both, marks)

    def _sources(self, example: Example, marks: Marks) -> list[Source | None]:
        """Of the answer's tokens, and of the end mark after them."""
        offsets = self._tokenizer(example.answer, add_special_tokens=False, return_offsets_mapping=True)
        found = sources(example.answer, offsets["offset_mapping"], marks.said)
        if len(example.shown) > 1:  # a ranking: each letter looks at its reply
            return [_ranked(example.answer[start:end], marks) for start, end in offsets["offset_mapping"]] + [None]
        if example.answer in DIGITS:
            return [Source("begun", marks.replies[0].at), None]
        if not example.rewrites:
            return [*found, None]
        new = Source("new", marks.topics[0].at)
        return [*(source or new for source in found), Source("begun", marks.replies[0].at)]

    def _verdict(self, at: int, label: int, weight: float, both: tuple[bool, ...], marks: Marks) -> Target:
        return Target(at, label, weight, both, marks.replies[1 - self._labels.index(label)].at)


def _ranked(token: str, marks: Marks) -> Source | None:
    letter = token.strip()
    return Source("begun", marks.replies[LETTERS.index(letter)].at) if letter in LETTERS else None


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
        torch.tensor([bool(target.both) for _, target in targets]),
        torch.tensor([target.both for _, target in targets if target.both], dtype=torch.float32),
        _flagged([(at, mark) for at, row in enumerate(rows) for mark in row.marks.sentences]),
        _flagged([(at, mark) for at, row in enumerate(rows) for mark in row.marks.replies]),
        _numbered([(at, mark) for at, row in enumerate(rows) for mark in row.marks.topics]),
        _numbered([(at, look) for at, row in enumerate(rows) for look in row.marks.topic_looks]),
        _numbered([(at, look) for at, row in enumerate(rows) for look in row.marks.reply_looks]),
        _numbered([(at, look) for at, row in enumerate(rows) for look in row.marks.start_looks]),
        _numbered([(at, (target.at, target.look)) for at, target in targets if target.both]),
        *(_sourced(targets, kind) for kind in get_args(Kind)),
    )


def _flagged(marks: Sequence[tuple[int, Mark]]) -> Asked:
    flags = torch.tensor([mark.flags for _, mark in marks], dtype=torch.float32)
    return Asked(_long(at for at, _ in marks), _long(mark.at for _, mark in marks), flags)


def _numbered(marks: Sequence[tuple[int, tuple[int, int]]]) -> Asked:
    return Asked(_long(at for at, _ in marks), _long(mark[0] for _, mark in marks), _long(mark[1] for _, mark in marks))


def _sourced(targets: Sequence[tuple[int, Target]], kind: Kind) -> Asked:
    known = [(at, target.at, target.source) for at, target in targets if target.source is not None]
    return _numbered([(row, (at, source.at)) for row, at, source in known if source.kind == kind])


def _long(values: Iterable[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.long)


def batches(rows: Iterator[Row], tokens: int, *, pool: int = 12, blank: float = 0.0) -> Iterator[Batch]:
    """Endless batches of about `tokens` tokens; rows of like length go together to spare padding.

    A share `blank` of what comparisons show is blanked out, so that no single word decides a verdict.
    """
    while True:
        waiting: list[Row] = []
        while sum(len(row.ids) for row in waiting) < tokens * pool:
            waiting.extend(itertools.islice(rows, 64))
        waiting.sort(key=lambda row: len(row.ids))
        yield from (collate([_blanked(row, blank) for row in group]) for group in _shuffled(_groups(waiting, tokens)))


def _blanked(row: Row, share: float) -> Row:
    if not share or not any(target.both for target in row.targets):
        return row
    drawn = torch.rand(len(row.ids)).tolist()
    ids = [
        BLANK if part == 0 and draw < share else token
        for token, part, draw in zip(row.ids, row.parts, drawn, strict=True)
    ]
    return replace(row, ids=ids)


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
