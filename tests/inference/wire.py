"""A function in the network's place, that talks like vLLM or like a plainer server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from rlaif.inference.base import Output, Question
from rlaif.inference.client import Server

A_ID, SPACE_A_ID, B_ID = 35, 262, 36
Handler = Callable[[httpx.Request], httpx.Response]


def chat(*choices: dict[str, Any], usage: dict[str, Any] | None = None) -> httpx.Response:
    numbered = [{"index": at, "finish_reason": "stop", **choice} for at, choice in enumerate(choices)]
    return httpx.Response(200, json={"choices": numbered, "usage": usage or {}})


def listed(values: dict[str, float], text: str = "A") -> dict[str, Any]:
    first = max(values, key=lambda token: values[token])
    entries = [{"token": token, "logprob": value} for token, value in values.items()]
    content = [{"token": first, "logprob": values[first], "top_logprobs": entries}]
    return {"message": {"content": text}, "logprobs": {"content": content}}


def exact(first: float = -0.2, second: float = -2.0) -> dict[str, Any]:
    return listed({f"token_id:{A_ID}": first, f"token_id:{SPACE_A_ID}": -9999.0, f"token_id:{B_ID}": second})


class FakeVllm:
    """A transport: fixed probe replies, then `answer` decides."""

    def __init__(self, answer: Handler | None = None, *, vllm: bool = True) -> None:
        self.answer, self.vllm = answer, vllm
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[httpx.Headers] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.paths.append(request.url.path)
        self.headers.append(request.headers)
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "fake", "max_model_len": 4096}]})
        if request.url.path == "/tokenize" and self.vllm:
            ids = [201, A_ID, 201, B_ID, 28, SPACE_A_ID, 28, B_ID]
            strings = ["Ċ", "A", "Ċ", "B", ":", "ĠA", ":", "B"]
            return httpx.Response(200, json={"tokens": ids, "token_strs": strings})
        if not request.url.path.startswith("/v1/chat") or (request.url.path.endswith("batch") and not self.vllm):
            return httpx.Response(404, json={"detail": "Not Found"})
        body = json.loads(request.content)
        self.bodies.append(body)
        probing = "Answer with one of these" in request.content.decode()
        if self.answer is not None and not probing:
            return self.answer(request)
        wanted = {f"token_id:{token}": -1.0 for token in body.get("logprob_token_ids", ())}
        return chat(*[listed(wanted or {"A": -0.3, "B": -1.5})] * len(talks_of(body)))


def talks_of(body: dict[str, Any]) -> list[Any]:
    return body["messages"] if isinstance(body["messages"][0], list) else [body["messages"]]


def ask(fake: Handler, questions: list[Question], **options: Any) -> list[Output]:
    async def run(server: Server) -> list[Output]:
        return await server.answer(questions)

    return with_server(fake, run, **options)


def with_server(fake: Handler, run: Callable[[Server], Awaitable[Any]], **options: Any) -> Any:
    async def main() -> Any:
        settings = {"backoff": 0.001, "give_up_after": 5.0} | options
        server = Server("http://judge.test/v1", "fake", transport=httpx.MockTransport(fake), **settings)
        try:
            return await run(server)
        finally:
            await server.close()

    return asyncio.run(main())
