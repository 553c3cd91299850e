"""What a model is asked, what it answers, and the one interface of everything that answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from rlaif.records import Messages, Sampling


def name_with(name: str, template_options: Mapping[str, Any] | None) -> str:
    """The identity of a model: its name and, where its chat template is told something, that as canonical JSON:
    `Qwen/Qwen3-8B {"enable_thinking":false}`. It decides the answers as the weights do."""
    if not template_options:
        return name
    return f"{name} {json.dumps(template_options, ensure_ascii=False, separators=(',', ':'), sort_keys=True)}"


def name_without(identity: str) -> str:
    """The name in an identity."""
    return identity.partition(" {")[0]


class Question:
    """One call to a model. `id` hashes everything that determines the answer, and nothing else.

    Plain slots instead of a pydantic model: a plan of a million questions is hashed anew on every start.
    """

    __slots__ = ("about", "id", "index", "kind", "labels", "messages", "model", "prefill", "sampling")

    def __init__(
        self,
        kind: str,
        model: str,
        messages: Messages,
        sampling: Sampling,
        *,
        labels: tuple[str, ...] = (),
        prefill: str = "",
        index: int = 0,
        about: Mapping[str, str | int | None] | None = None,
    ) -> None:
        """Ask `model` for a text, or, with `labels`, for the log-probabilities of those labels as the next token.

        With labels and room for more than one token, a text is asked for that ends in a label (`reasoned`). With
        `prefill` the answer begins with that text, and what is asked for is what follows it.
        `index` tells equal draws apart (the n samples of one prompt). `about` is not hashed: it holds the fields of
        the record that say what the question was about.
        """
        self.kind, self.model, self.messages, self.sampling = kind, model, messages, sampling
        self.labels, self.prefill, self.index, self.about = labels, prefill, index, about or {}
        parts = [kind, model, *labels, "", *(part for m in messages for part in (m.role, m.content))]
        parts.append(f"{sampling.max_tokens} {sampling.temperature} {sampling.top_p} {sampling.seed} {index}")
        if prefill:  # without one, a question has the id that it had when there were none
            parts += ["prefill", prefill]
        # Every part with its length before it: no two lists of parts run together into one text.
        text = "".join([f"{len(part)}:{part}" for part in parts])
        self.id = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    @property
    def reasoned(self) -> bool:
        """Whether the label is looked for at the end of a text, and not as the next token."""
        return bool(self.labels) and self.sampling.max_tokens > 1


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: a text or label log-probabilities, or the reason why not. `failure` set means nothing else is."""

    text: str = ""
    logprobs: tuple[float, ...] | None = None
    """Natural-log probabilities of the question's labels over the full vocabulary, in their order; after reasons those
    where the last word is a label, else none."""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that the server took from its prefix cache."""
    failure: str | None = None
    """A short kind, for counting: `timeout`, `refused`, `dropped`, `http_500`, `too_long`, `bad_request`,
    `broken_json`, `no_logprobs`, `no_labels` (neither is a probable token), `bad_logprobs` (NaN), `short_batch`,
    `only_reasoning`, `oversized`, `too_slow` (like all before it), `key_in_reply` (the text repeats the API key).
    """
    detail: str = ""
    reasoning: str = ""
    """What the model thought before its text, where the server tells that apart; kept for `reasoned` questions."""
    label_mass: float | None = None
    """Probability of those labels that the reply listed, where a bound stands for some of the others."""
    listed: int = 0
    """Tokens whose log-probabilities the reply listed in the place of the label."""
    lowest: float = 0.0
    """The least of those log-probabilities."""


class Rehearsal(NamedTuple):
    """A conversation that a model will be asked, written by its chat template before anything is spent."""

    where: str
    """The setting that it comes from."""
    messages: Messages
    mend: str
    """What helps where the template cannot write it."""


class Model(Protocol):
    """Whatever answers questions. Every implementation gives the same answer to the same question, within tolerance."""

    name: str
    """Identity of the model; part of every question's id."""
    batch_size: int
    """Questions that it likes to get in one `answer` call."""
    concurrency: int
    """`answer` calls that may be under way together."""

    async def probe(self, labels: tuple[str, ...]) -> list[str]:
        """Find out whether questions with these labels can be asked. Returns everything that is wrong, a line each."""
        ...

    async def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer a question, in order. Raises ModelError when no further question can be answered."""
        ...

    async def close(self) -> None:
        """Let go of connections, memory and processes."""
        ...


class ModelSource(Protocol):
    """A model that is started, loaded and probed when its first answer is wanted."""

    @property
    def name(self) -> str:
        """Identity of the model, known without opening it: plans are made with it."""
        ...

    async def open(self) -> Model:
        """The model, ready to answer; the same one every time. Raises UserError or ModelError saying what is wrong."""
        ...

    async def close(self) -> None:
        """Close the model if it was opened."""
        ...
