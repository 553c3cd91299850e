"""Keys and passwords, kept out of everything that is stored or shown, also where a server repeats them."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote, quote_plus

_LEAST = 4
"""Characters of a secret: what is shorter stands in texts by chance ("1", "x", "key")."""
_SURE = 8
"""Characters of a secret that a text can only repeat."""
_HIDDEN = "***"


class Secrets:
    """Some secrets. Its own text shows none of them."""

    def __init__(self, values: Iterable[str]) -> None:
        known = {value for value in values if len(value) >= _LEAST}
        forms = {form for value in known for form in _forms(value)}
        self._forms = [
            (form, re.compile(re.escape(form[: _enough(form)]), re.IGNORECASE))
            for form in sorted(forms, key=lambda form: (-len(form), form))
        ]
        self._sure = [value for value in known if _is_sure(value)]

    def __repr__(self) -> str:
        return f"Secrets({len(self._forms)})"

    def hide(self, text: str) -> str:
        """`text` with marks in the place of the secrets, in whatever way they are written; of one that is cut off, half
        is enough."""
        for form, start in self._forms:
            text = _without(text, form, start)
        return text

    def told_in(self, text: str) -> bool:
        """Whether `text` repeats a secret that cannot stand there by chance."""
        return any(value in text for value in self._sure)


def _forms(value: str) -> Iterator[str]:
    """How a server may write a secret that it repeats."""
    yield value
    yield from (quote(value, safe=""), quote(value), quote_plus(value), html.escape(value))
    quoted = json.dumps(value)[1:-1]
    yield from (quoted, quoted.replace("/", "\\/"), repr(value)[1:-1])
    raw = value.encode("utf-8", "surrogatepass")
    if len(raw) >= _SURE:
        yield from (code(raw).decode().rstrip("=") for code in (base64.b64encode, base64.urlsafe_b64encode))


def _enough(form: str) -> int:
    return len(form) if len(form) <= _SURE else max(_SURE, (len(form) + 1) // 2)


def _is_sure(value: str) -> bool:
    """Whether it is long, and no word: `lm-studio` and `password` are keys of local servers, and words too."""
    return len(value) >= _SURE and any(map(str.isdigit, value)) and any(map(str.isalpha, value))


def _without(text: str, form: str, start: re.Pattern[str]) -> str:
    parts, at = [], 0
    for match in start.finditer(text):
        if match.start() < at:
            continue
        end, size = match.end(), match.end() - match.start()
        while size < len(form) and text[end : end + 1].lower() == form[size].lower():
            end, size = end + 1, size + 1
        parts += [text[at : match.start()], _HIDDEN]
        at = end
    return "".join([*parts, text[at:]]) if parts else text
