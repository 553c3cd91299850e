"""Preference data opened, and written in the forms that trainers read: TRL, OpenRLHF, KTO.

Files of preference data, opened: how their rows are read, and the rows.

The files of a dataset: rows as Parquet or JSON lines, in a folder that is there whole or not at all.

Preference data in the forms that trainers read: TRL, OpenRLHF, and the unpaired one of KTO.

trl        `prompt`, `chosen`, `rejected` as message lists: TRL's explicit-prompt conversational preferences
openrlhf   `chosen`, `rejected` as whole conversations, its default keys (with `--data.apply_chat_template`)
kto        `prompt`, `completion`, `label`: every pair is two rows

The soft label stands in `probability` and its distance from one half in `label_margin`. Neither trainer reads these. A
column called `margin` would be read by both: they take it off the difference of the two rewards, which is on another
scale. Rows of one prompt, whatever its case and spaces, go to one split, drawn by the hash of the prompt.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rlaif.data.checks import check_special, check_texts, cut_end_tokens
from rlaif.data.conversations import Turns, UnreadableValueError
from rlaif.data.files import Rows
from rlaif.data.formats import Reading, Shape, better_first, first_known, read, recognise
from rlaif.data.winners import number_of
from rlaif.errors import UserError
from rlaif.records import Message, content_id
from rlaif.text import hashed


class Opened(NamedTuple):
    """A file whose rows can be read."""

    shape: Shape | None
    """None where it is of no known one."""
    rows: Rows
    """All of them."""


def open_rows(path: str | Path) -> Opened:
    """A file of preference data. Raises UserError where it does not say which of two responses is better.

    Where the rows hold two numbered responses, the whole file is read once before, for what its winners mean.
    """
    return Opened(*first_known(path, recognise))


FileKind = Literal["parquet", "jsonl"]
Row = dict[str, Any]

_CHUNK = 5_000
"""Rows held in memory at once, and the size of a Parquet row group."""


class RowFile:
    """One file of rows, for a `with` block; its ending says which kind. A column that a row lacks is null in it."""

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self._path, self._columns = path, columns
        self._waiting: list[Row] = []
        self._open: Any = None

    def __enter__(self) -> RowFile:
        if self._path.suffix == ".jsonl":
            self._open = self._path.open("w", encoding="utf-8", newline="\n")
        else:
            import pyarrow.parquet as pq

            self._open = pq.ParquetWriter(self._path, _schema(self._columns))
        return self

    def add(self, row: Row) -> None:
        """Write one row."""
        self._waiting.append({name: row.get(name) for name in self._columns})
        if len(self._waiting) == _CHUNK:
            self._flush()

    def _flush(self) -> None:
        rows, self._waiting = self._waiting, []
        if self._path.suffix == ".jsonl":
            self._open.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            return
        import pyarrow as pa

        self._open.write_table(pa.Table.from_pylist(rows, schema=_schema(self._columns)))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self._open.close()


def _schema(columns: tuple[str, ...]) -> Any:
    """Types that do not depend on what the rows happen to hold."""
    import pyarrow as pa

    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    types = {"label": pa.bool_(), "probability": pa.float64(), "label_margin": pa.float64()}
    return pa.schema([(name, types.get(name, messages)) for name in columns])


@contextlib.contextmanager
def draft_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` to fill; it takes that place when the block ends well, and is removed when it does not.

    Raises UserError where `path` is there already and not empty, or where it cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError("is there already and not empty", where=path, hint="name another folder, or remove it")
    path = path.resolve()
    draft = path.with_name(f".{path.name}.draft")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        yield draft
        if path.exists():
            path.rmdir()
        draft.replace(path)
    except OSError as error:
        raise UserError(f"cannot write: {error.strerror or error}", where=path, hint="name another folder") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


Form = Literal["trl", "openrlhf", "kto"]

LEFT_OUT = frozenset({
    "missing", "type", "unknown-role", "role-order", "empty-prompt", "empty-reply", "identical", "no-shared-prompt",
    "prompt-mismatch", "probability-range", "label-type", "half-character", "several-turns", "tied-ratings", "unrated",
    "tie", "winner", "tool-calls", "prompt-part", "unparsed-messages",
})  # fmt: skip
"""Rules of the doctor; a row that breaks one of them is neither exported nor trained on."""
_LEFT_OUT_HERE = LEFT_OUT | {"special-token"}
"""Which tokens are special to it is known to the trainer of a model, and not to an export."""

_COLUMNS: dict[Form, tuple[str, ...]] = {
    "trl": ("prompt", "chosen", "rejected"),
    "openrlhf": ("chosen", "rejected"),
    "kto": ("prompt", "completion", "label"),
}
_SOFT = ("probability", "label_margin")


@dataclass
class Exported:
    """What went into a dataset, and what did not."""

    rows: dict[str, int] = field(default_factory=lambda: {"train": 0, "test": 0})
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows by the rule that they break, `margin` for those below the asked margin."""
    pairs: int = 0
    """Pairs that were read and not left out; of a KTO dataset each is two rows, equal ones once."""


