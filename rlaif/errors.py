"""What can go wrong, and who has to fix it.

RlaifError
├─ UserError      a file, a setting or a flag is wrong: one line that says what, where and how to fix it (exit 2)
├─ ModelError     a model or its server cannot go on: everything answered so far is kept (exit 1)
└─ RecordError    a stored record breaks its schema: carries the path and the line (exit 1)

A request that fails alone is none of these: it is data, an `Output` that carries its reason (see `rlaif.inference`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

from rlaif.text import one_line, visible


class RlaifError(Exception):
    """Base of every error that the command line prints as one line, without a traceback."""

    exit_code = 1


class UserError(RlaifError):
    """The user's mistake: `what` is wrong at `where`, and `hint` is what to do about it."""

    exit_code = 2

    def __init__(self, what: str, *, where: str | Path | None = None, line: int | None = None, hint: str = "") -> None:
        self.what, self.where, self.line, self.hint = what, where, line, hint
        place = "" if where is None else f"{where}{'' if line is None else f':{line}'}: "
        super().__init__(one_line(f"{place}{what}{f'; {hint}' if hint else ''}"))


class ModelError(RlaifError):
    """A model or its server cannot go on (down, wrong key, unknown name): the run stops, and resumes later."""

    def __init__(self, what: str, *, log: str = "") -> None:
        """`log` is the end of a log that stands below the message, lines and all."""
        super().__init__(one_line(what) + visible(log))


class RecordError(RlaifError):
    """A stored line is not the record that it should be."""

    def __init__(self, path: str | Path, line: int, why: str) -> None:
        self.path, self.line = path, line
        what = f"{path}:{line}: {why}; repair or delete the line, what it held is then asked for again"
        super().__init__(one_line(what))


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint of an unknown-name error: the known name that was meant, or all of them where none is close."""
    names = sorted(known)
    close = closest(name, names)
    return f"did you mean `{close}`?" if close else f"known: {', '.join(names)}"


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was meant to be; None where none is close enough to be worth a suggestion.

    A wrong suggestion costs more than none, so a name counts as close only for one of four reasons, best first:

    1. few typing errors: one edit for every four letters of the longer name, rounded to the nearest number
       (3 letters: 1, 6: 1, 7: 2, 11: 3). A swap of two neighboring letters is one edit (Damerau 1964);
    2. an abbreviation: the beginning of the known name, three letters or more (`eval`, `evaluate`);
    3. another ending of the same stem: three fifths of the longer name are shared (`truth`, `true`);
    4. the same whole words: all words of one name are among those of the other (`beta`, `kl.beta`).

    Case does not count, and `-`, `_`, `.` and a blank are the same.
    """
    ranked = [
        (*rank, abs(len(name) - len(other)), other)
        for other in known
        if (rank := _closeness(_folded(name), _folded(other))) is not None
    ]
    return min(ranked)[-1] if ranked else None


_SHORTEST_STEM = 3
_LETTERS_PER_EDIT = 4
_SHARED_STEM = 0.6


def _folded(name: str) -> str:
    return re.sub(r"[-_. ]+", "_", name.casefold()).strip("_")


def _closeness(given: str, known: str) -> tuple[int, int] | None:
    """The number of the reason, and the edits; None where the names are not close."""
    longer = max(len(given), len(known))
    edits = _edits(given, known)
    if edits <= (longer + 1) // _LETTERS_PER_EDIT:
        return 1, edits
    if len(given) >= _SHORTEST_STEM and known.startswith(given):
        return 2, edits
    shared = sum(1 for _ in takewhile(lambda letters: letters[0] == letters[1], zip(given, known, strict=False)))
    if shared >= max(_SHORTEST_STEM, _SHARED_STEM * longer):
        return 3, edits
    left, right = set(given.split("_")), set(known.split("_"))
    return (4, edits) if left <= right or right <= left else None


def _edits(left: str, right: str) -> int:
    """Insertions, deletions, substitutions and swaps of neighbors between two texts (optimal string alignment)."""
    before, row = [0] * (len(right) + 1), list(range(len(right) + 1))
    for at, letter in enumerate(left, start=1):
        older, before, row = before, row, [at]
        for to, other in enumerate(right, start=1):
            edits = min(before[to] + 1, row[-1] + 1, before[to - 1] + (letter != other))
            if at > 1 and to > 1 and (letter, left[at - 2]) == (right[to - 2], other):
                edits = min(edits, older[to - 2] + 1)
            row.append(edits)
    return row[-1]
