"""Which models there are: by name, by family, and where each is found.

Which models a server has, for those who name only the server.

Which models are relatives, by their names alone.

A judge prefers what reads like its own writing: recognising itself and preferring itself go together (Panickssery et
al. 2024, arXiv:2404.13076), and familiarity, not authorship, seems to be what it goes by (Wataoka et al. 2024,
arXiv:2410.21819), so that a relative of the policy is no neutral judge of it either.

From settings to a model: on a server, on a vLLM server started for the run, or in process.

The model is opened when its first answer is wanted; its name is known before that: every question's id holds it.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlaif.config.schemas import JudgeSettings, ModelSettings, PolicySettings
from rlaif.errors import ModelError, UserError
from rlaif.inference.base import Model, Question, Rehearsal, name_with, name_without
from rlaif.inference.faults import Fault
from rlaif.inference.requests import ServerConnection, address_of, usable_key
from rlaif.inference.transport import open_transport
from rlaif.records import Message, Sampling

if TYPE_CHECKING:
    from rlaif.inference.client import Server
    from rlaif.inference.probe import Capabilities
    from rlaif.inference.transformers_model import Local
    from rlaif.inference.vllm_process import VllmServer

_SECONDS = 10.0


async def only_model(base_url: str, api_key: str | None = None) -> str:
    """The one model that a server lists. Raises UserError where there are several or none, ModelError without a server.

    `base_url` is that of the API, for instance http://127.0.0.1:8000/v1.
    """
    address = address_of(base_url, api_key)
    connection = ServerConnection(address, open_transport(address.url, address.headers))
    try:
        reply = await connection.get("/models", timeout=_SECONDS)
    finally:
        await connection.close()
    if isinstance(reply, Fault):
        if reply.kind in ("refused", "dropped", "timeout"):
            raise ModelError(f"{connection.shown}: not reachable ({reply.detail})")
        raise UserError(f"cannot tell its models: {reply.detail}", where=connection.shown, hint="name the model")
    listed = reply.get("data")
    names = [
        str(card["id"])
        for card in (listed if isinstance(listed, list) else ())
        if isinstance(card, dict) and "id" in card
    ]
    if len(names) != 1:
        told = f"lists {len(names)} models" + (f": {connection.hide(', '.join(names[:10]))}" if names else "")
        raise UserError(told, where=connection.shown, hint="name the one that is meant")
    return names[0]


_SIZES = {
    *("nano", "micro", "tiny", "mini", "small", "base", "medium", "large", "xl", "xxl", "ultra", "lite", "plus", "max"),
    *("nemo", "haiku", "sonnet", "opus", "flash", "pro", "turbo"),
}
"""Words that say how large a model of its family is."""

_MAKERS = {"meta"}
"""Words before the family's name: Meta-Llama-3 and Llama-3.1 are relatives."""


def family(name: str) -> tuple[str, ...]:
    """The words of a model's name before its size or version, in lower case: `Qwen/Qwen3-8B` gives `qwen`.

    Organisation and folder do not count. Empty where the name begins with a size or a version.
    """
    words = []
    for word in re.split(r"[-_\s:@]+", name_without(name).rstrip("/").rsplit("/", 1)[-1].lower()):
        letters = re.split(r"\d", word, maxsplit=1)[0].rstrip(".")
        if letters == word and word not in _SIZES:
            words.append(word)
            continue
        if letters != word and len(letters) > 1:  # qwen3 and llama2, not v3 and r1
            words.append(letters)
        break
    return tuple(words[1:] if words[0:1] and words[0] in _MAKERS and len(words) > 1 else words)


def related(first: str, second: str) -> bool:
    """Whether two models have one name, or one's family is the other's or a branch of it (gpt-oss-20b and gpt-4o)."""
    one, other = family(first), family(second)
    least = min(len(one), len(other))
    return first == second or (least > 0 and one[:least] == other[:least])


def same_family(policy: str | None, judges: Sequence[str]) -> str | None:
    """A sentence about the judges that are of the policy's family; None where there are none."""
    found = [judge for judge in judges if policy is not None and related(judge, policy)]
    if not found:
        return None
    told = f"the judge {found[0]} is" if len(found) == 1 else f"the judges {' and '.join(found)} are"
    return f"{told} of the policy's own family ({policy}): judges prefer what reads like their own writing"


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
        rehearsals: Callable[[], Sequence[Rehearsal]] = tuple,
    ) -> None:
        """`labels` are those that it will be asked for; `log` is where a launched server writes; `say` hears of it;
        `rehearsals` gives conversations that the chat template of a model in process has to be able to write.

        Raises UserError at once where its API key is missing, unless it will not be `asked` and only gives its name.
        """
        self._settings, self._log, self._labels, self._say = settings, log, labels, say
        self._rehearsals = rehearsals
        self._key = api_key(settings) if asked else None
        self._name: str | None = None
        self._model: Model | None = None
        self._server: VllmServer | None = None
        self.capabilities: Capabilities | None = None
        """What the probe found."""
        self.notes: list[str] = []
        """What is sent to the server otherwise than asked for, and what is lost by it."""

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
        from rlaif.inference.client import Server
        from rlaif.inference.transformers_model import Local

        self._model = model = await self._started()
        if isinstance(model, Server):
            problems = await model.probe(self._labels, _example(self._settings))
            if model.unreachable:
                raise ModelError(problems[0])
        else:
            problems = await model.probe(self._labels)
        self.capabilities = model.capabilities
        if isinstance(model, Local) and not problems:
            problems = await model.rehearse(self._rehearsals())
        return problems

    @property
    def described(self) -> str:
        """What the probe found, for people."""
        return str(self.capabilities or "")

    def _note(self, text: str) -> None:
        self.notes.append(text)
        if self._say is not None:
            self._say(f"{self._settings.model}: {text}")

    async def _started(self) -> Server | Local:
        from rlaif.inference.client import Server
        from rlaif.inference.transformers_model import Local

        settings = self._settings
        url = settings.base_url
        if settings.launch is not None:
            from rlaif.inference.vllm_process import VllmServer

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
            note=self._note,
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


def _example(settings: ModelSettings) -> Question | None:
    """A question as the run will ask a policy: with a seed, its sampling and its system message."""
    if not isinstance(settings, PolicySettings):
        return None
    sampling = Sampling(
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed if settings.temperature else None,
    )
    system = (Message(role="system", content=settings.system),) if settings.system else ()
    return Question("probe", settings.model, system, sampling)


def model_name(settings: ModelSettings) -> str:
    """The identity of a model: its name on the server, or the local name with the fingerprint of its files; and what
    its chat template is told. Nothing is loaded, and no key is wanted."""
    name = settings.model
    if not (settings.base_url or settings.launch):
        from rlaif.inference.model_folder import identity

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
        hint = f"export {variable}=... before the run"
        raise UserError(f"the environment variable `{variable}` is not set", where=where, hint=hint)
    return usable_key(key, f"the environment variable `{variable}`", where=where)


def served_model(base_url: str, api_key_env: str | None, hint: str) -> str:
    """The one model of a server. Raises UserError where it has several: `hint` is how to name one of them."""
    from rlaif.errors import UserError
    from rlaif.inference.base import blocking
    from rlaif.inference.models import key_in, only_model

    key = key_in(api_key_env)
    try:
        return blocking(only_model(base_url, key))
    except UserError as error:
        raise UserError(error.what, where=error.where, hint=f"say which one with {hint}") from None
