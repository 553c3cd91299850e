"""A server that sends whatever bytes a test wants, over real sockets: a small judge, but for what is asked of it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

Send = Callable[[bytes], None]
"""Writes bytes to the client; the rest of an answer that has gone is nobody's concern."""


@dataclass
class Asked:
    """One request."""

    path: str
    head: str
    body: str
    send: Send

    @property
    def is_probe(self) -> bool:
        """Whether it only looks what the server can do, or whether it lives."""
        return self.body == "" or "Answer with one of these" in self.body or "Say yes." in self.body

    def header(self, name: str) -> str:
        """The value of a header; empty where it is not there."""
        lines = (line.partition(": ") for line in self.head.split("\r\n"))
        return next((value for key, _, value in lines if key.lower() == name), "")


def reply(body: bytes | object, status: str = "200 OK", *more: str) -> bytes:
    """A whole reply."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(raw)}", *more, "", ""]
    return "\r\n".join(lines).encode("latin-1") + raw


def verdict(index: object = 0, content: str = "A", **more: Any) -> dict[str, Any]:
    """A choice that says A with 0.8."""
    listed = [{"token": "A", "logprob": -0.22314355}, {"token": "B", "logprob": -1.60943791}]
    first = {**listed[0], "top_logprobs": listed}
    message = {"role": "assistant", "content": content}
    return {"index": index, "message": message, "finish_reason": "stop", "logprobs": {"content": [first]}, **more}


def said(*choices: dict[str, Any]) -> dict[str, Any]:
    """A chat completion."""
    return {"choices": list(choices or (verdict(),)), "usage": {"prompt_tokens": 3, "completion_tokens": 1}}


class RawServer:
    """Probes get good answers, and other questions what `act` sends; where it returns False, a good one too."""

    def __init__(self, act: Callable[[Asked], object] = lambda _: False, *, keep: bool = True) -> None:
        """`keep` leaves a connection open after a reply."""
        self.act, self.keep = act, keep
        self.asked: list[Asked] = []
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=200)
        self._ending = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"

    def __enter__(self) -> RawServer:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def wait(self, seconds: float) -> bool:
        """Wait, but not beyond the test's end, which it returns."""
        return self._ending.wait(seconds)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as stream:
            try:
                while self._one(client, stream) and self.keep:
                    pass
            except (OSError, ValueError):
                pass

    def _one(self, client: socket.socket, stream: Any) -> bool:
        """One request and its reply; whether the connection stays."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = stream.readline()
            if not line:
                return False
            head += line
        text = head.decode("latin-1")
        asked = Asked(text.split(" ", 2)[1], text, "", client.sendall)
        asked.body = stream.read(int(asked.header("content-length") or 0)).decode()
        self.asked.append(asked)
        done = False if asked.is_probe else self.act(asked)
        if done is False:
            client.sendall(self._usual(asked))
        return done is None or done is False

    def _usual(self, asked: Asked) -> bytes:
        path = asked.path.partition("?")[0]
        if path.endswith("/models"):
            return reply({"data": [{"id": "fake", "max_model_len": 9000}]})
        if path.endswith("/chat/completions"):
            return reply(said())
        return reply({"detail": "Not Found"}, "404 Not Found")
