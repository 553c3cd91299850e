"""What can go wrong, and who has to fix it.

RlaifError
├─ UserError      a file, a setting or a flag is wrong: one line that says what, where and how to fix it (exit 2)
├─ ModelError     a model or its server cannot go on: everything answered so far is kept (exit 1)
└─ RecordError    a stored record breaks its schema: carries the path and the line (exit 1)

A question that fails alone is none of these: it is data, an `Answer` that carries its reason (see `rlaif.inference`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
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
    """The mending half of an unknown-name error: the closest known name, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean `{close[0]}`?" if close else f"known: {', '.join(names)}"
