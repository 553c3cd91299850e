"""The policy's weights on the vLLM server that samples: LoRA adapters (`Adapters`) or all weights (`WholeWeights`).

`RetryingClient` is the client of that server.

Adapters are loaded while the server runs. It caches keys and values of prompts under the adapter's name, so that new
weights under an old name would be combined with what the old ones computed. So no training uses a name or a folder
twice.

Whole weights replace the server's. vLLM reads a folder of safetensors into a running model (`reload_weights`), on a GPU
or a CPU, whatever it has split, packed or converted; a folder in /dev/shm never touches a disk. Routes without a file
(NCCL, CUDA IPC) would need vLLM imported in the trainer's process.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from rlaif.errors import ModelError, RlaifError, UserError, nearest
from rlaif.inference.faults import Fault
from rlaif.inference.requests import ServerConnection
from rlaif.inference.server_health import ServerHealth, Throttle

TRIES, _TRIES_AFTER_TIMEOUT = 8, 2
_LONGEST_WAIT = 60.0
"""Seconds that a Retry-After can delay a call."""
_UNREACHABLE = ("refused", "dropped", "timeout")
"""Kinds of faults of a server that is down."""
_VERSIONS = 2
"""Versions that stay on the server: the newest, and the one before it for requests still under way."""
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for --max-lora-rank."""


