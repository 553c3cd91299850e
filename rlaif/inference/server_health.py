"""When a server counts as down, how long to pause between attempts, and how many questions may be in flight.

`ServerHealth` decides about time. Pauses grow exponentially with full jitter, so that requests which failed together do
not come back together. A server counts as down when, for `give_up_after` seconds, no exchange succeeded and every
failure was one that a dead or restarting server gives; attempts that fail meanwhile do not count against their
questions, so a restart costs no outputs. If the last of those failures is a timeout, the questions may be too slow
rather than the server gone: the caller can then send it something small before giving up.

A 429 ("too many requests") postpones a question and does not fail it. A question fails of a rate limit only after
`LONGEST_LIMITED` seconds (and a timeout) in which the server sent nothing but 429 to any request, or when that long and
all its attempts went into this question alone, as for a request that is larger than the whole limit.

`Throttle` decides about concurrency: additive increase, multiplicative decrease, as TCP does (RFC 5681). The limit
starts at the user's setting and never exceeds it. A sign of overload (429, 503, a timeout) halves it, once for all
requests that were sent before the cut; one full window of successes raises it by one. A `Retry-After`, or the pause
after a 429 without one, holds back all questions at this gate.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from rlaif.errors import ModelError
from rlaif.inference.faults import Fault

LONGEST_LIMITED = 300.0
"""Seconds to wait for a rate limit to end."""
_LONGEST_PAUSE = 8.0


class ServerHealth:
    """Follows all exchanges with one server."""

    def __init__(self, url: str, *, give_up_after: float, timeout: float, backoff: float) -> None:
        self._url, self._give_up_after, self._timeout, self._backoff = url, give_up_after, timeout, backoff
        self.replies = 0
        """Exchanges that showed the server alive."""
        self._silent_since: float | None = None
        self._limited_since: float | None = None

    def pause(self, attempt: int) -> float:
        """Seconds to wait after failed attempt number `attempt`, counted from 0."""
        return random.uniform(0, min(_LONGEST_PAUSE, self._backoff * 2 ** min(attempt, 10)))

    def heard(self, *, limited: bool = False) -> None:
        """Record that the server is alive: it replied, or refused for a clear reason; `limited` means a 429."""
        self.replies += 1
        self._silent_since = None
        if not limited:
            self._limited_since = None
        elif self._limited_since is None:
            self._limited_since = time.monotonic()

    def limit_stays(self, since: float, attempts: int, most: int) -> bool:
        """Whether a question, first sent at `since` and sent `attempts` times of at most `most`, fails of its 429."""
        now = time.monotonic()
        first = now if self._limited_since is None else self._limited_since
        for_all = now - first >= LONGEST_LIMITED + self._timeout
        return for_all or (attempts >= most and now - since >= LONGEST_LIMITED)

    def failed(self, fault: Fault) -> None:
        """Record a failed exchange. Raises ModelError when the server has been down for too long."""
        if not fault.down:
            self.heard(limited=fault.limited)
            return
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
        silent = now - self._silent_since
        # A timeout takes long to appear: only a second wave of them points to the server rather than to its load.
        if silent >= self._give_up_after + (self._timeout if fault.kind == "timeout" else 0.0):
            raise ModelError(
                f"no answer from {self._url} for {silent:.0f} s ({fault.detail}); "
                "what was answered is kept, run the same command again to go on"
            )


class Throttle:
    """A gate for requests of different sizes, counted in questions. Belongs to one event loop."""

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
        """Hold room for `size` questions. Yields the number of cuts so far, which the caller returns to `overloaded`.

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
        if self._busy and self._busy + size > self.limit:
            return False
        if self._open_at and time.monotonic() < self._open_at:
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
                with suppress(ValueError):  # `_admit` may have removed it already
                    self._waiting.remove((size, turn))
            self._admit()
            raise

    def _admit(self) -> None:
        """Admit waiting requests, first come first served, as far as there is room."""
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
