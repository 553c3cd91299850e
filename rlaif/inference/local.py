"""A model in process, through transformers: the default for small models, and for machines without a server.

It answers as vLLM does, to 1e-3: the same chat template, the same spellings of a label, log-probabilities over the
full vocabulary in fp32. Label questions are padded on the right: a causal model never looks to the right, so padding
needs no mask and changes no number. Texts are padded on the left, as generation wants it.

The work runs in a thread, so that Ctrl-C and the table writer stay responsive.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlaif.errors import ModelError, UserError
from rlaif.inference.base import Answer, Question
from rlaif.inference.chat import LabelRoute
from rlaif.inference.drawing import Draw, Halt
from rlaif.inference.folder import identity as identity
from rlaif.inference.folder import model_folder
from rlaif.inference.labels import label_text, label_tokens, logsumexp
from rlaif.inference.probe import Capabilities

if TYPE_CHECKING:
    from pathlib import Path

    import torch

_TOKENS_AT_ONCE = 32_768
"""Padded tokens of one forward pass, so that long prompts go in smaller batches."""
_CALLS_OF_ROWS = 4
"""Batches that one `answer` call takes: sorted by length among themselves, they carry less padding."""


@dataclass(frozen=True)
class _Row:
    """One question that can be asked: its place in the call and its prompt's tokens."""

    at: int
    question: Question
    ids: list[int]
    room: int
    """Tokens that may be generated."""


class Local:
    """A model in this process: a folder, a hub name, or a model that ships with the package."""

    def __init__(
        self,
        model: str,
        *,
        name: str | None = None,
        device: str = "auto",
        dtype: str | None = None,
        batch_size: int = 32,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        """`batch_size` is the number of rows of a forward pass. `dtype` is fp32 on a CPU, the model's own elsewhere."""
        self._folder = model_folder(model)
        self._device, self._dtype, self._rows = device, dtype, batch_size
        self._options = dict(template_options or {})
        self._loaded: _Loaded | None = None
        self._one_at_a_time = threading.Lock()
        self.name = identity(model) if name is None else f"{name}@{identity(model).rpartition('@')[2]}"
        self.batch_size = _CALLS_OF_ROWS * batch_size
        self.concurrency = 2
        self.capabilities: Capabilities | None = None
        """What `probe` found; None before."""

    async def probe(self, labels: tuple[str, ...] = ("A", "B")) -> list[str]:
        """Load the model and check that it can be asked. Returns everything that is wrong, one line each."""
        try:
            loaded = await asyncio.to_thread(self._load)
        except UserError as error:
            return [str(error)]
        problems = loaded.check(labels)
        self.capabilities = Capabilities(LabelRoute("exact"), batch=True, context=loaded.context)
        return problems

    async def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer a question, in order. Raises UserError when the model cannot be loaded."""
        halted = threading.Event()
        try:
            return await asyncio.to_thread(self._answer, list(questions), halted)
        except asyncio.CancelledError:
            halted.set()
            raise

    async def close(self) -> None:
        """Let go of the model's memory."""
        await asyncio.to_thread(self._unload)

    def _load(self) -> _Loaded:
        with self._one_at_a_time:
            if self._loaded is None:
                self._loaded = _Loaded(self._folder, self._device, self._dtype, self._options)
            return self._loaded

    def _unload(self) -> None:
        with self._one_at_a_time:
            self._loaded = None

    def _answer(self, questions: list[Question], halted: threading.Event) -> list[Answer]:
        loaded = self._load()
        answers: dict[int, Answer] = {}
        rows: list[_Row] = []
        for at, question in enumerate(questions):
            row = loaded.row(at, question)
            if isinstance(row, Answer):
                answers[at] = row
            else:
                rows.append(row)
        with self._one_at_a_time:
            for batch in _batches(rows, self._rows):
                if halted.is_set():
                    raise ModelError("stopped")
                found = loaded.labels(batch) if batch[0].question.labels else loaded.texts(batch, halted)
                answers.update(zip((row.at for row in batch), found, strict=True))
        return [answers[at] for at in range(len(questions))]


def _batches(rows: list[_Row], most_rows: int) -> Iterator[list[_Row]]:
    """Rows that can share a pass, of about equal length; texts also share their room for the answer."""

    def kind(row: _Row) -> tuple[bool, int]:
        return bool(row.question.labels), 0 if row.question.labels else row.room

    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: (kind(row), len(row.ids))):
        width = len(row.ids) + kind(row)[1]
        full = len(batch) == most_rows or (len(batch) + 1) * width > _TOKENS_AT_ONCE
        if batch and (full or kind(row) != kind(batch[0])):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


class _Loaded:
    """Model and tokenizer in memory."""

    def __init__(self, folder: Path, device: str, dtype: str | None, options: Mapping[str, Any]) -> None:
        import torch

        self._torch, self._folder, self._options = torch, folder, options
        self.device = torch.device(_best_device() if device == "auto" else device)
        self._tokenizer, self._model = _read(folder, dtype or ("float32" if self.device.type == "cpu" else "auto"))
        try:
            self._model.to(self.device)
        except RuntimeError as error:  # also out of memory, and a device that does not exist
            raise UserError(f"cannot load onto `{device}`: {str(error).splitlines()[0]}", where=folder) from None
        self._ends = _end_tokens(self._model, self._tokenizer)
        self._pad = next(token for token in (self._tokenizer.pad_token_id, *self._ends, 0) if token is not None)
        self._short_logits = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        self._label_ids: dict[tuple[str, ...], list[list[int]] | None] = {}
        length = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        self.context: int | None = length if isinstance(length, int) else None

    def check(self, labels: tuple[str, ...]) -> list[str]:
        """What stands in the way of asking."""
        return []
