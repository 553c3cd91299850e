"""Calls to one server: JSON out, JSON or a Fault back. The API key goes into a header here and into no text."""

from __future__ import annotations

import base64
import json
import urllib.request
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from rlaif.addresses import expanded, shown_url, written_secrets
from rlaif.errors import UserError
from rlaif.inference.errorbody import shortened
from rlaif.inference.faults import Fault, broken, error_inside, incomplete, refused, storable
from rlaif.inference.http import NoReplyError, Wire
from rlaif.inference.secrets import Secrets
from rlaif.jsontext import loads

_EXCERPT = 2000
"""Bytes of a broken reply that are looked at for what to show of it."""


@dataclass(frozen=True)
class Address:
    """Where a server is asked, and with which headers; of the key and the login in it nothing is ever shown."""

    url: str = field(repr=False)
    """Without trailing slashes and without a user; what it says in a query goes with every request."""
    shown: str
    headers: dict[str, str] = field(repr=False)
    secrets: Secrets = field(repr=False)


def address_of(base_url: str, api_key: str | None = None) -> Address:
    """The address that a setting holds. Raises UserError if it is not an http(s) URL, names a variable that is not set,
    or names a user where there is a key: a request has room for one."""
    whole, values = expanded(base_url.strip())
    shown = shown_url(base_url.strip())
    try:
        parts = urlsplit(whole)
        host = parts.hostname or ""
        host.encode("idna")  # as it is looked up: no part of a name is empty, or longer than 63 letters
        known = parts.scheme in ("http", "https") and bool(host) and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise UserError(f"`base_url` is not a URL: {shown}", mend="write it like http://127.0.0.1:8000/v1")
    if api_key and parts.username is not None:
        mend = "take the user out of `base_url`, or leave out `api_key_env`"
        raise UserError("`base_url` names a user, and there is an API key", where=shown, mend=mend)
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], path=path, fragment=""))
    login, _, _ = parts.netloc.rpartition("@")
    proxies = [secret for proxy in urllib.request.getproxies().values() for secret in written_secrets(proxy)]
    secrets = Secrets([api_key or "", *values, *written_secrets(whole), *proxies])
    return Address(url, shown, _headers(api_key, unquote(login)), secrets)


def _headers(api_key: str | None, login: str) -> dict[str, str]:
    """The headers of every request."""
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {usable_key(api_key, 'the API key')}"
    elif login:
        code = base64.b64encode((login if ":" in login else f"{login}:").encode()).decode()
        headers["Authorization"] = f"Basic {code}"
    return headers


def usable_key(key: str, what: str, *, where: str | None = None) -> str:
    """The key. Raises UserError where no header can carry it: `what` says which one it is."""
    if key.isascii() and key.isprintable():
        return key
    odd = next(at for at, letter in enumerate(key) if not (letter.isascii() and letter.isprintable()))
    kind = "a line break" if key[odd] in "\r\n" else f"U+{ord(key[odd]):04X}"
    raise UserError(f"{what} holds {kind} (at {odd + 1}), and a key is plain ASCII", where=where, mend="set it again")


class Talk:
    """One server, its address and its key."""

    def __init__(self, address: Address, wire: Wire) -> None:
        self.shown = address.shown
        self._parts, self._wire, self._secrets = urlsplit(address.url), wire, address.secrets

    def __repr__(self) -> str:
        return f"Talk({self.shown!r})"

    async def get(self, path: str, *, timeout: float) -> Any | Fault:
        """The JSON at `path` below the base URL, of any form, or a Fault."""
        return await self._exchange("GET", self._url(path), None, timeout)

    async def post(
        self, path: str, payload: dict[str, Any], *, timeout: float, root: bool = False
    ) -> dict[str, Any] | Fault:
        """The JSON reply to `payload`, or a Fault; with `root`, `path` is beside /v1 rather than below it."""
        found = await self._exchange("POST", self._url(path, root=root), json.dumps(payload).encode(), timeout)
        if isinstance(found, (dict, Fault)):
            return found
        return self._no_object(json.dumps(found)[:_EXCERPT])

    async def close(self) -> None:
        """Close all connections."""
        await self._wire.close()

    def _url(self, path: str, *, root: bool = False) -> str:
        base = self._parts.path.removesuffix("/v1") if root else self._parts.path
        return urlunsplit(self._parts._replace(path=base + path))

    async def _exchange(self, method: str, url: str, body: bytes | None, timeout: float) -> Any | Fault:
        try:
            reply = await self._wire.send(method, url, body, timeout)
        except NoReplyError as error:
            return self.clean(broken(error))
        if not 200 <= reply.status < 300:
            return self.clean(refused(reply, self.hide))
        try:
            payload = loads(reply.body)
        except ValueError:
            return self._no_object(reply.body[:_EXCERPT].decode("utf-8", "replace"))
        inside = error_inside(payload, reply.headers, self.hide) if isinstance(payload, dict) else None
        return payload if inside is None else self.clean(inside)

    def _no_object(self, text: str) -> Fault:
        text = shortened(self.hide(text), 80)
        return self.clean(incomplete("broken_json", f"the reply is not a JSON object: {text!r}"))

    def clean(self, found: Fault) -> Fault:
        """A fault as it can be stored and shown: without what is secret, which some servers repeat where it is
        wrong."""
        return replace(found, detail=self.hide(found.detail))

    def hide(self, text: str) -> str:
        """A server's text as it can be stored and shown."""
        return self._secrets.hide(storable(text))

    def tells_secret(self, text: str) -> bool:
        """Whether a model's text repeats a key."""
        return self._secrets.told_in(text)
