"""Calls to the server that samples: tried again after what may pass, and with its errors in words that help."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from rlaif.errors import ModelError, UserError, nearest
from rlaif.inference.faults import Fault
from rlaif.inference.patience import Patience
from rlaif.inference.talk import Talk
from rlaif.inference.throttle import Throttle

TRIES, _TRIES_AFTER_TIMEOUT = 8, 2
_LONGEST_WAIT = 60.0
_AWAY = ("refused", "dropped", "timeout")


class Line:
    """Calls to one server from one event loop, tried again after what may pass."""

    def __init__(self, talk: Talk, *, concurrency: int, timeout: float, backoff: float) -> None:
        """`concurrency` bounds the calls under way together, `timeout` the seconds of one."""
        self._talk, self._timeout, self._throttle = talk, timeout, Throttle(concurrency)
        self._patience = Patience(talk.shown, give_up_after=timeout, timeout=timeout, backoff=backoff)
        self.shown = talk.shown

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
        mend = f"; start the server again{how} and go on with `--resume`" if fault.kind in _AWAY else ""
        return ModelError(f"{self.shown}: {fault.detail}{mend}")

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
            raise UserError(f"no model called `{wanted}`", where=self.shown, mend=nearest(wanted, models))
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
