"""A server as the reward, asked in the form of OpenRLHF's remote reward models (`--remote_rm_url`).

Calls to the server that samples: tried again after what may pass, and with its errors in words that help.

A server as the reward, asked in the form of OpenRLHF's remote reward models (`--remote_rm_url`).

One POST for all responses of a call:

    {"query": [prompt and response, ...], "prompts": [prompt, ...], "labels": ["", ...]}
    -> {"rewards": [number or null, ...]}

Newer servers send `scores` and `extra_logs` too, which are passed over. `labels` are the known answers of OpenRLHF's
data sets, and empty there as here where a data set has none.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rlaif.config.secrets import Secrets, expanded, shown_url, written_secrets
from rlaif.data.conversations import Turn, transcript
from rlaif.errors import ModelError, UserError, nearest
from rlaif.inference.faults import Fault, error_message, retry_after, shortened, storable
from rlaif.inference.requests import ServerConnection
from rlaif.inference.server_health import ServerHealth, Throttle
from rlaif.inference.transport import MOST_BYTES, NoReplyError, oversized, proxy_of, proxy_trouble, unpacked
from rlaif.records import Messages
from rlaif.rl.responses import Reward, Scores
from rlaif.text import loads

if TYPE_CHECKING:
    import httpx

TRIES, _TRIES_AFTER_TIMEOUT = 8, 2
_LONGEST_WAIT = 60.0
_AWAY = ("refused", "dropped", "timeout")


class RetryingClient:
    """Calls to one server from one event loop, tried again after what may pass."""

    def __init__(self, connection: ServerConnection, *, concurrency: int, timeout: float, backoff: float) -> None:
        """`concurrency` bounds the calls under way together, `timeout` the seconds of one."""
        self._talk, self._timeout, self._throttle = connection, timeout, Throttle(concurrency)
        self._patience = ServerHealth(connection.shown, give_up_after=timeout, timeout=timeout, backoff=backoff)
        self.shown = connection.shown

    async def get(self, path: str) -> dict[str, Any] | Fault:
        """The JSON at `path`, or the Fault that stayed."""
        return await self._steadily(lambda: self._talk.get(path, timeout=self._timeout), TRIES)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
        """The JSON reply to a question, or the Fault that stayed."""
        return await self._steadily(lambda: self._talk.post(path, body, timeout=self._timeout), TRIES)

    async def order(
        self, path: str, body: dict[str, Any], *, tries: int = TRIES, root: bool = False
    ) -> dict[str, Any] | Fault:
        """What the server says when it did it, empty where that is no JSON; a 500 is its refusal, and not tried again.

        With `root`, the path is beside /v1 rather than below it.
        """

        async def call() -> dict[str, Any] | Fault:
            reply = await self._talk.post(path, body, timeout=self._timeout, root=root)
            if not isinstance(reply, Fault) or reply.kind not in ("broken_json", "http_500"):
                return reply
            return {} if reply.kind == "broken_json" else replace(reply, retry=False, overload=False)

        return await self._steadily(call, tries)

    def failure(self, fault: Fault, how: str = "") -> ModelError:
        """The error of a call that nothing fixes; `how` says more about starting the server again."""
        hint = f"; start the server again{how} and go on with `--resume`" if fault.kind in _AWAY else ""
        return ModelError(f"{self.shown}: {fault.detail}{hint}")

    async def close(self) -> None:
        """Close all connections."""
        await self._talk.close()

    async def models(self) -> list[dict[str, Any]]:
        """What the server says of each of its models, adapters among them. Raises ModelError where it says nothing."""
        reply = await self.get("/models")
        if isinstance(reply, Fault) and reply.kind in _AWAY:
            raise ModelError(f"{self.shown}: {reply.detail}; start the server, or set another `rollout.base_url`")
        if isinstance(reply, Fault):
            raise self.failure(reply)
        cards = reply.get("data")
        return [card for card in cards if isinstance(card, dict)] if isinstance(cards, list) else []

    def base(self, cards: Sequence[dict[str, Any]], name: str | None) -> dict[str, Any]:
        """The card of the model of a name, or of the first that is no adapter. Raises UserError where there is none."""
        models = {str(card.get("id")): card for card in cards if not card.get("parent")}
        wanted = next(iter(models), "") if name is None else name
        if wanted not in models:
            raise UserError(f"no model called `{wanted}`", where=self.shown, hint=nearest(wanted, models))
        return models[wanted]

    async def _steadily(
        self, call: Callable[[], Awaitable[dict[str, Any] | Fault]], tries: int
    ) -> dict[str, Any] | Fault:
        for attempt in range(tries):
            async with self._throttle.slot() as cuts:
                reply = await call()
            if not isinstance(reply, Fault):
                self._throttle.succeeded()
                return reply
            if reply.overload:
                self._throttle.overloaded(cuts)
            if reply.wait:
                self._throttle.hold(min(reply.wait, _LONGEST_WAIT))
            last = _TRIES_AFTER_TIMEOUT if reply.kind == "timeout" else tries
            if not reply.retry or attempt + 1 >= last:
                break
            await asyncio.sleep(self._patience.pause(attempt))
        return reply


_LONGEST_PAUSE = 8.0
"""Seconds that a Retry-After can hold us back."""
_LOOKED_AT, _SHOWN = 10_000, 200
"""Characters of a reply that are looked at for what a message repeats, and of what it says in the end."""


class _BadReplyError(Exception):
    """An exchange that brought no rewards; `wait` is what the server asked for, in seconds."""

    def __init__(self, what: str, wait: float | None = None) -> None:
        self.wait = wait
        super().__init__(what)


def dialogue(messages: Messages) -> str:
    """A prompt as text as it is sent by default: `\\n\\nHuman: ...\\n\\nAssistant: `.

    What the system says stands first, without a marker.
    """
    return transcript(tuple(Turn(message.role, message.content) for message in messages)) + " "


class RemoteReward(Reward):
    """The rewards that a server gives, in its own unit; null from the server is no score.

    What a server is sent as the text of a prompt is `render(messages)`, by default the dialogue as text (`dialogue`);
    a reward model that was trained on a chat template wants that one, with the cue for a reply. The query is that text
    and the response, with nothing in between.
    """

    def __init__(
        self,
        url: str,
        timeout: float = 120.0,
        retries: int = 4,
        *,
        render: Callable[[Messages], str] = dialogue,
        backoff: float = 1.0,
    ) -> None:
        """`timeout` is for one whole exchange, in seconds; a failed one is tried again `retries` times, after pauses
        of `backoff`, twice and four times as long, and so on up to 8 s.

        Raises UserError for what is no URL, and for a proxy in the environment that cannot be used.
        """
        import httpx

        self._shown = shown_url(url)
        whole, values = expanded(url)
        if not _is_url(whole):
            hint = "write it like http://127.0.0.1:5000/get_reward"
            raise UserError(f"no URL of a reward server: {self._shown}", hint=hint)
        self._url, self._secrets = whole, Secrets([*values, *written_secrets(whole)])
        self._timeout, self._retries, self._render, self._backoff = timeout, retries, render, backoff
        # A transport of our own, as the environment's proxy must not stand between us and this machine.
        self._proxy = proxy_of(whole)
        proxy = None if self._proxy is None else self._proxy.url
        self._client = httpx.Client(timeout=timeout, transport=httpx.HTTPTransport(proxy=proxy))

    def __call__(self, prompts: Sequence[Messages], responses: Sequence[str]) -> Scores:
        """One reward a response; the one part is called `remote`.

        Raises ModelError, with the URL and what came last, where every try failed.
        """
        texts = [self._render(messages) for messages in prompts]
        query = [prompt + response for prompt, response in zip(texts, responses, strict=True)]
        if not query:
            return Scores([], {"remote": []})
        body = json.dumps({"query": query, "prompts": texts, "labels": [""] * len(query)}).encode()
        total = self._rewards(body, len(query))
        return Scores(total, {"remote": total})

    def _rewards(self, body: bytes, count: int) -> list[float | None]:
        for attempt in range(self._retries + 1):
            try:
                return _read(self._exchange(body), count)
            except _BadReplyError as error:
                if attempt == self._retries:
                    tries = f"{attempt + 1} tries" if attempt else "one try"
                    why = shortened(self._secrets.hide(storable(str(error))), _SHOWN)
                    raise ModelError(f"no rewards from {self._shown} in {tries}: {why}") from None
                pause = min(_LONGEST_PAUSE, self._backoff * 2**attempt)
                time.sleep(max(pause, min(_LONGEST_WAIT, error.wait or 0.0)))
        raise AssertionError("the last try returns or raises")

    def _exchange(self, body: bytes) -> bytes:
        """One request and its reply. The client's own timeout is for each read: a reply that drips has this one."""
        import httpx

        headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
        try:
            with self._client.stream("POST", self._url, content=body, headers=headers) as response:
                found = unpacked(self._body(response), response.headers.get("content-encoding", ""))
        except httpx.TimeoutException:
            raise _BadReplyError(f"no reply within {self._timeout:g} s") from None
        except (httpx.ConnectError, httpx.ProxyError) as error:
            why = proxy_trouble(self._proxy, str(error) or type(error).__name__)
            raise _BadReplyError(why) from None
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise _BadReplyError(str(error) or type(error).__name__) from None
        except NoReplyError as error:
            raise _BadReplyError(error.detail) from None
        if not response.is_success:
            said = error_message(found, self._secrets.hide)[1] or response.headers.get("location") or "no reason given"
            wait = retry_after(response.headers.get("retry-after"))
            raise _BadReplyError(f"HTTP {response.status_code}: {said}", wait)
        return found

    def _body(self, response: httpx.Response) -> bytes:
        until = time.monotonic() + self._timeout
        found = bytearray()
        for chunk in response.iter_raw():
            found += chunk
            if len(found) > MOST_BYTES:
                raise oversized()
            if time.monotonic() > until:
                raise _BadReplyError(f"no whole reply within {self._timeout:g} s")
        return bytes(found)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _read(body: bytes, count: int) -> list[float | None]:
    """The rewards of a reply, one for each of `count` queries. Raises _BadReplyError where they are not there."""
    try:
        payload: Any = loads(body)
    except ValueError:
        raise _BadReplyError(f"the reply is not JSON: {body[:_LOOKED_AT].decode('utf-8', 'replace')}") from None
    rewards = payload.get("rewards") if isinstance(payload, dict) else None
    if not isinstance(rewards, list):
        raise _BadReplyError(f"the reply has no list `rewards`: {json.dumps(payload)[:_LOOKED_AT]}")
    if len(rewards) != count:
        raise _BadReplyError(f"{len(rewards)} rewards for {count} responses")
    for at, reward in enumerate(rewards):
        number = isinstance(reward, (int, float)) and not isinstance(reward, bool) and _is_finite(reward)
        if reward is not None and not number:
            raise _BadReplyError(f"reward {at + 1} is not a number: {json.dumps(reward)[:_LOOKED_AT]}")
    return [None if reward is None else float(reward) for reward in rewards]


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond all floats
        return False
