"""Overlap with evaluation sets: runs of 13 words that a row shares with an item (arXiv:2005.14165, appendix C).

An item of fewer words counts where a row's prompt is those words and no others. What a system prompt says does not
count: many rows share one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from rlaif.data.report import Overlap
from rlaif.data.shapes import Reading
from rlaif.errors import UserError
from rlaif.samples.messages import ROLES, SYSTEM_COLUMNS
from rlaif.samples.rows import read_rows

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray[Any, np.dtype[Any]]

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
