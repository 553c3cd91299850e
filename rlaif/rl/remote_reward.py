"""A server as the reward, called in the form of OpenRLHF's remote reward models (`--remote_rm_url`).

One POST for all responses of a call:

    {"query": [prompt and response, ...], "prompts": [prompt, ...], "labels": ["", ...]}
    -> {"rewards": [number or null, ...]}

Newer servers send `scores` and `extra_logs` too, which are ignored. `labels` are the reference answers of OpenRLHF's
data sets, and empty here as they are there for a data set without any.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rlaif.config.secrets import Secrets, expanded, shown_url, written_secrets
from rlaif.data.conversations import Turn, transcript
from rlaif.errors import ModelError, UserError
from rlaif.inference.faults import error_message, retry_after, shortened, storable
from rlaif.inference.transport import MOST_BYTES, NoReplyError, oversized, proxy_of, proxy_trouble, unpacked
from rlaif.records import Messages
from rlaif.rl.experience import Reward, Scores
from rlaif.text import loads

if TYPE_CHECKING:
    import httpx

_LONGEST_PAUSE, _LONGEST_WAIT = 8.0, 60.0
"""Seconds between two tries: by the backoff, and by the server's Retry-After."""
_SCANNED, _SHOWN = 10_000, 200
"""Characters of a reply that an error message is made from, and characters of it that the message shows."""


class _BadReplyError(Exception):
    """An exchange without rewards; `wait` is the server's Retry-After, in seconds."""

    def __init__(self, what: str, wait: float | None = None) -> None:
        self.wait = wait
        super().__init__(what)


def dialogue(messages: Messages) -> str:
    """A prompt as text, the default format: `\\n\\nHuman: ...\\n\\nAssistant: `.

    The system prompt stands first, without a marker.
    """
    return transcript(tuple(Turn(message.role, message.content) for message in messages)) + " "


class RemoteReward(Reward):
    """The rewards of a server, in its own unit; null is no score.

    The server gets `render(messages)` as the text of a prompt, by default the dialogue as text (`dialogue`); a reward
    model that was trained with a chat template needs that one, generation prompt included. The query is that text and
    the response, with nothing in between.
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

        Raises UserError for an invalid URL, and for a proxy in the environment that cannot be used.
        """
        import httpx

        self._shown = shown_url(url)
        whole, values = expanded(url)
        if not _is_url(whole):
            hint = "write it like http://127.0.0.1:5000/get_reward"
            raise UserError(f"no URL of a reward server: {self._shown}", hint=hint)
        self._url, self._secrets = whole, Secrets([*values, *written_secrets(whole)])
        self._timeout, self._retries, self._render, self._backoff = timeout, retries, render, backoff
        # With its own transport, as httpx would send requests to this machine through the environment's proxy.
        self._proxy = proxy_of(whole)
        proxy = None if self._proxy is None else self._proxy.url
        self._client = httpx.Client(timeout=timeout, transport=httpx.HTTPTransport(proxy=proxy))

    def __call__(self, prompts: Sequence[Messages], responses: Sequence[str]) -> Scores:
        """One reward a response; the one part is named `remote`.

        Raises ModelError, with the URL and the last error, where every try failed.
        """
        texts = [self._render(messages) for messages in prompts]
        query = [prompt + response for prompt, response in zip(texts, responses, strict=True)]
        if not query:
            return Scores([], {"remote": []})
        body = json.dumps({"query": query, "prompts": texts, "labels": [""] * len(query)}).encode()
        for attempt in range(self._retries + 1):
            try:
                total = _parse_rewards(self._exchange(body), len(query))
                return Scores(total, {"remote": total})
            except _BadReplyError as error:
                if attempt == self._retries:
                    tries = f"{attempt + 1} tries" if attempt else "one try"
                    why = shortened(self._secrets.hide(storable(str(error))), _SHOWN)
                    raise ModelError(f"no rewards from {self._shown} in {tries}: {why}") from None
                pause = min(_LONGEST_PAUSE, self._backoff * 2**attempt)
                time.sleep(max(pause, min(_LONGEST_WAIT, error.wait or 0.0)))
        raise AssertionError("the last try returns or raises")

    def _exchange(self, body: bytes) -> bytes:
        """One request and its reply."""
        import httpx

        headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
        try:
            with self._client.stream("POST", self._url, content=body, headers=headers) as response:
                reply = unpacked(self._body(response), response.headers.get("content-encoding", ""))
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
            reason = (
                error_message(reply, self._secrets.hide)[1] or response.headers.get("location") or "no reason given"
            )
            wait = retry_after(response.headers.get("retry-after"))
            raise _BadReplyError(f"HTTP {response.status_code}: {reason}", wait)
        return reply

    def _body(self, response: httpx.Response) -> bytes:
        """The whole body within the timeout, which httpx applies to each single read."""
        until = time.monotonic() + self._timeout
        body = bytearray()
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > MOST_BYTES:
                raise oversized()
            if time.monotonic() > until:
                raise _BadReplyError(f"no whole reply within {self._timeout:g} s")
        return bytes(body)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _parse_rewards(body: bytes, count: int) -> list[float | None]:
    """The rewards of a reply, one for each of `count` queries. Raises _BadReplyError where they are missing."""
    try:
        payload: Any = loads(body)
    except ValueError:
        raise _BadReplyError(f"the reply is not JSON: {body[:_SCANNED].decode('utf-8', 'replace')}") from None
    rewards = payload.get("rewards") if isinstance(payload, dict) else None
    if not isinstance(rewards, list):
        raise _BadReplyError(f"the reply has no list `rewards`: {json.dumps(payload)[:_SCANNED]}")
    if len(rewards) != count:
        raise _BadReplyError(f"{len(rewards)} rewards for {count} responses")
    for at, reward in enumerate(rewards):
        if reward is not None and not _is_number(reward):
            raise _BadReplyError(f"reward {at + 1} is not a number: {json.dumps(reward)[:_SCANNED]}")
    return [None if reward is None else float(reward) for reward in rewards]


def _is_number(value: object) -> bool:
    """Whether a JSON value is a finite number, and neither true nor false."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False
