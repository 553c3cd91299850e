"""How long to wait for a server: pauses between attempts, and the moment to stop hoping.

Pauses grow exponentially with full jitter, so that the requests that failed together do not come back together. A
server counts as down when, for `give_up_after` seconds, nothing succeeded and every failure was one that a dead or
restarting server gives. Attempts that fail meanwhile are not held against their questions: a restart costs no answers.
Where the last of those failures is a timeout it may be the questions that take too long, and not the server that is
gone: whoever catches the error can ask it something small first.

"Too many requests" (429) says later, not no: no question fails of a limit of so many requests a minute. One fails of it
after `LONGEST_LIMITED` seconds (and a timeout) in which the server said nothing else to anybody; or when that long and
all its attempts went into it alone, as into a request that is larger than the whole limit.
"""

from __future__ import annotations

import random
import time

from rlaif.errors import ModelError
from rlaif.inference.faults import Fault

LONGEST_LIMITED = 300.0
"""Seconds that a rate limit is waited for."""
_LONGEST_PAUSE = 8.0


class Patience:
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
