"""What went wrong with a request, and whether it may be sent again.

What the body of an error reply says: a message, a code, a status, how long to wait, which parameters are refused.

Servers that speak one protocol agree least about their errors. Read are `{"error": {...}}` and `{"error": "text"}`,
`{"detail": ...}` with the places that a schema refuses, `{"object": "error", "message": ...}`, a list around any of
these, and an error of another server that a router repeats as text.

What went wrong with a request, and what to do about it: try again, give up on the question, or stop the run.

Every failed exchange becomes one `Fault` here and nowhere else:

  connection refused or dropped, 5xx   try again; if nothing succeeds for long, the server is down: stop
  timeout, 408, 429, 503, 529          try again, with fewer questions at once
  a broken, incomplete or endless one  try again
  400, 413, 422                        this question fails alone: `too_long` or `bad_request`
  anything else (401, 403, 404, ...)   the setup is wrong: stop, with a hint

An error in the body of a reply with status 200 is the fault that its own status stands for.
"""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from rlaif.config.secrets import shown_url
from rlaif.inference.transport import HttpReply, NoReplyError
from rlaif.text import loads

DETAIL_CHARS = 300
_TEXT_CHARS = 4000
_DEEPEST = 12
"""Levels of a body that are looked through."""
_LONGEST_WORD = 80
_LOOKED_AT = 10_000
"""Characters of a server's message that are looked at."""

_WORDS = {
    429: re.compile(r"rate.?limit|too.?many.?requests|resource.?exhausted|throttl"),
    503: re.compile(r"overload|unavailable|is.?loading"),
    401: re.compile(r"authentication|unauthori[sz]ed|invalid.?api.?key"),
    403: re.compile(r"permission|forbidden"),
    402: re.compile(r"payment.?required|insufficient.?(?:credits|balance)"),
    404: re.compile(r"model.?not.?found|not.?found.?error"),
    400: re.compile(r"invalid.?(?:request|argument)|bad.?request|context.?length"),
    500: re.compile(r"server.?error|internal|api.?error|upstream|provider"),
}
"""The status behind the name of an error."""

_WAITS = ("retry_after", "retry_after_seconds", "retryafter", "retry-after", "retrydelay")
_SECONDS = re.compile(r"(\d{1,16}(?:\.\d{1,16})?)\s{0,9}(ms|s)?")
_RESET = re.compile(r"x-ratelimit-reset(?:-requests|-tokens)?")
_EPOCH = 1e9
"""A reset after this is a time, and before it a number of seconds."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error that may be about a parameter of the request."""

    text: str
    """Everything that it says."""
    named: frozenset[str]
    """Parts of the request that it names in a field of its own."""
    places: frozenset[str] = frozenset()
    """The same as the whole paths: `messages[0].role`."""


def body_of(body: bytes) -> Any:
    """The JSON of a body, or its text in one line where it is none, or is nested deeper than any error."""
    try:
        return loads(body)
    except ValueError:
        return " ".join(body[:_LOOKED_AT].decode("utf-8", "replace").split())


def error_of(payload: Any) -> Any:
    """The error in a body: what is below `error`, else the body itself."""
    if isinstance(payload, list) and len(payload) == 1:
        payload = payload[0]
    return payload.get("error") or payload if isinstance(payload, dict) else payload


def error_message(body: bytes, hide: Callable[[str], str] = str) -> tuple[str, str]:
    """Code and message of an error reply: `{"error": {"message": ...}}`, `{"detail": ...}` or plain text.

    `hide` comes before the message is shortened, which could leave of a key more than it knows again.
    """
    return described(body_of(body), hide)


def described(payload: Any, hide: Callable[[str], str] = str) -> tuple[str, str]:
    """The same of a body that has been read."""
    error = error_of(payload)
    if not isinstance(error, dict):
        return "", shortened(hide(str(error)[:_LOOKED_AT]), DETAIL_CHARS)
    message = hide(str(error.get("message") or error.get("detail") or error.get("error") or error)[:_LOOKED_AT])
    metadata = error.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    if isinstance(raw, str) and raw:  # a router's own message says that another server failed, and not how
        message = f"{shortened(message, DETAIL_CHARS // 2)}: {hide(' '.join(raw[:_LOOKED_AT].split()))}"
    named = shortened(f"{error.get('code')} {error.get('type')} {error.get('status')}", DETAIL_CHARS)
    return named, shortened(message, DETAIL_CHARS)


