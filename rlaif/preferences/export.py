"""`pairs.jsonl` as Parquet, with types that do not depend on what the rows happen to hold."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from rlaif.records import PreferencePair
from rlaif.store import draft_of, read_records

_ROWS = 5_000
"""Rows held in memory at once, and the size of a row group."""


def write_parquet(source: Path, target: Path) -> None:
    """Write the pairs in the JSONL file `source` to the Parquet file `target`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    rows = read_records(source, PreferencePair)
    with draft_of(target) as draft, pq.ParquetWriter(draft, schema) as writer:
        while chunk := list(itertools.islice(rows, _ROWS)):
            data = [row.model_dump() for row in chunk]
            writer.write_table(pa.Table.from_pylist(data, schema=schema))


def _schema() -> Any:
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    messages = pa.list_(pa.struct([("role", text), ("content", text)]))
    types = {
        "prompt": messages,
        "chosen": messages,
        "rejected": messages,
        "probability": number,
        "raw_probability": number,
        "margin": number,
        "flip": pa.bool_(),
        "hard": pa.bool_(),
        "chosen_truncated": pa.bool_(),
        "rejected_truncated": pa.bool_(),
        "strengths": pa.list_(number),
        "ranks": pa.list_(pa.int64()),
        "principles": pa.list_(text),
        "judgements": pa.list_(text),
        "policies": pa.list_(text),
    }
    return pa.schema([(name, types.get(name, text)) for name in PreferencePair.model_fields])
