"""Passwords and keys: settings name them, and nothing that is written or shown holds them.

Addresses of servers as settings hold them: a password or a key is named there, never written.

    http://judge:${JUDGE_PASSWORD}@host:8000/v1?api-key=${JUDGE_KEY}

Settings are saved with every run, printed on its page and passed on with its data. So the names stand in the setting,
and their values come from the environment when a request is made.

Keys and passwords, kept out of everything that is stored or shown, also where a server repeats them.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import parse_qsl, quote, quote_plus, unquote

from rlaif.errors import UserError

_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)\}")
_PARTS = re.compile(
    r"(?P<scheme>\w+://)?(?:(?P<user>[^/?#]*)@)?(?P<place>[^?#]*)(?P<query>\??[^#]*)(?P<rest>.*)", re.DOTALL
)
_SECRET_NAME = re.compile(
    r"key|token|secret|passw|credential|signature|(?:^|[^a-z])(?:pwd|pass|auth|sig|sas|code|jwt)(?:$|[^a-z])",
    re.IGNORECASE,
)
"""Of a query's parameter."""
_SECRET_VALUE = re.compile(r"(?:sk|pk|hf|gsk|xai|nvapi|ghp|AIza|eyJ)[-_A-Za-z0-9][-_.A-Za-z0-9]{12,}")
"""Keys as the large services write them."""

SECRET_IN_URL = "keep it in an environment variable, and write ${NAME} in its place"


def secret_in(url: str) -> str | None:
    """What `url` holds that nobody should read: `a password`, `a key (in its query: ...)`; None where there is none."""
    parts = _PARTS.fullmatch(url)
    if parts is None:
        return None
    user, colon, password = (parts["user"] or "").partition(":")
    if not _is_named(password):
        return "a password"
    if not colon and not _is_named(user):
        return "a user without a password, which may be a key"
    for name, value in parse_qsl(f"{parts['query'][1:]}&{parts['rest'][1:]}"):
        if not _is_named(value) and (_SECRET_NAME.search(name) or _SECRET_VALUE.fullmatch(value)):
            return f"a key (`{name}`)"
    if any(_SECRET_VALUE.fullmatch(step) for step in parts["place"].split("/")):
        return "a key"
    return None


def without_secrets(text: str) -> str:
    """`text` with marks in the place of what addresses in it hold: for files of others, or of older versions."""
    text = re.sub(r"(\b\w+://)[^\s/?#\"'<>]*@", r"\1***@", text)
    return re.sub(r"([?&][^\s=&?#\"'<>]*=)(?!\$\{)[^\s&#\"'<>]+", _masked_value, text)


def _masked_value(parameter: re.Match[str]) -> str:
    name, value = parameter[1], parameter[0][len(parameter[1]) :]
    return f"{name}***" if _SECRET_NAME.search(name) or _SECRET_VALUE.fullmatch(value) else parameter[0]


def _is_named(value: str) -> bool:
    """Whether a value is empty, or comes from the environment."""
    return not value or _VARIABLE.search(value) is not None


def shown_url(url: str) -> str:
    """`url` as it may be shown: without a user, a password or a query. It need not be a URL."""
    parts = _PARTS.fullmatch(url)
    return "" if parts is None else f"{parts['scheme'] or ''}{parts['place']}"


def expanded(url: str) -> tuple[str, tuple[str, ...]]:
    """`url` with the values of the variables that it names, and those values.

    A user, a password and a query take them as they are: what URLs write in another way is written so. Raises UserError
    where one is not set.
    """
    values: list[str] = []

    def with_values(text: str, written: Callable[[str], str]) -> str:
        def value_of(name: re.Match[str]) -> str:
            value = os.environ.get(name[1], "").strip()
            if not value:
                what = f"the environment variable `{name[1]}` is not set"
                raise UserError(what, where=shown_url(url), hint=f"export {name[1]}=... before the run")
            if not value.isprintable():
                what = f"the environment variable `{name[1]}` holds a character that no address can have"
                raise UserError(what, where=shown_url(url), hint="set it again, in one line")
            values.append(value)
            return written(value)

        return _VARIABLE.sub(value_of, text)

    parts = _PARTS.fullmatch(url)
    if parts is None:
        return url, ()
    user = "" if parts["user"] is None else f"{with_values(parts['user'], _quoted)}@"
    place, query = with_values(parts["place"], str), with_values(parts["query"], _quoted)
    return f"{parts['scheme'] or ''}{user}{place}{query}{parts['rest']}", tuple(values)


def _quoted(value: str) -> str:
    return quote(value, safe="")


def written_secrets(url: str) -> list[str]:
    """The user, the password and the values of the query in a whole URL: whatever may be secret of it."""
    parts = _PARTS.fullmatch(url)
    if parts is None:
        return []
    user, _, password = (parts["user"] or "").partition(":")
    login = [unquote(parts["user"] or ""), unquote(password)] if password else [unquote(user)]
    queried = [value for name, value in parse_qsl(parts["query"][1:]) if _SECRET_NAME.search(name) or len(value) > 11]
    return [each for each in (*login, *queried) if each]


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
