"""The files of a dataset: rows as Parquet or JSON lines, in a folder that is there whole or not at all."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from rlaif.errors import UserError

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
        raise UserError("is there already and not empty", where=path, mend="name another folder, or remove it")
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
        raise UserError(f"cannot write: {error.strerror or error}", where=path, mend="name another folder") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
