"""When a server counts as down, on a clock of our own."""

from __future__ import annotations

import pytest

from rlaif.errors import ModelError
from rlaif.inference.faults import Fault
from rlaif.inference.server_health import ServerHealth

REFUSED = Fault("refused", "connection refused", retry=True, down=True)
TIMEOUT = Fault("timeout", "no reply within 60 s", retry=True, down=True)
BUSY = Fault("http_429", "HTTP 429", retry=True)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("rlaif.inference.server_health.time", clock)
    return clock


def patience() -> ServerHealth:
    return ServerHealth("http://judge/v1", give_up_after=30.0, timeout=60.0, backoff=0.5)


def test_thirty_seconds_of_nothing_stop_the_run(clock: Clock) -> None:
    watch = patience()
    watch.failed(REFUSED)
    clock.now += 29.9
    watch.failed(REFUSED)
    clock.now += 0.1
    with pytest.raises(ModelError, match=r"^no answer from http://judge/v1 for 30 s \(connection refused\); what was"):
        watch.failed(REFUSED)


@pytest.mark.parametrize("sign", ["an answer", "a clear refusal"])
def test_any_sign_of_life_starts_the_clock_anew(clock: Clock, sign: str) -> None:
    watch = patience()
    for _ in range(10):
        watch.failed(REFUSED)
        clock.now += 25
        if sign == "an answer":
            watch.heard()
        else:
            watch.failed(BUSY)
        clock.now += 25


def test_timeouts_alone_are_given_one_timeout_more(clock: Clock) -> None:
    """60 s pass before a second wave can even time out; 30 + 60 s of nothing are too much."""
    watch = patience()
    watch.failed(TIMEOUT)
    clock.now += 60
    watch.failed(TIMEOUT)
    clock.now += 30
    with pytest.raises(ModelError, match="for 90 s"):
        watch.failed(TIMEOUT)


def test_a_rate_limit_is_waited_for(clock: Clock) -> None:
    """300 s and a timeout of 60 s of nothing but 429 are too much for all, 300 s and its attempts for one question."""
    watch, start = patience(), 1000.0
    watch.failed(BUSY)
    clock.now += 359.9
    watch.failed(BUSY)
    assert not watch.limit_stays(start, attempts=5, most=6)
    assert watch.limit_stays(start, attempts=6, most=6) and not watch.limit_stays(start + 60, attempts=99, most=6)
    clock.now += 0.1
    assert watch.limit_stays(clock.now, attempts=1, most=6)
    watch.heard()
    watch.failed(BUSY)
    assert not watch.limit_stays(start, attempts=5, most=6)


def test_pauses_double_up_to_eight_seconds_with_full_jitter() -> None:
    watch = patience()
    for attempt, most in ((0, 0.5), (1, 1.0), (2, 2.0), (4, 8.0), (9, 8.0), (100_000, 8.0)):
        pauses = [watch.pause(attempt) for _ in range(300)]
        assert 0 <= min(pauses) < most / 4 and most * 3 / 4 < max(pauses) <= most
