"""What the body of an error reply says: a message, a code, a status, how long to wait, which parameters are refused.

Servers that speak one protocol agree least about their errors. Read are `{"error": {...}}` and `{"error": "text"}`,
`{"detail": ...}` with the places that a schema refuses, `{"object": "error", "message": ...}`, a list around any of
these, and an error of another server that a router repeats as text.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rlaif.jsontext import loads

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
