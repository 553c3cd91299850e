"""Rows out of files of every kind; a broken file is told in one line, with its place."""

from __future__ import annotations

import gzip
import json
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.data import files
from rlaif.data.files import read_rows
from rlaif.errors import UserError


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(raw) if name.lower().endswith(".gz") and isinstance(content, str) else raw)
    return path


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "one\r\ntwo\u2028still two\n\nfour", [(1, "one"), (2, "two\u2028still two"), (3, ""), (4, "four")]),
        ("a.txt.gz", "one\n", [(1, "one")]),
        ("a.jsonl", '\ufeff{"a": 1}\n\n"b"\n', [(1, {"a": 1}), (3, "b")]),
        ("a.jsonl.gz", "[1]\n", [(1, [1])]),
        ("A.JSONL.GZ", "[1]\n", [(1, [1])]),
        ("a.json", '[\n {"a":\n 1},\n\n "b", 3\n]\n', [(2, {"a": 1}), (5, "b"), (5, 3)]),
        ("a.json", "[]", []),
        ("a.json", '{"a": 1}\n{"a": 2}\n', [(1, {"a": 1}), (2, {"a": 2})]),
        ("a.csv", 'prompt,b\nx,1\n"two\nlines",2\n\nlast\n', [
            (2, {"prompt": "x", "b": "1"}), (3, {"prompt": "two\nlines", "b": "2"}), (6, {"prompt": "last"})]),
    ],
)  # fmt: skip
def test_rows_and_their_lines(tmp_path: Path, name: str, content: str, expected: list[object]) -> None:
    assert list(read_rows(write(tmp_path, name, content))) == expected


@pytest.mark.parametrize(
    ("name", "content", "line", "fragment"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": 1\n', 2, "not JSON: Expecting ',' delimiter (column 8)"),
        ("a.jsonl", "'a'\n", 1, "not JSON: Expecting value (column 1); one JSON value a line"),
        ("a.jsonl", "[" * 100_000 + "\n", 1, "not usable JSON"),
        ("a.jsonl", '{"a": ' + "9" * 5000 + "}\n", 1, "not usable JSON"),
        ("a.jsonl", b"", None, "the file is empty"),
        ("a.jsonl", '{"a": "hä"}\n'.encode("utf-16"), None, "is UTF-16, not UTF-8; save it as UTF-8"),
        ("a.jsonl", '{"a": 1}\n{"a": "hä"}\n'.encode("latin-1"), 2, "is not UTF-8 (byte 0xE4)"),
        ("a.jsonl", b'{"a": "\0"}\n', 1, "holds NUL bytes"),
        ("a.txt", '{"a": 1}'.encode("utf-16-le"), 1, "holds NUL bytes; is it UTF-8 text?"),
        ("a.txt", b"x" * 10_000_001, 1, "the line is longer than 10 MB"),
        ("a.json", '[\n1,\n{"a" 1}]', 3, "not JSON: Expecting ':' delimiter (column 6)"),
        ("a.json", "[\n1\n2]", 3, "`,` or `]` is missing after an item"),
        ("a.json", "[\n1", 2, "`,` or `]` is missing"),
        ("a.json", "[1]\n[2]", 1, "goes on after the end of its list"),
        ("a.json", "[" * 100_000, 1, "not usable JSON"),
        ("a.json", "", None, "the file is empty"),
        ("a.csv", "a,b\n1,2,3\n", 2, "has 3 cells, the header 2; put a text with commas in quotes"),
        ("a.csv", 'a,b\n1,"open\n', 2, "not CSV: unexpected end of data"),
        ("a.csv", b"", None, "the file is empty"),
        ("a.jsonl.gz", b"plain text", None, "is not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 50, mtime=0)[:-9], None, "is not a whole gzip file"),
        ("a.parquet", b"PAR1 or not", None, "not Parquet"),
        ("a.parquet", b"", None, "not Parquet"),
        ("a.xlsx", b"x", None, "not a kind of file that prompts are read from; known: .txt, .jsonl, "),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: str | bytes, line: int | None, fragment: str) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(UserError) as caught:
        list(read_rows(path))
    assert fragment in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert caught.value.line == line
    assert "\n" not in str(caught.value)


def test_rows_before_the_break_are_given(tmp_path: Path) -> None:
    reading = read_rows(write(tmp_path, "a.jsonl", "1\n2\n}\n"))
    assert [next(reading), next(reading)] == [(1, 1), (2, 2)]
    with pytest.raises(UserError):
        next(reading)


@pytest.mark.parametrize("name", ["nope.jsonl", "./nope", "a b", "no/such/file", "nope.parquet", "nope", "nope:train"])
def test_missing_files_are_not_looked_up_on_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub(monkeypatch, iter([]))
    with pytest.raises(UserError, match="no such file"):
        list(read_rows(name))
    assert asked == []


def test_a_mistyped_folder() -> None:
    with pytest.raises(UserError, match=r"^nope: no such file; give a file, a run folder .*`owner/name`"):
        read_rows("nope")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        list(read_rows(str(tmp_path)))


def test_parquet_rows(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"prompt": [f"p{n}" for n in range(600)], "answers": [["a", "b"]] * 600})
    parquet.write_table(table, tmp_path / "a.parquet")
    found = list(read_rows(tmp_path / "a.parquet"))
    assert found[599] == (600, {"prompt": "p599", "answers": ["a", "b"]})
    assert len(found) == 600


def hub(monkeypatch: pytest.MonkeyPatch, result: object) -> list[object]:
    """A `datasets` that answers `result`, and a list of how it was asked."""
    asked: list[object] = []

    def load_dataset(name: str, *, split: str, streaming: bool) -> object:
        asked.append((name, split, streaming))
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return asked


@pytest.mark.parametrize(
    ("name", "asked"),
    [("a/b", ("a/b", "train", True)), ("some-one/set_2.1:test", ("some-one/set_2.1", "test", True))],
)
def test_a_datasets_name(monkeypatch: pytest.MonkeyPatch, name: str, asked: object) -> None:
    calls = hub(monkeypatch, iter([{"prompt": "x"}]))
    assert list(read_rows(name)) == [(1, {"prompt": "x"})]
    assert calls == [asked]


@pytest.mark.parametrize("error", [ConnectionError("Couldn't reach it\nat all"), ValueError("no such split")])
def test_a_datasets_name_that_does_not_load(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    hub(monkeypatch, error)
    with pytest.raises(UserError) as caught:
        list(read_rows("some/set"))
    assert str(error).splitlines()[0] in str(caught.value)
    assert "some/set: neither a file nor a dataset" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reading_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "a.jsonl", f'"{"x" * 1000}"\n' * 20_000)
    tracemalloc.start()
    count = sum(1 for _ in files.read_rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 2_000_000, "20 MB were read, and hardly any of it kept"


values = st.recursive(
    st.text() | st.integers() | st.none(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@settings(max_examples=40, deadline=None)
@given(items=st.lists(values), indent=st.sampled_from([None, 1]))
def test_a_json_list_is_read_item_by_item(
    tmp_path_factory: pytest.TempPathFactory, items: list[object], indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(json.dumps(items, indent=indent), encoding="utf-8")
    found = list(read_rows(path))
    assert [item for _, item in found] == items
    if indent:
        spread = [len(json.dumps(item, indent=1).splitlines()) for item in items]
        assert [line for line, _ in found] == [2 + sum(spread[:at]) for at in range(len(items))]