def shortened(text: str, most: int) -> str:
    """The first `most` characters of a text; up to the end of a word, where one is near: half a key would not be known
    again as one."""
    if len(text) <= most:
        return text
    words, _, _ = text[: most + 1].rpartition(" ")
    return words if len(words) > most - _LONGEST_WORD else text[:most]


def status_in(payload: Mapping[str, Any]) -> int | None:
    """The HTTP status that an error in a body stands for: a number that it gives, else one that its name means."""
    error = error_of(payload)
    holders = [each for each in (error, payload) if isinstance(each, dict)]
    for holder in holders:
        for name in ("code", "status", "status_code", "statusCode"):
            number = _number(holder.get(name))
            if number is not None and 400 <= number < 600:
                return int(number)
    said = " ".join(str(holder.get(name)) for holder in holders for name in ("code", "type", "status")).lower()
    return next((status for status, words in _WORDS.items() if words.search(said)), None)


def wait_in(payload: Any, *, now: float | None = None) -> float | None:
    """Seconds to wait, where the body says so: `retry_after` and the like, wherever they stand, or headers that a
    router repeats."""
    for name, value in _fields(payload):
        if name.lower() in _WAITS:
            found = _seconds(value)
            if found is not None:
                return found
        if _RESET.fullmatch(name.lower()) and (reset := _number(value)) is not None:
            reset = reset / 1000 if reset > 1000 * _EPOCH else reset
            return max(0.0, reset - (time.time() if now is None else now) if reset > _EPOCH else reset)
    return None


def refusal_in(payload: Any) -> Refusal:
    """What a body says about the parameters of the request that it refuses."""
    places: set[str] = set()
    for name, value in _fields(payload):
        if name in ("param", "field", "property", "parameter") and isinstance(value, str):
            places.add(value)
        elif name == "loc" and isinstance(value, list):
            places.add(".".join(map(str, value[1:] if value[:1] == ["body"] else value)))
    text = payload if isinstance(payload, str) else json.dumps(payload, ensure_ascii=False)
    named = {part for place in places for part in re.split(r"[.\[\]/]+", place)}
    return Refusal(text.replace('\\"', '"')[:_TEXT_CHARS], frozenset(named), frozenset(places))


def _fields(payload: Any, level: int = 0) -> Iterator[tuple[str, Any]]:
    """Every field of a body at every level, also of bodies that stand in it as text."""
    if level > _DEEPEST:
        return
    if isinstance(payload, str) and payload.lstrip()[:1] in ("{", "[") and len(payload) <= _TEXT_CHARS:
        payload = body_of(payload.encode("utf-8", "replace"))
        if isinstance(payload, str):
            return
    if isinstance(payload, dict):
        for name, value in payload.items():
            yield str(name), value
            yield from _fields(value, level + 1)
    elif isinstance(payload, list):
        for value in payload[:100]:
            yield from _fields(value, level + 1)


def _number(value: Any) -> float | None:
    """A number, also one that is written as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    match = _SECONDS.fullmatch(str(value).strip())
    return float(match[1]) if match and not match[2] else None


def _seconds(value: Any) -> float | None:
    match = _SECONDS.fullmatch(str(value).strip())
    return float(match[1]) / (1000 if match[2] == "ms" else 1) if match else None


_TOO_LONG = re.compile(
    r"context.{0,3}(?:length|size|window)|(?:maximum|max).(?:model|input|prompt).len|prompt is too long"
    r"|too many (?:input )?tokens|reduce the length|string_above_max_length",
    re.IGNORECASE,
)
"""vLLM: "maximum context length is", "longer than the maximum model length", "max_model_len"; OpenAI: the code
`context_length_exceeded`; llama.cpp: "exceeds the available context size"; others: "prompt is too long"."""

_NO_ROOM = re.compile(r"max_tokens or model output limit was reached|could not finish the message", re.IGNORECASE)
"""A model that thinks, and has not come to its answer within the tokens that it may use."""
_ONE_QUESTION = re.compile(r"moderat|flagged|content.?(?:filter|policy)|guardrail|log.?probs", re.IGNORECASE)
"""What a 403 can be about, other than the key: this prompt, or the log-probabilities that it asks for."""
_UNSUPPORTED = re.compile(
    r"support|unknown|unrecogni[sz]ed|unexpected|not (?:permitted|allowed|enabled|implemented|accepted)|must alternate",
    re.IGNORECASE,
)
"""What a failing server says where it fails of a parameter, with a status of its own fault."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One failed exchange. `kind` is the short name under which failures are counted."""

    kind: str
    detail: str
    retry: bool = False
    """The same request may succeed later."""
    fatal: bool = False
    """No request can succeed before somebody fixes the setup."""
    overload: bool = False
    """A sign that fewer questions should be under way."""
    down: bool = False
    """A server that is down fails like this."""
    wait: float | None = None
    """Seconds the server asked us to wait."""
    refusal: Refusal | None = None
    """What the server says, where that may be about a parameter of the request."""

    @property
    def limited(self) -> bool:
        """Whether it is the server's rate limit."""
        return self.kind == "http_429"


