"""Any OpenAI-compatible server as a Model: one request per question, or one per batch on vLLM.

A question's way: `answer` groups questions whose sampling and labels are equal, the throttle lets a group pass, one
request carries it, and either its answers come back or a Fault. What can pass is tried again after a pause; a batch
that fails is split in halves until the one conversation at fault stands alone; a question that fails alone gets an
Answer that says why; and what no question can survive (wrong key, server gone) is a ModelError.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from rlaif.errors import ModelError
from rlaif.inference.base import Output, Question, name_with
from rlaif.inference.chat_api import LabelRoute, Way
from rlaif.inference.faults import Fault
from rlaif.inference.probe import Capabilities, Prober
from rlaif.inference.requests import Chat, ServerConnection, address_of
from rlaif.inference.server_health import ServerHealth, Throttle
from rlaif.inference.transport import open_transport

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

_BATCH = 32
"""Conversations per request on vLLM's batch route."""
_SAME_BATCH_TRIES = 2
"""Attempts with a whole batch, before a fault that may lie in one of its conversations is looked for in its halves."""
_LONGEST_WAIT = 60.0
"""Seconds that a Retry-After can hold us back."""
_IN_TRANSIT = frozenset({"refused", "proxy", "dropped", "http_502", "http_503", "http_504"})
"""Faults that come from the way to the server or from its restart; or from a question of which its worker dies."""
_TRANSIT_TRIES = 3
"""Such faults of a question, before the server is asked something small: if it answers, the question is at fault."""
_FEW_LATE, _MANY_LATE = 3, 8
"""As many questions as may go at once, from the one number to the other: where so many timed out and none was ever
answered, one is tried alone."""


