"""Rows out of files, one at a time, each with its line: text, JSON lines, a JSON list, CSV, Parquet, the hub.

The items of a JSON list, read piece by piece: memory holds one item, never the file.

Rows out of Parquet, in batches that are bounded in bytes.

Parquet stores a text that many rows share once, and packs what repeats: a file of a kilobyte may hold gigabytes.
So texts are read as references into what is stored, the bytes of a batch are added up from their lengths, and only what
is within the bound becomes Python objects.

Rows out of prompt files, one at a time, each with its line: text, JSON lines, a JSON list, CSV, Parquet, the hub.

A broken file is its owner's mistake and stops here, in one line; what a row holds is looked at elsewhere.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from rlaif.errors import UserError
from rlaif.inference.transport import hub_client
from rlaif.text import loads

_PIECE = 65_536
_SPACE = re.compile(r"[ \t\r\n]*")
_OPEN_END = 16
"""An error nearer than this to the end of what is read so far may come of the end itself."""


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


Mistake = Callable[[str, int], UserError]
"""Makes the error of a file from what is wrong, and the line."""


class JsonList:
    """One list in a stream of UTF-8 text."""

    def __init__(self, stream: _Stream, mistake: Mistake, largest: int) -> None:
        self._stream, self._mistake, self._largest = stream, mistake, largest
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at = "", 0
        self._line, self._column = 1, 0
        """Of the place that is looked at: its line, and the characters before it there."""
        self._ended = False

    def items(self) -> Iterator[tuple[int, object]]:
        """The items, each with the line that it begins on. Raises the error of the file where it is none."""
        self._skip()
        self._take()  # the bracket, by which the file was known for a list
        self._skip()
        while self._peek() != "]":
            yield self._line, self._item()
            self._skip()
            if self._peek() not in (",", "]"):
                raise self._mistake("not JSON: `,` or `]` is missing after an item", self._line)
            if self._peek() == ",":
                self._take()
                self._skip()
        self._take()
        line = self._line
        self._skip()
        if self._peek():
            raise self._mistake("goes on after the end of its list", line)

    def _item(self) -> object:
        decode = json.JSONDecoder().raw_decode
        while True:
            try:
                value, end = decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _OPEN_END
                if self._ended or not cut:
                    raise self._wrong(error) from None
            except (RecursionError, ValueError) as error:  # too deep, or a number of thousands of digits
                raise self._mistake(f"not usable JSON: {error}", self._line) from None
            else:
                if end < len(self._text) or self._ended:  # else a number may go on
                    self._require(end - self._at)
                    self._advance(end)
                    return value
            self._require(len(self._text) - self._at)
            self._more(max(_PIECE, len(self._text) - self._at))  # twice as much: each character is read a few times

    def _require(self, size: int) -> None:
        if size > self._largest:
            raise self._mistake(f"the item is longer than {self._largest // 1_000_000} MB", self._line)

    def _wrong(self, error: json.JSONDecodeError) -> UserError:
        line = self._line + self._text.count("\n", self._at, error.pos)
        start = self._text.rfind("\n", self._at, error.pos)
        column = error.pos - start if start >= 0 else self._column + error.pos - self._at + 1
        return self._mistake(f"not JSON: {error.msg} (column {column})", line)

    def _skip(self) -> None:
        """Go on to what is no space."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._advance(space.end() if space else self._at)
            if self._at < len(self._text) or self._ended:
                return
            self._more(_PIECE)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> None:
        self._advance(self._at + 1)

    def _advance(self, end: int) -> None:
        self._line += self._text.count("\n", self._at, end)
        start = self._text.rfind("\n", self._at, end)
        self._column = end - start - 1 if start >= 0 else self._column + end - self._at
        self._at = end

    def _more(self, size: int) -> None:
        """Read on; what was passed is dropped."""
        raw = self._stream.read(size)
        try:
            text = self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            line = self._line + self._text.count("\n", self._at) + error.object[: error.start].count(b"\n")
            raise self._mistake(f"is not UTF-8 (byte 0x{error.object[error.start]:02X})", line) from None
        if "\0" in text:
            line = self._line + self._text.count("\n", self._at) + text[: text.index("\0")].count("\n")
            raise self._mistake("holds NUL bytes", line)
        self._text, self._at, self._ended = self._text[self._at :] + text, 0, not raw


