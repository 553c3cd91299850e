"""Servers that send what nobody asked for: each costs its question at most, and never memory, time or a secret."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import time
import tracemalloc
import zlib
from collections.abc import Sequence
from typing import Any

import pytest

from rlaif.config.secrets import Secrets
from rlaif.errors import ModelError, UserError
from rlaif.inference.base import Output, Question
from rlaif.inference.client import Server
from tests.inference.questions import label_question, label_questions, text_question
from tests.inference.rawserver import Asked, RawServer, reply, said, verdict

KEY = "sk-abcdefgh-12345678"


def ask(url: str, questions: Sequence[Question] = (), **options: Any) -> list[Output]:
    async def main() -> list[Output]:
        settings = {"backoff": 0.001, "timeout": 2.0, "give_up_after": 3.0, "max_attempts": 3} | options
        server = Server(url, "fake", **settings)
        try:
            wanted = list(questions) or [label_question()]
            return [answer for (answer,) in await asyncio.gather(*[server.answer([each]) for each in wanted])]
        finally:
            await server.close()

    return asyncio.run(main())


def sends(body: bytes, *, stays: bool = True) -> Any:
    def act(asked: Asked) -> object:
        asked.send(body)
        return None if stays else True

    return act


def good(answer: Output) -> bool:
    return answer.failure is None and answer.logprobs == pytest.approx((-0.22314355, -1.60943791))


@pytest.mark.case("sec-02-key-in-a-reply")
@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request", "500 Oops"])
@pytest.mark.parametrize("before", range(230, 300, 7))
def test_a_key_that_a_server_repeats_is_masked_before_the_message_is_cut(status: str, before: int) -> None:
    message = f"{'x' * before}{KEY} is not a key of yours {'y' * 100}"
    with RawServer(sends(reply({"error": {"message": message}}, status))) as server:
        (answer,) = ask(server.url, api_key=KEY)
    assert answer.failure is not None and KEY[:6] not in answer.detail and KEY[-6:] not in answer.detail


@pytest.mark.sibling("key-in-other-writing")
@pytest.mark.parametrize(
    "written",
    [
        "se%2Fcret%2B1%22key",
        "se%2fcret%2b1%22key",
        r"se\/cret+1\"key",
        "se/cret+1&quot;key",
        'SE/CRET+1"KEY',
        base64.b64encode(b'se/cret+1"key').decode(),
    ],
)
def test_a_key_in_other_writing_is_masked(written: str) -> None:
    key = 'se/cret+1"key'
    body = f"<html>Authorization: {written}</html>".encode()
    with RawServer(sends(reply(body, "400 Bad Request"))) as server:
        (answer,) = ask(server.url, api_key=key)
    assert "***" in answer.detail and key not in answer.detail and written not in answer.detail


@pytest.mark.sibling("key-in-escapes-of-json")
def test_a_key_in_escapes_is_masked() -> None:
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in KEY)
    body = b'{"error": {"message": "wrong: ' + escaped.encode() + b'"}}'
    with RawServer(sends(reply(body, "401 No"))) as server, pytest.raises(ModelError) as caught:
        ask(server.url, api_key=KEY)
    assert "wrong: ***" in str(caught.value)


@pytest.mark.sibling("key-in-a-models-text")
@pytest.mark.parametrize("field", ["content", "reasoning_content"])
def test_a_text_that_repeats_the_key_is_no_sample(field: str) -> None:
    """Masked, it would be trained on; as it is, it would be published."""
    choice = verdict(content=f"Your key is {KEY}.") if field == "content" else verdict()
    with RawServer(sends(reply(said(choice)))) as server:
        (answer,) = ask(server.url, [text_question()], api_key=KEY)
    assert (answer.failure, answer.text) == (("key_in_reply", "") if field == "content" else (None, "A"))


@pytest.mark.sibling("a-key-that-is-a-word")
def test_a_key_that_is_a_word_costs_no_sample() -> None:
    with RawServer(sends(reply(said(verdict(content="Open lm-studio and set a password."))))) as server:
        for key in ("lm-studio", "password", "EMPTY"):
            assert ask(server.url, [text_question()], api_key=key)[0].text == "Open lm-studio and set a password."


@pytest.mark.sibling("redirect-to-another-host")
def test_a_redirect_is_not_followed_and_its_secrets_are_not_shown() -> None:
    with RawServer() as other:
        place = f"{other.url}/chat?key={KEY}"
        there = RawServer(sends(reply(b"", "307 Elsewhere", f"Location: {place}")))
        with there as server, pytest.raises(ModelError, match="redirects to http://127") as caught:
            ask(server.url, api_key=KEY)
        assert other.asked == [] and KEY not in str(caught.value)


@pytest.mark.sibling("login-in-a-url")
def test_a_login_in_a_url_is_sent_and_never_shown() -> None:
    """In UTF-8, and not in the address that the client's own messages name."""
    login = "jürgen:pä/ss+1"

    def act(asked: Asked) -> object:
        asked.send(reply(f"denied: {asked.header('authorization')} {login}".encode(), "400 Bad Request"))
        return None

    with RawServer(act) as server:
        url = server.url.replace("127.", "j%C3%BCrgen:p%C3%A4%2Fss+1@127.")
        (answer,) = ask(url)
        sent = server.asked[-1].header("authorization")
    assert sent == f"Basic {base64.b64encode(login.encode()).decode()}"
    assert "pä" not in answer.detail and sent.removeprefix("Basic ").rstrip("=") not in answer.detail


