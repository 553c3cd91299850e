"""What goes over the wire and how replies are read, against a function in the network's place."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from rlaif.errors import ModelError, UserError
from rlaif.inference.base import Answer, Question
from rlaif.inference.server import Server
from tests.inference.questions import label_question, label_questions, text_question

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
        return chat(*[listed(wanted or {"A": -0.3, "B": -1.5})] * len(_talks(body)))


def _talks(body: dict[str, Any]) -> list[Any]:
    return body["messages"] if isinstance(body["messages"][0], list) else [body["messages"]]


def ask(fake: Handler, questions: list[Question], **options: Any) -> list[Answer]:
    async def run(server: Server) -> list[Answer]:
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


def test_exact_labels_sum_the_spellings_of_a_label() -> None:
    """P(A) = 0.5 + 0.25 over the tokens "A" and " A": log 0.75; B has one spelling of 0.125."""
    values = {f"token_id:{A_ID}": math.log(0.5), f"token_id:{SPACE_A_ID}": math.log(0.25)}
    fake = FakeVllm(lambda _: chat(listed(values | {f"token_id:{B_ID}": math.log(0.125)})))
    (answer,) = ask(fake, [label_question()])
    assert answer.logprobs == pytest.approx((math.log(0.75), math.log(0.125)))
    body = fake.bodies[-1]
    assert body["max_tokens"] == 1 and body["temperature"] == 0 and body["logprobs"] is True
    assert sorted(body["logprob_token_ids"]) == sorted([A_ID, SPACE_A_ID, B_ID])
    assert "structured_outputs" not in body and "top_logprobs" not in body


def test_top_logprobs_are_matched_without_their_spaces() -> None:
    fake = FakeVllm(lambda _: chat(listed({" A": math.log(0.6), "A": math.log(0.1), "B": math.log(0.2)})), vllm=False)
    (answer,) = ask(fake, [label_question()])
    assert answer.logprobs == pytest.approx((math.log(0.7), math.log(0.2)))
    assert fake.bodies[-1]["top_logprobs"] == 20


def test_a_label_outside_the_top_gets_the_lowest_listed_value() -> None:
    fake = FakeVllm(lambda _: chat(listed({"B": -0.1, "The": -3.0, "It": -4.5})), vllm=False)
    assert ask(fake, [label_question()])[0].logprobs == (-4.5, -0.1)


def test_no_label_in_the_top_is_a_failure_and_not_a_guess() -> None:
    fake = FakeVllm(lambda _: chat(listed({"The": -0.1, "It": -3.0})), vllm=False)
    (answer,) = ask(fake, [label_question()])
    assert (answer.failure, answer.logprobs) == ("no_labels", None)


def test_a_server_without_logprobs_gives_a_text() -> None:
    def without(request: httpx.Request) -> httpx.Response:
        if request.url.path != "/v1/chat/completions":
            return httpx.Response(404)
        if json.loads(request.content).get("logprobs"):
            return httpx.Response(400, json={"error": {"message": "logprobs is not supported"}})
        return chat({"message": {"content": "B"}})

    (answer,) = ask(without, [label_question()])
    assert (answer.text, answer.logprobs, answer.failure) == ("B", None, None)


def test_text_question_carries_its_sampling() -> None:
    fake = FakeVllm(lambda _: chat({"message": {"content": "Hello."}, "finish_reason": "length"}))
    (answer,) = ask(fake, [text_question(seed=7, temperature=0.5)], template_options={"enable_thinking": False})
    assert (answer.text, answer.finish_reason, answer.logprobs) == ("Hello.", "length", None)
    body = fake.bodies[-1]
    assert {name: body[name] for name in ("max_tokens", "temperature", "top_p", "seed", "chat_template_kwargs")} == {
        "max_tokens": 8,
        "temperature": 0.5,
        "top_p": 1.0,
        "seed": 7,
        "chat_template_kwargs": {"enable_thinking": False},
    }


def test_reasoning_stays_out_of_the_text() -> None:
    message = {"content": "Hello.", "reasoning_content": "They greet me.", "reasoning": "They greet me."}
    assert ask(FakeVllm(lambda _: chat({"message": message})), [text_question()])[0].text == "Hello."
    cut = {"message": {"content": None, "reasoning": "Hmm, wait"}, "finish_reason": "length"}
    assert ask(FakeVllm(lambda _: chat(cut)), [text_question()])[0].failure == "only_reasoning"


def test_a_batch_is_matched_by_index() -> None:
    """Choices arrive backwards; the n-th question has log P(A) = -n."""

    def backwards(request: httpx.Request) -> httpx.Response:
        count = len(_talks(json.loads(request.content)))
        choices = [{"index": at, **exact(first=-1.0 - at)} for at in reversed(range(count))]
        return httpx.Response(200, json={"choices": choices})

    fake = FakeVllm(backwards)
    answers = ask(fake, label_questions(5))
    assert [answer.logprobs and answer.logprobs[0] for answer in answers] == [-1.0, -2.0, -3.0, -4.0, -5.0]
    assert fake.paths[-1] == "/v1/chat/completions/batch"


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda n: list(range(n - 1)), id="one short"),
        pytest.param(lambda n: [*range(n - 1), 0], id="one twice"),
        pytest.param(lambda n: list(range(1, n + 1)), id="counted from 1"),
        pytest.param(lambda n: list(range(n + 1)), id="one too many"),
    ],
)
def test_a_batch_with_wrong_indices_is_never_misaligned(wrong: Callable[[int], list[int]]) -> None:
    """The batch is tried twice, then split until single calls answer; no answer comes from the bad replies."""

    def bad_batches(request: httpx.Request) -> httpx.Response:
        talks = _talks(json.loads(request.content))
        if request.url.path.endswith("batch"):
            return httpx.Response(
                200, json={"choices": [{"index": at, **exact(first=-99.0)} for at in wrong(len(talks))]}
            )
        return chat(exact(first=-1.0 * int(talks[0][0]["content"].split(":")[0].removeprefix("Pair "))))

    fake = FakeVllm(bad_batches)
    answers = ask(fake, label_questions(3))
    assert [answer.logprobs and answer.logprobs[0] for answer in answers] == [0.0, -1.0, -2.0]
    assert fake.paths.count("/v1/chat/completions/batch") >= 3  # the probe, and the whole batch twice


def test_different_sampling_never_shares_a_request() -> None:
    fake = FakeVllm(lambda request: chat({"message": {"content": str(json.loads(request.content)["seed"])}}))
    answers = ask(fake, [text_question(seed=seed, temperature=1.0) for seed in (3, 1, 2)])
    assert [answer.text for answer in answers] == ["3", "1", "2"]
    assert fake.paths[-3:] == ["/v1/chat/completions"] * 3


def test_the_usage_of_a_batch_adds_up() -> None:
    """101 prompt tokens over three conversations of about equal length; one completion token each."""
    usage = {"prompt_tokens": 101, "completion_tokens": 3}
    answers = ask(FakeVllm(lambda _: chat(exact(), exact(), exact(), usage=usage)), label_questions(3))
    assert sum(answer.prompt_tokens for answer in answers) == 101
    assert all(33 <= answer.prompt_tokens <= 34 for answer in answers)
    assert [answer.completion_tokens for answer in answers] == [1, 1, 1]


def test_cached_tokens_are_reported() -> None:
    usage = {"prompt_tokens": 90, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 64}}
    (answer,) = ask(FakeVllm(lambda _: chat(exact(), usage=usage)), [label_question()])
    assert (answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens) == (90, 1, 64)


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
        return chat(*[exact()] * len(_talks(json.loads(request.content))))

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

    if kind not in ("dropped", "refused", "http_503"):  # those wait for the server: see the tests of outages
        (answer,) = ask(FakeVllm(stubborn), [label_question()], max_attempts=2)
        assert (answer.failure, answer.logprobs, answer.text) == (kind, None, "")


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


@pytest.mark.parametrize("url", ["127.0.0.1:8000/v1", "ftp://judge/v1", "http:///v1", "http://judge:99999/v1"])
def test_a_wrong_url_is_the_users_mistake(url: str) -> None:
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:8000/v1"):
        Server(url, "fake")


def test_another_label_set_gets_its_own_tokens() -> None:
    """Labels 1 and 2 are not what the probe asked about: the tokenizer is asked again, once."""

    def answer(request: httpx.Request) -> httpx.Response:
        wanted = json.loads(request.content)["logprob_token_ids"]
        return chat(listed({f"token_id:{token}": -float(token) for token in wanted}))

    vllm = FakeVllm(answer)

    def numbers(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/tokenize" and "\n1" in json.loads(request.content)["prompt"]:
            vllm.paths.append("/tokenize")
            return httpx.Response(200, json={"tokens": [9, 1, 9, 2], "token_strs": ["Ċ", "1", "Ċ", "2"]})
        return vllm(request)

    other = Question("score", "fake", label_question().messages, label_question().sampling, labels=("1", "2"))

    async def run(server: Server) -> list[Answer]:
        await server.probe()
        await server.answer([other])
        return await server.answer([other])

    (found,) = with_server(numbers, run)
    assert found.logprobs == (-1.0, -2.0)
    assert vllm.paths.count("/tokenize") == 2
