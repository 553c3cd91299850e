"""Event loops for synchronous callers: a long-lived one in its own thread, and one for a single coroutine.

Connections do not outlive the event loop that opened them, so every object that keeps a model open between calls owns
one `Background` and runs all calls on it. `blocking` serves callers that need a loop once, and also works where a loop
is running already, as in a notebook. `in_thread` goes the other way: it awaits blocking work without blocking the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")

_CLOSE_TIMEOUT = 60.0
"""Seconds that closing may take; a launched server needs some."""


class Background:
    """An event loop in a daemon thread."""

    def __init__(self, name: str) -> None:
        """`name` is the thread's. A program that ends without `close` does not wait for the thread."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and return its result. An interrupt while waiting cancels the coroutine."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # no effect on a future that is done

    def close(self, last: Coroutine[Any, Any, None] | None = None) -> None:
        """Cancel the running tasks, wait for their cleanup, run `last`, then end the loop and its thread."""

        async def shut_down() -> None:
            try:
                tasks = asyncio.all_tasks() - {asyncio.current_task()}
                for task in tasks:
                    if not task.cancelling():  # a second cancellation would cut the cleanup short
                        task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                if last is not None:
                    await last
            finally:
                await self._loop.shutdown_asyncgens()
                await self._loop.shutdown_default_executor()

        try:
            asyncio.run_coroutine_threadsafe(shut_down(), self._loop).result(_CLOSE_TIMEOUT)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CLOSE_TIMEOUT)
            if not self._thread.is_alive():
                self._loop.close()


class Closable(Protocol):
    """What is closed when the work is done: a model, or its source."""

    async def close(self) -> None:
        """Close it; nothing where it is closed already."""
        ...


def blocking(work: Coroutine[Any, Any, T], *models: Closable) -> T:
    """`asyncio.run`, also where an event loop is running already, as in a notebook; closes `models` at the end.

    There the coroutine gets a loop in a thread of its own. An interrupt cancels it, and the caller continues when its
    cleanup is done.
    """
    work = _closing(work, models) if models else work
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        running = False
    else:
        running = True
    if not running:
        return asyncio.run(work)
    background = Background("rlaif")
    try:  # an interrupt may arrive before `run` waits: `close` cancels whatever has started
        return background.run(work)
    finally:
        background.close()


async def _closing(work: Coroutine[Any, Any, T], models: Sequence[Closable]) -> T:
    try:
        return await work
    finally:
        for model in models:
            await model.close()


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function in a daemon thread and return its result.

    A cancelled caller does not wait for the thread: loading weights, or a forward pass, cannot be stopped halfway. The
    result is then dropped.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast(T, result))

    def run() -> None:
        result, error = None, None
        try:
            result = work(*args, **kwargs)
        except BaseException as raised:  # noqa: BLE001 - the caller gets it
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has closed meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True).start()
    return await future