_MOST_ROWS = 256
_BATCH_BYTES = 64_000_000
"""Of a batch as it is stored, by the average of its row group."""
_SLOT = 8
"""Bytes that a value takes at least, once it is a Python object in a list."""


def parquet_rows(file: Path, largest: int) -> Iterator[tuple[int, object]]:
    """The rows with their numbers. Raises UserError where the file is broken, or a row is larger than `largest`."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            texts = [column.path for column in _columns(table.schema) if column.physical_type == "BYTE_ARRAY"]
        with parquet.ParquetFile(file, read_dictionary=texts) as table:
            number = 0
            for batch in _batches(table, file, largest):
                yield from _rows(batch, number, file, largest)
                number += len(batch)
    except pyarrow.ArrowException as error:
        raise UserError(f"not Parquet: {str(error).splitlines()[0]}", where=file) from None
    except MemoryError:
        raise UserError("takes more memory to read than there is", where=file) from None


def _columns(schema: Any) -> Iterator[Any]:
    return (schema.column(at) for at in range(len(schema)))


def _batches(table: Any, file: Path, largest: int) -> Iterator[Any]:
    """All rows, fewer at once where the rows of a group are large."""
    before = 0
    for at in range(table.num_row_groups):
        group = table.metadata.row_group(at)
        if not group.num_rows:
            continue
        values = sum(group.column(each).num_values for each in range(group.num_columns))
        average = (group.total_byte_size + _SLOT * values) // group.num_rows
        if average > largest:
            raise _too_large(file, before + 1, largest)
        size = max(1, min(_MOST_ROWS, _BATCH_BYTES // max(average, 1)))
        yield from table.iter_batches(batch_size=size, row_groups=[at])
        before += group.num_rows


def _rows(batch: Any, before: int, file: Path, largest: int) -> Iterator[tuple[int, object]]:
    """The rows of a batch; one by one where they are large, and where a text in one of them is broken."""
    if sum(map(_bytes, batch.columns)) <= largest:
        try:
            yield from enumerate(batch.to_pylist(), start=before + 1)
            return
        except UnicodeDecodeError:
            pass  # which row it is in is found below
    for at in range(len(batch)):
        row = batch.slice(at, 1)
        if sum(map(_bytes, row.columns)) > largest:
            raise _too_large(file, before + at + 1, largest)
        try:
            (value,) = row.to_pylist()
        except UnicodeDecodeError as error:
            what = f"is not UTF-8 (byte 0x{error.object[error.start]:02X})"
            raise UserError(what, where=file, line=before + at + 1, hint="write the text as UTF-8") from None
        yield before + at + 1, value


def _bytes(array: Any) -> int:
    """What the values of an array take as Python objects, at least: a text that is stored once counts every time."""
    from pyarrow import compute, types

    kind = array.type
    if types.is_dictionary(kind):
        lengths = compute.binary_length(array.dictionary)
        return _SLOT * len(array) + (compute.sum(lengths.take(array.indices)).as_py() or 0)
    if types.is_struct(kind):
        return sum(map(_bytes, array.flatten()))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) or types.is_map(kind):
        return _SLOT * len(array) + _bytes(array.flatten() if not types.is_map(kind) else _entries(array))
    return max(int(array.nbytes), _SLOT * len(array))


def _entries(array: Any) -> Any:
    """Keys and values of a map, of the slice alone."""
    start, end = array.offsets[0].as_py(), array.offsets[-1].as_py()
    import pyarrow

    return pyarrow.StructArray.from_arrays(
        [array.keys.slice(start, end - start), array.items.slice(start, end - start)], ["key", "value"]
    )


def _too_large(file: Path, row: int, largest: int) -> UserError:
    return UserError(f"the row is larger than {largest // 1_000_000} MB", where=file, line=row, hint="leave it out")


Rows = Iterator[tuple[int, object]]
"""Line (or row number, in Parquet and on the hub) and what stands there."""

_MAX_LINE = 10_000_000
_HUB_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(?::(?P<split>\w+))?")


def read_rows(path: str | Path) -> Rows:
    """The rows of a file, or of a `datasets` name (`owner/name`, or `owner/name:split`).

    Raises UserError where there is no such thing, and while reading, where it is broken.
    """
    require_rows(path)
    file = Path(path).expanduser()
    return _readable(_READERS[_ending(file)], file) if file.exists() else _hub(str(path))


def require_rows(path: str | Path) -> None:
    """Raise UserError where no rows can be behind a name; nothing is read, and no hub asked."""
    file = Path(path).expanduser()
    if file.is_dir():
        raise UserError("is a folder, not a file", where=path)
    if file.exists() and _ending(file) not in _READERS:
        raise UserError("not a kind of file that prompts are read from", where=path, hint=f"known: {_ENDINGS}")
    if not file.exists() and (isinstance(path, Path) or not _is_hub_name(path)):
        raise UserError("no such file", where=path, hint=_MEANT if _ending(file) not in _READERS else "")


def _ending(file: Path) -> str:
    name = file.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def _is_hub_name(path: str) -> bool:
    """A name with an owner, and without the ending of a file that we read: what is mistyped is not looked up afar."""
    return _HUB_NAME.fullmatch(path) is not None and _ending(Path(path)) not in _READERS


def _readable(reader: Callable[[Path], Rows], file: Path) -> Rows:
    """The reader's rows, the system's errors told in one line."""
    try:
        yield from reader(file)
    except FileNotFoundError:
        raise UserError("no such file", where=file) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"is not a whole gzip file ({error})", where=file, hint="copy it again") from None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=file) from None


def _open(file: Path) -> BinaryIO | gzip.GzipFile:
    return gzip.open(file, "rb") if file.name.lower().endswith(".gz") else file.open("rb")


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file from 1 on, with their ends. Raises UserError where it is not UTF-8 text."""
    number = 0
    with _open(file) as stream:
        while raw := stream.readline(_MAX_LINE + 1):
            number += 1
            if len(raw) > _MAX_LINE:
                what, hint = f"the line is longer than {_MAX_LINE // 1_000_000} MB", "is it one JSON object a line?"
                raise UserError(what, where=file, line=number, hint=hint)
            yield number, _decoded(raw, file, number)
    if not number:
        raise UserError("the file is empty", where=file)


