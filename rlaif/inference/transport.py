"""HTTP to model servers: the client, its limits, and proxies.

Which way a request takes: straight, or through the proxy that the environment names.

`HTTPS_PROXY`, `HTTP_PROXY` and `ALL_PROXY` name proxies, in capitals or not, and `NO_PROXY` the hosts that are asked
directly. A proxy that cannot be used is an error of the environment, and said to be one: passing it by would send
requests where somebody did not want them, and speaking HTTP to it would take its words for the server's.

One HTTP exchange: bytes out, bytes back, or a NoReplyError that says how the connection failed.

aiohttp carries the requests: measured on one core it costs 0.2-0.3 ms of CPU each, httpx's client 2-7 ms, and a judge
behind vLLM answers hundreds of questions a second. The one seam for tests is an httpx transport
(`httpx.MockTransport`), which takes aiohttp's place. Both are imported only when a server is really used.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit, urlunsplit

from rlaif.errors import UserError

if TYPE_CHECKING:
    import aiohttp
    import httpx


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and who names it."""

    url: str
    variable: str
    """Name of the environment's variable; empty where the system's own settings name it."""
    host: str
    """Whom it is to be asked for."""

    def __str__(self) -> str:
        source = f"`{self.variable}`" if self.variable else "the system's settings"
        return f"the proxy {shown(self.url)} ({source})"

    @property
    def hint(self) -> str:
        """What to do about it."""
        unset = f"fix or unset {self.variable}" if self.variable else "fix the system's settings"
        return f"{unset}, or add {self.host} to NO_PROXY"


def shown(url: str) -> str:
    """A proxy's URL as it may be shown: without user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], path="", query="", fragment=""))


def proxy_for(url: str) -> str | None:
    """The URL of the proxy for `url`, as `proxy_of`."""
    proxy = proxy_of(url)
    return None if proxy is None else proxy.url


def proxy_of(url: str) -> Proxy | None:
    """The proxy that the environment names for `url`; never one for this machine.

    Raises UserError where it is of a kind that is not supported, or no URL.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    if is_loopback(host) or _is_excluded(host, port):
        return None
    for name in (parts.scheme, "all"):
        value = urllib.request.getproxies().get(name, "").strip()
        if value:
            # Without a scheme it is an HTTP proxy: so curl, wget and requests take it.
            return _usable(Proxy(value if "://" in value else f"http://{value}", _variable(name), host))
    return None


@contextlib.contextmanager
def hub_client() -> Iterator[None]:
    """Around calls of the Hugging Face hub's client, which cannot be made at all where the environment names a SOCKS
    proxy for anything: UserError, with the variable."""
    try:
        yield
    except ImportError as error:
        if "SOCKS" not in str(error):
            raise
        name, value = next(
            ((name, value) for name, value in urllib.request.getproxies().items() if value.lower().startswith("socks")),
            ("all", "socks://"),
        )
        what = f"{shown(value)} is a proxy of a kind that is not supported ({urlsplit(value).scheme})"
        hint = "unset it, or name an HTTP proxy, to reach the Hugging Face hub"
        raise UserError(what, where=_variable(name) or None, hint=hint) from None


def _variable(name: str) -> str:
    """The environment's variable with the proxy of a scheme; empty where it is the system that names one."""
    return next((each for each in (f"{name}_proxy", f"{name}_proxy".upper()) if os.environ.get(each)), "")


def _usable(proxy: Proxy) -> Proxy:
    try:
        parts = urlsplit(proxy.url)
        known = bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    where = proxy.variable or None
    if not known:
        raise UserError("no URL of a proxy", where=where, hint=proxy.hint)
    if parts.scheme.lower() not in ("http", "https"):
        what = f"{shown(proxy.url)} is a proxy of a kind that is not supported ({parts.scheme})"
        raise UserError(what, where=where, hint=f"unset it, name an HTTP proxy, or add {proxy.host} to NO_PROXY")
    return proxy


