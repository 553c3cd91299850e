"""How fast a server may be asked, and when it counts as down.

How long to wait for a server: pauses between attempts, and the moment to stop hoping.

Pauses grow exponentially with full jitter, so that the requests that failed together do not come back together. A
server counts as down when, for `give_up_after` seconds, nothing succeeded and every failure was one that a dead or
restarting server gives. Attempts that fail meanwhile are not held against their questions: a restart costs no answers.
Where the last of those failures is a timeout it may be the questions that take too long, and not the server that is
gone: whoever catches the error can ask it something small first.

"Too many requests" (429) says later, not no: no question fails of a limit of so many requests a minute. One fails of it
after `LONGEST_LIMITED` seconds (and a timeout) in which the server said nothing else to anybody; or when that long and
all its attempts went into it alone, as into a request that is larger than the whole limit.

How many questions may be under way: additive increase, multiplicative decrease (as TCP does, RFC 5681).

The limit starts at what the user set and never exceeds it. A sign of overload (429, 503, a timeout) halves it, once for
all the requests that were sent before the cut, however many of them fail; one full window of successes raises it by
one. A `Retry-After`, or the pause after a 429 without one, holds everybody back: the questions wait here.
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
"""Seconds that a rate limit is waited for."""
_LONGEST_PAUSE = 8.0


class ServerHealth:
    """Watches all exchanges with one server."""

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
        """The server is alive: it answered, or said clearly why not; `limited` where that was a 429."""
        self.replies += 1
        self._silent_since = None
        if not limited:
            self._limited_since = None
        elif self._limited_since is None:
            self._limited_since = time.monotonic()

    def limit_stays(self, since: float, attempts: int, most: int) -> bool:
        """Whether a question that was asked from `since` on, `attempts` times of at most `most`, fails of its 429."""
        now = time.monotonic()
        first = now if self._limited_since is None else self._limited_since
        for_all = now - first >= LONGEST_LIMITED + self._timeout
        return for_all or (attempts >= most and now - since >= LONGEST_LIMITED)

    def failed(self, fault: Fault) -> None:
        """Note a failed exchange. Raises ModelError when the server has been down for too long."""
        if not fault.down:
            self.heard(limited=fault.limited)
            return
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
        silent = now - self._silent_since
        # A timeout takes long to show: only after a second wave of them is it the server, not its load.
        if silent >= self._give_up_after + (self._timeout if fault.kind == "timeout" else 0.0):
            raise ModelError(
                f"no answer from {self._url} for {silent:.0f} s ({fault.detail}); "
                "what was answered is kept, run the same command again to go on"
            )


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
