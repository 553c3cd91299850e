"""What a server can do, found out with a few small requests before anything is asked of it.

1. `GET /models`: is it there, does it know the model, how long may a prompt be. A help, not a condition: servers list
   their models in other forms, or not at all, or not to this key.
2. `POST /tokenize` (vLLM): the token ids of the labels.
3. `POST /chat/completions/batch` (vLLM) with two conversations, else `POST /chat/completions` with one, asked as the
   run will ask: does the chat template work, which parameters are refused, which log-probabilities come back. The
   richest way of asking is tried first.

Everything found wrong is one line that says how to fix it; nothing is guessed from the server's name.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from rlaif.config.judge_templates import ENOUGH, example_comparison
from rlaif.errors import nearest
from rlaif.inference.base import Output, Question, label_text, label_tokens
from rlaif.inference.chat_api import THINKING_TOKENS, TOP, WAYS, LabelRoute, Way
from rlaif.inference.faults import Fault
from rlaif.inference.requests import Chat
from rlaif.records import Message, Sampling
from rlaif.text import begins_with_thinking

T = TypeVar("T")

_QUICK_SECONDS = 10.0
_FIRST_TOKEN_SECONDS = 60.0
"""The first answer of a server that has just started may wait for compilation."""
_TRIES = 4
_LOOKS = 2
"""At a reply that lacks what was asked for, before the run is asked in a poorer way."""
_AWAY = ("refused", "proxy")
_UNREACHABLE = (*_AWAY, "dropped", "timeout")
_UNREAD = ("no_logprobs", "short_batch", "broken_json")
_IN_WORDS = LabelRoute("text")
_SHARP = -50.0
"""Log-probabilities below this show a temperature near 0 in the values."""
_SAME = 0.05
"""How far the values of two equal questions may be apart."""
_SHOWN = 40
_LENGTHS = ("max_model_len", "context_length", "max_context_length", "context_window")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the probe found."""

    route: LabelRoute
    """How label questions are asked."""
    batch: bool
    """Whether several conversations fit into one request."""
    context: int | None
    """Most tokens of a prompt and its answer together, if the server says so."""
    label_mass: float | None = None
    """Probability that the first token of the probe's answer was a label."""
    labels: tuple[str, ...] = ()
    """What was asked for; none where only texts will be."""
    listed: int = 0
    """Log-probabilities that really came."""
    said: str = ""
    """The beginning of the probe's answer, in words."""
    why_words: str = ""
    """Why verdicts are read as words."""

    def __str__(self) -> str:
        length = "context length unknown" if self.context is None else f"context of {self.context} tokens"
        way = f"{self._how()}, " if self.labels else ""
        return f"{way}{'batches' if self.batch else 'single calls'}, {length}"

    def _how(self) -> str:
        if self.route.kind == "exact":
            return "exact label log-probabilities"
        if self.route.kind == "top" and self.listed == 1:
            return "the log-probability of one token: a bound for the other label"
        if self.route.kind == "top":
            return f"log-probabilities of the {self.listed or self.route.top} most probable tokens"
        thinking = ", after thinking" if self.route.room == THINKING_TOKENS else ""
        return f"{self.why_words or 'no log-probabilities'}: verdicts in words{thinking}, hard labels only"

    def doubt(self, least: float) -> str | None:
        """What speaks against labels from this model, with how to fix it; `least` is the smallest label mass that
        counts. None where nothing does."""
        if not self.labels:
            return None
        names = " and ".join(self.labels) if len(self.labels) <= 2 else f"{self.labels[0]} to {self.labels[-1]}"
        began = f" (it began with {self.said[:_SHOWN]!r})" if self.said else ""
        hint = (
            "let it give its reasons first (`compare: {reasoning: reply}`), switch its thinking off "
            "(`template_options`), or take another judge"
        )
        if self.label_mass is not None and self.label_mass < least:
            share = f"{self.label_mass:.3%}"
            return f"{names} had a share of {share} of the first token in the test question{began}; {hint}"
        if self.route.kind == "text" and not says_label(self.said, self.labels):
            return f"the reply to the test question says none of {', '.join(self.labels)}{began}; {hint}"
        return None


