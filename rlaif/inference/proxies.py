"""Which way a request takes: straight, or through the proxy that the environment names.

`HTTPS_PROXY`, `HTTP_PROXY` and `ALL_PROXY` name proxies, in capitals or not, and `NO_PROXY` the hosts that are asked
directly. A proxy that cannot be used is an error of the environment, and said to be one: passing it by would send
requests where somebody did not want them, and speaking HTTP to it would take its words for the server's.
"""

from __future__ import annotations

import contextlib
import os
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit, urlunsplit

from rlaif.errors import UserError


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
    def mend(self) -> str:
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
        mend = "unset it, or name an HTTP proxy, to reach the Hugging Face hub"
        raise UserError(what, where=_variable(name) or None, mend=mend) from None


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
        raise UserError("no URL of a proxy", where=where, mend=proxy.mend)
    if parts.scheme.lower() not in ("http", "https"):
        what = f"{shown(proxy.url)} is a proxy of a kind that is not supported ({parts.scheme})"
        raise UserError(what, where=where, mend=f"unset it, name an HTTP proxy, or add {proxy.host} to NO_PROXY")
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
