"""A fake OpenAI-compatible server over real sockets: deterministic answers, faults on demand, every question counted.

Its answers are those of `tests.fake_answers`. It speaks vLLM's dialect (/tokenize, `logprob_token_ids`, the
batch route) or, with `batch=False` and `logprobs="top"` or `"none"`, that of plainer servers.

    with FakeServer(troubles=[Trouble("429", chance=0.1)]) as fake:
        Server(fake.url, "fake")

From a shell: `python -m tests.fakes --port 8301 --trouble 500:0.1`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from tests.fake_answers import MASS, USUAL, Taste, choice, first_share, tokenized, unit

__all__ = ["MASS", "FakeServer", "Taste", "Trouble", "first_share", "unit"]


TRIAL = "a red wine stain out of a wool carpet"
"""In the comparisons that find out how this judge is to be asked. (Nothing of ours is imported: servers start fast.)"""


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
        taste: Taste = USUAL,
        thinks: str = "",
        way: str = "continue",
        begun_mass: float | None = None,
        tags_mass: float | None = None,
    ) -> None:
        self.model, self.batch, self.logprobs, self.troubles = model, batch, logprobs, list(troubles)
        self.delay, self.api_key, self.context, self.most_at_once = delay, api_key, context, most_at_once
        self.port, self.seed, self.taste, self.thinks = port, seed, taste, thinks
        self.way, self.begun_mass, self.tags_mass = way, begun_mass, tags_mass
        """How it takes a begun answer (`continue`, `prefix`, `plain`; not at all), and the label mass that such an
        answer and material between tags leave, where it is another one than its taste's."""
        self.begun: Counter[str] = Counter()
        """Conversations that arrived, by how their answer was begun."""
        self.trials = 0
        """Comparisons that arrived to find out how this judge is to be asked; counted here, and not below."""
        self.asked: Counter[str] = Counter()
        """Conversations that arrived, by the text of their last message."""
        self.drawn: Counter[tuple[str, int | None]] = Counter()
        """Conversations that arrived, by the text of their last message and their seed."""
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
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _one_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Read a request and answer it. False when the connection is to be closed."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        path = urlsplit(head.split(" ", 2)[1]).path  # a proxy is sent the whole URL
        headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.requests[path] += 1
        if self.api_key is not None and headers.get("authorization") != f"bearer {self.api_key}".lower():
            return await _send(writer, 401, _error(f"wrong API key {headers.get('authorization')}"))
        if path == "/health":
            return await _send(writer, 200, {})
        if path == "/v1/models":
            card = {"id": self.model, "object": "model", "max_model_len": self.context}
            return await _send(writer, 200, {"object": "list", "data": [card]})
        if path == "/tokenize" and self.logprobs == "exact":
            return await _send(writer, 200, tokenized(json.loads(body)["prompt"]))
        if path == "/v1/chat/completions" or (path == "/v1/chat/completions/batch" and self.batch):
            return await self._chat(writer, json.loads(body), batch=path.endswith("batch"))
        return await _send(writer, 404, {"detail": "Not Found"})

    async def _chat(self, writer: asyncio.StreamWriter, body: dict[str, Any], *, batch: bool) -> bool:
        talks = body["messages"] if batch else [body["messages"]]
        prefill = talks[0][-1]["content"] if talks[0][-1]["role"] == "assistant" else ""
        refused = self._refused(body, talks[0][-1]) if prefill else None
        if refused is not None:
            return await _send(writer, 400, _error(refused))
        talks = [connection[:-1] if prefill else connection for connection in talks]
        keys = [connection[-1]["content"] for connection in talks]
        self.begun.update([prefill] * len(keys))
        own = [key for key in keys if TRIAL not in key]
        self.trials += len(keys) - len(own)
        self.asked.update(own)
        self.drawn.update((key, body.get("seed")) for key in own)
        self.bodies = [*self.bodies[-99:], body]
        trouble = self._trouble(json.dumps(body))
        self._busy += 1
        self.most_busy = max(self.most_busy, self._busy)
        try:
            if self.most_at_once is not None and self._busy > self.most_at_once:
                return await _send(writer, 429, _error("too many requests at once"))
            if self.delay:
                await asyncio.sleep(self.delay)
            return await self._reply(writer, body, talks, keys, trouble, self._taste_of(body, talks[0], prefill))
        finally:
            self._busy -= 1

    async def _reply(
        self,
        writer: asyncio.StreamWriter,
        body: dict[str, Any],
        talks: list[list[dict[str, str]]],
        keys: list[str],
        trouble: Trouble | None,
        taste: Taste,
    ) -> bool:
        kind = trouble.kind if trouble else ""
        if kind == "drop":
            return False
        if kind == "hang":
            await asyncio.sleep(3600)
        if kind.isdigit():
            wait = trouble.retry_after if trouble else None
            return await _send(writer, int(kind), _error(f"made to fail with {kind}"), retry_after=wait)
        if body["model"] != self.model:
            return await _send(writer, 404, _error(f"The model `{body['model']}` does not exist."))
        if any(len(text) > self.context for text in keys):
            limit = f"This model's maximum context length is {self.context} tokens."
            return await _send(writer, 400, _error(f"{limit} Please reduce the length of the input prompt."))
        choices = [
            choice(at, connection, body, self._logprobs_of(kind), taste, self.thinks)
            for at, connection in enumerate(talks)
        ]
        if kind == "shuffled":
            choices.reverse()
        if kind == "short_batch":
            choices.pop()
        else:
            self.answered.update([key for key in keys if TRIAL not in key] if kind in ("", "shuffled") else ())
        spent = {"prompt_tokens": sum(map(len, keys)), "completion_tokens": len(choices)}
        usage = spent if len(talks) > 1 else spent | {"prompt_tokens_details": {"cached_tokens": len(keys[0]) // 2}}
        payload = {"id": "fake", "object": "chat.completion", "choices": choices, "usage": usage}
        return await _send(writer, 200, payload, cut={"half": 0.5, "broken_json": 0.7}.get(kind), keep=kind != "half")

    def _refused(self, body: dict[str, Any], turn: dict[str, Any]) -> str | None:
        """Why this server takes no answer that is begun so; None where it does."""
        if self.way != "continue" and "continue_final_message" in body:
            return "Unrecognized request argument supplied: continue_final_message"
        if self.way != "prefix" and "prefix" in turn:
            return "Additional properties are not allowed ('prefix' was unexpected)"
        if self.way in ("", "prefix") and "prefix" not in turn:
            return "Expected last role User or Tool, or Assistant with prefix True"
        return None

    def _taste_of(self, body: dict[str, Any], connection: list[dict[str, str]], prefill: str) -> Taste:
        """The taste, with the label mass that a begun answer or tags leave."""
        masses = [self.begun_mass] if prefill else []
        masses += [self.tags_mass] if "<text_" in connection[-1]["content"] else []
        known = [mass for mass in masses if mass is not None]
        return self.taste._replace(mass=max(known)) if known else self.taste

    def _logprobs_of(self, kind: str) -> bool:
        return self.logprobs != "none" and kind != "no_logprobs"

    def _trouble(self, body: str) -> Trouble | None:
        number, self._chats = self._chats, self._chats + 1
        for at, trouble in enumerate(self.troubles):
            inside = trouble.start <= number and (trouble.stop is None or number < trouble.stop)
            if inside and trouble.contains in body and unit("trouble", self.seed, at, number) < trouble.chance:
                return trouble
        return None


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "Error", "code": None}}


