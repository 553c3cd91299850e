"""How far something is: one protocol for every stage of every command, and three ways to show it.

A stage begins with its total, advances, and ends. Bars stand on standard error where they can be drawn; elsewhere there
is a line now and then, for logs.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from rlaif.text import visible

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_EVERY = 10.0
"""Seconds between two plain lines."""
_ROWS_AFTER = 2.0
"""Seconds before the reading of a file is shown at all."""
_ROWS_EVERY = 15.0


class Progress(Protocol):
    """Hears how far a stage is. Calls must return quickly."""

    def begin(self, stage: str, total: int) -> None:
        """A stage of at most `total` steps begins; 0 where that is not known."""
        ...

    def advance(self, stage: str, done: int, note: str = "") -> None:
        """So many of its steps are done; `note` says more of the last ones."""
        ...

    def note(self, text: str) -> None:
        """Something that the user should know, on a line of its own."""
        ...

    def end(self, stage: str, summary: str) -> None:
        """The stage is done."""
        ...


class Silent:
    """Shows nothing."""

    def begin(self, stage: str, total: int) -> None: ...  # noqa: D102
    def advance(self, stage: str, done: int, note: str = "") -> None: ...  # noqa: D102
    def note(self, text: str) -> None: ...  # noqa: D102
    def end(self, stage: str, summary: str) -> None: ...  # noqa: D102


class _Lines:
    """A line now and then."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._total = 0

    def begin(self, stage: str, total: int) -> None:
        self._last, self._total = time.monotonic(), total
        _print(f"{stage}: begins")

    def advance(self, stage: str, done: int, note: str = "") -> None:
        if time.monotonic() - self._last >= _EVERY:
            self._last = time.monotonic()
            of = f" of {self._total}" if self._total else ""
            _print(f"{stage}: {done}{of}{', ' if note else ''}{note}")

    def note(self, text: str) -> None:
        _print(text)

    def end(self, stage: str, summary: str) -> None:
        _print(f"{stage}: {summary}")


class _Bars:
    """Bars on a terminal, each with a note at its end."""

    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._done = 0

    def begin(self, stage: str, total: int) -> None:
        self._tasks[stage] = self._bars.add_task(stage, total=total or None, note="")
        self._done = 0

    def advance(self, stage: str, done: int, note: str = "") -> None:
        self._done = done
        self._bars.update(self._tasks[stage], completed=done, note=note)

    def note(self, text: str) -> None:
        self._bars.console.print(visible(text), highlight=False, markup=False)

    def end(self, stage: str, summary: str) -> None:  # noqa: ARG002 - the bar says it
        done = max(self._done, 1)
        self._bars.update(self._tasks[stage], total=done, completed=done)


@contextlib.contextmanager
def show_progress() -> Iterator[Progress]:
    """Bars where they can be drawn, lines where they cannot; of several processes, the first one speaks."""
    if not first_process():
        yield Silent()
    elif not has_bars():
        yield _Lines()
    else:
        with _bars() as bars:
            yield _Bars(bars)


@contextlib.contextmanager
def show_rows(what: str) -> Iterator[Callable[[int], None]]:
    """A function that takes the number of rows read so far and shows it, from the third second on."""
    start = time.monotonic()
    if not has_bars():
        yield _RowLines(what, start)
        return
    with contextlib.ExitStack() as stack:
        yield _RowBar(what, start, stack)


class _RowLines:
    def __init__(self, what: str, start: float) -> None:
        self._what, self._start, self._next = what, start, start + _ROWS_EVERY

    def __call__(self, rows: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _ROWS_EVERY
            _print(f"{self._what}: {rows:,} rows, {now - self._start:.0f} s")


class _RowBar:
    def __init__(self, what: str, start: float, stack: contextlib.ExitStack) -> None:
        self._what, self._start, self._stack = what, start, stack
        self._bar: RichProgress | None = None

    def __call__(self, rows: int) -> None:
        if self._bar is None:
            if time.monotonic() - self._start < _ROWS_AFTER:
                return
            self._bar = self._stack.enter_context(self._make())
        self._bar.update(self._bar.tasks[0].id, completed=rows)

    def _make(self) -> RichProgress:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.completed:,} rows"),
            TimeElapsedColumn(),
        )
        bar = Progress(*columns, console=Console(stderr=True), transient=True)
        bar.add_task(self._what, total=None)
        return bar


@contextlib.contextmanager
def _bars() -> Iterator[RichProgress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<10}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        yield bars


def has_bars() -> bool:
    """Whether bars can be drawn: on a terminal, and in a notebook that has widgets."""
    if sys.stderr.isatty():
        return True
    if "IPython" not in sys.modules:
        return False
    from importlib.util import find_spec

    from rich.console import Console

    return Console().is_jupyter and find_spec("ipywidgets") is not None


def first_process() -> bool:
    """Whether this is the first of several processes: launchers number them in RANK."""
    return os.environ.get("RANK", "0") == "0"


def _print(text: str) -> None:
    sys.stderr.write(f"{visible(text)}\n")
    sys.stderr.flush()
