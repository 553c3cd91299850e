"""The one mechanism of every stage that calls a model: plan, ask what is missing, append.

A plan lists questions lazily. Those whose id is in the table are skipped, the rest go to the model in batches with
bounded concurrency, and every answer is appended as it arrives. Resuming, growing a run and editing one principle are
this same function run again.

The model is opened for the first missing question only: a run that lacks nothing starts no server and loads no weights.

A question that fails alone is written to the failures table and asked again by the next run; a model that cannot go on
raises ModelError. Either way nothing that was answered is lost, and no answer is made up.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from rlaif.errors import ModelError
from rlaif.inference.base import Answer, ModelSource, Question
from rlaif.records import Failure, Record
from rlaif.store import Table

R = TypeVar("R", bound=Record)

_SKIPS_A_TURN = 1000
"""Known questions passed over before the event loop gets a turn, so that running requests are not starved."""

_JUDGED_EARLY = 100
"""Questions gone through before the share of failures can stop a stage halfway."""


@dataclass
class Tally:
    """What one stage did in this run."""

    stage: str
    planned: int = 0
    known: int = 0
    """Questions whose answer was on disk already."""
    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """Failures by kind."""
    complaint: str = ""
    """What the latest failure was about."""
    seconds: float = 0.0

    @property
    def asked(self) -> int:
        """Questions that were put to the model."""
        return self.answered + self.failed.total()

    @property
    def done(self) -> int:
        """Questions of the plan gone through so far, in this run or before."""
        return self.known + self.asked

    def __add__(self, other: Tally) -> Tally:
        """Both together, under the name of the first."""
        return Tally(
            self.stage,
            self.planned + other.planned,
            self.known + other.known,
            self.answered + other.answered,
            self.failed + other.failed,
            other.complaint or self.complaint,
            self.seconds + other.seconds,
        )


Progress = Callable[[Tally], None]
"""Called after every batch; must return quickly."""


async def ask(
    questions: Iterable[Question],
    source: ModelSource,
    table: Table[R],
    record: Callable[[Question, Answer], R],
    failures: Table[Failure],
    *,
    stage: str,
    max_failed: float = 1.0,
    progress: Progress | None = None,
) -> Tally:
    """Put the questions that `table` does not hold to the model, and append `record(question, answer)` for each answer.

    Raises ModelError when the model cannot go on, or when more than `max_failed` of the stage's questions have failed,
    those whose answer was on disk counted: looked at from the hundredth on, and at the end of a stage of any size. 1.0
    never stops: the failures are in the tally, for the caller to judge.
    """
    tally = Tally(stage)
    missing = _missing(questions, table, tally)
    first = next((question for question in missing if question is not None), None)
    if first is None:
        return tally
    model = await source.open()
    start = time.perf_counter()
    batches = _batches(itertools.chain([first], missing), model.batch_size)

    async def worker() -> None:
        for batch in batches:
            if batch:
                answers = await model.answer(batch)
                _store(batch, answers, table, record, failures, tally)
                _stop_if_too_slow(tally, new=not len(table))
                _stop_if_hopeless(tally, max_failed)
            else:
                await asyncio.sleep(0)
            tally.seconds = time.perf_counter() - start
            if progress:
                progress(tally)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(model.concurrency):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    _stop_if_hopeless(tally, max_failed, over=True)
    return tally


def _missing(questions: Iterable[Question], table: Table[R], tally: Tally) -> Iterator[Question | None]:
    """The questions without an answer, each id once; None now and then while passing over known ones."""
    asked: set[str] = set()
    for question in questions:
        tally.planned += 1
        if question.id in table:
            tally.known += 1
            if tally.known % _SKIPS_A_TURN == 0:
                yield None
        elif question.id not in asked:
            asked.add(question.id)
            yield question


def _batches(questions: Iterable[Question | None], size: int) -> Iterator[list[Question]]:
    """Batches of `size`, the last one shorter; an empty one for every None."""
    batch: list[Question] = []
    for question in questions:
        if question is None:
            yield []
            continue
        batch.append(question)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _store(
    batch: list[Question],
    answers: list[Answer],
    table: Table[R],
    record: Callable[[Question, Answer], R],
    failures: Table[Failure],
    tally: Tally,
) -> None:
    pairs = list(zip(batch, answers, strict=True))
    good = [record(question, answer) for question, answer in pairs if answer.failure is None]
    bad = [
        Failure(id=question.id, stage=tally.stage, reason=answer.failure, detail=answer.detail[:500])
        for question, answer in pairs
        if answer.failure is not None
    ]
    table.append(good)
    if bad:
        failures.append(bad)
    tally.answered += len(good)
    tally.failed.update(failure.reason for failure in bad)
    tally.complaint = bad[-1].detail if bad else tally.complaint


def _stop_if_too_slow(tally: Tally, *, new: bool) -> None:
    """Of a server that answers nothing in time, a stage without a single answer asks no more; where earlier sessions
    were answered, it is what is left that hangs, and each question fails alone."""
    failed = tally.failed["too_slow"]
    if failed and not tally.answered and (new or failed >= _JUDGED_EARLY):
        raise ModelError(f"{tally.stage}: {tally.complaint}")


def _stop_if_hopeless(tally: Tally, max_failed: float, *, over: bool = False) -> None:
    failed = tally.failed.total()
    if (over or tally.done >= _JUDGED_EARLY) and failed > max_failed * tally.done:
        kinds = ", ".join(f"{kind} {count}" for kind, count in tally.failed.most_common())
        latest = f"; the latest: {tally.complaint}" if tally.complaint else ""
        raise ModelError(
            f"{tally.stage}: {failed} of {tally.done} questions failed ({kinds}{latest}); "
            "see failures.jsonl, fix the cause and run the same command again, or raise `max_failed`"
        )
