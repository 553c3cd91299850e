"""How many questions may be under way: additive increase, multiplicative decrease (as TCP does, RFC 5681).

The limit starts at what the user set and never exceeds it. A sign of overload (429, 503, a timeout) halves it, once for
all the requests that were sent before the cut, however many of them fail; one full window of successes raises it by
one. A `Retry-After`, or the pause after a 429 without one, holds everybody back: the questions wait here.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Throttle:
    """A gate for requests of different sizes; the unit is the question. Belongs to one event loop."""

    def __init__(self, limit: int) -> None:
        self.most = limit
        self.limit = limit
        self.cuts = 0
        """Times that the limit was halved."""
        self._busy = 0
        self._good = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._open_at = 0.0
        self._alarm: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def slot(self, size: int = 1) -> AsyncIterator[int]:
        """Hold room for `size` questions. Yields the number of cuts so far, to be handed back to `overloaded`.

        A request that is larger than the limit goes alone.
        """
        if self._waiting or not self._fits(size):
            await self._wait(size)
        else:
            self._busy += size
        try:
            yield self.cuts
        finally:
            self._busy -= size
            self._admit()

    def succeeded(self, size: int = 1) -> None:
        """Count `size` answered questions towards the next raise of the limit."""
        self._good += size
        if self._good >= self.limit:
            self._good = 0
            if self.limit < self.most:
                self.limit += 1
                self._admit()

    def overloaded(self, cuts_at_start: int) -> None:
        """Halve the limit, unless it was halved since the failed request was sent."""
        if cuts_at_start == self.cuts:
            self.limit = max(1, self.limit // 2)
            self.cuts += 1
            self._good = 0

    def hold(self, seconds: float) -> None:
        """Send nothing for `seconds`."""
        until = time.monotonic() + seconds
        if until > self._open_at:
            self._open_at = until
            self._ring_at_opening()

    def _fits(self, size: int) -> bool:
        roomy = self._busy == 0 or self._busy + size <= self.limit
        return roomy and (self._open_at == 0.0 or self._is_open())

    def _is_open(self) -> bool:
        if time.monotonic() < self._open_at:
            return False
        self._open_at = 0.0
        return True

    async def _wait(self, size: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        if self._open_at:
            self._ring_at_opening()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # admitted and cancelled at once: give the room back
                self._busy -= size
            else:
                with suppress(ValueError):  # `_admit` may have passed over it already
                    self._waiting.remove((size, turn))
            self._admit()
            raise

    def _admit(self) -> None:
        """Let in those who wait, first come first served, as far as there is room."""
        while self._waiting and self._fits(self._waiting[0][0]):
            size, turn = self._waiting.popleft()
            if not turn.done():
                self._busy += size
                turn.set_result(None)

    def _ring_at_opening(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        delay = max(0.0, self._open_at - time.monotonic())
        self._alarm = asyncio.get_running_loop().call_later(delay + 0.001, self._admit)
