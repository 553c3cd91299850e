"""Progress: what a training shows while it goes, bars on a terminal and a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rlaif.cli.terminal import echo
from rlaif.text import visible

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from rlaif.training.callbacks import Told

_EVERY = 10.0
"""Seconds between two plain progress lines."""
_SHOWN = {
    "loss": "loss", "accuracy": "accuracy", "eval_loss": "held-out loss", "eval_accuracy": "held-out accuracy",
    "reward": "reward", "kl": "KL",
}  # fmt: skip


def _figures(logs: dict[str, float]) -> str:
    return ", ".join(f"{name} {logs[key]:.3f}" for key, name in _SHOWN.items() if key in logs)


class _Silent:
    """Of several processes, the first one speaks."""

    def note(self, text: str) -> None: ...
    def begin(self, stage: str, total: int) -> None: ...
    def progress(self, stage: str, done: int, logs: dict[str, float]) -> None: ...


class _Lines:
    def __init__(self) -> None:
        self._last = time.monotonic()
        self._totals: dict[str, int] = {}

    def note(self, text: str) -> None:
        echo(text, err=True)

    def begin(self, stage: str, total: int) -> None:
        self._last, self._totals[stage] = time.monotonic(), total

    def progress(self, stage: str, done: int, logs: dict[str, float]) -> None:
        total = self._totals[stage]
        if done == total or time.monotonic() - self._last >= _EVERY:
            self._last = time.monotonic()
            told = _figures(logs)
            echo(f"{stage}: {done} of {total}{', ' if told else ''}{told}", err=True)


class _Bars:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def note(self, text: str) -> None:
        self._progress.console.print(visible(text), highlight=False, markup=False)

    def begin(self, stage: str, total: int) -> None:
        self._tasks[stage] = self._progress.add_task(stage, total=total, note="")

    def progress(self, stage: str, done: int, logs: dict[str, float]) -> None:
        self._progress.update(self._tasks[stage], completed=done, note=_figures(logs))


def has_bars() -> bool:
    """Whether bars can be drawn: on a terminal, and in a notebook that has widgets."""
    if sys.stderr.isatty():
        return True
    if "IPython" not in sys.modules:
        return False
    from importlib.util import find_spec

    from rich.console import Console

    return Console().is_jupyter and find_spec("ipywidgets") is not None


@contextlib.contextmanager
def watch_training() -> Iterator[Told]:
    """Bars where they can be drawn, lines where they cannot."""
    from rlaif.training.folder import first_process

    if not first_process():
        yield _Silent()
        return
    if not has_bars():
        yield _Lines()
        return
    with bars() as progress:
        yield _Bars(progress)


@contextlib.contextmanager
def bars() -> Iterator[Progress]:
    """Bars on standard error, each with a `note` at its end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<10}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield progress
