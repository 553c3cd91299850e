"""The policy's weights on a server that samples: who brings them there, and all of them in the place of the server's.

vLLM reads a folder of safetensors into a model that runs (`reload_weights`), on a GPU or a CPU, whatever it has split,
packed or converted; a folder in /dev/shm never touches a disk. Routes that need no file (NCCL, CUDA IPC) would have to
be spoken from inside the trainer's process, with vLLM imported there.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from rlaif.errors import RlaifError, UserError
from rlaif.inference.faults import Fault
from rlaif.online.line import TRIES, Line

WeightsSource = Callable[[Path], object]
"""Saves the policy's weights, or its adapter, into a folder, as `save_pretrained` does."""


class Carrier(Protocol):
    """Brings the policy's weights to a server."""

    async def begin(self, line: Line) -> tuple[str, int | None]:
        """The model's name, and its context where the server tells. Raises UserError for an unknown model."""
        ...

    async def load(self, line: Line, version: int) -> str:
        """Bring the weights as they are now; the name under which they answer.

        Raises UserError where the server will not have them, ModelError where there is none.
        """
        ...

    async def end(self, line: Line) -> None:
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
            raise UserError(what, where=self.path, mend="set another `rollout.weights`") from error

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

    async def begin(self, line: Line) -> tuple[str, int | None]:
        """See `Carrier`."""
        card = line.base(await line.models(), self._name)
        self._name, self._root, context = str(card["id"]), str(card.get("root") or ""), card.get("max_model_len")
        return self._name, context if isinstance(context, int) else None

    async def load(self, line: Line, version: int) -> str:  # noqa: ARG002 - a server holds one version
        """See `Carrier`."""
        assert self._name is not None, "`begin` comes first"
        self._own.make()
        try:
            self._source(self._own.path)
            await self._take(line, str(self._own.path))
        finally:
            self._own.remove()
        return self._name

    async def end(self, line: Line) -> None:
        """Give the server the weights back that it was started with, whether that works or not."""
        if self._root:
            with contextlib.suppress(RlaifError):
                await self._take(line, self._root, tries=1)
        self._own.leave()

    async def _take(self, line: Line, path: str, *, tries: int = TRIES) -> None:
        """Have the server read the weights at `path`, and forget what it computed with others."""
        order = {"method": "reload_weights", "kwargs": {"weights_path": path}}
        reply = await line.order("/collective_rpc", order, root=True, tries=tries)
        if isinstance(reply, Fault):
            raise _refusal(line, reply, path)
        reply = await line.order("/reset_prefix_cache", {}, root=True, tries=tries)
        if isinstance(reply, Fault):
            raise _refusal(line, reply, path)
        if reply.get("success") is False:
            what = "keeps what older weights computed of prompts, as it is being asked by somebody else"
            raise UserError(what, where=line.shown, mend="leave the server to this training alone")


def _refusal(line: Line, fault: Fault, path: str) -> RlaifError:
    """Why the server does not take the weights, in its own words where we know none better."""
    if fault.kind == "http_404":
        what, mend = "takes no weights while it runs", "start it with VLLM_SERVER_DEV_MODE=1 set, or set `lora.rank`"
    elif fault.kind in ("http_500", "bad_request"):
        what, mend = f"refuses the weights: {fault.detail}", f"does it serve this model, and see {path}?"
    else:
        return line.failure(fault)
    return UserError(what, where=line.shown, mend=mend)
