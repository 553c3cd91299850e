"""The policy's adapters on a vLLM server: loaded while it runs, every version under a name of its own.

The server caches keys and values of prompts under the adapter's name: weights that took the place of others under an
old name would meet what those had computed. So a name and a folder are never used twice, by no training.
"""

from __future__ import annotations

import re
import shutil
import uuid
from pathlib import Path

from rlaif.errors import RlaifError, UserError
from rlaif.inference.faults import Fault
from rlaif.online.line import Line
from rlaif.online.weights import OwnFolder, WeightsSource

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

    async def begin(self, line: Line) -> tuple[str, int | None]:
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

    async def load(self, line: Line, version: int) -> str:
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

    async def end(self, line: Line) -> None:
        """Take all versions from the server, if it is still there, and delete them."""
        while self._held:
            await self._drop(line)
        self._own.leave()

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
