"""The policy's adapters on a vLLM server: loaded while it runs, every version under a name of its own.

The server caches keys and values of prompts under the adapter's name: weights that took the place of others under an
old name would meet what those had computed. So a name and a folder are never used twice, by no training.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from rlaif.errors import ModelError, RlaifError, UserError, nearest
from rlaif.inference.faults import Fault
from rlaif.inference.patience import Patience
from rlaif.inference.talk import Talk
from rlaif.inference.throttle import Throttle

AdapterSource = Callable[[Path], object]
"""Saves the policy's adapter into a folder, as peft's `save_pretrained` does."""

_TRIES, _TRIES_AFTER_TIMEOUT = 8, 2
_LONGEST_WAIT = 60.0
_KEPT = 2
"""Versions that stay on the server: the newest, and the one before it for whoever still wants to ask it something."""
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank."""
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
        return await self._steadily(lambda: self._talk.get(path, timeout=self._timeout), _TRIES)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
        """The JSON reply to a question, or the Fault that stayed."""
        return await self._steadily(lambda: self._talk.post(path, body, timeout=self._timeout), _TRIES)

    async def order(self, path: str, body: dict[str, Any], *, tries: int = _TRIES) -> Fault | None:
        """None where the server did it, in whatever words it says so. A 500 is its refusal, and not tried again."""

        async def call() -> dict[str, Any] | Fault:
            reply = await self._talk.post(path, body, timeout=self._timeout)
            if isinstance(reply, Fault) and reply.kind in ("broken_json", "http_500"):
                return {"refusal": None if reply.kind == "broken_json" else reply}
            return reply

        reply = await self._steadily(call, tries)
        return reply if isinstance(reply, Fault) else reply.get("refusal")

    def failure(self, fault: Fault, how: str = "") -> ModelError:
        """The error of a call that nothing mends; `how` says more about starting the server again."""
        mend = f"; start the server again{how} and go on with `--resume`" if fault.kind in _AWAY else ""
        return ModelError(f"{self.shown}: {fault.detail}{mend}")

    async def close(self) -> None:
        """Close all connections."""
        await self._talk.close()

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


class Adapters:
    """The versions of one training on one server."""

    def __init__(self, source: AdapterSource, folder: Path, model: str | None) -> None:
        """`model` is the server's name for what the adapters belong to; None takes its first one."""
        self._source, self._base = source, model
        self._folder = folder.resolve() / "versions"
        self._held: list[tuple[str, Path]] = []

    async def begin(self, line: Line) -> tuple[str, int | None]:
        """The model's name, and its context where the server tells.

        What a training that was killed has left in this folder is cleared away. Raises UserError for an unknown model.
        """
        reply = await line.get("/models")
        if isinstance(reply, Fault):
            raise line.failure(reply)
        cards = [card for card in reply.get("data") or () if isinstance(card, dict)]
        models = {str(card.get("id")): card for card in cards if not card.get("parent")}
        base = next(iter(models), "") if self._base is None else self._base
        if base not in models:
            raise UserError(f"no model called `{base}`", where=line.shown, mend=nearest(base, models))
        self._base, context = base, models[base].get("max_model_len")
        for card in cards:
            if str(card.get("root")).startswith(f"{self._folder}/"):
                await self._unload(line, str(card.get("id")))
        shutil.rmtree(self._folder, ignore_errors=True)
        return base, context if isinstance(context, int) else None

    async def load(self, line: Line, version: int) -> str:
        """Save the adapter and load it; the name under which it answers. Raises UserError where the server will not."""
        tag = f"v{version}-{uuid.uuid4().hex[:8]}"
        name, path = f"{self._base}-{tag}", self._folder / tag
        path.mkdir(parents=True)
        self._source(path)
        fault = await line.order("/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})
        # After a lost reply, the second try meets what the first one did.
        if fault is not None and "already been loaded" not in fault.detail:
            shutil.rmtree(path, ignore_errors=True)
            raise _refusal(line, fault, path)
        self._held.append((name, path))
        while len(self._held) > _KEPT:
            await self._drop(line)
        return name

    async def end(self, line: Line) -> None:
        """Take all versions from the server, if it is still there, and delete them."""
        while self._held:
            await self._drop(line)
        shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._folder.parent.rmdir()  # where nothing else is in it

    async def _drop(self, line: Line) -> None:
        name, path = self._held.pop(0)
        await self._unload(line, name)
        shutil.rmtree(path, ignore_errors=True)

    async def _unload(self, line: Line, name: str) -> None:
        """Whether it worked or not: a version too many does no harm, as none is ever asked again."""
        await line.order("/unload_lora_adapter", {"lora_name": name}, tries=1)


def _refusal(line: Line, fault: Fault, path: Path) -> RlaifError:
    """Why the server does not take an adapter, in the server's words where we know none better."""
    said = fault.detail
    if fault.kind == "http_404" and said.startswith("HTTP 404: Not Found"):
        what, mend = "takes no adapters while it runs", "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True set"
    elif fault.kind == "http_404":
        what, mend = f"does not find {path}", "run it on this machine, or let both see the training's folder"
    elif "not enabled" in said:
        what, mend = "takes no adapters", "start it with --enable-lora"
    elif rank := re.search(r"rank (\d+) is greater than max_lora_rank", said):
        enough = next((most for most in _RANKS if most >= int(rank[1])), rank[1])
        what, mend = f"takes no adapter of rank {rank[1]}", f"start it with --max-lora-rank {enough}"
    elif fault.kind in ("http_500", "bad_request"):
        inner = re.search(r"Worker failed with error '(.*)', please check", said)
        what, mend = f"refuses the adapter: {inner[1] if inner else said}", "train one that vLLM serves"
    else:
        return line.failure(fault)
    return UserError(what, where=line.shown, mend=mend)
