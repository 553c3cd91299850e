"""`GET /models` helps and decides nothing; errors that come with status 200 are what their own status says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from rlaif.cli.setup import check
from rlaif.inference.client import Server
from rlaif.inference.faults import error_inside, refused, status_in, wait_in
from rlaif.inference.transport import HttpReply
from tests.inference.questions import label_question, text_question
from tests.inference.shapes import Shape, ShapeServer, error
from tests.inference.test_server_dialect import ask
from tests.inference.test_server_shapes import write
from tests.inference.wire import chat, listed


def checked(folder: Path, models: Callable[[], Any], **more: Any) -> tuple[int, str]:
    with ShapeServer(Shape("m", models=models, **more)) as server:
        told = CliRunner().invoke(check, [str(write(folder, server.url))])
    return told.exit_code, told.output


@pytest.mark.case("23-models-as-a-list")
@pytest.mark.parametrize(
    "reply",
    [
        (200, [{"id": "m", "object": "model"}]),
        (200, "models are listed elsewhere"),
        (200, b"<html><body>Welcome</body></html>"),
        (200, b""),
        (200, {"models": ["m", "n"]}),
        (200, {"data": {"m": {"owner": "us"}}}),
        (200, {"data": None}),
        (200, {"data": [None, 3, {"id": None}]}),
        (200, None),
        (400, error("no such thing")),
        (404, {}),
        (405, {}),
        (501, error("not implemented")),
        (302, {}),
    ],
    ids=lambda reply: str(reply)[:30],
)
def test_lists_of_models_in_any_form(tmp_path: Path, reply: Any) -> None:
    code, output = checked(tmp_path, lambda: reply)
    assert code == 0 and "No problems." in output and "note: judge" not in output


@pytest.mark.case("24-key-that-may-not-list-models")
@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_may_ask_and_may_not_list(tmp_path: Path, status: int) -> None:
    assert checked(tmp_path, lambda: (status, error("the key lacks the scope `models.read`")))[0] == 0


@pytest.mark.sibling("key-that-may-not-ask")
def test_a_key_that_may_not_ask(tmp_path: Path) -> None:
    code, output = checked(tmp_path, lambda: (200, [{"id": "m"}]), refusals=lambda _: (401, error("invalid key")))
    assert code == 2 and "set the right API key" in output


@pytest.mark.sibling("context-length-of-other-lists")
@pytest.mark.parametrize("name", ["max_model_len", "context_length", "max_context_length"])
def test_context_lengths_under_their_names(tmp_path: Path, name: str) -> None:
    assert "context of 777 tokens" in checked(tmp_path, lambda: (200, {"data": [{"id": "m", name: 777}]}))[1]


@pytest.mark.sibling("unlisted-model-that-answers")
def test_a_model_that_is_not_listed(tmp_path: Path) -> None:
    """Deployments and tags are not listed everywhere; but a server may answer with what it has for any name."""
    code, output = checked(tmp_path, lambda: (200, {"data": [{"id": "n"}]}))
    assert (
        code == 0 and "note: judge: the server lists no model called `m` (known: n), and answers all the same" in output
    )
    code, output = checked(tmp_path, lambda: (200, {"data": [{"id": "owner/m"}]}))
    assert code == 0 and "lists no model" not in output


def inside(payload: dict[str, Any]) -> tuple[str, bool, bool, float | None] | None:
    fault = error_inside(payload, {})
    return None if fault is None else (fault.kind, fault.retry, fault.fatal, fault.wait)


@pytest.mark.case("27-rate-limit-inside-a-200")
def test_a_rate_limit_with_status_200_is_waited_for() -> None:
    """It costs a question no attempt, as a limit with status 429 does not."""
    left = 20

    def handle(body: dict[str, Any]) -> httpx.Response:
        nonlocal left
        if "Which" in str(body["messages"]):
            left -= 1
            if left > 0:
                metadata = {"raw": "Too Many Requests", "retry_after_seconds": 0}
                failed = {"message": "Provider returned error", "code": 429, "metadata": metadata}
                return httpx.Response(200, json={"id": None, "choices": None, "error": failed})
        return chat(listed({"A": -0.3, "B": -1.5}))

    (answer,), _ = ask(handle, [label_question()])
    assert answer.logprobs == (-0.3, -1.5) and left == 0


@pytest.mark.sibling("errors-inside-a-200")
@pytest.mark.parametrize(
    ("payload", "found"),
    [
        (
            {"error": {"code": 429, "message": "slow", "metadata": {"headers": {"Retry-After": "7"}}}},
            ("http_429", True, False, 7.0),
        ),
        ({"error": {"code": "429", "message": "slow"}, "choices": None}, ("http_429", True, False, None)),
        ({"error": {"status": 502, "message": "down"}}, ("http_502", True, False, None)),
        ({"error": {"type": "rate_limit_error", "message": "slow"}}, ("http_429", True, False, None)),
        ({"error": {"type": "overloaded_error", "message": "busy"}}, ("http_503", True, False, None)),
        ({"error": {"code": "invalid_api_key", "message": "no"}}, ("http_401", False, True, None)),
        ({"error": {"code": 401, "message": "no"}}, ("http_401", False, True, None)),
        ({"error": {"code": 402, "message": "no credits"}}, ("http_402", False, True, None)),
        ({"error": {"code": 400, "message": "bad"}}, ("bad_request", False, False, None)),
        (
            {"error": {"code": 400, "message": "This model's maximum context length is 10 tokens"}},
            ("too_long", False, False, None),
        ),
        ({"object": "error", "message": "bad", "code": 400}, ("bad_request", False, False, None)),
        ({"error": "something"}, ("broken_json", True, False, None)),
        ({"error": {"code": 7, "message": "odd"}}, ("broken_json", True, False, None)),
        (
            {"choices": [{"finish_reason": "error", "message": {"content": "Half an ans"}}]},
            ("broken_json", True, False, None),
        ),
        (
            {"choices": [{"finish_reason": "error", "error": {"code": 502, "message": "lost"}, "message": {}}]},
            ("http_502", True, False, None),
        ),
        ({"choices": [{"message": {"content": "Hi."}}], "error": None}, None),
        ({"choices": [{"message": {"content": "Hi."}}], "error": {}}, None),
    ],
)
def test_errors_inside_a_200(payload: dict[str, Any], found: tuple[str, bool, bool, float | None] | None) -> None:
    assert inside(payload) == found


@pytest.mark.sibling("half-a-reply-with-an-error")
def test_half_a_reply_is_no_response() -> None:
    """A choice that ended in an error holds part of a response, which is asked for again."""
    replies = iter([{"message": {"content": "Half"}, "finish_reason": "error"}, {"message": {"content": "All of it."}}])
    usual = {"message": {"content": "A"}}
    (answer,), _ = ask(lambda body: chat(next(replies) if "Say something" in str(body) else usual), [text_question()])
    assert answer.text == "All of it."


@pytest.mark.sibling("waits-in-a-body")
def test_how_long_to_wait_is_read_wherever_it_stands() -> None:
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.5s"}]
    assert wait_in([{"error": {"code": 429, "details": details}}]) == 34.5
    assert wait_in({"error": {"metadata": {"headers": {"X-RateLimit-Reset": "1700000012000"}}}}, now=1.7e9) == 12
    assert wait_in({"retry_after": 3, "error": "slow"}) == 3 and wait_in({"retry_after": "250ms"}) == 0.25
    assert wait_in({"error": {"retry_after": "soon"}}) is None
    reply = HttpReply(429, {"retry-after": "9"}, json.dumps({"retry_after": 3}).encode())
    assert refused(reply).wait == 9, "the header goes first"


def test_what_the_status_of_an_error_is() -> None:
    assert status_in({"error": {"code": None, "type": "None"}}) is None
    assert status_in({"code": 503, "error": "text"}) == 503 and status_in({"error": {"code": 200}}) is None


@pytest.mark.sibling("deep-error-body")
def test_deep_and_long_errors_are_read_in_bounds() -> None:
    deep: Any = "seed"
    for _ in range(900):
        deep = {"error": deep}
    assert refused(HttpReply(400, {}, json.dumps(deep).encode())).kind == "bad_request"
    assert len(refused(HttpReply(400, {}, b'{"error": "' + b"x" * 10**6 + b'"}')).detail) < 400
    assert refused(HttpReply(400, {}, b"[" * 100_000)).kind == "bad_request"


@pytest.mark.sibling("models-route-that-hangs")
def test_a_list_of_models_that_hangs_is_passed_over() -> None:
    def serve(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/models"):
            raise httpx.ReadTimeout("no list")
        return chat(listed({"A": -0.3, "B": -1.5})) if "/chat/completions" in request.url.path else httpx.Response(404)

    async def main() -> list[str]:
        server = Server("http://judge.test/v1", "m", transport=httpx.MockTransport(serve), backoff=0.001)
        return await server.probe()

    assert asyncio.run(main()) == []