def says_label(text: str, labels: Sequence[str]) -> bool:
    """Whether a short reply names one of the labels, and one only."""
    words = set(re.findall(r"\w+", text))
    return len(words & set(labels)) == 1


class Prober:
    """One probe of one server. `problems` collects what is wrong."""

    def __init__(self, chat: Chat, *, timeout: float, pause: Callable[[int], float]) -> None:
        self._chat, self._talk, self._model, self._pause = chat, chat.connection, chat.model, pause
        self._quick, self._patient = min(timeout, _QUICK_SECONDS), min(timeout, _FIRST_TOKEN_SECONDS)
        self._served: list[str] = []
        """Names that the server lists; none where it lists nothing."""
        self.problems: list[str] = []
        self.unreachable = False

    async def run(self, labels: tuple[str, ...], example: Question | None = None) -> Capabilities | None:
        """Probe for questions with these labels (none: texts only). None where the server is of no use.

        Texts are asked for as in `example`: with its sampling, and its system message.
        """
        context = await self._models()
        if self.problems:
            return None
        question = self._question(labels, example)
        routes = await self._routes(labels)
        found = await self._ask(question, routes[0], conversations=2)
        batch = not isinstance(found, Fault) or found.kind == "no_logprobs"
        why = ""
        if isinstance(found, Fault) or not _is_usable(found[0], question, routes[0]):
            route, found, why = await self._single(question, routes)
        else:
            route = routes[0]
        if isinstance(found, Fault):
            self._fail(found)
            return None
        if route.kind != "text" and (warm := await self._warmer(question, route, found[0])) is not None:
            route, found = warm
        self._note_name()
        return _capabilities(route, batch, context, labels, found[0], why)

    async def alive(self) -> bool:
        """Whether a question of a few words gets a reply now, be it a refusal. (`GET /models` would not tell: a front
        answers that while the model behind it hangs.)"""
        found = await self._ask(self._question((), None), _IN_WORDS, conversations=1)
        return not isinstance(found, Fault) or not found.down

    async def way(self, asked: Question, route: LabelRoute) -> Way | Fault:
        """How the server goes on with the begun answer of a question: of the ways that it takes, the first that leaves
        the most probability to the labels. The fault of the last one where it takes none."""
        trial = Question("probe", self._model, example_comparison(), Sampling(max_tokens=1),
                         labels=asked.labels, prefill=asked.prefill)  # fmt: skip
        found: dict[Way, float] = {}
        fault: Fault | None = None
        for way in WAYS:
            answers = await self._ask(trial, route, conversations=1, way=way)
            if isinstance(answers, Fault):
                fault = answers
                continue
            found[way] = _mass_of(answers[0])
            if route.kind == "text" or found[way] >= ENOUGH:
                break
        if found:
            return max(found, key=lambda way: found[way])
        return fault or Fault("bad_request", "the server takes no begun answer")

    async def label_ids(self, labels: Sequence[str]) -> tuple[tuple[int, ...], ...] | None:
        """Token ids of each label from vLLM's /tokenize; None without that route, or if a label is not one token."""
        asked: dict[str, Any] = {"model": self._model, "prompt": label_text(labels), "add_special_tokens": False}
        asked["return_token_strs"] = True
        reply = await self._steadily(lambda: self._talk.post("/tokenize", asked, timeout=self._quick, root=True))
        if isinstance(reply, Fault):
            return None
        ids, strings = reply.get("tokens"), reply.get("token_strs")
        if not isinstance(ids, list) or not isinstance(strings, list):
            return None
        tokens = label_tokens(labels, ids, strings)
        return None if tokens is None else tuple(tuple(ids) for ids in tokens)

    async def _routes(self, labels: tuple[str, ...]) -> list[LabelRoute]:
        """Ways to ask label questions, the richest first."""
        if not labels:
            return [_IN_WORDS]
        tokens = await self.label_ids(labels)
        exact = [] if tokens is None else [LabelRoute("exact", tokens=tokens)]
        return [*exact, LabelRoute("top", top=TOP), LabelRoute("top", top=5), LabelRoute("top"), _IN_WORDS]

    async def _single(
        self, question: Question, routes: Sequence[LabelRoute]
    ) -> tuple[LabelRoute, list[Output] | Fault, str]:
        """The first way of asking that is of use, what it brought, and why no values are read where none are."""
        why, silent = "", False
        route = routes[-1]
        found: list[Output] | Fault = Fault("", "")
        for route in routes:
            if route.kind == "top" and not route.top and silent:
                continue  # it takes the question and lists nothing: fewer would not help
            found = await self._ask(question, route, conversations=1)
            if isinstance(found, list) and _is_collapsed(found[0], question, route):
                why = "log-probabilities in which one token has everything"
                route = replace(route, temperature=1.0)
                found = await self._ask(question, route, conversations=1)
            if isinstance(found, Fault):
                silent = silent or found.kind == "no_logprobs"
                if found.fatal or found.kind in _UNREACHABLE:
                    break
            elif _is_usable(found[0], question, route):
                break
            elif found[0].failure == "bad_logprobs":
                why = f"log-probabilities that are none ({found[0].detail})"
        if isinstance(found, list) and route.kind == "text" and question.labels and _thinks(found[0]):
            roomy = replace(_IN_WORDS, room=THINKING_TOKENS)
            thought = await self._ask(question, roomy, conversations=1)
            route, found = (route, found) if isinstance(thought, Fault) else (roomy, thought)
        return route, found, why

    async def _warmer(
        self, question: Question, route: LabelRoute, answer: Output
    ) -> tuple[LabelRoute, list[Output]] | None:
        """The same way of asking at temperature 1, where the values at temperature 0 are not the model's own: some
        servers divide by the temperature first."""
        if route.temperature or (answer.lowest > _SHARP and not self._chat.dialect.warmed()):
            return None
        warm = replace(route, temperature=1.0)
        found = await self._ask(question, warm, conversations=1)
        if isinstance(found, Fault) or not _is_usable(found[0], question, warm):
            return None
        pairs = zip(answer.logprobs or (), found[0].logprobs or (), strict=False)
        same = bool(answer.logprobs) and all(abs(cold - own) <= _SAME for cold, own in pairs)
        return None if same and not self._chat.dialect.warmed() else (warm, found)

    async def _models(self) -> int | None:
        """Look for the server and the model; returns the context length."""
        reply = await self._steadily(lambda: self._talk.get("/models", timeout=self._quick))
        if isinstance(reply, Fault):
            if reply.kind in _AWAY:
                self._fail(reply)
            return None
        cards = dict(_cards(reply))
        self._served = list(cards)
        card = cards.get(self._model, {})
        return next((card[name] for name in _LENGTHS if isinstance(card.get(name), int)), None)

    def _fail(self, fault: Fault) -> None:
        """Say why the server is of no use."""
        if fault.kind in _UNREACHABLE:
            self.unreachable = True
            hint = "" if fault.kind == "proxy" else ": start the server, or fix `base_url`"
            self._say(f"not reachable ({fault.detail}){hint}")
        elif self._served and self._model not in self._served and fault.kind in ("http_404", "bad_request"):
            self._say(f"does not serve a model called `{self._model}`; {nearest(self._model, self._served)}")
        else:
            self._say(f"a small test question failed: {fault.detail}")

    def _note_name(self) -> None:
        """Say where the server answers for a model that it does not list: it may take any name for what it serves."""
        if self._served and not any(_is_name_of(self._model, listed) for listed in self._served):
            hint = nearest(self._model, self._served[:20])
            self._chat.note(f"the server lists no model called `{self._model}` ({hint}), and answers all the same")

    def _question(self, labels: tuple[str, ...], example: Question | None) -> Question:
        text = f"Answer with one of these and nothing else: {', '.join(labels)}" if labels else "Say yes."
        messages, sampling = [Message(role="user", content=text)], Sampling(max_tokens=1)
        if example is not None and not labels:
            messages = [each for each in example.messages if each.role == "system"] + messages
            sampling = example.sampling.model_copy(update={"max_tokens": min(16, example.sampling.max_tokens)})
        return Question("probe", self._model, tuple(messages), sampling, labels=labels)

    async def _ask(
        self, question: Question, route: LabelRoute, *, conversations: int, way: Way | None = None
    ) -> list[Output] | Fault:
        questions = [question] * conversations
        found = await self._steadily(lambda: self._chat.ask(questions, route, timeout=self._patient, way=way))
        if isinstance(found, Fault) and found.kind == "only_reasoning":  # it thinks, and would answer after that
            return [Output(failure=found.kind, detail=found.detail)] * conversations
        return found

    async def _steadily(self, call: Callable[[], Awaitable[T | Fault]]) -> T | Fault:
        """The reply to `call`, tried again after what may pass quickly."""
        for attempt in range(_TRIES - 1):
            reply = await call()
            if not isinstance(reply, Fault) or not reply.retry or reply.kind in (*_AWAY, "timeout"):
                return reply
            if reply.kind in _UNREAD and attempt + 1 >= _LOOKS:
                return reply
            await asyncio.sleep(self._pause(attempt))
        return await call()

    def _say(self, problem: str) -> None:
        self.problems.append(f"{self._talk.shown}: {self._talk.hide(problem)}")


