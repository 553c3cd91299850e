"""What goes over the wire and how replies are read, against a function in the network's place."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable

import httpx
import pytest

from rlaif.feedback.judge import judgement
from rlaif.inference.base import Output, Question
from rlaif.inference.client import Server
from rlaif.records import Judgement
from tests.inference.questions import label_question, label_questions, text_question
from tests.inference.wire import A_ID, B_ID, SPACE_A_ID, FakeVllm, ask, chat, exact, listed, talks_of, with_server


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
        count = len(talks_of(json.loads(request.content)))
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
        pytest.param(lambda n: [*range(n), 0], id="one answered again"),
    ],
)
def test_a_batch_with_wrong_indices_is_never_misaligned(wrong: Callable[[int], list[int]]) -> None:
    """The batch is tried twice, then split until single calls answer; no answer comes from the bad replies."""

    def bad_batches(request: httpx.Request) -> httpx.Response:
        talks = talks_of(json.loads(request.content))
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

    async def run(server: Server) -> list[Output]:
        await server.probe()
        await server.answer([other])
        return await server.answer([other])

    (found,) = with_server(numbers, run)
    assert found.logprobs == (-1.0, -2.0)
    assert vllm.paths.count("/tokenize") == 2


def test_half_a_surrogate_pair_is_taken_out() -> None:
    """JSON can write one, and no UTF-8 file can hold it."""
    half = {"index": 0, "finish_reason": "stop", "message": {"content": "Good \ud83d luck"}}
    body = json.dumps({"choices": [half], "usage": {}}).encode("ascii")
    fake = FakeVllm(lambda _: httpx.Response(200, content=body, headers={"content-type": "application/json"}))
    (answer,) = ask(fake, [text_question()])
    assert answer.text == "Good ? luck"


@pytest.mark.parametrize("vllm", [True, False])
def test_numbers_that_json_does_not_know_are_no_label(vllm: bool) -> None:
    """Some servers write NaN where a model overflowed, and -Infinity where a token cannot come."""

    def said(first: float, second: float) -> FakeVllm:
        names = (f"token_id:{A_ID}", f"token_id:{B_ID}") if vllm else ("A", "B")
        values = {f"token_id:{SPACE_A_ID}": first, "The": -0.1} | dict(zip(names, (first, second), strict=True))
        entries = [{"token": token, "logprob": value} for token, value in values.items()]
        content = [{"token": "The", "logprob": -0.1, "top_logprobs": entries}]
        body = json.dumps({"choices": [{"message": {"content": "A"}, "logprobs": {"content": content}}]}).encode()
        return FakeVllm(lambda _: httpx.Response(200, content=body), vllm=vllm)

    for wrong in ((math.nan, -1.0), (-1.0, math.nan), (math.nan, math.nan), (math.inf, -1.0), (-1.0, 3.0)):
        (answer,) = ask(said(*wrong), [label_question()])
        assert (answer.failure, answer.logprobs) == ("bad_logprobs", None)
    (answer,) = ask(said(-math.inf, -1.0), [label_question()])
    assert answer.logprobs == (-9999.0, -1.0)
    question = Question(
        "compare",
        "fake",
        (),
        label_question().sampling,
        labels=("A", "B"),
        about=dict.fromkeys(("prompt", "first", "second", "principle"), "x"),
    )
    record = judgement(question, answer)
    assert Judgement.model_validate_json(record.model_dump_json()) == record


def test_a_finish_reason_that_is_no_text_is_none() -> None:
    fake = FakeVllm(lambda _: chat({"message": {"content": "Hello."}, "finish_reason": {"type": "stop"}}))
    (answer,) = ask(fake, [text_question()])
    assert (answer.text, answer.finish_reason) == ("Hello.", None)


@pytest.mark.parametrize("end", ["/v1", "/v1/", "/v1/chat/completions/"])
def test_the_query_of_a_url_goes_with_every_request(end: str) -> None:
    """Azure wants its `api-version` there."""
    fake, seen = FakeVllm(), []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.path, request.url.query))
        return fake(request)

    async def main() -> None:
        url = f"http://judge.test/a{end}?api-version=2024#part"
        server = Server(url, "fake", transport=httpx.MockTransport(handle))
        await server.probe()

    asyncio.run(main())
    assert {query for _, query in seen} == {b"api-version=2024"}
    assert {"/a/v1/models", "/a/tokenize", "/a/v1/chat/completions"} <= {path for path, _ in seen}
