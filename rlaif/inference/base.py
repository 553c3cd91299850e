"""The one mechanism of every model call: plan questions, ask the missing ones, append the answers.

`Question`, `Output` and `Model` are what a model is asked, what it answers, and the interface of everything that
answers. A plan lists questions lazily. Those whose id is in the table are skipped, the rest go to the model in batches
with bounded concurrency, and every answer is appended as it arrives. Resuming, growing a run and editing one principle
are this same function run again. The model is opened for the first missing question only: a run that lacks nothing
starts no server and loads no weights.

A question that fails alone is written to the failures table and asked again by the next run; a model that cannot go on
raises ModelError. Either way nothing that was answered is lost, and no answer is made up.

`Background` and `blocking` are the event loops of synchronous callers: connections do not outlive the loop that opened
them, so an object that keeps a model open between calls owns a `Background`; `blocking` runs one coroutine, where a
loop is running already (a notebook) too.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import hashlib
import itertools
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, cast

from rlaif.errors import ModelError
from rlaif.progress import Progress
from rlaif.records import Failure, Messages, Record, Sampling
from rlaif.store import Table


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
class Output:
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
    hint: str
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

    async def answer(self, questions: Sequence[Question]) -> list[Output]:
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


R = TypeVar("R", bound=Record)

_SKIPS_A_TURN = 1000
"""Known questions passed over before the event loop gets a turn, so that running requests are not starved."""

_JUDGED_EARLY = 100
"""Questions gone through before the share of failures can stop a stage halfway."""


@dataclass
class StageStats:
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

    @property
    def note(self) -> str:
        """How fast the stage is, and what failed."""
        rate = f"{self.asked / self.seconds:.0f}/s" if self.seconds > 0.5 else ""
        failed = f"{self.failed.total()} failed" if self.failed else ""
        return ", ".join(filter(None, (rate, failed)))

    @property
    def summary(self) -> str:
        """What the stage came to, in a line."""
        return (
            f"{self.answered} answered, {self.known} on disk already, {self.failed.total()} failed, "
            f"{self.seconds:.1f} s"
        )

    def report_to(self, progress: Progress) -> None:
        """Show how far the stage is."""
        progress.advance(self.stage, self.done, self.note)

    def __add__(self, other: StageStats) -> StageStats:
        """Both together, under the name of the first."""
        return StageStats(
            self.stage,
            self.planned + other.planned,
            self.known + other.known,
            self.answered + other.answered,
            self.failed + other.failed,
            other.complaint or self.complaint,
            self.seconds + other.seconds,
        )


async def ask(
    questions: Iterable[Question],
    source: ModelSource,
    table: Table[R],
    record: Callable[[Question, Output], R],
    failures: Table[Failure],
    *,
    stage: str,
    max_failed: float = 1.0,
    progress: Progress | None = None,
) -> StageStats:
    """Put the questions that `table` does not hold to the model, and append `record(question, answer)` for each answer.

    Raises ModelError when the model cannot go on, or when more than `max_failed` of the stage's questions have failed,
    those whose answer was on disk counted: looked at from the hundredth on, and at the end of a stage of any size. 1.0
    never stops: the failures are in the tally, for the caller to judge.
    """
    tally = StageStats(stage)
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
                tally.report_to(progress)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(model.concurrency):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    _stop_if_hopeless(tally, max_failed, over=True)
    return tally


def _missing(questions: Iterable[Question], table: Table[R], tally: StageStats) -> Iterator[Question | None]:
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
    answers: list[Output],
    table: Table[R],
    record: Callable[[Question, Output], R],
    failures: Table[Failure],
    tally: StageStats,
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


def _stop_if_too_slow(tally: StageStats, *, new: bool) -> None:
    """Of a server that answers nothing in time, a stage without a single answer asks no more; where earlier sessions
    were answered, it is what is left that hangs, and each question fails alone."""
    failed = tally.failed["too_slow"]
    if failed and not tally.answered and (new or failed >= _JUDGED_EARLY):
        raise ModelError(f"{tally.stage}: {tally.complaint}")


def _stop_if_hopeless(tally: StageStats, max_failed: float, *, over: bool = False) -> None:
    failed = tally.failed.total()
    if (over or tally.done >= _JUDGED_EARLY) and failed > max_failed * tally.done:
        kinds = ", ".join(f"{kind} {count}" for kind, count in tally.failed.most_common())
        latest = f"; the latest: {tally.complaint}" if tally.complaint else ""
        raise ModelError(
            f"{tally.stage}: {failed} of {tally.done} questions failed ({kinds}{latest}); "
            "see failures.jsonl, fix the cause and run the same command again, or raise `max_failed`"
        )


P = ParamSpec("P")
T = TypeVar("T")

_CLOSE_TIMEOUT = 60.0
"""Seconds that closing may take; a launched server needs some."""


class Background:
    """An event loop in a daemon thread."""

    def __init__(self, name: str) -> None:
        """`name` is the thread's. A program that ends without `close` does not wait for the thread."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and return its result. An interrupt while waiting cancels the coroutine."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # no effect on a future that is done

    def close(self, last: Coroutine[Any, Any, None] | None = None) -> None:
        """Cancel the running tasks, wait for their cleanup, run `last`, then end the loop and its thread."""

        async def shut_down() -> None:
            try:
                tasks = asyncio.all_tasks() - {asyncio.current_task()}
                for task in tasks:
                    if not task.cancelling():  # a second cancellation would cut the cleanup short
                        task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                if last is not None:
                    await last
            finally:
                await self._loop.shutdown_asyncgens()
                await self._loop.shutdown_default_executor()

        try:
            asyncio.run_coroutine_threadsafe(shut_down(), self._loop).result(_CLOSE_TIMEOUT)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CLOSE_TIMEOUT)
            if not self._thread.is_alive():
                self._loop.close()


