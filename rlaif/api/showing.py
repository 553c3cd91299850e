"""Progress of the functions: what the commands show of it on standard error, or nothing at all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from rlaif.pipeline import Silent

if TYPE_CHECKING:
    from rlaif.pipeline import Report, Watch
    from rlaif.training.callbacks import Told


class _Quiet:
    """Hears of a training, and keeps it to itself."""

    def note(self, text: str) -> None: ...
    def begin(self, stage: str, total: int) -> None: ...
    def progress(self, stage: str, done: int, logs: dict[str, float]) -> None: ...


@contextlib.contextmanager
def watching(quiet: bool) -> Iterator[Watch]:
    """For questions to models."""
    if quiet:
        yield Silent()
        return
    from rlaif.cli.show import watch

    with watch() as told:
        yield told


@contextlib.contextmanager
def training(quiet: bool) -> Iterator[Told]:
    """For a training."""
    if quiet:
        yield _Quiet()
        return
    from rlaif.cli.progress import watch_training

    with watch_training() as told:
        yield told


@contextlib.contextmanager
def reading(what: str, quiet: bool) -> Iterator[Callable[[int], None] | None]:
    """For rows that are read."""
    if quiet:
        yield None
        return
    from rlaif.cli.reading import rows_read

    with rows_read(what) as told:
        yield told


class Screen:
    """For the whole loop."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet

    def stage(self, name: str) -> None:
        """A heading."""
        self.note(name)

    def note(self, text: str) -> None:
        """A line."""
        if not self._quiet:
            import click

            click.echo(text, err=True)

    def data(self, report: Report) -> None:
        """Nothing: the caller gets the counts."""

    def watching(self) -> AbstractContextManager[Watch]:
        """For questions to models."""
        return watching(self._quiet)

    def training(self) -> AbstractContextManager[Told]:
        """For a training."""
        return training(self._quiet)
