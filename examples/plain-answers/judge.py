"""A judge whose verdicts are known to be right: four rules behind an OpenAI-compatible server.

    python judge.py serve [--port 8901]        answers comparisons and grades, with log-probabilities of the labels
    python judge.py measure RESPONSES.jsonl    the share of responses that break each rule

With such a judge it is known what a perfect policy would do, so that what a training gains can be measured without any
other model. The rules read the prompts that rlaif writes: the request and the responses stand between fences, and the
question behind them says which rule is asked for.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

WORDS = 40
"""A brief response has at most so many words."""
SHARE = 0.25
"""Of the request's longer words, so many have to come up in a response, at most four of them."""
STEEPNESS = 5.0
"""Log-odds between a response that breaks a rule completely and one that keeps it."""

_FENCED = re.compile(r"<<<(\w+)\n(.*?)\n\1>>>", re.DOTALL)
_MARKUP = re.compile(r"^[ \t]*(?:[-*•]|\d{1,2}[.)]|#{1,6})[ \t]|\*\*", re.MULTILINE)
_ENDS = re.compile(r"[.!?…][\"'”’)\]]*$")


def brief(request: str, response: str) -> float:
    """How far a response is over the limit: 0 within it, 1 at twice the limit."""
    return min(1.0, max(0.0, len(response.split()) / WORDS - 1))


def whole(request: str, response: str) -> float:
    """1 where the response stops in the middle of a sentence."""
    return 0.0 if _ENDS.search(response.strip()) else 1.0


def prose(request: str, response: str) -> float:
    """1 where there are lists, headings or bold type."""
    return 1.0 if _MARKUP.search(response) else 0.0


def to_the_point(request: str, response: str) -> float:
    """The share that is missing of the request's words that should come up: 0 where enough of them do."""
    asked, used = _long_words(request), _long_words(response)
    wanted = min(4, math.ceil(SHARE * len(asked)))
    return 1 - min(1.0, len(asked & used) / wanted) if wanted else 0.0


def _long_words(text: str) -> set[str]:
    return {word[:5] for word in re.findall(r"[^\W\d_]{5,}", text.lower())}


RULES: dict[str, tuple[str, Callable[[str, str], float]]] = {
    "brief": ("shorter", brief),
    "whole": ("finished sentence", whole),
    "prose": ("as prose", prose),
    "to-the-point": ("words of the request", to_the_point),
}
"""Of each rule the words by which its question is known, and how badly a response breaks it, from 0 to 1."""


def faults(request: str, response: str) -> dict[str, float]:
    """How badly a response breaks each rule. An empty one breaks all."""
    if not response.strip():
        return dict.fromkeys(RULES, 1.0)
    return {name: rule(request, response) for name, (_, rule) in RULES.items()}


def label_logprobs(question: str) -> dict[str, float]:
    """Log-probabilities of `A` and `B` for a comparison, of the ten digits for a grade."""
    materials = list(_FENCED.finditer(question))
    request, *responses = [match[2] for match in materials]
    asked = question[materials[-1].end() :] if materials else question
    names = [name for name, (words, _) in RULES.items() if words in asked]
    severities = [sum(faults(request, text)[name] for name in names) for text in responses]
    if len(responses) == 1:
        grade = round(9 * (1 - min(1.0, severities[0])))
        return {str(digit): math.log(0.91 if digit == grade else 0.01) for digit in range(10)}
    lead = STEEPNESS * (severities[1] - severities[0])
    return {"A": -math.log1p(math.exp(-lead)), "B": -math.log1p(math.exp(lead))}


def completion(body: dict[str, Any]) -> dict[str, Any]:
    """The reply to a chat completion request."""
    question = next(turn["content"] for turn in reversed(body["messages"]) if turn["role"] == "user")
    logprobs = label_logprobs(question) if _FENCED.search(question) else {"A": math.log(0.5), "B": math.log(0.5)}
    best = max(logprobs, key=lambda label: logprobs[label])
    listed = [{"token": label, "logprob": value, "bytes": None} for label, value in logprobs.items()]
    listed.sort(key=lambda each: -each["logprob"])
    choice: dict[str, Any] = {
        "index": 0, "message": {"role": "assistant", "content": best}, "finish_reason": "stop",
    }  # fmt: skip
    if body.get("logprobs"):
        choice["logprobs"] = {"content": [{**listed[0], "top_logprobs": listed[: body.get("top_logprobs", 1)]}]}
    usage = {"prompt_tokens": len(question) // 4, "completion_tokens": 1, "total_tokens": len(question) // 4 + 1}
    return {"id": "rules", "object": "chat.completion", "model": "rules", "choices": [choice], "usage": usage}


class Handler(BaseHTTPRequestHandler):
    """The two routes that a judge needs."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """List the one model."""
        found = self.path == "/v1/models"
        self._send(200 if found else 404, {"object": "list", "data": [{"id": "rules", "object": "model"}]})

    def do_POST(self) -> None:
        """Answer a chat completion."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/v1/chat/completions":
            self._send(404, {"error": {"message": "no such route"}})
            return
        try:
            self._send(200, completion(json.loads(body)))
        except (ValueError, KeyError, StopIteration) as error:
            self._send(400, {"error": {"message": f"cannot be answered: {error!r}"}})

    def _send(self, status: int, payload: dict[str, Any]) -> None:
        data = json.dumps(payload).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of each request."""


class Server(ThreadingHTTPServer):
    """Takes as many connections at once as a client opens."""

    request_queue_size = 200


def serve(port: int) -> Server:
    """The server, on this machine's own address only; port 0 takes a free one."""
    return Server(("127.0.0.1", port), Handler)


def measure(path: str) -> None:
    """Print how many of the responses of a JSONL file (`prompt`, `response`) break each rule, and any of them."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    found = [faults(_request(row["prompt"]), row["response"]) for row in rows]
    for name in RULES:
        print(f"{name:14}{sum(each[name] > 0 for each in found) / len(found):7.1%}")
    print(f"{'any':14}{sum(any(each.values()) for each in found) / len(found):7.1%} of {len(found)} responses")


def _request(prompt: str | list[dict[str, str]]) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def main() -> None:
    """Serve or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve").add_argument("--port", type=int, default=8901)
    commands.add_parser("measure").add_argument("responses")
    words = parser.parse_args()
    if words.command == "measure":
        measure(words.responses)
        return
    server = serve(words.port)
    print(f"http://127.0.0.1:{server.server_port}/v1", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
