"""A model in process, through transformers: the default for small models, and for machines without a server.

Questions are sorted and go through the model in batches (see `rlaif.inference.loaded`). The work runs in a
thread, so that Ctrl-C and the table writer stay responsive.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlaif.errors import ModelError, UserError
from rlaif.inference.background import in_thread
from rlaif.inference.base import Answer, Question, name_with
from rlaif.inference.chat import LabelRoute
from rlaif.inference.folder import identity as identity
from rlaif.inference.folder import model_folder
from rlaif.inference.loaded import TOKENS_AT_ONCE, Loaded, Row
from rlaif.inference.probe import Capabilities

_CALLS_OF_ROWS = 2
"""Batches that one `answer` call takes: sorted by length among themselves, they carry less padding. More would lose
more to an interrupt, since answers are kept when the whole call is done."""


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
        self._loaded: Loaded | None = None
        self._one_at_a_time = threading.Lock()
        own = identity(model) if name is None else f"{name}@{identity(model).rpartition('@')[2]}"
        self.name = name_with(own, template_options)
        self.batch_size = _CALLS_OF_ROWS * batch_size
        self.concurrency = 2
        self.capabilities: Capabilities | None = None
        """What `probe` found; None before."""

    async def probe(self, labels: tuple[str, ...] = ("A", "B")) -> list[str]:
        """Load the model and check that it can be asked. Returns everything that is wrong, one line each."""
        try:
            loaded = await in_thread(self._load)
        except UserError as error:
            return [str(error)]
        problems = loaded.problems(labels)
        self.capabilities = Capabilities(LabelRoute("exact"), batch=True, context=loaded.context)
        return problems

    async def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer a question, in order. Raises UserError when the model cannot be loaded."""
        halted = threading.Event()
        try:
            return await in_thread(self._answer, list(questions), halted)
        except asyncio.CancelledError:
            halted.set()
            raise

    async def close(self) -> None:
        """Let go of the model's memory."""
        self._loaded = None

    def _load(self) -> Loaded:
        with self._one_at_a_time:
            if self._loaded is None:
                self._loaded = Loaded(self._folder, self._device, self._dtype, self._options)
            return self._loaded

    def _answer(self, questions: list[Question], halted: threading.Event) -> list[Answer]:
        loaded = self._load()
        answers: dict[int, Answer] = {}
        rows: list[Row] = []
        for at, question in enumerate(questions):
            row = loaded.row(at, question)
            if isinstance(row, Answer):
                answers[at] = row
            else:
                rows.append(row)
        ends, texts = [row for row in rows if _next_token(row)], [row for row in rows if not _next_token(row)]
        with self._one_at_a_time:
            answers.update((row.at, answer) for row, answer in loaded.labels(ends, self._rows, halted))
            for batch in _batches(texts, self._rows):
                if halted.is_set():
                    raise ModelError("stopped")
                answers.update(zip((row.at for row in batch), loaded.texts(batch, halted), strict=True))
        return [answers[at] for at in range(len(questions))]


def _next_token(row: Row) -> bool:
    """Whether one pass answers it."""
    return bool(row.question.labels) and not row.question.reasoned


def _batches(rows: list[Row], most_rows: int) -> Iterator[list[Row]]:
    """Rows that are generated for together, of about equal length; they also share their room for the answer."""
    batch: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.room, len(row.ids))):
        full = len(batch) == most_rows or (len(batch) + 1) * (len(row.ids) + row.room) > TOKENS_AT_ONCE
        if batch and (full or row.room != batch[0].room):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
