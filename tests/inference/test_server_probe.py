"""The probe: capabilities found, problems told in one line each, few requests."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rlaif.errors import ModelError
from rlaif.inference.client import Server
from rlaif.inference.probe import Capabilities
from tests.fake_answers import MASS
from tests.fakes import FakeServer, Trouble
from tests.inference.questions import label_questions


def probe(url: str, model: str = "fake", **options: Any) -> tuple[list[str], Server]:
    async def main() -> tuple[list[str], Server]:
        server = Server(url, model, backoff=0.001, timeout=5, **options)
        problems = await server.probe()
        await server.close()
        return problems, server

    return asyncio.run(main())


def found(server: Server) -> Capabilities:
    assert server.capabilities is not None
    return server.capabilities


def test_vllm_is_known_after_three_requests() -> None:
    with FakeServer(context=9000) as fake:
        problems, server = probe(fake.url)
    assert problems == []
    assert (found(server).route.kind, found(server).batch, found(server).context) == ("exact", True, 9000)
    assert found(server).label_mass == pytest.approx(MASS)
    assert (server.batch_size, server.concurrency) == (32, 8)  # 128 questions are four batches; twice as many may wait
    assert fake.requests == {"/v1/models": 1, "/tokenize": 1, "/v1/chat/completions/batch": 1}
    assert str(found(server)) == "exact label log-probabilities, batches, context of 9000 tokens"


def test_plain_servers() -> None:
    with FakeServer(batch=False, logprobs="top") as fake:
        problems, server = probe(fake.url)
    assert problems == [] and (found(server).route.kind, found(server).route.top) == ("top", 20)
    assert (found(server).batch, server.batch_size, server.concurrency) == (False, 1, 128)
    with FakeServer(batch=False, logprobs="none") as fake:
        problems, server = probe(fake.url)
    assert problems == [] and found(server).route.kind == "text"
    assert "hard labels" in str(found(server))


def test_a_batch_route_that_answers_short_is_not_used() -> None:
    with FakeServer(troubles=[Trouble("short_batch", stop=2)]) as fake:
        problems, server = probe(fake.url)
    assert problems == [] and not found(server).batch and found(server).route.kind == "exact"


def test_nobody_listens() -> None:
    with FakeServer() as fake:
        url = fake.url
    problems, server = probe(url)
    assert problems == [f"{url}: not reachable (connection refused): start the server, or fix `base_url`"]
    assert server.capabilities is None and server.unreachable


def test_an_unknown_name_is_met_with_the_nearest() -> None:
    with FakeServer(model="demo-judge") as fake:
        problems, server = probe(fake.url, model="demo-jugde")
    assert len(problems) == 1 and "did you mean `demo-judge`?" in problems[0]
    assert not server.unreachable


def test_a_wrong_key() -> None:
    with FakeServer(api_key="right") as fake:
        problems, _ = probe(fake.url, api_key="wrong-key")
        assert len(problems) == 1 and "API key" in problems[0] and "wrong-key" not in problems[0]
        assert probe(fake.url, api_key="right")[0] == []


def test_a_wrong_path() -> None:
    with FakeServer() as fake:
        problems, _ = probe(fake.url.removesuffix("/v1"))
    assert len(problems) == 1 and "/v1" in problems[0]


def test_a_chat_template_that_fails() -> None:
    with FakeServer(troubles=[Trouble("400")]) as fake:
        problems, _ = probe(fake.url)
    assert len(problems) == 1 and "made to fail with 400" in problems[0]


def test_what_passes_is_survived() -> None:
    with FakeServer(troubles=[Trouble("500", stop=2)]) as fake:
        problems, server = probe(fake.url)
    assert problems == [] and found(server).batch


def test_an_unprobed_server_probes_once_and_stops_on_a_problem() -> None:
    async def main(url: str, model: str) -> None:
        server = Server(url, model)
        try:
            await asyncio.gather(*[server.answer([question]) for question in label_questions(5)])
        finally:
            await server.close()

    with FakeServer() as fake:
        asyncio.run(main(fake.url, "fake"))
        assert fake.requests["/v1/models"] == 1
        with pytest.raises(ModelError, match="did you mean `fake`"):
            asyncio.run(main(fake.url, "fakk"))
