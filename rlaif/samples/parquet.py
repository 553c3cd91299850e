"""Rows out of Parquet, in batches that are bounded in bytes.

Parquet stores a text that many rows share once, and packs what repeats: a file of a kilobyte may hold gigabytes.
So texts are read as references into what is stored, the bytes of a batch are added up from their lengths, and only what
is within the bound becomes Python objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlaif.errors import UserError

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
            raise UserError(what, where=file, line=before + at + 1, mend="write the text as UTF-8") from None
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
    return UserError(f"the row is larger than {largest // 1_000_000} MB", where=file, line=row, mend="leave it out")
