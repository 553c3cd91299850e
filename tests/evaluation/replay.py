"""A server that repeats what a judge once wrote about a pair, by the two replies that are shown and their order."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

_SHOWN = re.compile(r"Reply ([AB]):\n<<<(\w+)\n(.*?)\n\2>>>", re.DOTALL)

Recorded = Callable[[str, str, str], str]
"""What the judge wrote, by the whole question and the replies shown first and second."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 200  # of five, connections that come at once are dropped, and wait for a retransmission


class ReplayServer:
    """Speaks the chat completions of OpenAI, without log-probabilities; a reply ends with the recorded verdict in the
    words that are asked for."""

    def __init__(self, recorded: Recorded) -> None:
        self.asked = 0
        self.unknown: list[Exception] = []
        """Why there was nothing to repeat."""
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                known = self.path == "/v1/models"
                self._send(200 if known else 404, {"object": "list", "data": [{"id": "recorded", "object": "model"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if self.path != "/v1/chat/completions":
                    self._send(404, {"error": {"message": "no such route"}})
                    return
                question = body["messages"][-1]["content"]
                shown = {slot: text for slot, _, text in _SHOWN.findall(question)}
                text = "A"  # to whatever else is asked, as by a probe
                if len(shown) == 2:
                    with outer._lock:
                        outer.asked += 1
                    try:
                        text = recorded(question, shown["A"], shown["B"])
                    except (AssertionError, LookupError, ValueError) as error:
                        outer.unknown.append(error)
                        self._send(400, {"error": {"message": "nothing was recorded of this question"}})
                        return
                choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
                usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
                self._send(200, {"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage})

            def _send(self, status: int, payload: object) -> None:
                data = json.dumps(payload).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
