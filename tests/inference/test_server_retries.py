"""Which faults are tried again, which fail their question alone, and which stop the run."""

from __future__ import annotations

import itertools
import json

import httpx
import pytest

from rlaif.errors import ModelError, UserError
from rlaif.inference.client import Server
from tests.inference.questions import label_question, label_questions
from tests.inference.wire import FakeVllm, ask, chat, exact, talks_of, with_server

TOO_LONG = [
    "This model's maximum context length is 512 tokens. However, your prompt contains at least 513 input tokens",
    "The decoder prompt (length 600) is longer than the maximum model length of 512. Make sure that",
    "max_tokens=600 cannot be greater than max_model_len=512. Please request fewer output tokens.",
    "Input length (600) exceeds model's maximum context length (512).",
    "the request exceeds the available context size, try increasing it",
    "prompt is too long: 210000 tokens > 200000 maximum",
]


@pytest.mark.parametrize("message", TOO_LONG)
def test_wordings_of_a_too_long_prompt(message: str) -> None:
    fake = FakeVllm(lambda _: httpx.Response(400, json={"error": {"message": message}}))
    (answer,) = ask(fake, [label_question()])
    assert answer.failure == "too_long" and message[:40] in answer.detail
    assert len(fake.bodies) == 2  # the probe's batch and one attempt: it cannot pass


def test_openai_says_too_long_by_code() -> None:
    error = {"message": "Please shorten it.", "code": "context_length_exceeded"}
    fake = FakeVllm(lambda _: httpx.Response(400, json={"error": error}))
    assert ask(fake, [label_question()])[0].failure == "too_long"


def test_one_bad_conversation_fails_alone() -> None:
    def picky(request: httpx.Request) -> httpx.Response:
        if "Pair 5:" in request.content.decode():
            return httpx.Response(400, json={"error": {"message": "maximum context length is 7 tokens"}})
        return chat(*[exact()] * len(talks_of(json.loads(request.content))))

    answers = ask(FakeVllm(picky), label_questions(8))
    assert [answer.failure for answer in answers] == [None] * 5 + ["too_long"] + [None] * 2


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (httpx.Response(429), "http_429"),
        (httpx.Response(408), "http_408"),
        (httpx.Response(500), "http_500"),
        (httpx.Response(503), "http_503"),
        (httpx.Response(200, content=b'{"choices": ['), "broken_json"),
        (httpx.Response(200, json={"error": {"message": "upstream"}}), "broken_json"),
        (chat({"message": {"content": "A"}}), "no_logprobs"),
        (httpx.ReadError("gone"), "dropped"),
        (httpx.ConnectError("nobody there"), "refused"),
        (httpx.ReadTimeout("late"), "timeout"),
    ],
)
def test_what_can_pass_is_asked_again(reply: httpx.Response | Exception, kind: str) -> None:
    calls = iter([reply, reply, chat(exact(first=-0.7))])

    def flaky(_: httpx.Request) -> httpx.Response:
        outcome = next(calls)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    (answer,) = ask(FakeVllm(flaky), [label_question()])
    assert answer.logprobs is not None and answer.logprobs[0] == -0.7
    again = iter([reply] * 2)

    def stubborn(_: httpx.Request) -> httpx.Response:
        outcome = next(again)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    if kind not in ("dropped", "refused", "http_503", "http_429"):  # those wait: see the tests of outages and limits
        (answer,) = ask(FakeVllm(stubborn), [label_question()], max_attempts=2)
        assert (answer.failure, answer.logprobs, answer.text) == (kind, None, "")


def test_a_rate_limit_fails_no_question_before_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty times 429, without a Retry-After, and two attempts a question: all of them are answered in the end."""
    calls = itertools.count()

    def limited(request: httpx.Request) -> httpx.Response:
        return (
            httpx.Response(429) if next(calls) < 30 else chat(*[exact()] * len(talks_of(json.loads(request.content))))
        )

    questions = label_questions(4)
    assert [each.failure for each in ask(FakeVllm(limited), questions, max_attempts=2)] == [None] * 4
    monkeypatch.setattr("rlaif.inference.server_health.LONGEST_LIMITED", 0.2)
    fake = FakeVllm(lambda _: httpx.Response(429))
    assert {each.failure for each in ask(fake, questions, max_attempts=2)} == {"http_429"}
    assert len(fake.bodies) > 3


@pytest.mark.parametrize(("status", "kind"), [(400, "bad_request"), (422, "bad_request"), (413, "too_long")])
def test_what_cannot_pass_is_asked_once(status: int, kind: str) -> None:
    fake = FakeVllm(lambda _: httpx.Response(status, json={"error": {"message": "no such role"}}))
    (answer,) = ask(fake, [label_question()])
    assert answer.failure == kind and str(status) in answer.detail
    assert len(fake.bodies) == 2


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "API key"), (403, "API key"), (404, "base_url"), (307, "redirects")]
)
def test_a_wrong_setup_stops_the_run(status: int, hint: str) -> None:
    fake = FakeVllm(lambda _: httpx.Response(status, json={"error": {"message": "no"}}))
    with pytest.raises(ModelError, match=hint):
        ask(fake, [label_question()])
    assert len(fake.bodies) == 2


def test_an_empty_account_stops_the_run() -> None:
    error = {"message": "You exceeded your current quota", "code": "insufficient_quota"}
    with pytest.raises(ModelError, match="no credit"):
        ask(FakeVllm(lambda _: httpx.Response(429, json={"error": error})), [label_question()])


@pytest.mark.parametrize("body", [rb'{"error": {"message": "bad text: \ud83d"}}', rb'{"detail": "bad text: \ud83d"}'])
def test_half_a_surrogate_pair_in_an_error_is_taken_out(body: bytes) -> None:
    """JSON can write one, and no UTF-8 file can hold it."""
    (answer,) = ask(FakeVllm(lambda _: httpx.Response(400, content=body)), [label_question()])
    assert (answer.failure, answer.detail) == ("bad_request", "HTTP 400: bad text: ?")


def test_the_key_is_sent_and_never_shown() -> None:
    fake = FakeVllm(lambda _: httpx.Response(401, json={"error": {"message": "Incorrect API key: sk-secret"}}))

    async def run(server: Server) -> str:
        shown = repr(server)
        with pytest.raises(ModelError) as caught:
            await server.answer([label_question()])
        return f"{shown} {caught.value} {caught.value.__cause__} {server._talk!r}"

    shown = with_server(fake, run, api_key="sk-secret")
    assert "sk-secret" not in shown and "***" in shown
    assert fake.headers[0]["authorization"] == "Bearer sk-secret"


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000/v1", "ftp://judge/v1", "http:///v1", "http://judge:99999/v1", "http://a..b/v1"]
)
def test_a_wrong_url_is_the_users_mistake(url: str) -> None:
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:8000/v1"):
        Server(url, "fake")


def test_a_user_beside_a_key_is_refused() -> None:
    """A request has one Authorization header."""
    url = "http://someone:secret@judge/v1"
    with pytest.raises(UserError, match=r"^http://judge/v1: `base_url` names a user, and there is an API key; take"):
        Server(url, "fake", api_key="k")
    assert repr(Server(url, "fake")) == "Server('http://judge/v1', 'fake')"