@pytest.mark.case("sec-11-secrets-in-a-url")
def test_names_in_a_url_stand_for_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_PASS", "s3cret/@:word")
    monkeypatch.setenv("JUDGE_TOKEN", "tok&en=1234")
    with RawServer() as server:
        url = server.url.replace("127.", "me:${JUDGE_PASS}@127.") + "?api-key=${JUDGE_TOKEN}"
        made = Server(url, "fake")
        assert repr(made) == f"Server('{server.url}', 'fake')"
        assert good(ask(url)[0])
        assert server.asked[-1].path == "/v1/chat/completions?api-key=tok%26en%3D1234"
        code = server.asked[-1].header("authorization").removeprefix("Basic ")
    assert base64.b64decode(code) == b"me:s3cret/@:word"
    monkeypatch.delenv("JUDGE_TOKEN")
    with pytest.raises(UserError, match="`JUDGE_TOKEN` is not set; export"):
        Server(url, "fake")


@pytest.mark.sibling("trailing-slashes-and-ipv6")
@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://[::1]:8000/v1///", "http://[::1]:8000/v1"),
        ("http://köln.test/v1/chat/completions/", "http://köln.test/v1"),
        ("http://a.test/v1#part", "http://a.test/v1"),
    ],
)
def test_addresses_as_people_write_them(url: str, asked: str) -> None:
    from rlaif.inference.requests import address_of

    assert address_of(url).url == asked


