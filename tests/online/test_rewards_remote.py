"""A server as the reward, over real sockets: what OpenRLHF's servers get and give, and servers that misbehave."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rlaif.errors import ModelError, UserError
from rlaif.records import Message, Messages
from rlaif.rl.remote_reward import RemoteReward

HI = (Message(role="user", content="Hi"),)
TALK = (
    Message(role="system", content="Be kind."),
    Message(role="user", content="Hi"),
    Message(role="assistant", content="Hello!"),
    Message(role="user", content="Bye"),
)

Act = Callable[["_Handler"], None]
"""What the server does with a request whose body was read."""


class Misbehaving(ThreadingHTTPServer):
    """Does with each request what the next of `acts` says, and the last one again and again."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.acts: list[Act] = []
        self.bodies: list[dict[str, Any]] = []
        self.clients: set[Any] = set()
        self.let_go = threading.Event()
        """Ends what hangs."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/get_reward"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of these tests."""


class _Handler(BaseHTTPRequestHandler):
    server: Misbehaving
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.bodies.append({"path": self.path, **json.loads(body)})
        self.server.clients.add(self.client_address)
        act = self.server.acts.pop(0) if len(self.server.acts) > 1 else self.server.acts[0]
        act(self)

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content_length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[Misbehaving]:
    with Misbehaving() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield made
        made.let_go.set()
        made.shutdown()


@pytest.fixture
def reward(server: Misbehaving) -> Iterator[RemoteReward]:
    made = RemoteReward(server.url, timeout=5.0, retries=2, backoff=0.001)
    yield made
    made.close()


def gives(payload: Any, status: int = 200, **headers: str) -> Act:
    return lambda handler: handler.send(status, json.dumps(payload).encode(), **headers)


def says(body: bytes, status: int = 200) -> Act:
    return lambda handler: handler.send(status, body)


def hangs(handler: _Handler) -> None:
    handler.server.let_go.wait(60)


def hangs_up(handler: _Handler) -> None:
    handler.close_connection = True


def sends_half(handler: _Handler) -> None:
    handler.send(200, b'{"rewards": [0.', content_length="100")
    handler.close_connection = True


def drips(handler: _Handler) -> None:
    """A byte now and then: each read is in time, the reply never is."""
    handler.send(200, b"", content_length="10000")
    while not handler.server.let_go.wait(0.05):
        handler.wfile.write(b" ")


GOOD = gives({"rewards": [0.5, -2]})


def ask(reward: RemoteReward) -> list[float | None]:
    return list(reward([HI, TALK], ["Hello.", "Bye."]).total)


def test_what_is_sent_and_read(server: Misbehaving, reward: RemoteReward) -> None:
    server.acts = [gives({"rewards": [0.5, -2], "scores": [1, 0], "extra_logs": {"length": [1, 2]}})]
    scores = reward([HI, TALK], ["Hello.", "Bye."])
    assert scores.total == [0.5, -2.0]
    assert scores.parts == {"remote": scores.total}
    hi, connection = (
        "\n\nHuman: Hi\n\nAssistant: ",
        "Be kind.\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Bye\n\nAssistant: ",
    )
    sent = {"query": [f"{hi}Hello.", f"{connection}Bye."], "prompts": [hi, connection], "labels": ["", ""]}
    assert server.bodies == [{"path": "/get_reward", **sent}]


def test_prompts_as_the_caller_renders_them(server: Misbehaving) -> None:
    def chatml(messages: Messages) -> str:
        return "".join(f"<{message.role}>{message.content}" for message in messages) + "<assistant>"

    server.acts = [gives({"rewards": [1]})]
    reward = RemoteReward(server.url, render=chatml)
    assert reward([HI], ["Hällo."]).total == [1.0]
    reward.close()
    assert server.bodies[0]["query"] == ["<user>Hi<assistant>Hällo."]


def test_null_is_no_score(server: Misbehaving, reward: RemoteReward) -> None:
    server.acts = [gives({"rewards": [None, 3]})]
    assert ask(reward) == [None, 3.0]