def _is_excluded(host: str, port: int) -> bool:
    """Whether NO_PROXY names the host: by its name or the end of it, with or without a port, or by its network."""
    if urllib.request.proxy_bypass(f"{host}:{port}" if ":" not in host else host):
        return True
    excluded = urllib.request.getproxies().get("no", "")
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return any(_holds(entry.strip().strip("[]"), address) for entry in excluded.split(","))


def _holds(network: str, address: object) -> bool:
    try:
        return address in ip_network(network, strict=False)
    except (TypeError, ValueError):
        return False


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine, by name or by address."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


_CONNECT_SECONDS = 10.0
_IDLE_SECONDS = 4.0
"""Shorter than the 5 s after which uvicorn, and so vLLM, closes an idle connection under a request just sent."""
MOST_BYTES = 64 * 2**20
"""Of a reply, unpacked: some servers never stop sending, and two packed megabytes can hold two thousand."""
_MOST_TOGETHER = 8 * MOST_BYTES
"""Of all replies that are being read from a server; beyond it, none of more than a megabyte is read on."""


@dataclass(frozen=True, slots=True)
class HttpReply:
    """What a server sent back."""

    status: int
    headers: Mapping[str, str]
    """Case-insensitive."""
    body: bytes


class NoReplyError(Exception):
    """No whole reply came. `kind` is `refused` (nobody listens), `dropped` (the connection ended), `timeout`, or
    `oversized`, or `proxy`: not the server failed, but the proxy before it."""

    def __init__(self, kind: str, detail: str) -> None:
        self.kind, self.detail = kind, detail
        super().__init__(f"{kind}: {detail}")


class Transport(Protocol):
    """Carries single requests; raises NoReplyError where no whole reply comes back."""

    async def send(self, method: str, url: str, body: bytes | None, timeout: float) -> HttpReply:
        """One request and its whole reply."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


def open_transport(
    url: str, headers: Mapping[str, str], transport: httpx.AsyncBaseTransport | None = None
) -> Transport:
    """What carries requests to a server: aiohttp, or the `transport` that takes the network's place in tests."""
    return AiohttpTransport(headers, base_url=url) if transport is None else HttpxTransport(headers, transport)