class RetryingClient:
    """A client of one server, for one event loop, that retries transient errors."""

    def __init__(self, connection: ServerConnection, *, concurrency: int, timeout: float, backoff: float) -> None:
        """`concurrency` bounds the concurrent calls, `timeout` the seconds of one."""
        self._connection, self._timeout, self._throttle = connection, timeout, Throttle(concurrency)
        self._health = ServerHealth(connection.shown, give_up_after=timeout, timeout=timeout, backoff=backoff)
        self.shown = connection.shown

    async def get(self, path: str) -> dict[str, Any] | Fault:
        """The JSON at `path`, or the Fault of the last try."""
        return await self._retrying(lambda: self._connection.get(path, timeout=self._timeout), TRIES)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
        """The JSON reply to a request, or the Fault of the last try."""
        return await self._retrying(lambda: self._connection.post(path, body, timeout=self._timeout), TRIES)

    async def order(
        self, path: str, body: dict[str, Any], *, tries: int = TRIES, root: bool = False
    ) -> dict[str, Any] | Fault:
        """The reply to a command, empty where it is no JSON; a 500 is a refusal, without a retry.

        With `root`, the path is beside /v1 rather than below it.
        """

        async def call() -> dict[str, Any] | Fault:
            reply = await self._connection.post(path, body, timeout=self._timeout, root=root)
            if not isinstance(reply, Fault) or reply.kind not in ("broken_json", "http_500"):
                return reply
            return {} if reply.kind == "broken_json" else replace(reply, retry=False, overload=False)

        return await self._retrying(call, tries)

    def failure(self, fault: Fault, how: str = "") -> ModelError:
        """The error of a call that failed for good; `how` adds to the hint to restart the server."""
        hint = f"; start the server again{how} and go on with `--resume`" if fault.kind in _UNREACHABLE else ""
        return ModelError(f"{self.shown}: {fault.detail}{hint}")

    async def close(self) -> None:
        """Close all connections."""
        await self._connection.close()

    async def models(self) -> list[dict[str, Any]]:
        """The cards of the server's models, adapters among them. Raises ModelError where there is no reply."""
        reply = await self.get("/models")
        if isinstance(reply, Fault) and reply.kind in _UNREACHABLE:
            raise ModelError(f"{self.shown}: {reply.detail}; start the server, or set another `rollout.base_url`")
        if isinstance(reply, Fault):
            raise self.failure(reply)
        cards = reply.get("data")
        return [card for card in cards if isinstance(card, dict)] if isinstance(cards, list) else []

    def base(self, cards: Sequence[dict[str, Any]], name: str | None) -> dict[str, Any]:
        """The card of a model by name, or of the first that is no adapter. Raises UserError where there is none."""
        models = {str(card.get("id")): card for card in cards if not card.get("parent")}
        wanted = next(iter(models), "") if name is None else name
        if wanted not in models:
            raise UserError(f"no model called `{wanted}`", where=self.shown, hint=nearest(wanted, models))
        return models[wanted]

    async def _retrying(
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
            await asyncio.sleep(self._health.pause(attempt))
        return reply


WeightsSource = Callable[[Path], object]
"""Saves the policy's weights, or its adapter, into a folder, as `save_pretrained` does."""


class Carrier(Protocol):
    """Brings the policy's weights to a server."""

    async def begin(self, client: RetryingClient) -> tuple[str, int | None]:
        """The model's name, and its context where the server gives it. Raises UserError for an unknown model."""
        ...

    async def load(self, client: RetryingClient, version: int) -> str:
        """Send the current weights; returns their name on the server.

        Raises UserError where the server refuses them, ModelError where there is no server.
        """
        ...

    async def end(self, client: RetryingClient) -> None:
        """Restore the server to its first state, if it is still there, and delete what was written."""
        ...


class Adapters:
    """The versions of one training on one server (`--enable-lora`, VLLM_ALLOW_RUNTIME_LORA_UPDATING=True).

    The server has to see `folder` too.
    """

    def __init__(
        self, source: WeightsSource, folder: Path, model: str | None, *, folder_name: str | None = None
    ) -> None:
        """`model` is the server's name for the base model; None takes its first one. `folder_name` names this
        training's folder in `folder`; None takes a random name.
        """
        self._source, self._base = source, model
        self._folder = WeightsFolder(folder, folder_name)
        self._loaded: list[tuple[str, Path]] = []

    async def begin(self, client: RetryingClient) -> tuple[str, int | None]:
        """The model's name, and its context where the server gives it.

        Removes what a killed training left in this folder. Raises UserError for an unknown model.
        """
        cards = await client.models()
        base = client.base(cards, self._base)
        self._base, context = str(base["id"]), base.get("max_model_len")
        for card in cards:
            if str(card.get("root")).startswith(f"{self._folder.path}/"):
                await self._unload(client, str(card.get("id")))
        self._folder.create()
        return self._base, context if isinstance(context, int) else None

    async def load(self, client: RetryingClient, version: int) -> str:
        """Save and load the adapter; returns its name on the server. Raises UserError where the server refuses it."""
        tag = f"v{version}-{uuid.uuid4().hex[:8]}"
        name, path = f"{self._base}-{tag}", self._folder.path / tag
        path.mkdir(parents=True)
        self._source(path)
        reply = await client.order("/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})
        # After a lost reply, the second try finds the adapter of the first one.
        if isinstance(reply, Fault) and "already been loaded" not in reply.detail:
            shutil.rmtree(path, ignore_errors=True)
            raise _adapter_refusal(client, reply, path)
        self._loaded.append((name, path))
        while len(self._loaded) > _VERSIONS:
            await self._drop(client)
        return name

    async def end(self, client: RetryingClient) -> None:
        """Unload all versions from the server, if it is still there, and delete them."""
        while self._loaded:
            await self._drop(client)
        self._folder.leave()

    async def _drop(self, client: RetryingClient) -> None:
        name, path = self._loaded.pop(0)
        await self._unload(client, name)
        shutil.rmtree(path, ignore_errors=True)

    async def _unload(self, client: RetryingClient, name: str) -> None:
        """Errors are ignored: one version too many does no harm, as it gets no more requests."""
        await client.order("/unload_lora_adapter", {"lora_name": name}, tries=1)


class WeightsFolder:
    """The folder of one training's weights, in a parent that others may use: nothing else is ever deleted there.

    Two trainings with one parent have two folders. A resumed training has the name of the killed one, and deletes what
    that left.
    """

    def __init__(self, parent: Path, name: str | None) -> None:
        """`name` is the training's; None takes a random one."""
        self._parent = parent.resolve()
        self.path = self._parent / f"rlaif-{name or uuid.uuid4().hex}"
        self._created_parents: list[Path] = []
        """Folders above it that did not exist before."""

    def create(self) -> None:
        """Create it, empty. Raises UserError where something else is in its place, or it is not writable."""
        self.remove()
        above = [self._parent, *self._parent.parents]
        try:
            self._created_parents += [parent for parent in above if not parent.exists()]
            self.path.mkdir(parents=True)
        except OSError as error:
            what = f"no weights can be laid there for the server: {error.strerror}"
            raise UserError(what, where=self.path, hint="set another `rollout.weights`") from error

    def remove(self) -> None:
        """Delete it, unless it is a link."""
        if not self.path.is_symlink():
            shutil.rmtree(self.path, ignore_errors=True)

    def leave(self) -> None:
        """Delete it, and the folders above it that were created for it and are empty."""
        self.remove()
        with contextlib.suppress(OSError):
            for parent in self._created_parents:
                parent.rmdir()


class WholeWeights:
    """All weights of a training, in the place of those that a server was started with (VLLM_SERVER_DEV_MODE=1).

    All versions have one name, and every load clears the prefix cache of older ones: no request may be under way
    meanwhile. A training that is killed leaves its weights on the server.
    """

    def __init__(
        self, source: WeightsSource, folder: Path, model: str | None, *, folder_name: str | None = None
    ) -> None:
        """`model` is the server's name for the model; None takes its first one. `folder_name` names this training's
        folder in `folder`; None takes a random name.
        """
        self._source, self._name, self._root = source, model, ""
        self._folder = WeightsFolder(folder, folder_name)

    async def begin(self, client: RetryingClient) -> tuple[str, int | None]:
        """See `Carrier`."""
        card = client.base(await client.models(), self._name)
        self._name, self._root, context = str(card["id"]), str(card.get("root") or ""), card.get("max_model_len")
        return self._name, context if isinstance(context, int) else None

    async def load(self, client: RetryingClient, version: int) -> str:  # noqa: ARG002 - a server holds one version
        """See `Carrier`."""
        assert self._name is not None, "`begin` comes first"
        self._folder.create()
        try:
            self._source(self._folder.path)
            await self._take(client, str(self._folder.path))
        finally:
            self._folder.remove()
        return self._name

    async def end(self, client: RetryingClient) -> None:
        """Reload the weights that the server was started with; errors are ignored."""
        if self._root:
            with contextlib.suppress(RlaifError):
                await self._take(client, self._root, tries=1)
        self._folder.leave()

    async def _take(self, client: RetryingClient, path: str, *, tries: int = TRIES) -> None:
        """Have the server read the weights at `path`, and clear its prefix cache."""
        order = {"method": "reload_weights", "kwargs": {"weights_path": path}}
        reply = await client.order("/collective_rpc", order, root=True, tries=tries)
        if isinstance(reply, Fault):
            raise _weights_refusal(client, reply, path)
        reply = await client.order("/reset_prefix_cache", {}, root=True, tries=tries)
        if isinstance(reply, Fault):
            raise _weights_refusal(client, reply, path)
        if reply.get("success") is False:
            what = "keeps what older weights computed of prompts, as it is being asked by somebody else"
            raise UserError(what, where=client.shown, hint="leave the server to this training alone")


def _adapter_refusal(client: RetryingClient, fault: Fault, path: Path) -> RlaifError:
    """The error of a server that refuses an adapter: with a fix for known causes, else in the server's words."""
    detail = fault.detail
    if fault.kind == "http_404" and detail.startswith("HTTP 404: Not Found"):
        what, hint = "takes no adapters while it runs", "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True set"
    elif fault.kind == "http_404":
        what, hint = f"does not find {path}", "run it on this machine, or let both see the training's folder"
    elif "not enabled" in detail:
        what, hint = "takes no adapters", "start it with --enable-lora"
    elif rank := re.search(r"rank (\d+) is greater than max_lora_rank", detail):
        enough = next((supported for supported in _RANKS if supported >= int(rank[1])), rank[1])
        what, hint = f"takes no adapter of rank {rank[1]}", f"start it with --max-lora-rank {enough}"
    elif fault.kind in ("http_500", "bad_request"):
        inner = re.search(r"Worker failed with error '(.*)', please check", detail)
        what, hint = f"refuses the adapter: {inner[1] if inner else detail}", "train one that vLLM serves"
    else:
        return client.failure(fault)
    return UserError(what, where=client.shown, hint=hint)


def _weights_refusal(client: RetryingClient, fault: Fault, path: str) -> RlaifError:
    """The error of a server that refuses the weights: with a fix for known causes, else in the server's words."""
    if fault.kind == "http_404":
        what, hint = "takes no weights while it runs", "start it with VLLM_SERVER_DEV_MODE=1 set, or set `lora.rank`"
    elif fault.kind in ("http_500", "bad_request"):
        what, hint = f"refuses the weights: {fault.detail}", f"does it serve this model, and see {path}?"
    else:
        return client.failure(fault)
    return UserError(what, where=client.shown, hint=hint)