class Closable(Protocol):
    """What is closed when the work is done: a model, or its source."""

    async def close(self) -> None:
        """Close it; nothing where it is closed already."""
        ...


def blocking(work: Coroutine[Any, Any, T], *models: Closable) -> T:
    """`asyncio.run`, also where an event loop is running already, as in a notebook; closes `models` at the end.

    There the coroutine gets a loop in a thread of its own. An interrupt cancels it, and the caller continues when its
    cleanup is done.
    """
    work = _closing(work, models) if models else work
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        running = False
    else:
        running = True
    if not running:
        return asyncio.run(work)
    background = Background("rlaif")
    try:  # an interrupt may arrive before `run` waits: `close` cancels whatever has started
        return background.run(work)
    finally:
        background.close()


async def _closing(work: Coroutine[Any, Any, T], models: Sequence[Closable]) -> T:
    try:
        return await work
    finally:
        for model in models:
            await model.close()


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function in a daemon thread and return its result.

    A cancelled caller does not wait for the thread: loading weights, or a forward pass, cannot be stopped halfway. The
    result is then dropped.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast(T, result))

    def run() -> None:
        result, error = None, None
        try:
            result = work(*args, **kwargs)
        except BaseException as raised:  # noqa: BLE001 - the caller gets it
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has closed meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True).start()
    return await future


SPACES = "Ġ▁Ċĉč \t\r\n"
"""Whitespace as byte-level BPE and SentencePiece vocabularies write it; a label never starts or ends with it."""


_ENDS = re.compile(r"[\s.*_`'\")\]}。ĊĠ▁]*|<[^<>\s]*>")
"""What may follow the label at a text's end."""


FLOOR = -9999.0
"""What vLLM sends for a log-probability of minus infinity, which JSON cannot carry."""


_MOST = 0.1
"""Of a log-probability: 0 but for rounding."""


def checked(answer: Output) -> Output:
    """The answer with minus infinity as `FLOOR`, so that its record can be stored; or a failure where a value is NaN,
    or far above 0: a model that gives such numbers (half precision that overflowed) has not answered."""
    if answer.logprobs is None:
        return answer
    if not all(value <= _MOST for value in answer.logprobs):
        return Output(failure="bad_logprobs", detail=f"not log-probabilities: {answer.logprobs}")
    return replace(answer, logprobs=tuple(max(FLOOR, value) for value in answer.logprobs))


def label_text(labels: Sequence[str]) -> str:
    """The text to tokenize (without special tokens) when looking for the labels' tokens."""
    return "".join(f"\n{label}" for label in labels) + "".join(f": {label}" for label in labels)


def label_tokens(labels: Sequence[str], ids: Sequence[object], strings: Sequence[object]) -> list[list[int]] | None:
    """The distinct ids of each label among the tokens of `label_text`; None if a label is not one token, and where
    ids and strings are not those of as many tokens."""
    if len(ids) != len(strings):
        return None
    found: list[list[int]] = [[] for _ in labels]
    for token, string in zip(ids, strings, strict=True):
        if not isinstance(token, int) or isinstance(token, bool) or not isinstance(string, str):
            return None
        for at, label in enumerate(labels):
            if string.strip(SPACES) == label and token not in found[at]:
                found[at].append(token)
    return found if all(found) else None


def last_label(tokens: Sequence[str], labels: Sequence[str]) -> int | None:
    """Where the label stands that these tokens end in; None where they end in something else.

    After it only blanks, closing marks and special tokens may come.
    """
    for at in reversed(range(len(tokens))):
        if tokens[at].strip(SPACES) in labels:
            return at
        if not _ENDS.fullmatch(tokens[at]):
            return None
    return None
