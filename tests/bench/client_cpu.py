"""Client CPU per judge call: Server.answer on label questions beside a plain httpx client, in one run.

    python tests/bench/client_cpu.py [STUB.py]

The stub (default ../shared/bench/stub_server.py) answers every POST at once; it runs under uvicorn on the last core,
the client on the first, so that the client's own cost shows. Prints milliseconds of CPU per call.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import httpx  # noqa: E402

from rlaif.inference.base import Question  # noqa: E402
from rlaif.inference.chat_api import LabelRoute, request_body  # noqa: E402
from rlaif.inference.client import Server  # noqa: E402
from rlaif.records import Message, Sampling  # noqa: E402

CALLS, PLAIN_CALLS, WARM_UP = 8_000, 2_000, 300


def questions(count: int) -> list[Question]:
    """Label questions as long as a usual comparison."""
    return [
        Question(
            "compare",
            "bench",
            (Message(role="user", content=f"Pair {number}. " + "Which of the two replies is kinder? " * 40),),
            Sampling(max_tokens=1),
            labels=("A", "B"),
        )
        for number in range(count)
    ]


async def measure(call: Callable[[Question], Awaitable[object]], asked: list[Question], workers: int) -> float:
    """Milliseconds of CPU per call with `workers` calls under way."""

    async def drive(some: list[Question]) -> None:
        left = iter(some)

        async def worker() -> None:
            for question in left:
                await call(question)

        await asyncio.gather(*[worker() for _ in range(workers)])

    await drive(asked[:WARM_UP])
    before = time.process_time()
    await drive(asked[WARM_UP:])
    return 1000 * (time.process_time() - before) / (len(asked) - WARM_UP)


async def ours(url: str, workers: int) -> float:
    """Server.answer, one question a call."""
    server = Server(url, "bench", concurrency=workers)
    problems = await server.probe()
    assert not problems, problems
    assert server.batch_size == 1, "the stub must not look as if it had a batch route"
    assert (await server.answer(questions(1)))[0].logprobs == (-0.5, -0.93)

    async def call(question: Question) -> None:
        (answer,) = await server.answer([question])
        assert answer.failure is None

    spent = await measure(call, questions(CALLS + WARM_UP), workers)
    await server.close()
    return spent


async def plain(url: str, connections: int) -> float:
    """httpx as one would write it by hand."""
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    async with httpx.AsyncClient(limits=limits, timeout=60) as client:

        async def call(question: Question) -> None:
            body = request_body("bench", [question], LabelRoute("top", top=20), None)
            reply = await client.post(f"{url}/chat/completions", json=body)
            assert reply.json()["choices"][0]["logprobs"]

        return await measure(call, questions(PLAIN_CALLS + WARM_UP), connections)


@contextmanager
def stub(path: Path) -> Iterator[str]:
    """The stub server on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", f"{path.stem}:app", "--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen(command, cwd=path.parent, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})
    try:
        if hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(process.pid, cores[-1:])
            os.sched_setaffinity(0, cores[:1])
        _await_port(port)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def _await_port(port: int) -> None:
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit("the stub did not start")


def main() -> None:
    """Measure and print."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent / "shared" / "bench" / "stub_server.py"
    with stub(path.resolve()) as url:
        for workers in (16, 128):
            own, other = asyncio.run(ours(url, workers)), asyncio.run(plain(url, workers))
            print(f"{workers:4d} under way: Server.answer {own:.3f} ms, httpx client {other:.3f} ms of CPU per call")


if __name__ == "__main__":
    main()