async def _send(
    writer: asyncio.StreamWriter,
    status: int,
    payload: object,
    *,
    retry_after: str | None = None,
    cut: float | None = None,
    keep: bool = True,
) -> bool:
    """Send a reply. `cut` is the share of it that is sent; with `keep`, the rest is never announced either."""
    body = json.dumps(payload).encode()
    sent = body if cut is None else body[: int(len(body) * cut)]
    length = len(sent) if keep else len(body)
    more = f"retry-after: {retry_after}\r\n" if retry_after else ""
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{more}\r\n"
    writer.write(head.encode() + sent)
    await writer.drain()
    return keep


def main() -> None:
    """Run the fake until interrupted."""
    parser = argparse.ArgumentParser(description="A fake OpenAI-compatible server.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", default="fake")
    parser.add_argument("--no-batch", action="store_true")
    parser.add_argument("--logprobs", choices=["exact", "top", "none"], default="exact")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--trouble", action="append", default=[], metavar="KIND:CHANCE")
    options = parser.parse_args()
    troubles = [Trouble(kind, float(chance or 1)) for kind, _, chance in (t.partition(":") for t in options.trouble)]
    fake = FakeServer(
        model=options.model,
        batch=not options.no_batch,
        logprobs=options.logprobs,
        troubles=troubles,
        delay=options.delay,
        port=options.port,
    )
    with fake:
        print(fake.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
