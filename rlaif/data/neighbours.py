"""Prompts that are nearly the same, by MinHash: rows that agree in a band of their signatures are compared.

A prompt is the set of its five-byte pieces, lower-cased, spaces run together. Of 128 random hashes of the pieces the
least is kept (Broder 1997); two sets agree in each with a probability equal to their Jaccard similarity. 16 bands of 8
make the candidates: prompts of similarity 0.9 meet in some band with a probability of 0.9999, of 0.8 with 0.95. They
are compared by one byte of each minimum (b-bit minwise hashing, arXiv:0910.3349), so that a row takes 192 bytes.
"""

from __future__ import annotations

import re
from array import array
from typing import TYPE_CHECKING, Any

from rlaif.data.turns import Turns

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray[Any, np.dtype[Any]]

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
