"""Rows that repeat: exactly, nearly (MinHash), or with an evaluation set.

Rows that repeat or contradict each other, found from 32 bytes a row: three hashes and its line.

Prompts that are nearly the same, by MinHash: rows that agree in a band of their signatures are compared.

A prompt is the set of its five-byte pieces, lower-cased, spaces run together. Of 128 random hashes of the pieces the
least is kept (Broder 1997); two sets agree in each with a probability equal to their Jaccard similarity. 16 bands of 8
make the candidates: prompts of similarity 0.9 meet in some band with a probability of 0.9999, of 0.8 with 0.95. They
are compared by one byte of each minimum (b-bit minwise hashing, arXiv:0910.3349), so that a row takes 192 bytes.

Overlap with evaluation sets: runs of 13 words that a row shares with an item (arXiv:2005.14165, appendix C).

An item of fewer words counts where a row's prompt is those words and no others. What a system prompt says does not
count: many rows share one.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from rlaif.data.conversations import ROLES, SYSTEM_COLUMNS, Turns
from rlaif.data.files import read_rows
from rlaif.data.findings import FindingCounter, Overlap
from rlaif.data.formats import Reading
from rlaif.errors import UserError
from rlaif.text import hashed

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray[Any, np.dtype[Any]]


_FIRST = 10


def prompt_hash(prompt: Turns) -> int:
    """64 bits of a conversation."""
    return hashed("\0".join(part for turn in prompt for part in turn))


class Repeats:
    """Takes the rows one by one and finds the repeated ones at the end.

    A row that is unpaired has 0 for the reply that it lacks. Two different rows share all their hashes with a chance of
    about 1 in 10 million for a hundred million rows.
    """

    def __init__(self) -> None:
        self.prompts, self._chosen, self._rejected = array("Q"), array("Q"), array("Q")
        self.lines = array("q")

    def add(self, line: int, reading: Reading) -> int:
        """Take a row in. Returns the hash of its prompt."""
        key = prompt_hash(reading.prompt)
        self.prompts.append(key)
        for column, reply in ((self._chosen, reading.chosen), (self._rejected, reading.rejected)):
            column.append(0 if reply is None else hashed(reply.strip()))
        self.lines.append(line)
        return key

    def find(self, tally: FindingCounter) -> None:
        """Count the rows whose prompt, or whose whole content, stood before, and those that contradict another."""
        import numpy as np

        if not self.lines:
            return
        prompts, chosen, rejected = (
            np.frombuffer(column, dtype=np.uint64) for column in (self.prompts, self._chosen, self._rejected)
        )
        self._count("repeated-prompt", _repeated(prompts), tally)
        whole = _mixed(prompts, chosen, rejected)
        self._count("duplicate-row", _repeated(whole), tally)
        swapped = _mixed(prompts, rejected, chosen)
        self._count("contradictory", np.isin(swapped, whole) & (chosen != rejected), tally)

    def _count(self, rule: str, found: Numbers, tally: FindingCounter) -> None:
        import numpy as np

        rows = np.flatnonzero(found)
        tally.add_many(rule, len(rows), [self.lines[int(row)] for row in rows[:_FIRST]])


def _repeated(keys: Numbers) -> Numbers:
    """Whether each key stood before."""
    import numpy as np

    _, first = np.unique(keys, return_index=True)
    again = np.ones(len(keys), dtype=bool)
    again[first] = False
    return again


def _mixed(*columns: Numbers) -> Numbers:
    """One hash of several, order mattering: each is multiplied by an odd number of its own, then stirred."""
    import numpy as np

    mixed = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed


MOST = 2_000_000
"""Prompts that are searched; those after them are not (384 MB)."""
SIMILARITY = 0.8
_PIECE = 5
_HASHES, _BANDS = 128, 16
_MOST_BYTES = 4_000
"""Longer prompts are searched by their ends, which is where they differ."""
_CHUNK = 100_000
_SPACE = re.compile(r"\s+")


class Neighbours:
    """Takes prompts one by one and finds the near-duplicates at the end."""

    def __init__(self) -> None:
        import numpy as np

        source = np.random.default_rng(20_101)
        self._factors = source.integers(0, 2**31, size=(_HASHES, 1), dtype=np.uint32) * np.uint32(2) + np.uint32(1)
        self._shifts = source.integers(0, 2**32, size=(_HASHES, 1), dtype=np.uint32)
        self._mixers = source.integers(0, 2**63, size=_HASHES // _BANDS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._signatures, self._bands = bytearray(), array("I")
        self._rows, self._keys = array("q"), array("Q")
        self.skipped = 0
        """Prompts beyond `MOST`."""

    def add(self, row: int, key: int, prompt: Turns) -> None:
        """Take in the prompt of row number `row`, whose hash is `key`. A prompt like the one before is passed over."""
        if self._keys and self._keys[-1] == key:
            return
        if len(self._rows) >= MOST:
            self.skipped += 1
            return
        least = self._minima(_SPACE.sub(" ", " ".join(turn.content for turn in prompt).lower()))
        # The second byte: a least number has zeros above, and the lowest byte of all hashes is one of the piece's.
        self._signatures += (least >> 8 & 0xFF).astype("uint8").tobytes()
        mixed = (least.astype("uint64").reshape(_BANDS, -1) * self._mixers).sum(axis=1, dtype="uint64")
        self._bands.frombytes((mixed >> 32).astype("uint32").tobytes())
        self._rows.append(row)
        self._keys.append(key)

    def _minima(self, text: str) -> Numbers:
        """The least of each hash over the pieces of `text`: 128 numbers of 32 bits."""
        import numpy as np

        raw = np.frombuffer(text.encode("utf-8", "surrogatepass").ljust(_PIECE)[-_MOST_BYTES:], dtype=np.uint8)
        pieces = np.zeros(len(raw) - _PIECE + 1, dtype=np.uint64)
        for at in range(_PIECE):
            pieces = (pieces << np.uint64(8)) | raw[at : len(raw) - _PIECE + 1 + at]
        pieces *= np.uint64(0x9E3779B97F4A7C15)
        own = np.unique((pieces >> np.uint64(32)).astype(np.uint32))
        hashes = self._factors * own
        hashes += self._shifts  # in place: fresh memory costs more than the sums
        least: Numbers = hashes.min(axis=1)
        return least

    def find(self) -> list[int]:
        """The rows, in order, whose prompt is nearly the same as that of an earlier row, but not the same."""
        import numpy as np

        count = len(self._rows)
        if count < 2:
            return []
        signatures = np.frombuffer(self._signatures, dtype=np.uint8).reshape(count, _HASHES)
        bands = np.frombuffer(self._bands, dtype=np.uint32).reshape(count, _BANDS)
        keys = np.frombuffer(self._keys, dtype=np.uint64)
        near = np.zeros(count, dtype=bool)
        for band in range(_BANDS):
            order = np.argsort(bands[:, band], kind="stable")
            for later, earlier in _candidates(bands[order, band], order):
                apart = keys[later] != keys[earlier]
                _compare(later[apart], earlier[apart], signatures, near)
        _, first = np.unique(keys, return_index=True)
        distinct = np.zeros(count, dtype=bool)
        distinct[first] = True
        return [self._rows[int(at)] for at in np.flatnonzero(near & distinct)]


def _candidates(values: Numbers, order: Numbers) -> list[tuple[Numbers, Numbers]]:
    """Prompts that agree in a band, each with the first of its group and with its predecessor in it."""
    import numpy as np

    same = np.flatnonzero(values[1:] == values[:-1]) + 1
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    heads = starts[np.searchsorted(starts, same, side="right") - 1]
    return [(order[same], order[heads]), (order[same], order[same - 1])]


def _compare(later: Numbers, earlier: Numbers, signatures: Numbers, near: Numbers) -> None:
    """Mark those of `later` that are similar enough."""
    import numpy as np

    todo = np.flatnonzero(~near[later])
    for at in range(0, len(todo), _CHUNK):
        part = todo[at : at + _CHUNK]
        agree = (signatures[later[part]] == signatures[earlier[part]]).mean(axis=1)
        similar = (agree - 1 / 256) / (1 - 1 / 256) >= SIMILARITY  # bytes of unlike minima agree once in 256
        near[later[part[similar]]] = True


RUN = 13
_LEAST_WORDS = 4
"""Shorter items are too common to say anything."""
_WORD = re.compile(r"\w+")
_ROLE_KEYS = frozenset({"role", "from", "id", "source", "category", *SYSTEM_COLUMNS})


class EvaluationSet:
    """The word runs of one evaluation file, and the rows that share one."""

    def __init__(self, path: str) -> None:
        """Read the file whole. Raises UserError where it cannot be read or holds no text."""
        import numpy as np

        self.path = path
        self.rows = 0
        self._words: dict[str, int] = {}
        self._wholes: set[tuple[str, ...]] = set()
        runs: list[Numbers] = []
        self.items = 0
        for _, row in read_rows(path):
            self.items += 1
            for text in _texts(row):
                words = _WORD.findall(text.lower())
                if len(words) >= RUN:
                    numbers = [self._words.setdefault(word, len(self._words) + 1) for word in words]
                    runs.append(_runs(numbers))
                elif len(words) >= _LEAST_WORDS:
                    self._wholes.add(tuple(words))
        if not runs and not self._wholes:
            raise UserError("holds no text to compare with", where=path)
        self._runs = np.unique(np.concatenate(runs)) if runs else np.zeros(0, dtype=np.uint64)

    def meets(self, reading: Reading) -> bool:
        """Whether a row shares a run with the set; such rows are counted."""
        texts = [turn.content for turn in reading.prompt if turn.role != "system"]
        replies = [reply for reply in (reading.chosen, reading.rejected) if reply is not None]
        found = self._shares([*texts, *replies]) or (bool(texts) and self._is_item(texts[-1]))
        self.rows += found
        return found

    def _shares(self, texts: Iterable[str]) -> bool:
        """Whether any of the texts holds a run of the set. 0 is a word that the set does not know, and ends a text."""
        import numpy as np

        numbers: list[int] = []
        for text in texts:
            numbers += [self._words.get(word, 0) for word in _WORD.findall(text.lower())]
            numbers.append(0)
        if len(numbers) < RUN or not len(self._runs):
            return False
        runs = _runs(numbers)
        places = np.minimum(np.searchsorted(self._runs, runs), len(self._runs) - 1)
        return bool((self._runs[places] == runs).any())

    def _is_item(self, text: str) -> bool:
        return len(text) < 1000 and tuple(_WORD.findall(text.lower())) in self._wholes

    def result(self) -> Overlap:
        """The figures."""
        return Overlap(path=self.path, items=self.items, rows=self.rows)


def _runs(numbers: list[int]) -> Numbers:
    """A hash of every run of 13 word numbers: their sum, each times a random odd number of its place (mod 2^64)."""
    import numpy as np

    runs: Numbers = np.convolve(np.array(numbers, dtype=np.uint64), _places(), mode="valid")
    return runs


@cache
def _places() -> Numbers:
    import numpy as np

    return np.random.default_rng(13).integers(0, 2**63, size=RUN, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def _texts(row: object) -> Iterator[str]:
    """Every text in a row, at any depth, but for system prompts."""
    values: Iterable[object] = ()
    if isinstance(row, str):
        yield row
    elif isinstance(row, dict) and ROLES.get(str(row.get("role", row.get("from"))).lower()) != "system":
        values = (value for key, value in row.items() if key not in _ROLE_KEYS)
    elif isinstance(row, list):
        values = row
    for value in values:
        yield from _texts(value)