@pytest.mark.case("sec-07-endless-reply")
@pytest.mark.parametrize("chunked", [False, True])
def test_a_reply_without_an_end_is_given_up(chunked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlaif.inference.transport.MOST_BYTES", 2**21)

    def act(asked: Asked) -> object:
        asked.send(b"HTTP/1.1 200 OK\r\n" + (b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"\r\n"))
        while True:
            asked.send(b"10000\r\n" + b" " * 65536 + b"\r\n" if chunked else b" " * 65536)

    tracemalloc.start()
    with RawServer(act) as server:
        (answer,) = ask(server.url, timeout=20.0)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (answer.failure, answer.detail) == ("oversized", "a reply of more than 2 MiB")
    assert most < 20 * 2**20


@pytest.mark.sibling("many-endless-replies-at-once")
def test_all_replies_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlaif.inference.transport._MOST_TOGETHER", 2**22)

    def act(asked: Asked) -> object:
        asked.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            asked.send(b" " * 65536)

    tracemalloc.start()
    with RawServer(act) as server:
        answers = ask(server.url, label_questions(16), timeout=20.0, max_attempts=1)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert {answer.failure for answer in answers} == {"oversized"} and most < 2**26


@pytest.mark.sibling("packed-replies")
@pytest.mark.parametrize("packing", ["gzip", "x-gzip", "deflate", "raw deflate", "br", "zstd", "lies"])
def test_a_packed_reply_is_read_or_refused(packing: str) -> None:
    """None was asked for; gzip and deflate are read all the same."""
    raw = json.dumps(said()).encode()
    bare = zlib.compressobj(wbits=-15)
    packed = {"deflate": zlib.compress(raw), "raw deflate": bare.compress(raw) + bare.flush(), "lies": raw}
    name = {"raw deflate": "deflate", "lies": "gzip"}.get(packing, packing)
    body = reply(packed.get(packing, gzip.compress(raw)), "200 OK", f"Content-Encoding: {name}")
    with RawServer(sends(body)) as server:
        (answer,) = ask(server.url)
        assert server.asked[-1].header("accept-encoding") == "identity"
    readable = packing in ("gzip", "x-gzip", "deflate", "raw deflate")
    assert good(answer) if readable else answer.failure == "dropped"


@pytest.mark.sibling("gzip-bomb")
def test_a_small_reply_that_unpacks_to_a_large_one_is_given_up() -> None:
    bomb = gzip.compress(b" " * (80 * 2**20), compresslevel=1)
    with RawServer(sends(reply(bomb, "200 OK", "Content-Encoding: gzip"))) as server:
        (answer,) = ask(server.url, max_attempts=1, timeout=20.0)
    assert (answer.failure, answer.detail) == ("oversized", "a reply of more than 64 MiB")


@pytest.mark.case("sec-15-deep-json-reply")
@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request", "500 Oops"])
@pytest.mark.parametrize("depth", [300, 5000, 100_000])
def test_deep_json_is_a_broken_reply(status: str, depth: int) -> None:
    deep = b'{"choices":' + b"[" * depth + b"]" * depth + b"}"
    with RawServer(sends(reply(deep, status))) as server:
        (answer,) = ask(server.url)
    assert answer.failure == {"2": "broken_json", "4": "bad_request", "5": "http_500"}[status[0]]
    assert len(answer.detail) < 500


@pytest.mark.sibling("deep-json-among-models")
def test_deep_json_where_models_are_listed() -> None:
    class Deep(RawServer):
        def _usual(self, asked: Asked) -> bytes:
            return reply(b'{"data":' + b"[" * 99_999 + b"]" * 99_999 + b"}")

    with Deep() as server, pytest.raises((ModelError, UserError), match="is not a JSON object"):
        ask(server.url)


@pytest.mark.sibling("odd-json")
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"choices": [], "created": ' + b"9" * 5000 + b"}", "broken_json"),
        (b"\xff\xfe\x00garbage", "broken_json"),
        (b'{"choices": "\x80"}', "broken_json"),
        (b"", "broken_json"),
        (b"[]", "broken_json"),
        (b"<!DOCTYPE html><title>Sign in</title>", "broken_json"),
        (b'{"choices": {"0": 1}}', "broken_json"),
        (b'{"choices": [[]]}', "broken_json"),
        (json.dumps(said(verdict([0]))).encode(), "broken_json"),
        (json.dumps(said(verdict(), verdict(1))).encode(), "short_batch"),
        (json.dumps(said(verdict(), verdict())).encode(), "short_batch"),
        (json.dumps(said()).replace("-0.22314355", "NaN").encode(), "bad_logprobs"),
        (json.dumps(said()).replace("-0.22314355", "Infinity").encode(), "bad_logprobs"),
        (json.dumps(said()).replace("-0.22314355", "1e999").encode(), "bad_logprobs"),
    ],
)
def test_odd_replies_never_become_an_answer(body: bytes, kind: str) -> None:
    with RawServer(sends(reply(body))) as server:
        (answer,) = ask(server.url)
    assert (answer.failure, answer.logprobs) == (kind, None)


def test_a_value_that_is_missing_is_no_probability() -> None:
    """What is left is the word that was said, without a number."""
    with RawServer(sends(reply(json.dumps(said()).replace("-0.22314355", "null").encode()))) as server:
        (answer,) = ask(server.url)
    assert (answer.failure, answer.logprobs, answer.text) == (None, None, "A")