def _decoded(raw: bytes, file: Path, number: int) -> str:
    if number == 1:
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise UserError("is UTF-16, not UTF-8", where=file, hint="save it as UTF-8")
        raw = raw.removeprefix(codecs.BOM_UTF8)
    if b"\0" in raw:
        raise UserError("holds NUL bytes", where=file, line=number, hint="is it UTF-8 text?")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 (byte 0x{raw[error.start]:02X})"
        raise UserError(what, where=file, line=number, hint="save it as UTF-8") from None


def _text_rows(file: Path) -> Rows:
    for number, line in _lines(file):
        yield number, line.rstrip("\r\n")


def _json_lines(file: Path) -> Rows:
    for number, line in _lines(file):
        if said := line.strip():
            yield number, _json(said, file, number)


def _json(line: str, file: Path, number: int) -> object:
    try:
        value: object = loads(line)
    except json.JSONDecodeError as error:
        what = f"not JSON: {error.msg} (column {error.colno})"
        raise UserError(what, where=file, line=number, hint="one JSON value a line") from None
    except ValueError as error:  # too deep, or a number of thousands of digits
        raise UserError(f"not usable JSON: {error}", where=file, line=number) from None
    return value


def _json_rows(file: Path) -> Rows:
    """A JSON list; many a `.json` file is JSON lines in truth, and is read as such."""
    with _open(file) as stream:
        head = stream.read(4096)
    if head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        return _json_list(file)
    return _json_lines(file)


