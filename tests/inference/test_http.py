"""Which way a request takes: straight, or through the proxy that the environment names."""

from __future__ import annotations

import asyncio

import pytest

from rlaif.inference.base import Output
from rlaif.inference.client import Server
from rlaif.inference.transport import is_loopback, proxy_for
from tests.fakes import FakeServer
from tests.inference.questions import label_question

PROXY = "http://proxy.test:3128"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("https://api.test/v1", PROXY),
        ("http://api.test/v1", None),
        ("https://inside.corp/v1", None),
        ("https://127.0.0.1:8000/v1", None),
        ("https://localhost/v1", None),
        ("https://[::1]:8000/v1", None),
    ],
)
def test_the_proxy_of_a_url(monkeypatch: pytest.MonkeyPatch, url: str, proxy: str | None) -> None:
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", ".corp")
    assert proxy_for(url) == proxy


def test_one_proxy_for_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", PROXY)
    assert proxy_for("http://api.test/v1") == PROXY and proxy_for("http://127.0.0.1/v1") is None


def test_this_machine() -> None:
    assert all(is_loopback(host) for host in ("localhost", "judge.localhost", "127.0.0.1", "127.9.9.9", "::1"))
    assert not any(is_loopback(host) for host in ("10.0.0.1", "api.test", "0.0.0.0", "localhost.test"))


def test_a_request_goes_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host does not exist; the fake, named as the proxy, answers for it."""

    async def ask() -> list[Output]:
        server = Server("http://judge.invalid/v1", "fake")
        try:
            return await server.answer([label_question()])
        finally:
            await server.close()

    with FakeServer() as fake:
        monkeypatch.setenv("HTTP_PROXY", fake.url.removesuffix("/v1"))
        (answer,) = asyncio.run(ask())
    assert answer.logprobs is not None and fake.requests["/v1/models"] == 1