def unpacked(body: bytes, encoding: str) -> bytes:
    """A reply's body by its `Content-Encoding`, of which none was asked for. Raises NoReplyError for more than
    `MOST_BYTES`, and for what cannot be unpacked."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    if name not in ("gzip", "x-gzip", "deflate"):
        raise NoReplyError("dropped", f"a reply packed as `{name[:20]}`, which was not asked for")
    # 32 more than the largest window: by its first bytes zlib tells gzip from its own form. Some servers leave out
    # what `deflate` should begin with.
    bare = name == "deflate" and body[:1] and body[0] & 0x0F != zlib.DEFLATED
    reader = zlib.decompressobj(-zlib.MAX_WBITS if bare else zlib.MAX_WBITS | 32)
    try:
        found = reader.decompress(body, MOST_BYTES + 1)
    except zlib.error:
        raise NoReplyError("dropped", f"a reply that is not packed as `{name}`, as it says") from None
    if len(found) > MOST_BYTES:
        raise oversized()
    if not reader.eof:
        raise NoReplyError("dropped", "half of a packed reply")
    return found


def oversized() -> NoReplyError:
    """A reply that is larger than any that was asked for."""
    return NoReplyError("oversized", f"a reply of more than {MOST_BYTES >> 20} MiB")


class AiohttpTransport:
    """Keep-alive connections through aiohttp. Its number of connections is unbounded: the throttle bounds requests."""

    def __init__(self, headers: Mapping[str, str], *, base_url: str) -> None:
        self._headers, self._proxy = {**headers, "Accept-Encoding": "identity"}, proxy_of(base_url)
        self._held = 0
        """Bytes of the replies that are being read."""
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timeouts: dict[float, aiohttp.ClientTimeout] = {}

    async def send(self, method: str, url: str, body: bytes | None, timeout: float) -> HttpReply:
        """One request and its whole reply."""
        import aiohttp

        session = self._session
        if session is None or self._loop is not asyncio.get_running_loop():
            session = self._open()
        limit = self._timeouts.get(timeout)
        if limit is None:
            limit = aiohttp.ClientTimeout(total=timeout, sock_connect=min(timeout, _CONNECT_SECONDS))
            self._timeouts[timeout] = limit
        proxy = None if self._proxy is None else self._proxy.url
        try:
            async with session.request(
                method, url, data=body, timeout=limit, proxy=proxy, allow_redirects=False
            ) as response:
                body = await self._body(response)
            packing = response.headers.get("content-encoding", "")
            return HttpReply(response.status, response.headers, unpacked(body, packing))
        except TimeoutError:  # aiohttp's timeouts are subclasses of it, and of its ClientError too: this one goes first
            through = "" if self._proxy is None else f" through {self._proxy}"
            raise NoReplyError("timeout", f"no reply within {timeout:g} s{through}") from None
        except aiohttp.InvalidURL as error:
            raise NoReplyError("refused", f"not a URL: {error}") from None
        except aiohttp.ClientProxyConnectionError as error:
            raise NoReplyError("proxy", proxy_trouble(self._proxy, _why(error))) from None
        except aiohttp.ClientHttpProxyError as error:
            raise NoReplyError("proxy", proxy_trouble(self._proxy, f"HTTP {error.status}: {error.message}")) from None
        except aiohttp.ClientConnectorError as error:
            raise NoReplyError("refused", _why(error)) from None
        except (aiohttp.ClientError, OSError) as error:
            raise NoReplyError("dropped", _why(error)) from None

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        """The body as it is sent."""
        found = bytearray()
        try:
            async for chunk in response.content.iter_any():
                found += chunk
                self._held += len(chunk)
                if len(found) > MOST_BYTES or (len(found) > 2**20 and self._held > _MOST_TOGETHER):
                    raise oversized()
        finally:
            self._held -= len(found)
        return bytes(found)

    def _open(self) -> aiohttp.ClientSession:
        """A session of the running event loop: connections do not outlive the loop that opened them."""
        import aiohttp

        self._loop = asyncio.get_running_loop()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            auto_decompress=False,
        )
        return self._session

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None


class HttpxTransport:
    """Any httpx transport; the tests pass `httpx.MockTransport`."""

    def __init__(self, headers: Mapping[str, str], transport: httpx.AsyncBaseTransport) -> None:
        self._headers, self._transport = dict(headers), transport

    async def send(self, method: str, url: str, body: bytes | None, timeout: float) -> HttpReply:
        """One request and its whole reply."""
        import httpx

        request = httpx.Request(method, url, headers=self._headers, content=body)
        try:
            async with asyncio.timeout(timeout):
                response = await self._transport.handle_async_request(request)
                body = await response.aread()
            if len(body) > MOST_BYTES:
                raise oversized()
            return HttpReply(response.status_code, response.headers, body)
        except (TimeoutError, httpx.TimeoutException):
            raise NoReplyError("timeout", f"no reply within {timeout:g} s") from None
        except httpx.ConnectError as error:
            raise NoReplyError("refused", _why(error)) from None
        except httpx.TransportError as error:
            raise NoReplyError("dropped", _why(error)) from None

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.aclose()


def proxy_trouble(proxy: Proxy | None, why: str) -> str:
    """What is said where a proxy failed, and not the server."""
    return why if proxy is None else f"{proxy} failed: {why}; {proxy.hint}"


def _why(error: BaseException) -> str:
    """The plain reason inside a client library's exception."""
    cause: object = getattr(error, "os_error", None) or error
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused"
    return str(getattr(cause, "strerror", None) or cause or type(error).__name__).strip()