@pytest.mark.sibling("good-replies-in-odd-wrapping")
@pytest.mark.parametrize(
    "body",
    [
        reply(b"\xef\xbb\xbf" + json.dumps(said()).encode()),
        reply(said(), "201 Created"),
        b"HTTP/1.1 100 Continue\r\n\r\n" + reply(said()),
        reply(said(), "200 OK", *[f"Set-Cookie: a{at}={'b' * 900}" for at in range(20)]),
        reply({"choices": [], **said(), "object": "chat.completion"}),
    ],
    ids=["byte order mark", "status 201", "100 Continue", "cookies", "more fields"],
)
def test_good_replies_in_odd_wrapping_are_read(body: bytes) -> None:
    with RawServer(sends(body)) as server:
        assert good(ask(server.url)[0])
        assert server.asked[-1].header("cookie") == ""


@pytest.mark.sibling("http-1-0-and-wrong-lengths")
@pytest.mark.parametrize(
    ("head", "fine"),
    [
        ("HTTP/1.0 200 OK\r\n\r\n", True),
        ("HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", False),
        ("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n", False),
        ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", False),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", False),
        ("HTTP/1.1 200 OK\r\nX-Large: " + "x" * 200_000 + "\r\n\r\n", False),
        ("What?\r\n\r\n", False),
    ],
)
def test_broken_http_fails_its_question_and_no_other(head: str, fine: bool) -> None:
    body = head.encode() + json.dumps(said()).encode()
    with RawServer(lambda asked: sends(body, stays=False)(asked) if "Pair 1:" in asked.body else False) as server:
        answers = ask(server.url, label_questions(3), timeout=5.0)
    assert [good(answer) for answer in answers] == [True, fine, True]


@pytest.mark.sibling("dripping-reply")
def test_a_dripping_reply_has_one_timeout() -> None:
    def act(asked: Asked) -> object:
        asked.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not server.wait(0.05):
            asked.send(b" ")
        return True

    start = time.monotonic()
    with RawServer(lambda asked: act(asked) if "Pair 1:" in asked.body else False) as server:
        answers = ask(server.url, label_questions(3), timeout=0.4, max_attempts=2)
    assert [answer.failure for answer in answers] == [None, "timeout", None]
    assert time.monotonic() - start < 15


@pytest.mark.sibling("absurd-retry-after")
@pytest.mark.parametrize(
    "value", ["-5", "nan", "Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 99 Foo 99999 00:00:00", "1e-9", "½"]
)
def test_an_absurd_pause_is_none(value: str) -> None:
    answers = iter([reply(b"", "503 Busy", f"Retry-After: {value}".encode().decode("latin-1")), reply(said())])

    def act(asked: Asked) -> object:
        asked.send(next(answers, reply(said())))
        return None

    with RawServer(act) as server:
        assert good(ask(server.url)[0])


@pytest.mark.case("sec-03-one-prompt-stops-the-run")
@pytest.mark.parametrize("how", ["drops", "502", "504"])
def test_a_question_of_which_the_connection_breaks_fails_alone(how: str) -> None:
    def act(asked: Asked) -> object:
        if "Pair 7:" not in asked.body:
            return False
        if how != "drops":
            asked.send(reply(b"worker died", f"{how} Bad Gateway"))
        return True

    start = time.monotonic()
    with RawServer(act) as server:
        answers = ask(server.url, label_questions(12), give_up_after=20.0)
    assert [at for at, answer in enumerate(answers) if not good(answer)] == [7]
    assert answers[7].failure == ("dropped" if how == "drops" else f"http_{how}")
    assert time.monotonic() - start < 15


