"""One piece of asynchronous work from code that is not: with no event loop, and with one running."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable

import pytest

from rlaif.inference.base import blocking


async def _sum(*numbers: int) -> int:
    await asyncio.sleep(0)
    return sum(numbers)


async def _fails() -> None:
    raise LookupError("as it should")


def outside(work: Callable[[], None]) -> None:
    work()


def inside(work: Callable[[], None]) -> None:
    """As in a notebook: the caller is no coroutine, and a loop is running in its thread."""

    async def cell() -> None:
        work()

    asyncio.run(cell())


@pytest.mark.parametrize("around", [outside, inside])
def test_work_gives_its_result_or_its_error(around: Callable[[Callable[[], None]], None]) -> None:
    def work() -> None:
        assert blocking(_sum(2, 3)) == 5
        with pytest.raises(LookupError, match="as it should"):
            blocking(_fails())

    around(work)


@pytest.mark.parametrize("around", [outside, inside])
def test_an_interrupt_calls_the_work_off_and_waits_until_it_has_closed(
    around: Callable[[Callable[[], None]], None],
) -> None:
    told: list[str] = []

    async def hangs() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.01)  # closing takes a moment, and is not cut short
            told.append("closed")

    def work() -> None:
        for _ in range(30):  # the signal comes at another moment each time, also before the caller waits
            told.clear()
            with pytest.raises(KeyboardInterrupt):
                blocking(hangs())
            assert told == ["closed"]

    if around is outside:  # the loop of `asyncio.run` hears the signal itself
        work()
    else:
        interrupted_inside(work)


def interrupted_inside(work: Callable[[], None]) -> None:
    """`inside`, with the handler that a notebook has: a loop of `asyncio.run` would take the signal for itself."""
    loop = asyncio.new_event_loop()

    async def cell() -> None:
        work()

    try:
        loop.run_until_complete(cell())
    finally:
        loop.close()


def test_the_loop_that_runs_already_is_another_one() -> None:
    """The caller's thread waits, so that the work can only be done in another."""
    seen: list[int] = []

    async def where() -> None:
        seen.append(threading.get_ident())

    inside(lambda: blocking(where()))
    outside(lambda: blocking(where()))
    assert seen[0] != threading.get_ident() == seen[1]


@pytest.mark.parametrize("fails", [False, True])
def test_models_are_closed_when_the_work_ends(fails: bool) -> None:
    closed: list[str] = []

    class Model:
        def __init__(self, name: str) -> None:
            self.name = name

        async def close(self) -> None:
            closed.append(self.name)

    async def work() -> int:
        if fails:
            raise ValueError("broken")
        return 5

    with pytest.raises(ValueError, match="broken") if fails else contextlib.nullcontext():
        assert blocking(work(), Model("judge"), Model("policy")) == 5
    assert closed == ["judge", "policy"]
