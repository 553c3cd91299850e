"""What comes from strangers is bounded in bytes, however small the file is: one line, and no memory without end."""

from __future__ import annotations

import gzip
import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from rlaif.data.files import read_rows
from rlaif.errors import UserError

SHARED = "x" * 11_000_000


def shared_text(rows: int, text: str = SHARED) -> Any:
    """A column in which all rows are one text, which is stored once."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text]))


def refused(path: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        for _ in read_rows(path):
            pass
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.case("sec-13-small-file-large-memory")
def test_a_text_that_is_stored_once_counts_in_every_row(tmp_path: Path) -> None:
    """2,000 rows of 11 MB in a file of a few KB: the first row is refused, and 22 GB are never made."""
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"prompt": shared_text(2000)}), path, compression="zstd")
    assert path.stat().st_size < 100_000
    error = refused(path)
    assert (error.line, "the row is larger than 10 MB" in str(error)) == (1, True)


@pytest.mark.sibling("shared-texts-within-the-bound")
def test_rows_within_the_bound_come_one_by_one(tmp_path: Path) -> None:
    """300 rows of 4 MB, 1.2 GB at once: each is given, a few MB at a time."""
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"prompt": shared_text(300, "y" * 4_000_000)}), path, compression="zstd")
    tracemalloc.start()
    lengths = [len(row["prompt"]) for _, row in read_rows(path)]  # type: ignore[index, call-overload]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert lengths == [4_000_000] * 300
    assert peak < 40_000_000


def nested(count: int) -> Any:
    """One row: a list of messages that all say one stored text."""
    message = pa.StructArray.from_arrays(
        [shared_text(count, "user").cast(pa.string()), shared_text(count, "z" * 100_000).cast(pa.string())],
        ["role", "content"],
    )
    return pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), message)


@pytest.mark.sibling("shared-texts-in-nested-lists")
def test_texts_in_lists_of_messages_count_too(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"messages": nested(500)}), path, compression="zstd")  # 50 MB in one row
    assert refused(path).line == 1
    parquet.write_table(pa.table({"messages": nested(50)}), path, compression="zstd")  # 5 MB
    ((_, row),) = read_rows(path)
    assert len(row["messages"]) == 50  # type: ignore[index, call-overload]


@pytest.mark.sibling("packed-numbers-in-a-row")
def test_a_list_of_packed_numbers(tmp_path: Path) -> None:
    """Two million equal numbers are a few bytes in the file, and 16 MB as Python objects."""
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"n": [[1] * 2_000_000]}), path)
    assert path.stat().st_size < 20_000
    assert refused(path).line == 1


@pytest.mark.case("sec-13-small-file-large-memory")
def test_a_json_list_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    """60 MB of items in one gzipped list: the peak is that of an item."""
    path = tmp_path / "a.json.gz"
    with gzip.open(path, "wt") as file:
        file.write("[\n")
        for _ in range(60):
            file.write(json.dumps({"prompt": "a" * 1_000_000}) + ",\n")
        file.write('{"prompt": "hi"}]\n')
    tracemalloc.start()
    count = sum(1 for _ in read_rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 61
    assert peak < 15_000_000


def json_item(folder: Path) -> Path:
    path = folder / "a.json.gz"
    path.write_bytes(gzip.compress(b'[{"a": 1},\n{"a": "' + b"x" * 10_000_100 + b'"}]'))
    return path


def json_line(folder: Path) -> Path:
    path = folder / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n"' + b"x" * 10_000_100 + b'"\n'))
    return path


def csv_row(folder: Path) -> Path:
    """No line and no cell is long; the row is."""
    path = folder / "a.csv"
    cell = "\n".join(["x" * 1000] * 4000)
    path.write_text(f'a,b,c\n"{cell}","{cell}","{cell}"\n')
    return path


@pytest.mark.parametrize("made", [json_item, json_line, csv_row], ids=lambda made: made.__name__)
@pytest.mark.sibling("one-bound-for-every-kind-of-file")
def test_no_row_of_any_kind_of_file_is_larger(made: Callable[[Path], Path], tmp_path: Path) -> None:
    error = refused(made(tmp_path))
    assert "longer than 10 MB" in str(error)
    assert error.line is not None


@pytest.mark.sibling("json-list-on-one-line")
def test_a_list_on_one_long_line_is_no_long_item(tmp_path: Path) -> None:
    """`json.dump` writes 12 MB of rows on one line."""
    path = tmp_path / "a.json"
    rows = [{"prompt": "b" * 500_000} for _ in range(24)]
    path.write_text(json.dumps(rows))
    assert [row for _, row in read_rows(path)] == rows
    path.write_text(json.dumps(rows)[:-3] + " oops}]")
    assert "not JSON: Unterminated" in str(refused(path)) or "not JSON" in str(refused(path))


@pytest.mark.parametrize("cut", [1, 65_530, 65_536, 65_540, 131_072])
def test_a_piece_may_end_anywhere(cut: int, tmp_path: Path) -> None:
    """Letters of several bytes, escapes, and numbers across the borders of what is read at once."""
    path = tmp_path / "a.json"
    rows: list[object] = ["é" * cut, 12345678901234567890, "\\u00e9\n" * 3, {"a": [1.5e300, None, True]}]
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    assert [row for _, row in read_rows(path)] == rows


def test_a_mistake_in_a_list_has_its_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    filler = "".join(f'{{"n": {at}}},\n' for at in range(30_000))
    path.write_text(f'[\n{filler}{{"n" 1}},\n{filler}3]')
    error = refused(path)
    assert (error.line, "Expecting ':' delimiter (column 6)" in str(error)) == (30_002, True)


@pytest.mark.case("sec-23-bad-utf8-in-parquet")
def test_a_text_in_parquet_that_is_no_utf8(tmp_path: Path) -> None:
    """The row before it is given, and the broken one named, as for the other kinds of files."""
    offsets = pa.py_buffer(struct.pack("<4i", 0, 3, 6, 9))
    texts = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"onet\xfeotri"))
    parquet.write_table(pa.table({"prompt": texts}), tmp_path / "a.parquet")
    rows = read_rows(tmp_path / "a.parquet")
    assert next(rows) == (1, {"prompt": "one"})
    with pytest.raises(UserError, match=r"a\.parquet:2: is not UTF-8 \(byte 0xFE\)"):
        next(rows)


@pytest.mark.sibling("bad-utf8-in-nested-messages")
def test_a_broken_text_inside_messages(tmp_path: Path) -> None:
    content = pa.StringArray.from_buffers(1, pa.py_buffer(struct.pack("<2i", 0, 2)), pa.py_buffer(b"\xff\xff"))
    message = pa.StructArray.from_arrays([pa.array(["user"]), content], ["role", "content"])
    column = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), message)
    parquet.write_table(pa.table({"messages": column}), tmp_path / "a.parquet")
    assert "is not UTF-8 (byte 0xFF)" in str(refused(tmp_path / "a.parquet"))


@pytest.mark.sibling("csv-of-other-regions")
@pytest.mark.parametrize("head", ["", "\ufeff", "sep=;\n", "\ufeffsep=;\n"])
def test_semicolons_and_what_excel_writes(head: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f'{head}prompt;chosen\nWhy, then?;"a; b"\n', encoding="utf-8")
    assert [row for _, row in read_rows(path)] == [{"prompt": "Why, then?", "chosen": "a; b"}]


def test_tabs_in_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt\tchosen\na, b\tc\n", encoding="utf-8")
    assert [row for _, row in read_rows(path)] == [{"prompt": "a, b", "chosen": "c"}]


@pytest.mark.sibling("two-columns-of-one-name")
def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen,chosen\na,b,c\n")
    assert "two columns are called `chosen`" in str(refused(path))


@pytest.mark.parametrize("content", ["\n", "sep=,\n"])
def test_a_table_without_a_header(content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content + "x,y\n" * (content == "\n"))
    assert refused(path)
