"""Servers of the OpenAI protocol as they differ: what each takes, how it refuses the rest, and the form of its replies.

Written from the servers' documentation and from what their users report of them. All hold the same model: a reply with
GOOD in it is the better one, the label that says so has 0.85 of the probability, and the other label 0.13.
"""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

Body = Mapping[str, Any]
Reply = tuple[int, Any]

USUAL = frozenset({"model", "messages", "max_tokens", "temperature", "top_p", "seed", "logprobs", "top_logprobs"})
LEADING, OTHER = math.log(0.85), math.log(0.13)


class _Server(ThreadingHTTPServer):
    request_queue_size = 200  # of five, connections that come at once are dropped, and wait for a retransmission


@dataclass(frozen=True)
class Shape:
    """One server."""

    name: str
    refusals: Callable[[Body], Reply | None] = lambda _: None
    """What it says to a request that it does not take; None to one that it takes."""
    models: Callable[[], Reply] = lambda: (200, {"object": "list", "data": [{"id": "m", "object": "model"}]})
    choice: Callable[[Body, str], dict[str, Any]] = lambda body, text: usual_choice(body, text)
    envelope: Mapping[str, Any] = field(default_factory=dict)
    """More of a reply, around its choices."""
    path: str = "/v1"
    model: str = "m"
    hard: bool = False
    """Whether its verdicts have to be read as words."""
    told: tuple[str, ...] = ()
    """What `rlaif check` says of it."""


def label_of(body: Body) -> str | None:
    """The label that the model says; None where it is not asked for one."""
    text = str(body["messages"][-1]["content"])
    first, second = text.find("Reply A:"), text.find("Reply B:")
    if first < 0:
        return "A" if "Answer with one of these" in text else None
    return "A" if "GOOD" in text[first:second] else "B"


def values_of(label: str, *, most: int = 20, sharp: float = 1.0) -> list[tuple[str, float]]:
    """The most probable first tokens; at a temperature of `1 / sharp`, with the first one at 0."""
    other = "B" if label == "A" else "A"
    values = [(label, LEADING), (other, OTHER), *((f"w{at}", -6.0 - at) for at in range(18))][:most]
    return [(token, (value - LEADING) * sharp if sharp != 1 else value) for token, value in values]


def listed(body: Body, label: str, *, most: int | None = None, sharp: float = 1.0, **more: Any) -> dict[str, Any]:
    """The `logprobs` of a choice."""
    wanted = most or int(body.get("top_logprobs") or 0)
    values = values_of(label, most=max(1, wanted), sharp=sharp)
    entries = [{"token": token, "logprob": value, "bytes": list(token.encode()), **more} for token, value in values]
    return {"content": [entries[0] | {"top_logprobs": entries if wanted else []}]}


def usual_choice(body: Body, text: str, **message: Any) -> dict[str, Any]:
    """A choice as most servers send it."""
    label = label_of(body)
    logprobs = listed(body, label) if label and body.get("logprobs") else None
    said = {"role": "assistant", "content": text} | message
    return {"index": 0, "message": said, "logprobs": logprobs, "finish_reason": "stop"}


def without_values(body: Body, text: str, **message: Any) -> dict[str, Any]:
    """One of a server that passes over `logprobs`."""
    return usual_choice({**body, "logprobs": False}, text, **message)


