"""Event loops for callers that have none: one in a thread of its own, in which models are asked and live as long as it
does; and one for a single piece of work, also where a loop is running already.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")

_LONGEST_CLOSE = 60.0
"""Seconds that closing may take; a launched server needs some."""


class Background:
    """Connections do not outlive the loop that opened them, so that one loop serves all calls."""

    def __init__(self, name: str) -> None:
        """`name` is the thread's. It is a daemon: a program that ends without `close` does not wait for it."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What some work comes to; where the caller is interrupted while waiting, it is called off."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # does nothing to what is done

    def close(self, last: Coroutine[Any, Any, None] | None = None) -> None:
        """Call off what runs, wait until that has closed what it opened, do the last work, end loop and thread."""

        async def ending() -> None:
            try:
                await _called_off()
                if last is not None:
                    await last
            finally:
                await self._loop.shutdown_asyncgens()
                await self._loop.shutdown_default_executor()

        try:
            asyncio.run_coroutine_threadsafe(ending(), self._loop).result(_LONGEST_CLOSE)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_LONGEST_CLOSE)
            if not self._thread.is_alive():
                self._loop.close()


async def _called_off() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        if not task.cancelling():  # once: a second time would cut its closing short
            task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What some work in a thread comes to. Where the caller is called off, nobody waits for the thread: weights that
    are being loaded, or a pass through a model, cannot be stopped halfway, and nothing of them is kept."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(found: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast(T, found))

    def run() -> None:
        found, error = None, None
        try:
            found = work(*args, **kwargs)
        except BaseException as raised:  # noqa: BLE001 - it is the caller's
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has gone meanwhile
            loop.call_soon_threadsafe(settle, found, error)

    threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True).start()
    return await future


def blocking(work: Coroutine[Any, Any, T]) -> T:
    """What some work comes to: `asyncio.run`, also where an event loop is running, as in a notebook.

    There the work gets a loop in a thread of its own. A caller that is interrupted while waiting calls it off, and goes
    on when it has closed what it opened.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        running = False
    else:
        running = True
    return _apart(work) if running else asyncio.run(work)


def _apart(work: Coroutine[Any, Any, T]) -> T:
    """An interrupt may come between any two steps, also before `run` waits: `close` ends whatever has begun."""
    background = Background("rlaif")
    try:
        return background.run(work)
    finally:
        background.close()