def _json_list(file: Path) -> Rows:
    def mistake(what: str, line: int) -> UserError:
        return UserError(what, where=file, line=line)

    with _open(file) as stream:
        yield from JsonList(stream, mistake, _MAX_LINE).items()


def _csv_rows(file: Path) -> Rows:
    csv.field_size_limit(_MAX_LINE)
    lines = _BoundedLines(file)
    delimiter = _delimiter(file)
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    try:
        header = next(reader)
        if header and header[0].lower() in ("sep=", f"sep={delimiter}"):  # Excel's first line, which is no row
            header = next(reader)
        _require_names(header, file, reader.line_num)
        lines.new_row()
        start = reader.line_num + 1
        for cells in reader:
            lines.new_row()
            if len(cells) > len(header):
                what = f"has {len(cells)} cells, the header {len(header)}"
                raise UserError(what, where=file, line=start, hint="put a text with commas in quotes")
            if cells:
                yield start, dict(zip(header, cells, strict=False))
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"not CSV: {error}", where=file, line=max(reader.line_num, 1)) from None
    except StopIteration:
        raise UserError("holds no header", where=file) from None


class _BoundedLines:
    """The lines of a CSV file for its reader, which joins those of one row: as many as the bound of a row allows."""

    def __init__(self, file: Path) -> None:
        self._file, self._lines, self._length = file, _lines(file), 0

    def __iter__(self) -> _BoundedLines:
        return self

    def __next__(self) -> str:
        number, line = next(self._lines)
        self._length += len(line)
        if self._length > _MAX_LINE:
            what = f"the row that ends here is longer than {_MAX_LINE // 1_000_000} MB"
            raise UserError(what, where=self._file, line=number, hint="is a quotation mark left open?")
        return line

    def new_row(self) -> None:
        """Begin to count again."""
        self._length = 0


def _delimiter(file: Path) -> str:
    """What stands between the cells: a comma, or a semicolon or a tab where the header holds these and no comma."""
    _, header = next(_lines(file))
    if (named := re.fullmatch(r"sep=(.)\s*", header, re.IGNORECASE)) is not None:
        return named[1]
    return "," if "," in header else next((mark for mark in ";\t" if mark in header), ",")


def _require_names(header: list[str], file: Path, line: int) -> None:
    """Of two columns of one name only the last would be read."""
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        what = f"two columns are called `{twice[0]}`"
        raise UserError(what, where=file, line=line, hint="give each column its own name")


def _parquet_rows(file: Path) -> Rows:
    return parquet_rows(file, _MAX_LINE)


def _hub(path: str) -> Rows:
    """Rows of a dataset of the hub, or of its local cache, streamed."""
    import datasets
    import httpx

    named = _HUB_NAME.fullmatch(path)
    name, split = (named["name"], named["split"] or "train") if named else (path, "train")
    try:
        with hub_client():
            rows = datasets.load_dataset(name, split=split, streaming=True)
            for number, row in enumerate(rows, start=1):
                if _exceeds(row, _MAX_LINE):
                    what = f"the row is larger than {_MAX_LINE // 1_000_000} MB"
                    raise UserError(what, where=path, line=number, hint="leave it out")
                yield number, row
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"neither a file nor a dataset that can be loaded ({why})", where=path, hint=_MEANT) from None


def _exceeds(value: object, most: int) -> bool:
    """Whether the texts of a row hold more characters than this; looked at without recursion, however deep it is."""
    waiting, length = [value], 0
    while waiting and length <= most:
        each = waiting.pop()
        length += len(each) if isinstance(each, (str, bytes)) else 1
        if isinstance(each, dict):
            waiting.extend(each.values())
        elif isinstance(each, (list, tuple)):
            waiting.extend(each)
    return length > most


_READERS: dict[str, Callable[[Path], Rows]] = {
    ".txt": _text_rows,
    ".jsonl": _json_lines,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
_ENDINGS = ", ".join(_READERS) + " (the text ones also with .gz)"
_MEANT = "give a file, a run folder where one is taken, or a `datasets` name as `owner/name` or `owner/name:split`"
