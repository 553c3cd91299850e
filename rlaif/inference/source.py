"""From settings to a model: on a server, on a vLLM server started for the run, or in process.

The model is opened when its first answer is wanted; its name is known before that: every question's id holds it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rlaif.errors import ModelError, UserError
from rlaif.inference.base import Model, name_with
from rlaif.inference.talk import usable_key
from rlaif.settings import JudgeSettings, ModelSettings, PolicySettings

if TYPE_CHECKING:
    from rlaif.inference.launch import VllmServer
    from rlaif.inference.local import Local
    from rlaif.inference.server import Server


class LazyModel:
    """A `ModelSource` made from settings."""

    def __init__(
        self,
        settings: ModelSettings,
        *,
        log: Path,
        labels: tuple[str, ...] = (),
        say: Callable[[str], None] | None = None,
        asked: bool = True,
    ) -> None:
        """`labels` are those that it will be asked for; `log` is where a launched server writes; `say` hears of it.

        Raises UserError at once where its API key is missing, unless it will not be `asked` and only gives its name.
        """
        self._settings, self._log, self._labels, self._say = settings, log, labels, say
        self._key = api_key(settings) if asked else None
        self._name: str | None = None
        self._model: Model | None = None
        self._server: VllmServer | None = None
        self.described = ""
        """What the probe found, for people."""

    @property
    def name(self) -> str:
        """See `model_name`."""
        if self._name is None:
            self._name = model_name(self._settings)
        return self._name

    async def open(self) -> Model:
        """The model, started and probed. Raises UserError or ModelError with the first thing that is wrong."""
        if self._model is None:
            problems = await self.probe()
            if problems:
                raise UserError(problems[0])
        assert self._model is not None
        return self._model

    async def probe(self) -> list[str]:
        """Start the model if need be, and look what it can do. Returns everything that is wrong, a line each."""
        from rlaif.inference.server import Server

        self._model = model = await self._started()
        problems = await model.probe(self._labels)
        if isinstance(model, Server) and model.unreachable:
            raise ModelError(problems[0])
        self.described = str(model.capabilities or "")
        return problems

    async def _started(self) -> Server | Local:
        from rlaif.inference.local import Local
        from rlaif.inference.server import Server

        settings = self._settings
        url = settings.base_url
        if settings.launch is not None:
            from rlaif.inference.launch import VllmServer

            self._server = VllmServer(settings.model, extra=settings.launch_args, log=self._log, api_key=self._key)
            if self._say is not None:
                self._say(f"starting vLLM with {settings.model}; its log is {self._log}")
            await asyncio.to_thread(self._server.start)
            url = self._server.base_url
        if url is None:
            return Local(settings.model, device=settings.device, template_options=settings.template_options)
        return Server(
            url,
            settings.model,
            api_key=self._key,
            concurrency=settings.concurrency,
            timeout=settings.timeout,
            template_options=settings.template_options or None,
            say=self._say,
        )

    async def close(self) -> None:
        """Close the model, and stop its server if it was started here."""
        if self._model is not None:
            await self._model.close()
            self._model = None
        if self._server is not None:
            await asyncio.to_thread(self._server.stop)
            self._server = None


def model_name(settings: ModelSettings) -> str:
    """The identity of a model: its name on the server, or the local name with the fingerprint of its files; and what
    its chat template is told. Nothing is loaded, and no key is wanted."""
    name = settings.model
    if not (settings.base_url or settings.launch):
        from rlaif.inference.local import identity

        name = identity(name)
    return name_with(name, settings.template_options)


def api_key(settings: ModelSettings) -> str | None:
    """The key from the environment variable that the settings name. Raises UserError where it is not set."""
    owner = {PolicySettings: "policy.", JudgeSettings: "judge."}.get(type(settings), "")
    return key_in(settings.api_key_env, where=f"{owner}api_key_env")


def key_in(variable: str | None, *, where: str = "api_key_env") -> str | None:
    """The API key in the environment variable of a name, if one is named; `where` it is named is for the message.

    Raises UserError where the variable is not set.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        mend = f"export {variable}=... before the run"
        raise UserError(f"the environment variable `{variable}` is not set", where=where, mend=mend)
    return usable_key(key, f"the environment variable `{variable}`", where=where)
