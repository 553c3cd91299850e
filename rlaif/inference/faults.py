"""What went wrong with a request, and what to do about it: try again, give up on the question, or stop the run.

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
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from rlaif.addresses import shown_url
from rlaif.inference.errorbody import (
    DETAIL_CHARS,
    Refusal,
    body_of,
    described,
    refusal_in,
    shortened,
    status_in,
    wait_in,
)
from rlaif.inference.http import NoReplyError, Reply

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


def refused(reply: Reply, hide: Callable[[str], str] = str) -> Fault:
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