def export_rows(
    source: str | Path,
    folder: Path,
    form: Form,
    *,
    soft: bool,
    kind: FileKind = "parquet",
    margin: float = 0.0,
    split: float = 0.0,
    told: Callable[[int], None] | None = None,
) -> Exported:
    """Write `train` and, with a `split` above 0, `test` into `folder`, which holds nothing else yet.

    With `soft` the rows keep their soft labels. `margin` leaves out pairs whose soft label is nearer to one half.
    Raises UserError where nothing can be exported.
    """
    counts = Exported()
    columns = _COLUMNS[form] + (_SOFT if soft and form != "kto" else ())
    names = ("train", "test") if split > 0 else ("train",)
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(RowFile(folder / f"{name}.{kind}", columns)) for name in names}
        for prompt, row in _rows(source, form, margin, counts, told):
            name = "test" if int(prompt[:8], 16) < split * 2**32 else "train"
            files[name].add(row)
            counts.rows[name] += 1
    if not sum(counts.rows.values()):
        why = ", ".join(f"{count:,} {rule}" for rule, count in counts.left_out.most_common(3)) or "it is empty"
        raise UserError(f"no row can be exported ({why})", where=source, hint=f"see `rlaif data check {source}`")
    for name in names:
        if not counts.rows[name]:
            raise UserError(f"`{name}` would be empty", where=source, hint="give another --split, or none")
    return counts


def _rows(
    source: str | Path, form: Form, margin: float, counts: Exported, told: Callable[[int], None] | None
) -> Iterator[tuple[str, Row]]:
    """Each row to write, with a hash of its prompt, whose case and spaces do not count."""
    shape, rows = open_rows(source)
    seen, number = _Seen(), 0
    for number, (line, row) in enumerate(rows, start=1):
        if told is not None and number % 1000 == 0:
            told(number)
        if shape is None:
            break
        if shape.kind == "unpaired" and form != "kto":
            raise UserError("the rows are single replies, not pairs", where=source, line=line, hint="use --format kto")
        reading = _sound(row, shape, margin, counts)
        if reading is not None and form == "kto" and reading.probability == 0.5:
            counts.left_out["label-half"] += 1  # neither reply is good or bad
        elif reading is not None:
            counts.pairs += reading.chosen is not None and reading.rejected is not None
            yield from _written(reading, form, seen)
    if shape is None and number:
        raise UserError("no preference data of a known shape", where=source, hint=f"see `rlaif data check {source}`")


def _sound(row: object, shape: Shape, margin: float, counts: Exported) -> Reading | None:
    """The row as it was read, or None where it is left out (and counted)."""
    try:
        reading = read(row, shape)
    except UnreadableValueError as odd:
        counts.left_out[str(odd)] += 1
        return None
    broken = set(reading.odd)
    reading.chosen, reading.rejected = (
        None if reply is None else cut_end_tokens(reply) for reply in (reading.chosen, reading.rejected)
    )
    check_texts(reading, broken.add)
    check_special(reading, frozenset(), broken.add)
    reading.probability = _probability(reading.probability, broken)
    reason = next(iter(sorted(broken & _LEFT_OUT_HERE)), None)
    if reason is None and reading.probability is not None and abs(reading.probability - 0.5) < margin:
        reason = "margin"
    if reason is not None:
        counts.left_out[reason] += 1
        return None
    return better_first(reading)


def _probability(value: object, broken: set[str]) -> float | None:
    if value is None or value == "":
        return None
    number = number_of(value)
    if number is None or not 0 <= number <= 1:
        broken.add("probability-range")
    return number


class _Seen:
    """Unpaired rows that were written, for a reply that stands in several pairs is one row."""

    def __init__(self) -> None:
        self._keys: set[int] = set()

    def new(self, *parts: object) -> bool:
        key = hashed(repr(parts))
        found = key in self._keys
        self._keys.add(key)
        return not found


def _written(reading: Reading, form: Form, seen: _Seen) -> Iterator[tuple[str, Row]]:
    prompt = _messages(reading.prompt)
    key = content_id(prompt)
    part = content_id([" ".join(turn["content"].casefold().split()) for turn in prompt])
    sides = [(text, good) for text, good in ((reading.chosen, True), (reading.rejected, False)) if text is not None]
    if form == "kto":
        for text, good in sides:
            if seen.new(key, text, good):
                yield part, {"prompt": prompt, "completion": _answer(text), "label": good}
        return
    chosen, rejected = (_answer(text) for text, _ in sides)
    if form == "openrlhf":
        row: Row = {"chosen": prompt + chosen, "rejected": prompt + rejected}
    else:
        row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if reading.probability is not None:
        assert isinstance(reading.probability, float)
        row |= {"probability": reading.probability, "label_margin": reading.probability - 0.5}
    yield part, row


def _messages(turns: Turns) -> list[dict[str, str]]:
    """Plain messages, checked by the record that the pipeline's own prompts are made of: equal prompts, equal id."""
    return [Message.model_validate({"role": turn.role, "content": turn.content}).model_dump() for turn in turns]


def _answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]
