"""Calls to one server: JSON out, JSON or a Fault back. The API key goes into a header here and into no text."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from rlaif.errors import UserError
from rlaif.inference.faults import Fault, broken, error_inside, incomplete, refused, storable
from rlaif.inference.http import NoReplyError, Wire


def normal_url(base_url: str, api_key: str | None = None) -> str:
    """`base_url` without trailing slashes; what it says in a query goes with every request.

    Raises UserError if it is not an http(s) URL, or names a user where there is a key: a request has room for one.
    """
    try:
        parts = urlsplit(base_url.strip())
        host = parts.hostname or ""
        host.encode("idna")  # as it is looked up: no part of a name is empty, or longer than 63 letters
        known = parts.scheme in ("http", "https") and bool(host) and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise UserError(f"`base_url` is not a URL: {base_url}", mend="write it like http://127.0.0.1:8000/v1")
    if api_key and parts.username is not None:
        mend = "take the user out of `base_url`, or leave out `api_key_env`"
        raise UserError("`base_url` names a user, and there is an API key", where=shown_url(base_url), mend=mend)
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return urlunsplit(parts._replace(path=path, fragment=""))


def shown_url(url: str) -> str:
    """`url` as it may be shown: without a password or a query."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def headers_for(api_key: str | None) -> dict[str, str]:
    """The headers of every request."""
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    return headers | {"Authorization": f"Bearer {api_key}"} if api_key else headers


class Talk:
    """One server, its address and its key."""

    def __init__(self, base_url: str, wire: Wire, *, api_key: str | None = None) -> None:
        self.shown = shown_url(base_url)
        self._parts, self._wire, self._key = urlsplit(base_url), wire, api_key

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
        return self.clean(incomplete("broken_json", f"the reply is not a JSON object: {json.dumps(found)[:80]}"))

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
            return self.clean(refused(reply))
        try:
            payload = json.loads(reply.body)
        except (ValueError, RecursionError):
            return self.clean(incomplete("broken_json", f"the reply is not a JSON object: {reply.body[:80]!r}"))
        inside = error_inside(payload, reply.headers) if isinstance(payload, dict) else None
        return payload if inside is None else self.clean(inside)

    def clean(self, fault: Fault) -> Fault:
        """The fault as it can be stored and shown: without the key, which some servers repeat where it is wrong."""
        detail = storable(fault.detail)
        return replace(fault, detail=detail.replace(self._key, "***") if self._key else detail)
