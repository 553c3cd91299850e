"""A real vLLM server with the tiny judge: batches against single calls, and the share of the prefix cache.

    RLAIF_VLLM_PYTHON=... python tests/bench/vllm.py [PROMPTS]

Speed is measured on the tiny world's prompts, all ways on the same server, one after the other, on different prompts,
so that the cache of one does not serve the other; once with every principle asked about every pair, where most of a
question is in the cache and the way of asking counts, once with one principle drawn a pair, where the model's own
arithmetic bounds every way of asking. The cache is measured on real dialogues (hh-rlhf, from ../shared/data), each with
four replies such as the tiny policy writes, one principle a pair. Targets: batches at least 3 times the verdicts per
second of one call per verdict by httpx at concurrency 64; at least 60% of the judge's prompt tokens from the prefix
cache, by the server's own metrics.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import re
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import httpx

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rlaif.config.judge_templates import Judge  # noqa: E402
from rlaif.config.schemas import CompareSettings  # noqa: E402
from rlaif.constitution import load_constitution  # noqa: E402
from rlaif.data.prompts import read_prompts  # noqa: E402
from rlaif.demo.world import Voice, draw_reply, draw_scene  # noqa: E402
from rlaif.feedback.judge import compare_questions, criteria_of, matchups  # noqa: E402
from rlaif.feedback.prompts import LABELS  # noqa: E402
from rlaif.inference.base import Question  # noqa: E402
from rlaif.inference.client import Server  # noqa: E402
from rlaif.inference.vllm_process import PYTHON_VARIABLE, VllmServer  # noqa: E402
from rlaif.records import Message, Prompt, Sample, content_id  # noqa: E402

DATA = ROOT.parent / "shared" / "data" / "hh-rlhf-harmless-base-test.jsonl.gz"


Principles = Literal["one", "each"]


def plan(prompts: Sequence[Prompt], answers: Sequence[str], constitution: str, mode: Principles) -> list[Question]:
    """The questions of `rlaif compare` on these prompts with four answers each."""
    compare = CompareSettings(principles=mode)
    criteria = criteria_of(load_constitution(constitution), mode)
    questions: list[Question] = []
    for at, prompt in enumerate(prompts):
        texts = [answers[(4 * at + k) % len(answers)] for k in range(4)]
        samples = [
            Sample(id=content_id(prompt.id, k), prompt=prompt.id, index=k, text=text, policy="given")
            for k, text in enumerate(texts)
        ]
        questions += compare_questions(prompt, matchups(samples, criteria, compare), compare, Judge("demo-judge"))
    return questions


def metrics(url: str) -> tuple[float, float]:
    """Prompt tokens looked up in the prefix cache so far, and found there."""
    text = urllib.request.urlopen(url.removesuffix("/v1") + "/metrics", timeout=10).read().decode()

    def total(name: str) -> float:
        return sum(float(value) for value in re.findall(rf"^vllm:{name}_total(?:\{{.*\}})? ([\d.e+]+)$", text, re.M))

    return total("prefix_cache_queries"), total("prefix_cache_hits")


async def plain(url: str, questions: list[Question]) -> float:
    """Verdicts per second of what people write: one httpx client, one call per verdict, 64 at a time."""
    gate = asyncio.Semaphore(64)
    asked = {"model": "demo-judge", "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 20}

    async def ask(question: Question) -> None:
        messages = [message.model_dump() for message in question.messages]
        async with gate:
            reply = await client.post(f"{url}/chat/completions", json={**asked, "messages": messages})
        found = reply.raise_for_status().json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        assert len(found) == 20

    start = time.perf_counter()
    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=64)) as client:
        await asyncio.gather(*[ask(question) for question in questions])
    return len(questions) / (time.perf_counter() - start)


async def verdicts(url: str, questions: list[Question], *, batches: bool) -> float:
    """Verdicts per second with 64 questions under way, through our own client."""
    server = Server(url, "demo-judge", concurrency=64)
    problems = await server.probe(LABELS)
    assert not problems, problems
    assert server.batch_size > 1, "no batch route"
    if not batches:
        server.batch_size, server.concurrency = 1, 64
    left = _chunks(questions, server.batch_size)
    failed = 0

    async def worker() -> None:
        nonlocal failed
        for chunk in left:
            failed += sum(answer.failure is not None for answer in await server.answer(chunk))

    start = time.perf_counter()
    await asyncio.gather(*[worker() for _ in range(server.concurrency)])
    seconds = time.perf_counter() - start
    await server.close()
    if failed:
        print(f"{failed} questions failed")
    return len(questions) / seconds


def _chunks(questions: list[Question], size: int) -> Iterator[list[Question]]:
    left = iter(questions)
    while chunk := list(itertools.islice(left, size)):
        yield chunk


def main() -> None:
    """Measure and print."""
    if PYTHON_VARIABLE not in os.environ or not DATA.exists():
        print(f"left out: needs {PYTHON_VARIABLE} and {DATA}")
        return
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 120
    voice = Voice(random.Random(0))
    answers = [draw_reply(draw_scene(voice), voice) for _ in range(4 * count)]
    real = plan(list(read_prompts(DATA, limit=count)), answers, "harmless", "one")
    with (
        tempfile.TemporaryDirectory() as folder,
        VllmServer(
            "demo-judge", max_model_len=2048, extra=["--block-size", "32"], log=Path(folder) / "vllm.log"
        ) as server,
    ):
        url = server.base_url
        asyncio.run(verdicts(url, plan(_prompts(count // 4, voice), answers, "demo", "one"), batches=True))
        for mode, prompts in (("each", max(1, count // 8)), ("one", count)):
            print(f"`principles: {mode}`")
            _ways(url, *[plan(_prompts(prompts, voice), answers, "demo", mode) for _ in range(3)])
        before = metrics(url)
        rate = asyncio.run(verdicts(url, real, batches=True))
        after = metrics(url)
    share = (after[1] - before[1]) / (after[0] - before[0])
    print(f"real dialogues: {rate:.0f} verdicts/s, {share:.1%} of the prompt tokens from the prefix cache")


def _ways(url: str, first: list[Question], second: list[Question], third: list[Question]) -> None:
    """Ask in three ways, each its own questions, and print how fast that was."""
    simple = asyncio.run(plain(url, first))
    single = asyncio.run(verdicts(url, second, batches=False))
    batch = asyncio.run(verdicts(url, third, batches=True))
    print(f"  one call per verdict by httpx, concurrency 64: {simple:.0f} verdicts/s")
    print(f"  one call per verdict by our client: {single:.0f} verdicts/s, {single / simple:.2f} times as many")
    print(f"  batches: {batch:.0f} verdicts/s, {batch / simple:.2f} times as many")


def _prompts(count: int, voice: Voice) -> list[Prompt]:
    texts = [draw_scene(voice).prompt for _ in range(count)]
    return [
        Prompt(id=content_id(voice.rng.random()), messages=(Message(role="user", content=text),), source="bench")
        for text in texts
    ]


if __name__ == "__main__":
    main()