def _is_usable(answer: Output, question: Question, route: LabelRoute) -> bool:
    """Whether this way of asking brings what it is for."""
    if not question.labels or route.kind == "text":
        return route.kind == "text" and not (question.labels and _thinks(answer))
    return answer.logprobs is not None or answer.failure == "no_labels"


def _is_collapsed(answer: Output, question: Question, route: LabelRoute) -> bool:
    """Whether values came that are no distribution."""
    return bool(question.labels) and route.kind != "text" and answer.logprobs is None and answer.failure is None


def _thinks(answer: Output) -> bool:
    """Whether a reply in words ended before the model had said anything."""
    unsaid = not answer.text.strip() and answer.finish_reason == "length"
    return answer.failure == "only_reasoning" or unsaid or begins_with_thinking(answer.text)


def _capabilities(
    route: LabelRoute, batch: bool, context: int | None, labels: tuple[str, ...], answer: Output, why: str
) -> Capabilities:
    known = answer.logprobs is not None or answer.failure == "no_labels"
    mass = _mass_of(answer) if known else None
    said = answer.text or ("" if answer.failure is None else answer.detail.rpartition(" is ")[2])
    return Capabilities(route, batch, context, mass, labels, answer.listed, said, why if route.kind == "text" else "")


def _mass_of(answer: Output) -> float:
    """Probability of the labels together, those that were listed."""
    return sum(map(math.exp, answer.logprobs or ())) if answer.label_mass is None else answer.label_mass


def _cards(listing: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The models of a reply by name, in any form: a list of cards or of names, below `data` or `models` or bare."""
    if isinstance(listing, dict):
        listing = next((listing[name] for name in ("data", "models", "result") if listing.get(name)), ())
    if isinstance(listing, dict):
        listing = [card | {"id": name} if isinstance(card, dict) else name for name, card in listing.items()]
    for card in listing if isinstance(listing, list) else ():
        if isinstance(card, dict):
            for field in ("id", "model", "name", "key"):
                if isinstance(card.get(field), str):
                    yield card[field], card
        elif isinstance(card, str):
            yield card, {}


def _is_name_of(asked: str, listed: str) -> bool:
    """Whether a listed name means the one asked for: with a tag behind it, or a path before it."""
    return asked == listed or listed == f"{asked}:latest" or listed.endswith(f"/{asked}")
