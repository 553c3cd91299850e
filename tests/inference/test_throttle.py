"""The gate: halving once per window, growing by one per window, holding for Retry-After, never above its limit."""

from __future__ import annotations

import asyncio
import time

import pytest

from rlaif.inference.faults import retry_after
from rlaif.inference.server_health import Throttle


def test_a_wave_of_failures_halves_once() -> None:
    throttle = Throttle(32)
    sent = throttle.cuts
    for _ in range(20):
        throttle.overloaded(sent)
    assert throttle.limit == 16
    throttle.overloaded(throttle.cuts)
    assert throttle.limit == 8
    for _ in range(10):
        throttle.overloaded(throttle.cuts)
    assert throttle.limit == 1


def test_it_grows_by_one_per_window_up_to_its_limit() -> None:
    """From 2: two successes make 3, three more make 4, and there it stays."""
    throttle = Throttle(4)
    throttle.overloaded(0)
    limits = []
    for _ in range(12):
        throttle.succeeded()
        limits.append(throttle.limit)
    assert limits == [2, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4]


@pytest.mark.parametrize("size", [1, 3, 50])
def test_no_more_than_the_limit_is_under_way(size: int) -> None:
    async def main() -> int:
        throttle = Throttle(10)
        busy = most = 0

        async def work() -> None:
            nonlocal busy, most
            async with throttle.slot(size):
                busy += size
                most = max(most, busy)
                await asyncio.sleep(0)
                busy -= size

        await asyncio.gather(*[work() for _ in range(40)])
        return most

    assert asyncio.run(main()) == {1: 10, 3: 9, 50: 50}[size]


def test_holding_delays_everybody() -> None:
    async def main() -> float:
        throttle = Throttle(4)
        throttle.hold(0.15)
        start = time.monotonic()

        async def work() -> None:
            async with throttle.slot():
                pass

        await asyncio.gather(*[work() for _ in range(9)])
        return time.monotonic() - start

    assert 0.15 <= asyncio.run(main()) < 1.0


def test_a_hold_does_not_outlast_its_event_loop() -> None:
    throttle = Throttle(1)

    async def hold() -> None:
        throttle.hold(0.1)

    async def work() -> None:
        async with throttle.slot():
            pass

    asyncio.run(hold())
    asyncio.run(asyncio.wait_for(work(), 2))


def test_retry_after_is_a_number_or_a_date() -> None:
    """Thu, 01 Jan 1970 00:01:00 GMT is 60 s after the epoch, so 20 s after second 40."""
    assert retry_after("7") == 7.0
    assert retry_after("Thu, 01 Jan 1970 00:01:00 GMT", now=40.0) == 20.0
    assert retry_after("Thu, 01 Jan 1970 00:01:00 GMT", now=400.0) == 0.0
    assert retry_after(None) is None and retry_after("soon") is None and retry_after("-5") == 0.0
