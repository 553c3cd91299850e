"""Rows out of prompt files, one at a time, each with its line: text, JSON lines, a JSON list, CSV, Parquet, the hub.

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
from typing import BinaryIO

from rlaif.errors import UserError
from rlaif.jsontext import loads
from rlaif.samples.jsonlist import JsonList
from rlaif.samples.parquet import parquet_rows

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
        raise UserError("not a kind of file that prompts are read from", where=path, mend=f"known: {_ENDINGS}")
    if not file.exists() and (isinstance(path, Path) or not _is_hub_name(path)):
        raise UserError("no such file", where=path, mend=_MEANT if _ending(file) not in _READERS else "")


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
        raise UserError(f"is not a whole gzip file ({error})", where=file, mend="copy it again") from None
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
                what, mend = f"the line is longer than {_MAX_LINE // 1_000_000} MB", "is it one JSON object a line?"
                raise UserError(what, where=file, line=number, mend=mend)
            yield number, _decoded(raw, file, number)
    if not number:
        raise UserError("the file is empty", where=file)


def _decoded(raw: bytes, file: Path, number: int) -> str:
    if number == 1:
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise UserError("is UTF-16, not UTF-8", where=file, mend="save it as UTF-8")
        raw = raw.removeprefix(codecs.BOM_UTF8)
    if b"\0" in raw:
        raise UserError("holds NUL bytes", where=file, line=number, mend="is it UTF-8 text?")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 (byte 0x{raw[error.start]:02X})"
        raise UserError(what, where=file, line=number, mend="save it as UTF-8") from None


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
        raise UserError(what, where=file, line=number, mend="one JSON value a line") from None
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
                raise UserError(what, where=file, line=start, mend="put a text with commas in quotes")
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
            raise UserError(what, where=self._file, line=number, mend="is a quotation mark left open?")
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
        raise UserError(what, where=file, line=line, mend="give each column its own name")


def _parquet_rows(file: Path) -> Rows:
    return parquet_rows(file, _MAX_LINE)


def _hub(path: str) -> Rows:
    """Rows of a dataset of the hub, or of its local cache, streamed."""
    import datasets
    import httpx

    named = _HUB_NAME.fullmatch(path)
    name, split = (named["name"], named["split"] or "train") if named else (path, "train")
    try:
        rows = datasets.load_dataset(name, split=split, streaming=True)
        for number, row in enumerate(rows, start=1):
            if _exceeds(row, _MAX_LINE):
                what = f"the row is larger than {_MAX_LINE // 1_000_000} MB"
                raise UserError(what, where=path, line=number, mend="leave it out")
            yield number, row
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"neither a file nor a dataset that can be loaded ({why})", where=path, mend=_MEANT) from None


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
