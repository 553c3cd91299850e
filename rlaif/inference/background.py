"""An event loop in a thread of its own, for callers that have none: models are asked in it, and live as long as it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

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

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Do the last work, and end loop and thread, however it goes."""

        async def ending() -> None:
            try:
                await last
            finally:
                await self._loop.shutdown_default_executor()

        try:
            asyncio.run_coroutine_threadsafe(ending(), self._loop).result(_LONGEST_CLOSE)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_LONGEST_CLOSE)
            if not self._thread.is_alive():
                self._loop.close()