@pytest.mark.sibling("a-batch-of-which-the-connection-breaks")
def test_a_question_that_breaks_its_batch_fails_alone() -> None:
    from tests.fakes import FakeServer, Trouble

    async def main(url: str) -> list[Output]:
        server = Server(url, "fake", backoff=0.001, timeout=2.0, give_up_after=2.0, max_attempts=3)
        try:
            return await server.answer(label_questions(16))
        finally:
            await server.close()

    with FakeServer(troubles=[Trouble("drop", contains="Pair 5:")]) as fake:
        answers = asyncio.run(main(fake.url))
    assert [at for at, answer in enumerate(answers) if answer.failure] == [5]


@pytest.mark.case("sec-26-slow-on-everything")
def test_a_server_too_slow_for_all_is_given_up_soon() -> None:
    heard: list[str] = []
    start = time.monotonic()
    with RawServer(lambda _: server.wait(30)) as server:
        answers = ask(server.url, label_questions(24), timeout=0.4, max_attempts=6, say=heard.append)
        asked = sum(not each.is_probe for each in server.asked)
    assert {answer.failure for answer in answers} == {"too_slow"}
    assert "answers a small question, but none of these within 0.4 s" in answers[0].detail
    assert time.monotonic() - start < 8 and asked <= 48
    assert len(heard) == 2 and "at most 64 of 128 questions at once" in heard[0]


@pytest.mark.sibling("too-many-at-once-for-any-answer")
def test_a_server_that_is_slow_only_for_many_is_asked_fewer() -> None:
    """Four or more that come together are all late; one alone is not."""
    came: list[float] = []

    def act(asked: Asked) -> object:
        now = time.monotonic()
        came.append(now)
        server.wait(0.05)
        server.wait(0.6 if sum(abs(each - now) < 0.1 for each in came) > 3 else 0)
        return False

    with RawServer(act) as server:
        answers = ask(server.url, label_questions(16), timeout=0.4, max_attempts=30)
    assert all(good(answer) for answer in answers)


@pytest.mark.case("sec-27-odd-tokenize-reply")
@pytest.mark.parametrize(
    "odd",
    [
        {"tokens": [1, 2, 3], "token_strs": ["A", "B"]},
        {"tokens": [1, 2], "token_strs": [None, None]},
        {"tokens": ["A", "B"], "token_strs": ["A", "B"]},
        {"tokens": [[1], [2]], "token_strs": ["A", "B"]},
        {"tokens": 7, "token_strs": 7},
        {"tokens": [True, 2], "token_strs": ["A", "B"]},
    ],
)
def test_an_odd_tokenizer_route_is_passed_over(odd: dict[str, Any]) -> None:
    class Odd(RawServer):
        def _usual(self, asked: Asked) -> bytes:
            return reply(odd) if asked.path == "/tokenize" else super()._usual(asked)

    class OddProbe(Odd):
        def _one(self, client: Any, stream: Any) -> bool:
            return super()._one(client, stream)

    with OddProbe(sends(reply(said()))) as server:
        server.act = lambda asked: False  # the tokenizer's question is no probe by its text
        assert good(ask(server.url)[0])


@pytest.mark.case("sec-27-odd-tokenize-reply")
@pytest.mark.parametrize(("key", "odd"), [("a\nb", "a line break"), ("schlüssel", "U+00FC"), ("a\u200bb", "U+200B")])
def test_a_key_that_no_header_can_carry_is_told(key: str, odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlaif.inference.models import key_in

    monkeypatch.setenv("JUDGE_KEY", key)
    with pytest.raises(UserError) as caught:
        key_in("JUDGE_KEY", where="judge.api_key_env")
    assert "`JUDGE_KEY`" in str(caught.value) and odd.partition(" (")[0] in str(caught.value)
    assert key not in str(caught.value)
    with pytest.raises(UserError):
        Server("http://judge.test/v1", "fake", api_key=key)


def test_what_is_hidden_and_what_is_not() -> None:
    secrets = Secrets(["abcdefgh-1234567", "x", "EMPTY"])
    assert secrets.hide("x: abcdefgh-1234567, EMPTY") == "x: ***, ***"
    assert secrets.hide("abcdefgh-12..., abcdefg") == "***..., abcdefg"
    assert secrets.told_in("see abcdefgh-1234567") and not secrets.told_in("EMPTY x abcdefgh")
    assert "abc" not in repr(secrets)