def test_nothing_asked_nothing_sent(server: Misbehaving, reward: RemoteReward) -> None:
    assert reward([], []).total == []
    assert server.bodies == []
    assert reward.state() == {}
    reward.restore({})


def test_connection_is_kept(server: Misbehaving, reward: RemoteReward) -> None:
    server.acts = [GOOD]
    assert [ask(reward) for _ in range(3)] == [[0.5, -2.0]] * 3
    assert len(server.clients) == 1


BAD: dict[str, tuple[Act, str]] = {
    "http": (says(b"out of memory", 500), "HTTP 500: out of memory"),
    "missing": (gives({"detail": "Not Found"}, 404), "HTTP 404: Not Found"),
    "redirect": (lambda h: h.send(307, b"", location="http://other.test/"), "HTTP 307: http://other.test/"),
    "hangs up": (hangs_up, "disconnected|reset"),
    "half": (sends_half, "closed"),
    "no json": (says(b"<html>busy</html>"), "the reply is not JSON: <html>busy</html>"),
    "no object": (gives([1, 2]), r"no list `rewards`: \[1, 2\]"),
    "no rewards": (gives({"scores": [1, 2]}), 'no list `rewards`: {"scores": '),
    "no list": (gives({"rewards": 1.0}), 'no list `rewards`: {"rewards": 1.0}'),
    "short": (gives({"rewards": [1]}), "1 rewards for 2 responses"),
    "long": (gives({"rewards": [1, 2, 3]}), "3 rewards for 2 responses"),
    "text": (gives({"rewards": [1, "2"]}), 'reward 2 is not a number: "2"'),
    "truth": (gives({"rewards": [True, 1]}), "reward 1 is not a number: true"),
    "nested": (gives({"rewards": [[1], [2]]}), r"reward 1 is not a number: \[1\]"),
    "nan": (says(b'{"rewards": [1, NaN]}'), "reward 2 is not a number: NaN"),
    "infinity": (says(b'{"rewards": [1, 1e999]}'), "reward 2 is not a number: Infinity"),
    "endless": (says(b'{"rewards": [1, 1' + b"0" * 400 + b"]}"), "reward 2 is not a number: 10"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_replies_are_tried_again_and_then_told(server: Misbehaving, reward: RemoteReward, name: str) -> None:
    act, what = BAD[name]
    server.acts = [act, act, GOOD]
    assert ask(reward) == [0.5, -2.0]
    server.acts = [act]
    shown = f"no rewards from http://127.0.0.1:{server.server_port}/get_reward in 3 tries: .*"
    with pytest.raises(ModelError, match=f"{shown}({what})"):
        ask(reward)
    assert len(server.bodies) == 6


@pytest.mark.parametrize("act", [hangs, drips])
def test_slow_replies_time_out(server: Misbehaving, act: Act) -> None:
    reward = RemoteReward(server.url, timeout=0.3, retries=1, backoff=0.001)
    server.acts = [act, GOOD]
    assert ask(reward) == [0.5, -2.0]
    server.acts = [act]
    with pytest.raises(ModelError, match=r"in 2 tries: no (whole )?reply within 0.3 s"):
        ask(reward)
    reward.close()


def test_nobody_listens(server: Misbehaving) -> None:
    with Misbehaving() as gone:
        url = gone.url
    reward = RemoteReward(url, retries=0)
    with pytest.raises(ModelError, match=r"no rewards from http://127.0.0.1:\d+/get_reward in one try: .*refused"):
        ask(reward)
    reward.close()


@pytest.mark.parametrize(
    "act",
    [says(b"x" * 100_000, 500), says(b"x" * 100_000), gives({"rewards": ["x" * 100_000, 1]}), gives("x" * 10_000)],
)
def test_messages_are_short(server: Misbehaving, reward: RemoteReward, act: Act) -> None:
    server.acts = [act]
    with pytest.raises(ModelError) as raised:
        ask(reward)
    assert "xxx" in str(raised.value)
    assert len(str(raised.value)) < 400


def test_passwords_are_not_shown(server: Misbehaving) -> None:
    server.acts = [says(b"no", 401)]
    reward = RemoteReward(server.url.replace("127.", "me:secret@127.") + "?key=secret", retries=0)
    with pytest.raises(ModelError) as raised:
        ask(reward)
    assert "secret" not in str(raised.value)
    assert server.bodies[0]["path"] == "/get_reward?key=secret"
    reward.close()


@pytest.mark.sibling("secrets-of-a-reward-server")
def test_secrets_that_a_reward_server_repeats_are_masked(server: Misbehaving, monkeypatch: pytest.MonkeyPatch) -> None:
    """At whatever place the message is cut, and in a reply with status 200 too."""
    monkeypatch.setenv("REWARD_PASS", "s3cret/word-12345")
    monkeypatch.setenv("REWARD_KEY", "query-key-67890")
    url = server.url.replace("127.", "me:${REWARD_PASS}@127.") + "?key=${REWARD_KEY}"
    reward = RemoteReward(url, retries=0)
    for status in (200, 401):
        for before in range(120, 200, 9):
            server.acts = [says(b"x" * before + b" s3cret/word-12345 query-key-67890 s3cret%2Fword-12345", status)]
            with pytest.raises(ModelError) as raised:
                ask(reward)
            assert not any(part in str(raised.value) for part in ("s3cret", "query-k", "12345"))
    assert server.bodies[0]["path"] == "/get_reward?key=query-key-67890"
    reward.close()


@pytest.mark.sibling("endless-and-packed-rewards")
def test_endless_and_packed_rewards(server: Misbehaving, reward: RemoteReward, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(handler: _Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(b" " * 65536)

    good, bomb = gzip.compress(b'{"rewards": [0.5, -2.0]}'), gzip.compress(b" " * 2**22)
    server.acts = [gives_packed(good, "gzip")]
    assert ask(reward) == [0.5, -2.0]
    for where in ("rlaif.inference.transport", "rlaif.rl.remote_reward"):
        monkeypatch.setattr(f"{where}.MOST_BYTES", 2**21)
    for act, what in (
        (endless, "more than 2 MiB"),
        (gives_packed(bomb, "gzip"), "more than 2 MiB"),
        (gives_packed(good, "br"), "packed as `br`"),
        (says(b'{"rewards":' + b"[" * 99_999 + b"]" * 99_999 + b"}"), "is not JSON"),
    ):
        server.acts = [act]
        with pytest.raises(ModelError, match=what):
            ask(reward)


def gives_packed(body: bytes, name: str) -> Act:
    return lambda handler: handler.send(200, body, content_encoding=name)


def test_server_may_ask_for_a_pause(server: Misbehaving, reward: RemoteReward, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses double from 0.001 s, unless the server asks for a longer one, of which 60 s are granted at most."""
    slept: list[float] = []
    monkeypatch.setattr("rlaif.rl.remote_reward.time.sleep", slept.append)
    server.acts = [gives({}, 503, retry_after="7"), gives({}, 429, retry_after="1000"), GOOD]
    assert ask(reward) == [0.5, -2.0]
    server.acts = [gives({}, 500), gives({}, 500), GOOD]
    assert ask(reward) == [0.5, -2.0]
    assert slept == [7.0, 60.0, 0.001, 0.002]


def test_proxy_of_the_environment_is_not_asked_about_this_machine(
    server: Misbehaving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    server.acts = [GOOD]
    reward = RemoteReward(server.url, retries=0)
    assert ask(reward) == [0.5, -2.0]
    reward.close()


@pytest.mark.parametrize("url", ["127.0.0.1:5000", "ftp://here/x", "http://", "http://here:99999/"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(UserError, match=r"no URL of a reward server: .*; write it like http://127"):
        RemoteReward(url)
