"""How far a long reading is: a bar after two seconds where standard error is a terminal, a line now and then if not."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rlaif.cli.progress import has_bars
from rlaif.cli.terminal import echo

if TYPE_CHECKING:
    from rich.progress import Progress

_AFTER = 2.0
_EVERY = 15.0


@contextlib.contextmanager
def rows_read(what: str) -> Iterator[Callable[[int], None]]:
    """A function that takes the number of rows read so far and shows it, from the third second on."""
    start = time.monotonic()
    if not has_bars():
        yield _Lines(what, start)
        return
    with contextlib.ExitStack() as stack:
        yield _Bar(what, start, stack)


class _Lines:
    def __init__(self, what: str, start: float) -> None:
        self._what, self._start, self._next = what, start, start + _EVERY

    def __call__(self, rows: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _EVERY
            echo(f"{self._what}: {rows:,} rows, {now - self._start:.0f} s", err=True)


class _Bar:
    def __init__(self, what: str, start: float, stack: contextlib.ExitStack) -> None:
        self._what, self._start, self._stack = what, start, stack
        self._progress: Progress | None = None

    def __call__(self, rows: int) -> None:
        if self._progress is None:
            if time.monotonic() - self._start < _AFTER:
                return
            self._progress = self._stack.enter_context(self._make())
        self._progress.update(self._progress.tasks[0].id, completed=rows)

    def _make(self) -> Progress:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.completed:,} rows"),
            TimeElapsedColumn(),
        )
        progress = Progress(*columns, console=Console(stderr=True), transient=True)
        progress.add_task(self._what, total=None)
        return progress
