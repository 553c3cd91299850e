"""A fake OpenAI-compatible server over real sockets: deterministic answers, faults on demand, every question counted.

Answers depend on nothing but the conversation and its sampling. Of two replies in a compare question the fake always
prefers the same one, in whichever slot it is shown. It speaks vLLM's dialect (/tokenize, `logprob_token_ids`, the
batch route) or, with `batch=False` and `logprobs="top"` or `"none"`, that of plainer servers.

    with FakeServer(troubles=[Trouble("429", chance=0.1)]) as fake:
        Server(fake.url, "fake")

From a shell: `python -m tests.fakes --port 8301 --trouble 500:0.1`.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import random
import re
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

_WORDS = "a kind and clear reply that helps the person who asked with what they need today without any fuss".split()
_REPLY = re.compile(r"Reply ([AB]):\n<<<(\w+)\n(.*?)\n\2>>>", re.DOTALL)
_TOKEN = re.compile(r"\n|: | ?[^\s:]+|.")
MASS = 0.96
"""Probability of both labels together."""


@dataclass(frozen=True)
class Trouble:
    """A fault of some chat requests. Kinds: an HTTP status ("429", "500", ...), `hang`, `drop`, `half` (the reply ends
    in its middle), `broken_json`, `no_logprobs`, `short_batch`, `shuffled` (choices out of order, which is no fault).
    """

    kind: str
    chance: float = 1.0
    start: int = 0
    """Number of the first chat request that it can hit, from 0."""
    stop: int | None = None
    """Number of the first chat request that it cannot hit any more."""
    retry_after: str | None = None
    contains: str = ""
    """Only requests whose body contains this text."""


def unit(*parts: object) -> float:
    """A number in [0, 1) that depends on nothing but `parts`."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def first_share(messages: Sequence[Mapping[str, str]]) -> float:
    """Probability of "A" against "B" for a conversation: by the two replies if it shows any, else by its hash."""
    text = messages[-1]["content"]
    replies = {slot: reply for slot, _, reply in _REPLY.findall(text)}
    if len(replies) < 2:
        return 0.05 + 0.9 * unit("share", [message["content"] for message in messages])
    gap = unit("merit", replies["A"]) - unit("merit", replies["B"])
    return 1 / (1 + math.exp(-8 * gap))


def reply_text(messages: Sequence[Mapping[str, str]], options: Mapping[str, Any]) -> tuple[str, str]:
    """Text and finish reason of a conversation under its sampling."""
    drawn = (options.get("seed"), options.get("top_p")) if options.get("temperature") else None
    source = random.Random(unit("text", [message["content"] for message in messages], drawn))
    words = [source.choice(_WORDS) for _ in range(source.randint(4, 16))]
    most = options.get("max_tokens") or 16
    return " ".join(words[:most]), "length" if len(words) > most else "stop"


def token_id(token: str) -> int:
    """A stable id for a token."""
    return 100 + int(unit("token", token) * 30_000)


class FakeServer:
    """The server, in a thread of its own."""

    def __init__(
        self,
        *,
        model: str = "fake",
        batch: bool = True,
        logprobs: str = "exact",
        troubles: Sequence[Trouble] = (),
        delay: float = 0.0,
        api_key: str | None = None,
        context: int = 100_000,
        most_at_once: int | None = None,
        port: int = 0,
        seed: int = 0,
    ) -> None:
        self.model, self.batch, self.logprobs, self.troubles = model, batch, logprobs, list(troubles)
        self.delay, self.api_key, self.context, self.most_at_once = delay, api_key, context, most_at_once
        self.port, self.seed = port, seed
        self.asked: Counter[str] = Counter()
        """Conversations that arrived, by the text of their last message."""
        self.answered: Counter[str] = Counter()
        """Conversations whose answer was sent."""
        self.requests: Counter[str] = Counter()
        """Requests by path."""
        self.bodies: list[dict[str, Any]] = []
        """The latest chat requests."""
        self.most_busy = 0
        self._busy = 0
        self._chats = 0
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> FakeServer:
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(10), "the fake server did not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        assert self._thread is not None
        self._thread.join(10)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self.port))
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one_request(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _one_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Read a request and answer it. False when the connection is to be closed."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        path = head.split(" ", 2)[1]
        headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.requests[path] += 1
        if self.api_key is not None and headers.get("authorization") != f"bearer {self.api_key}".lower():
            return await _send(writer, 401, _error(f"wrong API key {headers.get('authorization')}"))
        if path == "/v1/models":
            card = {"id": self.model, "object": "model", "max_model_len": self.context}
            return await _send(writer, 200, {"object": "list", "data": [card]})
        if path == "/tokenize" and self.logprobs == "exact":
            tokens = _TOKEN.findall(json.loads(body)["prompt"].replace(": ", ":\0"))
            tokens = _TOKEN.findall(json.loads(body)["prompt"])
            strings = [token.replace(" ", "Ġ").replace("\n", "Ċ") for token in tokens]
            return await _send(writer, 200, {"tokens": [token_id(token) for token in tokens], "token_strs": strings})
        if path == "/v1/chat/completions" or (path == "/v1/chat/completions/batch" and self.batch):
            return await self._chat(writer, json.loads(body), batch=path.endswith("batch"))
        return await _send(writer, 404, {"detail": "Not Found"})