class Server:
    """A model behind an OpenAI-compatible server.

    `concurrency` bounds the questions under way together. The API key comes from the caller and is shown nowhere.
    `template_options` go to the chat template (`chat_template_kwargs`: `{"enable_thinking": False}`). `transport` is
    an httpx transport that takes the network's place in tests.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        concurrency: int = 128,
        timeout: float = 120.0,
        max_attempts: int = 6,
        template_options: Mapping[str, Any] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        give_up_after: float = 30.0,
        backoff: float = 0.5,
        say: Callable[[str], None] | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`say` hears when fewer questions are asked at once than were allowed; `note` what is sent otherwise than
        asked for, and what is lost by it (see `Chat`)."""
        address = address_of(base_url, api_key)
        self._talk = ServerConnection(address, open_transport(address.url, address.headers, transport))
        self._chat = Chat(self._talk, model, template_options=template_options, note=note)
        self._timeout, self._max_attempts = timeout, max_attempts
        self._throttle = Throttle(concurrency)
        self._patience = ServerHealth(self._talk.shown, give_up_after=give_up_after, timeout=timeout, backoff=backoff)
        self._say, self._lowest = say, concurrency
        self._answered, self._checks = False, 0
        self._late_requests = self._late_alone = 0
        self._late: set[str] = set()
        """Questions that timed out, as long as none was answered."""
        self._too_slow = False
        """Whether, of many that timed out, not even one alone was answered in time."""
        self._routes: dict[tuple[str, ...], LabelRoute] = {}
        self._ways: dict[str, Way] = {}
        """How answers are begun, by how they begin."""
        self._probing: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None
        self.name = name_with(model, template_options)
        self.batch_size = 1
        self.concurrency = concurrency
        self.capabilities: Capabilities | None = None
        """What `probe` found; None before."""
        self.unreachable = False
        """Whether the last probe met no server at all."""

    def __repr__(self) -> str:
        return f"Server({self._talk.shown!r}, {self.name!r})"

    async def probe(self, labels: tuple[str, ...] = ("A", "B"), example: Question | None = None) -> list[str]:
        """Find out what the server can do. Returns everything that is wrong, one line each with how to fix it.

        Texts are asked for as in `example`, if there is one: by its sampling, after its system message.
        `batch_size`, `concurrency` and `capabilities` are set by it; `answer` probes by itself if nobody did.
        """
        prober = self._prober()
        found = await prober.run(labels, example)
        self.unreachable = prober.unreachable
        if found is not None:
            self.capabilities = found
            self._routes = {(): LabelRoute("text"), labels: found.route}
            self.batch_size = _BATCH if found.batch else 1
            # With batches, twice as many calls as fit: some wait at the throttle, so that it never runs dry.
            fitting = -(-self._throttle.most // self.batch_size)
            self.concurrency = 2 * fitting if found.batch else fitting
        return prober.problems

    async def answer(self, questions: Sequence[Question]) -> list[Output]:
        """One answer a question, in order. Raises ModelError when no further question can be answered."""
        if not questions:
            return []
        if self.capabilities is None:
            await self._probe_once(questions[0])
        groups = self._groups(questions)
        answers: list[Output | None] = [None] * len(questions)
        found = await _together([self._ask([questions[at] for at in group]) for group in groups])
        for group, part in zip(groups, found, strict=True):
            for at, answer in zip(group, part, strict=True):
                answers[at] = answer
        return [answer for answer in answers if answer is not None]

    async def close(self) -> None:
        """Close all connections."""
        await self._talk.close()

    def _groups(self, questions: Sequence[Question]) -> list[list[int]]:
        """Positions of questions that may share a request: equal sampling, labels and prefill, at most a batch."""
        if self.batch_size == 1:
            return [[at] for at in range(len(questions))]
        same: dict[Any, list[int]] = {}
        for at, question in enumerate(questions):
            sampling = question.sampling
            drawn = (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed)
            same.setdefault((question.labels, question.prefill, drawn), []).append(at)
        return [
            group[start : start + self.batch_size]
            for group in same.values()
            for start in range(0, len(group), self.batch_size)
        ]

    async def _ask(self, questions: list[Question], *, asked: bool = False) -> list[Output]:
        """Ask in one request, until there are answers or no hope; `asked` where it was tried before, with others."""
        counted = tries = 0
        since = time.monotonic()
        while True:
            replies = self._patience.replies
            async with self._throttle.slot(len(questions)) as cuts:
                if self._too_slow and (tries or asked):
                    return self._given_up(questions)
                alone = len(questions) == self._throttle.limit == 1
                result = await self._exchange(questions)
            if not isinstance(result, Fault):
                self._throttle.succeeded(len(questions))
                self._patience.heard()
                self._answered, self._too_slow = True, False
                return result
            await self._note(result, cuts)
            if result.kind == "timeout" and not self._answered:
                await self._note_late(questions, alone=alone)
            pause = self._patience.pause(tries)
            tries += 1
            if result.limited:
                hopeless = self._patience.limit_stays(since, tries, self._max_attempts)
                self._throttle.hold(pause)
            else:
                counted += await self._counts(result, tries, replies)
                hopeless = not result.retry or counted >= self._max_attempts
            if len(questions) > 1 and _split_helps(result, counted):
                return await self._ask_in_parts(questions)
            if hopeless:
                return [Output(failure=result.kind, detail=result.detail)] * len(questions)
            await asyncio.sleep(pause)

    async def _ask_in_parts(self, questions: list[Question]) -> list[Output]:
        """The answers of a batch that failed, by its halves; one by one where none of many was answered in time."""
        size = 1 if self._is_late() else len(questions) // 2
        cuts = range(0, len(questions), size) if size == 1 else (0, size)
        ends = [*cuts[1:], len(questions)]
        calls = [self._ask(questions[at:end], asked=True) for at, end in zip(cuts, ends, strict=True)]
        parts = await _together(calls)
        return [answer for part in parts for answer in part]

    async def _counts(self, fault: Fault, tries: int, replies: int) -> bool:
        """Whether a failed attempt is held against its question.

        While the server is away none is: `ServerHealth` decides how long that may last. A server that answered
        meanwhile, or answers something small now, is not away.
        """
        if fault.kind not in _IN_TRANSIT or self._patience.replies > replies:
            return True
        return tries >= _TRANSIT_TRIES and await self._alive()

    def _is_late(self) -> bool:
        many = max(_FEW_LATE, min(_MANY_LATE, self._throttle.most))
        return not self._answered and len(self._late) >= many and self._late_requests >= _FEW_LATE

    async def _note_late(self, questions: list[Question], *, alone: bool) -> None:
        """Note a timeout while no question was ever answered: is it their number, or would one alone be late too?"""
        self._late.update(question.id for question in questions)
        self._late_requests += 1
        if not self._is_late():
            return
        if not alone:
            self._throttle.limit = 1
            return
        self._late_alone += 1  # the first may have waited for what the server still does for those before
        if self._late_alone > 1 and await self._alive():
            self._too_slow = True

    def _given_up(self, questions: list[Question]) -> list[Output]:
        detail = (
            f"{self._talk.shown} answers a small question, but none of these within {self._timeout:g} s, one at a time "
            "neither: raise `timeout`, or lower `concurrency`"
        )
        return [Output(failure="too_slow", detail=detail)] * len(questions)

    async def _exchange(self, questions: list[Question]) -> list[Output] | Fault:
        route = self._routes.get(questions[0].labels)
        if route is None:
            route = await self._route(questions[0].labels)
        way = await self._way(questions[0]) if questions[0].prefill else None
        if isinstance(way, Fault):
            return way
        found = await self._chat.ask(questions, route, timeout=self._timeout, way=way)
        return found if isinstance(found, Fault) else [self._without_key(answer) for answer in found]

    def _without_key(self, answer: Output) -> Output:
        """The answer, unless its text repeats the key: that is to be stored nowhere."""
        if self._talk.tells_secret(answer.text) or self._talk.tells_secret(answer.reasoning):
            return Output(failure="key_in_reply", detail="the model's text repeats the API key")
        return answer

    async def _note(self, fault: Fault, cuts: int) -> None:
        """Tell the throttle and the patience of a failed exchange; raises ModelError where the run must stop."""
        if fault.fatal:
            raise ModelError(f"{self._talk.shown}: {fault.detail}")
        if fault.overload:
            self._throttle.overloaded(cuts)
            self._say_limit(fault)
        if fault.wait:
            self._throttle.hold(min(fault.wait, _LONGEST_WAIT))
        try:
            self._patience.failed(fault)
        except ModelError:
            # A server that hangs, or dies, of one prompt answers a small one: then the question uses up its attempts.
            if not await self._alive():
                raise

    def _say_limit(self, fault: Fault) -> None:
        """Say that fewer questions are asked at once, whenever it is half of what was said before."""
        if self._throttle.limit <= self._lowest // 2 and self._say is not None:
            self._lowest = self._throttle.limit
            what = f"at most {self._lowest} of {self._throttle.most} questions at once from here on"
            self._say(f"{self._talk.shown}: {fault.detail}; {what}")

    async def _alive(self) -> bool:
        """Whether the server answers now."""
        replies, checks = self._patience.replies, self._checks
        async with self._one_at_a_time():
            # Whoever waited for another's check goes by that one.
            if self._patience.replies == replies and self._checks == checks:
                if await self._prober().alive():
                    self._patience.heard()
                self._checks += 1
        return self._patience.replies > replies

    async def _probe_once(self, first: Question) -> None:
        async with self._one_at_a_time():
            problems = await self.probe(first.labels or ("A", "B"), first) if self.capabilities is None else []
        if problems:
            raise ModelError(problems[0])

    async def _route(self, labels: tuple[str, ...]) -> LabelRoute:
        """How to ask with labels that the probe did not ask about."""
        async with self._one_at_a_time():
            if labels not in self._routes:
                prober = self._prober()
                found = await prober.run(labels)
                if found is None:
                    raise ModelError(prober.problems[0])
                self._routes[labels] = found.route
        return self._routes[labels]

    async def _way(self, question: Question) -> Way | Fault:
        """How this server goes on with a begun answer: found by a trial question, always the same one."""
        if question.prefill in self._ways:
            return self._ways[question.prefill]
        async with self._one_at_a_time():
            if question.prefill not in self._ways:
                found = await self._prober().way(question, self._routes[question.labels])
                if isinstance(found, Fault):
                    return found
                self._ways[question.prefill] = found
        return self._ways[question.prefill]

    def _one_at_a_time(self) -> asyncio.Lock:
        """A lock of the running event loop."""
        loop = asyncio.get_running_loop()
        if self._probing is None or self._probing[0] is not loop:
            self._probing = (loop, asyncio.Lock())
        return self._probing[1]

    def _prober(self) -> Prober:
        return Prober(self._chat, timeout=self._timeout, pause=self._patience.pause)


def _split_helps(fault: Fault, attempts: int) -> bool:
    """Whether a failed batch should go on as two halves: its fault may lie in one conversation, or in its size."""
    if not fault.retry or fault.kind == "timeout":
        return True
    return attempts >= _SAME_BATCH_TRIES and not fault.limited


async def _together(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all calls; the first error cancels the rest. A single call runs in the caller's own task."""
    if len(calls) == 1:
        return [await calls[0]]
    tasks = [asyncio.create_task(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
