"""Rows that repeat or contradict each other, found from 32 bytes a row: three hashes and its line."""

from __future__ import annotations

import hashlib
from array import array
from typing import TYPE_CHECKING, Any

from rlaif.data.rules import Tally
from rlaif.data.shapes import Reading
from rlaif.data.turns import Turns

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray[Any, np.dtype[Any]]

_FIRST = 10


def hashed(text: str) -> int:
    """64 bits of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


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

    def find(self, tally: Tally) -> None:
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

    def _count(self, rule: str, found: Numbers, tally: Tally) -> None:
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