class ShapeServer:
    """A shape behind a real socket."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.refused: list[Any] = []
        """What it said to requests that it did not take."""
        self.taken: list[dict[str, Any]] = []
        """Requests that it took."""
        self.queries: set[str] = set()
        self._seen: Counter[str] = Counter()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                self._send(*(outer.shape.models() if urlsplit(self.path).path.endswith("/models") else (404, {})))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                parts = urlsplit(self.path)
                outer.queries.add(parts.query)
                known = parts.path == f"{outer.shape.path}/chat/completions"
                self._send(*(outer.answer(body) if known else (404, {"detail": "Not Found"})))

            def _send(self, status: int, payload: Any) -> None:
                data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}{shape.path}"

    def answer(self, body: dict[str, Any]) -> Reply:
        """The reply to a chat request."""
        refusal = self.shape.refusals(body)
        if refusal is not None:
            self.refused.append(refusal)
            return refusal
        self.taken.append(body)
        question = str(body["messages"][-1]["content"])
        self._seen[question] += 1
        text = label_of(body) or ("A GOOD response." if self._seen[question] % 2 else "Find out yourself.")
        usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
        made = {"id": "c1", "object": "chat.completion", "created": 1, "model": self.shape.model, "usage": usage}
        return 200, made | {"choices": [self.shape.choice(body, text)]} | dict(self.shape.envelope)

    def __enter__(self) -> ShapeServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


# How servers refuse.


def error(message: str, *, param: str | None = None, code: Any = None, kind: str = "invalid_request_error") -> Any:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def unknown_to(takes: frozenset[str], say: Callable[[str], Reply]) -> Callable[[Body], Reply | None]:
    """Refuses the first field that is not among those that it takes."""

    def refuse(body: Body) -> Reply | None:
        extra = [name for name in body if name not in takes]
        return say(extra[0]) if extra else None

    return refuse


def openai(body: Body) -> Reply | None:
    extra = [name for name in body if name not in USUAL | {"max_completion_tokens"}]
    if extra:
        return 400, error(f"Unrecognized request argument supplied: {extra[0]}")
    if body.get("top_logprobs", 0) > 20:
        return 400, error("Invalid value for 'top_logprobs': must be less than or equal to 20.", param="top_logprobs")
    return None


def openai_reasoning(body: Body) -> Reply | None:
    if "max_tokens" in body:
        message = (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        )
        return 400, error(message, param="max_tokens", code="unsupported_parameter")
    for name in ("temperature", "top_p"):
        if body.get(name, 1) != 1:
            message = (
                f"Unsupported value: '{name}' does not support {body[name]} with this model. "
                "Only the default (1) value is supported."
            )
            return 400, error(message, param=name, code="unsupported_value")
    if "logprobs" in body:
        return 403, error("You are not allowed to request logprobs from this model")
    if body["max_completion_tokens"] < 200:
        message = "Could not finish the message because max_tokens or model output limit was reached."
        return 400, error(message)
    return None


def fireworks(body: Body) -> Reply | None:
    if body.get("top_logprobs", 0) > 5:
        place = {"type": "less_than_equal", "loc": ["body", "top_logprobs"], "ctx": {"le": 5}}
        return 422, {"detail": [place | {"msg": "Input should be less than or equal to 5", "input": 20}]}
    return None


def tgi(body: Body) -> Reply | None:
    said = None
    if body.get("temperature") == 0:
        said = "`temperature` must be strictly positive"
    elif not 0 < body.get("top_p", 0.9) < 1:
        said = "`top_p` must be > 0.0 and < 1.0"
    kind = {"error": f"Input validation error: {said}", "error_type": "validation"}
    return None if said is None else (422, kind)


def mistral(body: Body) -> Reply | None:
    takes = USUAL - {"seed", "logprobs", "top_logprobs"}
    places = [
        {"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted", "input": body[name]}
        for name in body
        if name not in takes
    ]
    return (
        (422, {"object": "error", "message": {"detail": places}, "type": "invalid_request_error"}) if places else None
    )


def anthropic(body: Body) -> Reply | None:
    if {"temperature", "top_p"} <= body.keys():
        return 400, error("`temperature` and `top_p` cannot both be specified for this model. Please use only one.")
    return None


def litellm(body: Body) -> Reply | None:
    extra = [name for name in ("seed", "logprobs", "top_logprobs") if name in body]
    if not extra:
        return None
    message = (
        f"litellm.UnsupportedParamsError: some_provider does not support parameters: {extra}, for model=m. "
        "To drop these, set `litellm.drop_params=True` or for proxy:\n\n`litellm_settings:\n drop_params: true`\n"
    )
    return 400, error(message, kind="None", param="None", code="400")


def gemini(body: Body) -> Reply | None:
    said = None
    if "seed" in body:
        said = 'Invalid JSON payload received. Unknown name "seed": Cannot find field.'
    elif body.get("logprobs"):
        said = "Logprobs is not enabled for models/m"
    elif any(message["role"] == "system" for message in body["messages"]):
        said = "Developer instruction is not enabled for models/m"
    return None if said is None else (400, [{"error": {"code": 400, "message": said, "status": "INVALID_ARGUMENT"}}])


def xai(body: Body) -> Reply | None:
    for name, written in (("seed", "seed"), ("top_p", "topP"), ("logprobs", "logprobs")):
        if name in body:
            said = f"Argument not supported on this model: {written}"
            return 400, {"code": "Client specified an invalid argument", "error": said}
    return None


def gemma_on_vllm(body: Body) -> Reply | None:
    if any(message["role"] == "system" for message in body["messages"]):
        said = {"message": "System role not supported", "type": "BadRequestError", "param": None, "code": 400}
        return 400, {"object": "error"} | said
    return None


def router(body: Body) -> Reply | None:
    """Errors of its providers come with status 200, and theirs stand in them as text."""
    if body.get("max_tokens", 16) < 16:
        raw = error(
            "Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16, but got 1 instead.",
            param="max_output_tokens",
            code="integer_below_min_value",
        )
        metadata = {"raw": json.dumps(raw, indent=2), "provider_name": "Some"}
        return 200, {"error": {"message": "Provider returned error", "code": 400, "metadata": metadata}, "user_id": "u"}
    return None


# How they answer.


def together_choice(body: Body, text: str) -> dict[str, Any]:
    """The older form of log-probabilities: lists, of the drawn tokens alone."""
    label = label_of(body)
    logprobs = {"tokens": [label], "token_logprobs": [LEADING]} if label and body.get("logprobs") else None
    return without_values(body, text) | {"logprobs": logprobs, "finish_reason": "eos"}


def tgi_choice(body: Body, text: str) -> dict[str, Any]:
    """Values after the temperature."""
    label = label_of(body)
    sharp = 1 / body.get("temperature", 1)
    logprobs = listed(body, label, sharp=sharp) if label and body.get("logprobs") else None
    return without_values(body, text) | {"logprobs": logprobs, "finish_reason": "eos_token"}


def llama_cpp_choice(body: Body, text: str) -> dict[str, Any]:
    label = label_of(body)
    logprobs = listed(body, label, id=330) if label and body.get("logprobs") else None
    for at, entry in enumerate(logprobs["content"][0]["top_logprobs"] if logprobs else ()):
        entry["id"] = 330 + at
    return without_values(body, text) | {"logprobs": logprobs, "finish_reason": "length"}


def mistral_choice(body: Body, text: str) -> dict[str, Any]:
    """Thoughts and text as parts."""
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "B? A? GOOD."}]}
    return without_values(body, text) | {
        "message": {"role": "assistant", "tool_calls": None, "content": [thought, {"type": "text", "text": text}]}
    }


def sglang_choice(body: Body, text: str) -> dict[str, Any]:
    return usual_choice(body, text, reasoning_content=None, tool_calls=None) | {"matched_stop": 151645}


def spaced_choice(body: Body, text: str) -> dict[str, Any]:
    """Tokens as the vocabulary writes them, and the drawn one once more at the end."""
    made = usual_choice(body, text)
    for entry in made["logprobs"]["content"][0]["top_logprobs"] if made["logprobs"] else ():
        entry |= {"token": f"Ġ{entry['token']}", "bytes": None}
    if made["logprobs"]:
        first = made["logprobs"]["content"][0]
        first |= {"token": f"Ġ{first['token']}", "bytes": None}
        first["top_logprobs"].append({"token": first["token"], "logprob": first["logprob"], "bytes": None})
    return made


def azure_choice(body: Body, text: str) -> dict[str, Any]:
    safe = {name: {"filtered": False, "severity": "safe"} for name in ("hate", "self_harm", "sexual", "violence")}
    return usual_choice(body, text, refusal=None, annotations=[]) | {"content_filter_results": safe}


NAMED = {"object": "list", "data": [{"id": "llama3.2:latest", "object": "model", "owned_by": "library"}]}
GGUF = {
    "models": [{"name": "/models/m.gguf", "model": "/models/m.gguf", "capabilities": ["completion"]}],
    "object": "list",
    "data": [{"id": "/models/m.gguf", "object": "model", "owned_by": "llamacpp", "meta": {"n_ctx_train": 32768}}],
}
ONE = "the log-probability of one token"
WORDS = "verdicts in words"

SHAPES = [
    Shape(
        "openai", openai, envelope={"system_fingerprint": "fp_1", "service_tier": "default", "model": "m-2025-01-01"}
    ),
    Shape(
        "openai reasoning models",
        openai_reasoning,
        hard=True,
        told=("max_completion_tokens", "`temperature` is left out", WORDS, "after thinking"),
        envelope={
            "usage": {
                "prompt_tokens": 9,
                "completion_tokens": 80,
                "completion_tokens_details": {"reasoning_tokens": 64},
            }
        },
    ),
    Shape(
        "azure",
        openai,
        models=lambda: (404, error("Resource not found", code="404")),
        choice=azure_choice,
        path="/openai/deployments/mine",
        model="gpt-4o-2024-08-06",
        told=("answers as `gpt-4o-2024-08-06`",),
        envelope={"prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {}}]},
    ),
    Shape(
        "ollama",
        models=lambda: (200, NAMED),
        choice=without_values,
        hard=True,
        told=(WORDS,),
        envelope={"system_fingerprint": "fp_ollama"},
    ),
    Shape("lm studio", choice=without_values, hard=True, told=(WORDS,), envelope={"stats": {}, "model_info": {}}),
    Shape("sglang", choice=sglang_choice, envelope={"metadata": {"weight_version": "default"}}),
    Shape(
        "llama.cpp",
        models=lambda: (200, GGUF),
        choice=llama_cpp_choice,
        envelope={"timings": {"prompt_n": 9}},
        told=("lists no model called `m`",),
    ),
    Shape("vllm with gemma", gemma_on_vllm, told=("system messages",), envelope={"prompt_logprobs": None}),
    Shape(
        "router",
        router,
        models=lambda: (200, {"data": [{"id": "m", "context_length": 8192}]}),
        told=("`max_tokens` is at least 16", "context of 8192"),
        envelope={"provider": "Some"},
    ),
    Shape("together", models=lambda: (200, [{"id": "m", "type": "chat"}]), choice=together_choice, told=(ONE,)),
    Shape("fireworks", fireworks, told=("5 most probable", "`top_logprobs` is 5")),
    Shape("tgi", tgi, choice=tgi_choice, told=("20 most probable", "`top_p` is left out")),
    Shape("mistral", mistral, choice=mistral_choice, hard=True, told=("`seed` is left out", WORDS)),
    Shape(
        "anthropic",
        anthropic,
        models=lambda: (401, error("x-api-key header is required", kind="authentication_error")),
        choice=without_values,
        hard=True,
        told=("`top_p` is left out", WORDS),
    ),
    Shape("litellm", litellm, choice=without_values, hard=True, told=("`seed` is left out", WORDS)),
    Shape(
        "gemini",
        gemini,
        models=lambda: (200, {"data": [{"id": "models/m"}]}),
        choice=without_values,
        hard=True,
        told=("`seed` is left out", "system messages", WORDS),
    ),
    Shape("xai", xai, choice=without_values, hard=True, told=("`seed` is left out", "`top_p` is left out", WORDS)),
    Shape(
        "groq",
        unknown_to(
            USUAL - {"seed", "top_logprobs", "logprobs"}, lambda name: (400, error(f"property '{name}' is unsupported"))
        ),
        choice=without_values,
        hard=True,
        told=("`seed` is left out", WORDS),
    ),
    Shape("a gateway of tokens as they are in the vocabulary", choice=spaced_choice),
]
