"""What a server refuses, in which words, and what becomes of the request; each thing is changed once, and told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from rlaif.cli.generate import sample
from rlaif.cli.setup import check
from rlaif.errors import ModelError
from rlaif.inference.base import Output, Question
from rlaif.inference.client import Server
from rlaif.inference.faults import refusal_in
from rlaif.inference.requests import Dialect
from rlaif.records import Message, Sampling
from tests.inference.questions import label_question, text_question
from tests.inference.shapes import Shape, ShapeServer, error
from tests.inference.test_server_shapes import run, write
from tests.inference.wire import chat, listed
from tests.support import lines

BODY: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello."}],
    "max_tokens": 64,
    "temperature": 0.7,
    "top_p": 0.9,
    "seed": 3,
}


def after(payload: Any, **sent: Any) -> dict[str, Any]:
    """What is sent after a refusal."""
    body = {name: value for name, value in (BODY | sent).items() if value is not None}
    return Dialect().after(refusal_in(payload), body).adapted(body)


def ask(
    handle: Callable[[dict[str, Any]], httpx.Response], questions: list[Question]
) -> tuple[list[Output], list[str]]:
    """The answers of a server, and what was told."""
    notes: list[str] = []

    def serve(request: httpx.Request) -> httpx.Response:
        if request.url.path != "/v1/chat/completions":
            return httpx.Response(404)
        return handle(json.loads(request.content))

    async def main() -> list[Output]:
        transport = httpx.MockTransport(serve)
        server = Server("http://judge.test/v1", "m", transport=transport, backoff=0.001, note=notes.append)
        try:
            return await server.answer(questions)
        finally:
            await server.close()

    return asyncio.run(main()), notes


@pytest.mark.case("25-max-completion-tokens")
def test_max_tokens_under_its_other_name(tmp_path: Path) -> None:
    def refuse(body: Any) -> Any:
        return (400, error("Unsupported parameter: `max_tokens`", param="max_tokens")) if "max_tokens" in body else None

    with ShapeServer(Shape("m", refuse)) as server:
        path = write(tmp_path, server.url)
        told = CliRunner().invoke(check, [str(path)])
        assert told.exit_code == 0 and "`max_tokens` is refused by the server, and sent as `max_comple" in told.output
        report = run(path)
    assert report.outcome is not None and report.outcome.counts["pairs"] == 3
    assert all("max_completion_tokens" in body and "max_tokens" not in body for body in server.taken)


@pytest.mark.case("26-seed-refused")
def test_a_refused_seed_is_left_out_and_the_loss_is_told(tmp_path: Path) -> None:
    def refuse(body: Any) -> Any:
        place = {"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}
        return (422, {"detail": [place]}) if "seed" in body else None

    with ShapeServer(Shape("m", refuse)) as server:
        path = write(tmp_path, server.url)
        told = CliRunner().invoke(check, [str(path)])
        assert told.exit_code == 0 and "drawing the same responses again is lost" in told.output
        drawn = CliRunner().invoke(sample, [str(path)])
        assert drawn.exit_code == 0 and "`seed` is left out" in drawn.output
        assert len(server.refused) == 2  # one for each probe
    assert len(lines(tmp_path / "run/samples.jsonl")) == 6
    sent = [body for body in server.taken if body["max_tokens"] == 400]
    assert sent and all(body["temperature"] == 1.0 and body["top_p"] == 1.0 for body in sent)


@pytest.mark.parametrize(
    ("payload", "sent", "changed"),
    [
        pytest.param(error("Unrecognized request argument supplied: seed"), {}, {"seed": None}, id="by its name alone"),
        pytest.param(
            [{"error": {"code": 400, "message": 'Unknown name "seed": Cannot find field.'}}],
            {},
            {"seed": None},
            id="in a list",
        ),
        pytest.param(
            {"code": "bad", "error": "Argument not supported on this model: topP"},
            {},
            {"top_p": None},
            id="in camel case",
        ),
        pytest.param(
            {"object": "error", "message": "[{'type': 'extra_forbidden', 'loc': ('body', 'top_p'), 'msg': 'Extra'}]"},
            {},
            {"top_p": None},
            id="a schema's places as text",
        ),
        pytest.param(
            {"detail": [{"loc": ["body", name], "msg": "extra fields not permitted"} for name in ("seed", "top_p")]},
            {},
            {"seed": None, "top_p": None},
            id="two places at once",
        ),
        pytest.param(
            error(
                "'temperature' does not support 0.7 with this model. Only the default (1) value is supported.",
                param="temperature",
            ),
            {},
            {"temperature": None},
            id="the default only",
        ),
        pytest.param(
            {"status": 422, "message": "temperature must be in range (0, +inf)"},
            {"temperature": 0},
            {"temperature": 0.01},
            id="above zero only",
        ),
        pytest.param(error("temperature: range: 0..1"), {"temperature": 1.5}, {}, id="a setting out of range stays"),
        pytest.param(error("top_p must be between 0 and 0.8"), {"top_p": 0.9}, {}, id="another setting out of range"),
        pytest.param(
            error("`top_p` must be > 0.0 and < 1.0"), {"top_p": 1.0}, {"top_p": None}, id="a top_p of nothing"
        ),
        pytest.param(
            error("`temperature` and `top_p` cannot both be specified. Please use only one."),
            {"top_p": 1.0},
            {"top_p": None},
            id="one of two, and one says nothing",
        ),
        pytest.param(
            error("`temperature` and `top_p` cannot both be specified. Please use only one."),
            {},
            {},
            id="one of two, and both are meant",
        ),
        pytest.param(
            error("Invalid max_tokens value, the valid range of max_tokens is [1, 8192]"),
            {"max_tokens": 9999},
            {},
            id="more room than there is",
        ),
        pytest.param(
            error("Expected a value >= 16, but got 1 instead.", param="max_output_tokens"),
            {"max_tokens": 1},
            {"max_tokens": 16},
            id="less room than there has to be",
        ),
        pytest.param(
            error("Expected a value >= 16, but got 8 instead.", param="max_output_tokens"),
            {"max_tokens": 8},
            {},
            id="a response as short as it was set stays",
        ),
        pytest.param(
            error("top_logprobs must be in range [0, 8]"),
            {"top_logprobs": 20},
            {"top_logprobs": 8},
            id="as many values as there are",
        ),
        pytest.param(error("Your prompt was flagged by our content policy."), {}, {}, id="about no parameter"),
    ],
)
@pytest.mark.sibling("refusals-in-other-words")
def test_refusals_in_the_words_of_many_servers(payload: Any, sent: dict[str, Any], changed: dict[str, Any]) -> None:
    wanted = {name: value for name, value in (BODY | sent | changed).items() if value is not None}
    assert after(payload, **sent) == wanted


@pytest.mark.sibling("max-tokens-refused-under-both-names")
def test_what_is_refused_under_both_names_is_left_out() -> None:
    dialect = Dialect()
    for name in ("max_tokens", "max_completion_tokens"):
        dialect = dialect.after(refusal_in(error(f"unknown field {name}")), dialect.adapted(BODY))
    assert not {"max_tokens", "max_completion_tokens"} & dialect.adapted(BODY).keys()
    same = dialect.after(refusal_in(error("unknown field max_tokens")), dialect.adapted(BODY))
    assert same == dialect, "nothing is changed twice"


@pytest.mark.sibling("system-message-refused")
@pytest.mark.parametrize(
    ("said", "messages"),
    [
        ("System role not supported", [{"role": "user", "content": "Be kind.\n\nHello."}]),
        ("Conversation roles must alternate user/assistant/...", [{"role": "user", "content": "Be kind.\n\nHello."}]),
        (
            "'messages[0].role' does not support 'system'; use 'developer'",
            [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "Hello."}],
        ),
    ],
)
def test_system_messages_stay_in_the_conversation(said: str, messages: list[dict[str, str]]) -> None:
    assert after({"object": "error", "message": said, "code": 400}) == BODY | {"messages": messages}


@pytest.mark.sibling("system-message-refused-as-a-server-error")
def test_a_template_that_fails_with_a_status_of_the_servers_own() -> None:
    """Some servers answer 500 where a chat template refuses the system role."""

    def handle(body: dict[str, Any]) -> httpx.Response:
        if body["messages"][0]["role"] == "system":
            return httpx.Response(500, json=error("Jinja Exception: System role not supported", code=500))
        return chat({"message": {"content": body["messages"][0]["content"]}})

    system = Message(role="system", content="Be kind.")
    question = Question("sample", "m", (system, *text_question().messages), Sampling(max_tokens=8))
    (answer,), notes = ask(handle, [question])
    assert answer.text == "Be kind.\n\nSay something."
    assert len(notes) == 1 and "at the head of the user's turn" in notes[0]


@pytest.mark.sibling("parameter-named-by-chance")
def test_an_error_that_names_a_parameter_by_chance_changes_nothing() -> None:
    """A filter that repeats the prompt says `temperature`; it says so again without one, and that is forgotten."""
    bodies = []

    def handle(body: dict[str, Any]) -> httpx.Response:
        bodies.append(body)
        if "eggs" in str(body["messages"]):
            return httpx.Response(400, json=error("The prompt `Which temperature for eggs?` is not allowed."))
        return chat({"message": {"content": "Well."}})

    answers, notes = ask(handle, [text_question("Which temperature for eggs?"), text_question()])
    assert answers[0].failure == "bad_request" and answers[1].text == "Well." and not notes
    assert "temperature" in bodies[-1] or "temperature" in bodies[-2]
    later, _ = ask(handle, [text_question()])
    assert later[0].text == "Well."


@pytest.mark.sibling("same-refusal-for-ever")
def test_a_server_that_refuses_the_same_thing_for_ever_is_not_asked_for_ever() -> None:
    count = 0

    def handle(body: dict[str, Any]) -> httpx.Response:
        nonlocal count
        if "GO" not in str(body["messages"]):
            return chat({"message": {"content": "yes"}})
        count += 1
        names = ["max_tokens", "max_completion_tokens", "temperature", "top_p", "seed"]
        return httpx.Response(400, json=error("not supported: " + ", ".join(name for name in names)))

    (answer,), notes = ask(handle, [text_question("GO", seed=1)])
    assert answer.failure == "bad_request" and count == 6 and not notes


@pytest.mark.sibling("log-probabilities-forbidden-with-403")
def test_log_probabilities_forbidden_as_if_by_the_key() -> None:
    def handle(body: dict[str, Any]) -> httpx.Response:
        if body.get("logprobs"):
            return httpx.Response(403, json=error("You are not allowed to request logprobs from this model"))
        return chat({"message": {"content": "B"}})

    (answer,), _ = ask(handle, [label_question()])
    assert (answer.text, answer.logprobs, answer.failure) == ("B", None, None)


@pytest.mark.sibling("one-flagged-prompt-403")
def test_a_flagged_prompt_fails_alone() -> None:
    def handle(body: dict[str, Any]) -> httpx.Response:
        if "GO" in str(body["messages"]):
            metadata = {"reasons": ["violence"], "flagged_input": "GO"}
            return httpx.Response(
                403, json={"error": {"code": 403, "message": "Input was flagged", "metadata": metadata}}
            )
        return chat({"message": {"content": "Well."}})

    answers, _ = ask(handle, [text_question("GO"), text_question()])
    assert [answer.failure for answer in answers] == ["bad_request", None]


@pytest.mark.sibling("another-model-midway")
def test_another_model_behind_the_same_name_stops_the_run(tmp_path: Path) -> None:
    """The server turns to another model in the middle of a run: what the first one said is kept, and nothing mixed."""
    with ShapeServer(Shape("m")) as server:
        path = write(tmp_path, server.url)
        usual = server.answer

        def answer(body: dict[str, Any]) -> Any:
            status, reply = usual(body)
            judged = sum("Reply A:" in str(each["messages"]) for each in server.taken)
            return status, reply | {"model": "a-small-one" if judged > 2 else "m-2025"}

        server.answer = answer  # type: ignore[method-assign]
        with pytest.raises(ModelError, match="another model answers now: `a-small-one`, and `m-2025` before"):
            run(path)
    assert len(lines(tmp_path / "run/judgements.jsonl")) <= 2


@pytest.mark.sibling("another-model-than-asked")
def test_a_server_that_answers_as_another_model_is_told() -> None:
    def as_model(name: str) -> list[str]:
        return ask(
            lambda _: httpx.Response(200, json={"model": name, "choices": [{"message": {"content": "yes"}}]}),
            [text_question()],
        )[1]

    assert as_model("m-2025-01-01") == as_model("owner/m") == as_model("M:latest") == []
    assert as_model("q7\x1b[31m") == ["asked for `m`, the server answers as `q7?[31m`"]
    assert as_model("m-mini") == ["asked for `m`, the server answers as `m-mini`"]


@pytest.mark.sibling("thoughts-that-are-hidden")
def test_thoughts_that_are_hidden_and_took_all_the_tokens() -> None:
    def handle(body: dict[str, Any]) -> httpx.Response:
        usage = {"completion_tokens": 8, "completion_tokens_details": {"reasoning_tokens": 8}}
        return chat({"message": {"content": ""}, "finish_reason": "length"}, usage=usage)

    (answer,), _ = ask(handle, [text_question()])
    assert answer.failure == "only_reasoning" and "raise `max_tokens`" in answer.detail


@pytest.mark.sibling("content-in-parts")
@pytest.mark.parametrize(
    ("message", "text"),
    [
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
                    {"type": "text", "text": "Hi."},
                ]
            },
            "Hi.",
        ),
        ({"content": [{"type": "reasoning", "text": "Hm."}, {"type": "output_text", "text": "Hi."}]}, "Hi."),
        ({"content": ["Hi", "."]}, "Hi."),
        ({"content": None, "refusal": "I will not."}, "I will not."),
        ({"content": "Hi.", "reasoning_details": [{"type": "reasoning.text", "text": "Hm."}]}, "Hi."),
        ({"content": None, "tool_calls": None}, ""),
    ],
)
def test_what_is_said_and_what_is_thought(message: dict[str, Any], text: str) -> None:
    (answer,), _ = ask(lambda _: chat({"message": message}), [text_question()])
    assert answer.text == text and answer.failure is None
    assert answer.reasoning == ("Hm." if "Hm." in json.dumps(message) else "")


@pytest.mark.sibling("usage-of-another-form")
@pytest.mark.parametrize(
    "usage", [[], "9", {"prompt_tokens": None}, {"prompt_tokens": "9"}, {"prompt_tokens_details": 3}]
)
def test_odd_counts_of_tokens_cost_no_answer(usage: Any) -> None:
    reply = {"choices": [{"index": None, "message": {"content": "Hi."}}], "usage": usage}
    (answer,), _ = ask(lambda _: httpx.Response(201, json=reply), [text_question()])
    assert (answer.text, answer.prompt_tokens) == ("Hi.", 0)


@pytest.mark.sibling("tokenize-in-another-form")
@pytest.mark.parametrize(
    "reply", [{"tokens": [1, 2], "token_strs": ["A"]}, {"tokens": [1], "token_strs": [None]}, [1, 2]]
)
def test_a_tokenizer_route_of_another_form_is_no_such_route(reply: Any) -> None:
    def serve(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/tokenize":
            return httpx.Response(200, json=reply)
        if request.url.path != "/v1/chat/completions":
            return httpx.Response(404)
        return chat(listed({"A": -0.3, "B": -1.5}))

    async def main() -> list[Output]:
        server = Server("http://judge.test/v1", "m", transport=httpx.MockTransport(serve), backoff=0.001)
        return await server.answer([label_question()])

    assert asyncio.run(main())[0].logprobs == (-0.3, -1.5)