def storable(text: str) -> str:
    """The text of a reply with a mark in the place of each half of a surrogate pair: JSON can hold one, and no file."""
    return text.encode("utf-8", "replace").decode("utf-8")


def broken(error: NoReplyError) -> Fault:
    """The fault of a connection that brought no reply."""
    late = error.kind == "timeout"
    return Fault(error.kind, error.detail, retry=True, overload=late, down=error.kind != "oversized")


def incomplete(kind: str, detail: str) -> Fault:
    """The fault of a reply with status 200 that lacks what was asked for."""
    return Fault(kind, shortened(detail, DETAIL_CHARS), retry=True)


def refused(reply: HttpReply, hide: Callable[[str], str] = str) -> Fault:
    """The fault behind a reply whose status says no; `hide` takes out of the server's words what nobody is to read."""
    return _refused(reply.status, body_of(reply.body), reply.headers, hide)


def error_inside(
    payload: Mapping[str, Any], headers: Mapping[str, str], hide: Callable[[str], str] = str
) -> Fault | None:
    """The fault that the body of a reply with status 200 tells of; None where it tells of none."""
    error = payload.get("error") or (payload if payload.get("object") == "error" else None)
    choices = payload.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if (
            error is None
            and isinstance(choice, dict)
            and (choice.get("error") or choice.get("finish_reason") == "error")
        ):
            error = choice.get("error") or {"message": "the reply ended in an error (finish_reason: error)"}
    if error is None:
        return None
    body = payload if payload.get("error") or payload.get("object") == "error" else {"error": error}
    status = status_in(body)
    if status is None:
        return incomplete("broken_json", f"an error in the place of a reply: {described(body, hide)[1]}")
    return _refused(status, body, headers, hide)


def _refused(status: int, payload: Any, headers: Mapping[str, str], hide: Callable[[str], str]) -> Fault:
    code, message = described(payload, hide)
    detail = f"HTTP {status}: {message}"
    if status == 429 and "insufficient_quota" in code:
        return Fault("no_quota", f"{detail}; the account has no credit left", fatal=True)
    refusal = refusal_in(payload)
    if status in (408, 429) or status >= 500:
        wait = retry_after(headers.get("retry-after"))
        return Fault(
            f"http_{status}",
            detail,
            retry=True,
            overload=status in (408, 429, 503, 529),
            down=status >= 500,
            wait=wait_in(payload) if wait is None else wait,
            refusal=refusal if status >= 500 and _UNSUPPORTED.search(refusal.text) else None,
        )
    if status in (400, 413, 422) or (status == 403 and _ONE_QUESTION.search(refusal.text)):
        if _NO_ROOM.search(message):
            return Fault("only_reasoning", f"{detail}; raise `max_tokens`: it thinks before it answers")
        long = status == 413 or bool(_TOO_LONG.search(f"{code} {message}"))
        return Fault("too_long" if long else "bad_request", detail, refusal=None if long else refusal)
    return Fault(f"http_{status}", f"{detail}; {_mend(status, headers, hide)}", fatal=True)


def retry_after(value: str | None, *, now: float | None = None) -> float | None:
    """Seconds to wait, from a Retry-After header: a number of seconds or an HTTP date. None if absent or unreadable."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    stamp = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    return max(0.0, stamp - (time.time() if now is None else now))


def _mend(status: int, headers: Mapping[str, str], hide: Callable[[str], str]) -> str:
    if status in (401, 403):
        return "set the right API key (`api_key_env`, or a flag `--...api-key-env`, names the variable that holds it)"
    if status == 407:
        return "the proxy wants a user and a password: http://USER:PASSWORD@HOST:PORT in its variable"
    if status == 402:
        return "the account has no credit left"
    if status in (404, 405):
        return "check `base_url` (most servers want it to end in /v1) and the model name"
    if 300 <= status < 400:
        place = shown_url(shortened(hide(headers.get("location", "another address")), DETAIL_CHARS))
        return f"the server redirects to {place}: set `base_url` to that"
    return "check `base_url`"
