"""The doctor for preference data: one pass over a file, and everything that would spoil a training on it.

Memory holds 32 bytes a row to find repeated rows, 208 a prompt to find similar ones, and histograms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rlaif.data.checks import (
    Kinds,
    LabelSums,
    RefusalSums,
    check_special,
    check_texts,
    label_finding,
    main_columns,
    name_findings,
    refusal_finding,
)
from rlaif.data.conversations import UnreadableValueError
from rlaif.data.duplicates import MOST, EvaluationSet, Neighbours, Repeats
from rlaif.data.export import open_rows
from rlaif.data.findings import Finding, FindingCounter, Report, about_file, in_order
from rlaif.data.formats import Reading, Shape, read
from rlaif.data.length_bias import LengthSums, Limit, length_finding, special_tokens_of, truncation_finding
from rlaif.errors import UserError

Told = Callable[[int], None]
"""Takes the number of rows read so far, every thousand rows."""

_STEP = 1000


def examine(
    path: str | Path,
    *,
    against: Sequence[str] = (),
    tokenizer: str | None = None,
    max_length: int | None = None,
    limit: int | None = None,
    told: Told | None = None,
) -> Report:
    """Read a file, or a `datasets` name, and tell what is wrong with it.

    `against` names evaluation sets that it should not overlap with. With `max_length` the rows that it cuts are
    counted, by `tokenizer` or, without one, estimated. `limit` reads only so many rows. Raises UserError where a file
    cannot be read.
    """
    cut = None if max_length is None else Limit(max_length, tokenizer)
    opened = open_rows(path)
    visit = _Visit(opened.shape, cut, [EvaluationSet(each) for each in against], special_tokens_of(tokenizer))
    for line, row in opened.rows:
        visit.see(line, row)
        if told is not None and visit.rows % _STEP == 0:
            told(visit.rows)
        if visit.rows == limit:
            break
    if not visit.rows:
        raise UserError("holds no rows", where=path)
    return visit.report(str(path))


class _Visit:
    """Everything that is gathered on the way through one file."""

    def __init__(
        self, shape: Shape | None, cut: Limit | None, evaluations: Sequence[EvaluationSet], special: frozenset[str]
    ) -> None:
        self.rows = 0
        self._usable = self._chosen = self._rejected = 0
        self._shape, self._special = shape, special
        self._columns: tuple[str, ...] = ()
        self._tally, self._kinds = FindingCounter(), Kinds()
        self._repeats, self._neighbours = Repeats(), Neighbours()
        self._lengths, self._labels, self._refusals = LengthSums(), LabelSums(), RefusalSums()
        self._cut, self._evaluations = cut, evaluations

    def see(self, line: int, row: object) -> None:
        """Take one row in."""
        self.rows += 1
        if self.rows == 1 and isinstance(row, dict):
            self._columns = tuple(str(name) for name in row)
        if self._shape is not None:
            self._read(line, row, self._shape)

    def _read(self, line: int, row: object, shape: Shape) -> None:
        broken: set[str] = set()
        if isinstance(row, dict):
            self._kinds.add(row, line, main_columns(shape), self._tally)
        try:
            reading = read(row, shape)
        except UnreadableValueError as odd:
            broken.add(str(odd))
        else:
            broken |= reading.odd
            self._weigh(line, reading, broken)
        for rule in broken:
            self._tally.add(rule, line)

    def _weigh(self, line: int, reading: Reading, broken: set[str]) -> None:
        chosen, rejected = reading.chosen, reading.rejected
        self._usable += 1
        self._chosen += chosen is not None
        self._rejected += rejected is not None
        check_texts(reading, broken.add)
        check_special(reading, self._special, broken.add)
        self._labels.add(reading, broken.add)
        self._refusals.add(reading)
        self._lengths.add(
            None if chosen is None else len(chosen.strip()), None if rejected is None else len(rejected.strip())
        )
        key = self._repeats.add(line, reading)
        self._neighbours.add(len(self._repeats.lines) - 1, key, reading.prompt)
        if self._cut is not None:
            self._cut.add(reading)
        if self._evaluations and any([each.meets(reading) for each in self._evaluations]):
            broken.add("eval-overlap")

    def report(self, path: str) -> Report:
        """What it all comes to."""
        self._repeats.find(self._tally)
        near = [self._repeats.lines[row] for row in self._neighbours.find()]
        self._tally.add_many("near-prompt", len(near), near)
        lengths, labels = self._lengths.result(), self._labels.result()
        refusals = self._refusals.result(self._chosen, self._rejected) if self._usable else None
        truncation = None if self._cut is None else self._cut.result()
        measured = (
            _unusable(self._shape, self._usable, self.rows),
            length_finding(lengths, self._usable),
            label_finding(labels),
            refusal_finding(refusals, self._usable) if refusals is not None else None,
            truncation_finding(truncation, self._usable),
            self._skipped(),
        )
        findings = [*name_findings(self._shape, self._columns, self.rows), *self._tally.findings(self.rows)]
        ordered = in_order(findings + [finding for finding in measured if finding is not None])
        return Report(
            path=path,
            shape=None if self._shape is None else self._shape.kind,
            columns=self._columns,
            rows=self.rows,
            usable=self._usable,
            worst=ordered[0].level if ordered else None,
            findings=ordered,
            lengths=lengths,
            labels=labels,
            refusals=refusals,
            truncation=truncation,
            overlaps=tuple(each.result() for each in self._evaluations),
        )

    def _skipped(self) -> Finding | None:
        """That not all prompts were searched for near-duplicates."""
        if not self._neighbours.skipped:
            return None
        what = f"near-duplicate prompts were looked for among the first {MOST:,} prompts only"
        return about_file("note", "searched-in-part", self._neighbours.skipped, what, "check the rest by itself")


def _unusable(shape: Shape | None, usable: int, rows: int) -> Finding | None:
    """That no row can be used, however mild the rules are that the rows break."""
    if shape is None or usable:
        return None
    return about_file("error", "unusable", rows, "no row can be used", "see the other findings for the reasons")
