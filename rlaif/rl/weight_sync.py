"""The policy's weights on the server that samples: adapters, or all of them.

The policy's adapters on a vLLM server: loaded while it runs, every version under a name of its own.

The server caches keys and values of prompts under the adapter's name: weights that took the place of others under an
old name would meet what those had computed. So a name and a folder are never used twice, by no training.

The policy's weights on a server that samples: who brings them there, and all of them in the place of the server's.

vLLM reads a folder of safetensors into a model that runs (`reload_weights`), on a GPU or a CPU, whatever it has split,
packed or converted; a folder in /dev/shm never touches a disk. Routes that need no file (NCCL, CUDA IPC) would have to
be spoken from inside the trainer's process, with vLLM imported there.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from rlaif.errors import RlaifError, UserError
from rlaif.inference.faults import Fault
from rlaif.rl.remote_reward import TRIES, RetryingClient

_KEPT = 2
"""Versions that stay on the server: the newest, and the one before it for whoever still wants to ask it something."""
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank."""


class Adapters:
    """The versions of one training on one server (`--enable-lora`, VLLM_ALLOW_RUNTIME_LORA_UPDATING=True).

    The server has to see `folder` too.
    """

    def __init__(self, source: WeightsSource, folder: Path, model: str | None, *, own: str | None = None) -> None:
        """`model` is the server's name for what the adapters belong to; None takes its first one. `own` names this
        training's folder in `folder`; None draws a name.
        """
        self._source, self._base = source, model
        self._own = OwnFolder(folder, own)
        self._held: list[tuple[str, Path]] = []

    async def begin(self, line: RetryingClient) -> tuple[str, int | None]:
        """The model's name, and its context where the server tells.

        What a training that was killed has left in this folder is cleared away. Raises UserError for an unknown model.
        """
        cards = await line.models()
        base = line.base(cards, self._base)
        self._base, context = str(base["id"]), base.get("max_model_len")
        for card in cards:
            if str(card.get("root")).startswith(f"{self._own.path}/"):
                await self._unload(line, str(card.get("id")))
        self._own.make()
        return self._base, context if isinstance(context, int) else None

    async def load(self, line: RetryingClient, version: int) -> str:
        """Save the adapter and load it; the name under which it answers. Raises UserError where the server will not."""
        tag = f"v{version}-{uuid.uuid4().hex[:8]}"
        name, path = f"{self._base}-{tag}", self._own.path / tag
        path.mkdir(parents=True)
        self._source(path)
        reply = await line.order("/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})
        # After a lost reply, the second try meets what the first one did.
        if isinstance(reply, Fault) and "already been loaded" not in reply.detail:
            shutil.rmtree(path, ignore_errors=True)
            raise _refusal(line, reply, path)
        self._held.append((name, path))
        while len(self._held) > _KEPT:
            await self._drop(line)
        return name

    async def end(self, line: RetryingClient) -> None:
        """Take all versions from the server, if it is still there, and delete them."""
        while self._held:
            await self._drop(line)
        self._own.leave()

    async def _drop(self, line: RetryingClient) -> None:
        name, path = self._held.pop(0)
        await self._unload(line, name)
        shutil.rmtree(path, ignore_errors=True)

    async def _unload(self, line: RetryingClient, name: str) -> None:
        """Whether it worked or not: a version too many does no harm, as none is ever asked again."""
        await line.order("/unload_lora_adapter", {"lora_name": name}, tries=1)


def _refusal(line: RetryingClient, fault: Fault, path: Path) -> RlaifError:
    """Why the server does not take an adapter, in the server's words where we know none better."""
    said = fault.detail
    if fault.kind == "http_404" and said.startswith("HTTP 404: Not Found"):
        what, hint = "takes no adapters while it runs", "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True set"
    elif fault.kind == "http_404":
        what, hint = f"does not find {path}", "run it on this machine, or let both see the training's folder"
    elif "not enabled" in said:
        what, hint = "takes no adapters", "start it with --enable-lora"
    elif rank := re.search(r"rank (\d+) is greater than max_lora_rank", said):
        enough = next((most for most in _RANKS if most >= int(rank[1])), rank[1])
        what, hint = f"takes no adapter of rank {rank[1]}", f"start it with --max-lora-rank {enough}"
    elif fault.kind in ("http_500", "bad_request"):
        inner = re.search(r"Worker failed with error '(.*)', please check", said)
        what, hint = f"refuses the adapter: {inner[1] if inner else said}", "train one that vLLM serves"
    else:
        return line.failure(fault)
    return UserError(what, where=line.shown, hint=hint)


WeightsSource = Callable[[Path], object]
"""Saves the policy's weights, or its adapter, into a folder, as `save_pretrained` does."""


class Carrier(Protocol):
    """Brings the policy's weights to a server."""

    async def begin(self, line: RetryingClient) -> tuple[str, int | None]:
        """The model's name, and its context where the server tells. Raises UserError for an unknown model."""
        ...

    async def load(self, line: RetryingClient, version: int) -> str:
        """Bring the weights as they are now; the name under which they answer.

        Raises UserError where the server will not have them, ModelError where there is none.
        """
        ...

    async def end(self, line: RetryingClient) -> None:
        """Leave the server, if it is still there, as it was, and delete what was written."""
        ...


class OwnFolder:
    """A training's own folder, made new in one that may be anybody's: nothing but what it made itself is ever deleted.

    Two trainings in one folder have two of them. What a training that was killed has left is cleared away by the one
    that goes on from it, which has the same name.
    """

    def __init__(self, parent: Path, name: str | None) -> None:
        """`name` is the training's; none draws one."""
        self._parent = parent.resolve()
        self.path = self._parent / f"rlaif-{name or uuid.uuid4().hex}"
        self._made: list[Path] = []
        """Folders above it that were not there before."""

    def make(self) -> None:
        """Make it, empty. Raises UserError where something else is in its place, or nothing can be written there."""
        self.remove()
        above = [self._parent, *self._parent.parents]
        try:
            self._made += [each for each in above if not each.exists()]
            self.path.mkdir(parents=True)
        except OSError as error:
            what = f"no weights can be laid there for the server: {error.strerror}"
            raise UserError(what, where=self.path, hint="set another `rollout.weights`") from error

    def remove(self) -> None:
        """Delete it, if it is there and no link to elsewhere."""
        if not self.path.is_symlink():
            shutil.rmtree(self.path, ignore_errors=True)

    def leave(self) -> None:
        """Delete it, and the folders above it that were made for it and hold nothing else."""
        self.remove()
        with contextlib.suppress(OSError):
            for each in self._made:
                each.rmdir()


class WholeWeights:
    """All weights of a training, in the place of those that a server was started with (VLLM_SERVER_DEV_MODE=1).

    There is one name for all versions, and the keys and values that older ones computed are forgotten with every load:
    nobody may be asking meanwhile. A training that is killed leaves its weights on the server.
    """

    def __init__(self, source: WeightsSource, folder: Path, model: str | None, *, own: str | None = None) -> None:
        """`model` is the server's name for the model; None takes its first one. `own` names this training's folder in
        `folder`; None draws a name.
        """
        self._source, self._name, self._root = source, model, ""
        self._own = OwnFolder(folder, own)

    async def begin(self, line: RetryingClient) -> tuple[str, int | None]:
        """See `Carrier`."""
        card = line.base(await line.models(), self._name)
        self._name, self._root, context = str(card["id"]), str(card.get("root") or ""), card.get("max_model_len")
        return self._name, context if isinstance(context, int) else None

    async def load(self, line: RetryingClient, version: int) -> str:  # noqa: ARG002 - a server holds one version
        """See `Carrier`."""
        assert self._name is not None, "`begin` comes first"
        self._own.make()
        try:
            self._source(self._own.path)
            await self._take(line, str(self._own.path))
        finally:
            self._own.remove()
        return self._name

    async def end(self, line: RetryingClient) -> None:
        """Give the server the weights back that it was started with, whether that works or not."""
        if self._root:
            with contextlib.suppress(RlaifError):
                await self._take(line, self._root, tries=1)
        self._own.leave()

    async def _take(self, line: RetryingClient, path: str, *, tries: int = TRIES) -> None:
        """Have the server read the weights at `path`, and forget what it computed with others."""
        order = {"method": "reload_weights", "kwargs": {"weights_path": path}}
        reply = await line.order("/collective_rpc", order, root=True, tries=tries)
        if isinstance(reply, Fault):
            raise _weights_refusal(line, reply, path)
        reply = await line.order("/reset_prefix_cache", {}, root=True, tries=tries)
        if isinstance(reply, Fault):
            raise _weights_refusal(line, reply, path)
        if reply.get("success") is False:
            what = "keeps what older weights computed of prompts, as it is being asked by somebody else"
            raise UserError(what, where=line.shown, hint="leave the server to this training alone")


def _weights_refusal(line: RetryingClient, fault: Fault, path: str) -> RlaifError:
    """Why the server does not take the weights, in its own words where we know none better."""
    if fault.kind == "http_404":
        what, hint = "takes no weights while it runs", "start it with VLLM_SERVER_DEV_MODE=1 set, or set `lora.rank`"
    elif fault.kind in ("http_500", "bad_request"):
        what, hint = f"refuses the weights: {fault.detail}", f"does it serve this model, and see {path}?"
    else:
        return line.failure(fault)
    return UserError(what, where=line.shown, hint=hint)
