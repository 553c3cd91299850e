"""What the files of an evaluation are called: words for people, and a hash of everything that was asked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from rlaif.records import content_id
from rlaif.store import sha256_of

_LONGEST_WORD, _LONGEST = 48, 120
"""Characters; with the hash and every ending, a name stays under the 255 bytes of most file systems."""


def report_name(words: Sequence[str], *identity: JsonValue) -> str:
    """The name, without ending, of the files of one evaluation.

    `identity` is whatever the figures depend on: where any of it differs, so does the name.
    """
    told = "-".join(word for each in words if (word := word_of(each)))[:_LONGEST].strip("-.")
    return f"{told}-{content_id(*identity)[:8]}".lstrip("-")


def data_word(data: str) -> str:
    """A file's name without folder and endings; a dataset's with its owner before it."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", data) and not Path(data).suffix and not Path(data).exists():
        return data
    return re.sub(r"(\.(jsonl?|csv|parquet|txt))?(\.gz)?$", "", Path(data).resolve().name, flags=re.I)


def sha256_known(data: str) -> str | None:
    """The hash of a file; None of what is none, such as a `datasets` name."""
    file = Path(data).expanduser()
    return sha256_of(file) if file.is_file() else None


def word_of(text: str) -> str:
    """A text as part of a file's name; a report's name begins with that of its first word."""
    return re.sub(r"[^A-Za-z0-9._@+-]+", "-", text).strip("-.")[:_LONGEST_WORD].strip("-.")
