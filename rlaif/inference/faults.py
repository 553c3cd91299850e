"""What went wrong with a request, and what to do about it: try again, give up on the question, or stop the run.

Every failed exchange becomes one `Fault` here and nowhere else:

  connection refused or dropped, 5xx   try again; if nothing succeeds for long, the server is down: stop
  timeout, 408, 429, 503               try again, with fewer questions at once
  a broken, incomplete or endless one  try again
  400, 413, 422                        this question fails alone: `too_long` or `bad_request`
  anything else (401, 403, 404, ...)   the setup is wrong: stop, with a hint
"""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from rlaif.addresses import shown_url
from rlaif.inference.http import NoReplyError, Reply
from rlaif.jsontext import loads

_TOO_LONG = re.compile(
    r"context.{0,3}(?:length|size|window)|(?:maximum|max).(?:model|input|prompt).len|prompt is too long"
    r"|too many (?:input )?tokens|reduce the length|string_above_max_length",
    re.IGNORECASE,
)
"""vLLM: "maximum context length is", "longer than the maximum model length", "max_model_len"; OpenAI: the code
`context_length_exceeded`; llama.cpp: "exceeds the available context size"; others: "prompt is too long"."""

_DETAIL_CHARS = 300
_LONGEST_WORD = 80
_LOOKED_AT = 10_000
"""Characters of a server's message that are looked at."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One failed exchange. `kind` is the short name under which failures are counted."""

    kind: str
    detail: str
    retry: bool = False
    """The same request may succeed later."""
    fatal: bool = False
    """No request can succeed before somebody mends the setup."""
    overload: bool = False
    """A sign that fewer questions should be under way."""
    down: bool = False
    """A server that is down fails like this."""
    wait: float | None = None
    """Seconds the server asked us to wait."""

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
    return Fault(kind, shortened(detail, _DETAIL_CHARS), retry=True)


def refused(reply: Reply, hide: Callable[[str], str] = str) -> Fault:
    """The fault behind a reply whose status says no; `hide` takes out of the server's words what nobody is to read."""
    status, (code, message) = reply.status, error_message(reply.body, hide)
    detail = f"HTTP {status}: {message}"
    if status == 429 and "insufficient_quota" in code:
        return Fault("no_quota", f"{detail}; the account has no credit left", fatal=True)
    if status in (408, 429) or status >= 500:
        return Fault(
            f"http_{status}",
            detail,
            retry=True,
            overload=status in (408, 429, 503),
            down=status >= 500,
            wait=retry_after(reply.headers.get("retry-after")),
        )
    if status in (400, 413, 422):
        long = status == 413 or bool(_TOO_LONG.search(f"{code} {message}"))
        return Fault("too_long" if long else "bad_request", detail)
    return Fault(f"http_{status}", f"{detail}; {_mend(status, reply, hide)}", fatal=True)


def error_message(body: bytes, hide: Callable[[str], str] = str) -> tuple[str, str]:
    """Code and message of an error reply: `{"error": {"message": ...}}`, `{"detail": ...}` or plain text.

    `hide` comes before the message is shortened, which could leave of a key more than it knows again.
    """
    try:
        payload: Any = loads(body)
    except ValueError:
        text = body[:_LOOKED_AT].decode("utf-8", "replace")
        return "", shortened(hide(" ".join(text.split())), _DETAIL_CHARS)
    error: Any = payload.get("error", payload) if isinstance(payload, dict) else payload
    if not isinstance(error, dict):
        return "", shortened(hide(str(error)[:_LOOKED_AT]), _DETAIL_CHARS)
    message = error.get("message") or error.get("detail") or error
    named = shortened(f"{error.get('code')} {error.get('type')}", _DETAIL_CHARS)
    return named, shortened(hide(str(message)[:_LOOKED_AT]), _DETAIL_CHARS)


def shortened(text: str, most: int) -> str:
    """The first `most` characters of a text; up to the end of a word, where one is near: half a key would not be known
    again as one."""
    if len(text) <= most:
        return text
    words, _, _ = text[: most + 1].rpartition(" ")
    return words if len(words) > most - _LONGEST_WORD else text[:most]


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


def _mend(status: int, reply: Reply, hide: Callable[[str], str]) -> str:
    if status in (401, 403):
        return "set the right API key (`api_key_env`, or a flag `--...api-key-env`, names the variable that holds it)"
    if status == 402:
        return "the account has no credit left"
    if status in (404, 405):
        return "check `base_url` (most servers want it to end in /v1) and the model name"
    if 300 <= status < 400:
        place = shown_url(shortened(hide(reply.headers.get("location", "another address")), _DETAIL_CHARS))
        return f"the server redirects to {place}: set `base_url` to that"
    return "check `base_url`"
