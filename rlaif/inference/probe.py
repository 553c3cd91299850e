"""What a server can do, found out with four or five small requests before anything is asked of it.

1. `GET /models`: is it there, does it know the key and the model, how long may a prompt be.
2. `POST /tokenize` (vLLM): the token ids of the labels.
3. `POST /chat/completions/batch` (vLLM) with two conversations, else `POST /chat/completions` with one: does the chat
   template work, which log-probabilities come back. The richest way of asking is tried first.

Everything found wrong is one line that says how to mend it; nothing is guessed from the server's name.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.asking import ENOUGH, trial_comparison
from rlaif.errors import nearest
from rlaif.inference.base import Answer, Question
from rlaif.inference.begun import WAYS, Way, begun
from rlaif.inference.chat import LabelRoute, read_answers, request_body
from rlaif.inference.faults import Fault
from rlaif.inference.labels import TOP, label_text, label_tokens
from rlaif.inference.talk import Talk
from rlaif.records import Message, Sampling

_QUICK_SECONDS = 10.0
_FIRST_TOKEN_SECONDS = 60.0
"""The first answer of a server that has just started may wait for compilation."""
_TRIES = 4
_UNREACHABLE = ("refused", "dropped", "timeout")
_IN_WORDS = LabelRoute("text")


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

    def __str__(self) -> str:
        kinds = {
            "exact": "exact label log-probabilities",
            "top": f"log-probabilities of the {self.route.top} most probable tokens",
            "text": "no log-probabilities: verdicts in words, hard labels only",
        }
        length = "context length unknown" if self.context is None else f"context of {self.context} tokens"
        return f"{kinds[self.route.kind]}, {'batches' if self.batch else 'single calls'}, {length}"


class Prober:
    """One probe of one server. `problems` collects what is wrong."""

    def __init__(
        self,
        talk: Talk,
        model: str,
        *,
        template_options: Mapping[str, Any] | None,
        timeout: float,
        pause: Callable[[int], float],
    ) -> None:
        self._talk, self._model, self._options, self._pause = talk, model, template_options, pause
        self._quick, self._patient = min(timeout, _QUICK_SECONDS), min(timeout, _FIRST_TOKEN_SECONDS)
        self.problems: list[str] = []
        self.unreachable = False

    async def run(self, labels: tuple[str, ...]) -> Capabilities | None:
        """Probe for questions with these labels (none: texts only). None where the server is of no use."""
        context = await self._models()
        if self.problems:
            return None
        routes = await self._routes(labels)
        found = await self._ask(labels, routes[0], conversations=2)
        batch = not isinstance(found, Fault) or found.kind == "no_logprobs"
        route = routes[0]
        if isinstance(found, Fault):
            for route in routes:
                found = await self._ask(labels, route, conversations=1)
                if not isinstance(found, Fault) or found.fatal or found.kind in _UNREACHABLE:
                    break
        if isinstance(found, Fault):
            self._say(f"a small test question failed: {found.detail}")
            return None
        logprobs = found[0].logprobs
        return Capabilities(route, batch, context, None if logprobs is None else sum(map(math.exp, logprobs)))

    async def alive(self) -> bool:
        """Whether a question of a few words gets a reply now, be it a refusal. (`GET /models` would not tell: a front
        answers that while the model behind it hangs.)"""
        found = await self._ask((), _IN_WORDS, conversations=1)
        return not isinstance(found, Fault) or not found.down

    async def way(self, asked: Question, route: LabelRoute) -> Way | Fault:
        """How the server goes on with the begun answer of a question: of the ways that it takes, the first that leaves
        the most probability to the labels. The fault of the last one where it takes none."""
        trial = Question("probe", self._model, trial_comparison(), Sampling(max_tokens=1),
                         labels=asked.labels, prefill=asked.prefill)  # fmt: skip
        found: dict[Way, float] = {}
        fault: Fault | None = None
        for way in WAYS:
            body = begun(request_body(self._model, [trial], route, self._options), asked.prefill, way)
            reply = await self._steadily(
                lambda body=body: self._talk.post("/chat/completions", body, timeout=self._patient)  # type: ignore[misc]
            )
            answers = reply if isinstance(reply, Fault) else read_answers(reply, [trial], route)
            if isinstance(answers, Fault):
                fault = answers
                continue
            found[way] = sum(map(math.exp, answers[0].logprobs or ()))
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
        return [*exact, LabelRoute("top", top=TOP), LabelRoute("top", top=5), _IN_WORDS]

    async def _models(self) -> int | None:
        """Look for the server, the key and the model; returns the context length."""
        reply = await self._steadily(lambda: self._talk.get("/models", timeout=self._quick))
        if isinstance(reply, Fault):
            if reply.kind in _UNREACHABLE:
                self.unreachable = True
                self._say(f"not reachable ({reply.detail}): start the server, or mend `base_url`")
            elif reply.kind not in ("http_404", "http_405"):  # a server may do without this route
                self._say(reply.detail)
            return None
        listed = reply.get("data")
        served = {str(card.get("id")): card for card in listed or () if isinstance(card, dict)}
        if served and self._model not in served:
            self._say(f"does not serve a model called `{self._model}`; {nearest(self._model, served)}")
        length = served.get(self._model, {}).get("max_model_len")
        return int(length) if isinstance(length, int) else None

    async def _ask(self, labels: tuple[str, ...], route: LabelRoute, *, conversations: int) -> list[Answer] | Fault:
        text = f"Answer with one of these and nothing else: {', '.join(labels)}" if labels else "Say yes."
        question = Question(
            "probe", self._model, (Message(role="user", content=text),), Sampling(max_tokens=1), labels=labels
        )
        questions = [question] * conversations
        body = request_body(self._model, questions, route, self._options)
        path = "/chat/completions/batch" if conversations > 1 else "/chat/completions"
        for _ in range(2):  # a look is taken twice before the run is asked in a poorer way
            reply = await self._steadily(lambda: self._talk.post(path, body, timeout=self._patient))
            found = reply if isinstance(reply, Fault) else self._talk.clean(read_answers(reply, questions, route))
            if not isinstance(found, Fault) or isinstance(reply, Fault):
                break
        return found

    async def _steadily(self, call: Callable[[], Awaitable[dict[str, Any] | Fault]]) -> dict[str, Any] | Fault:
        """The reply to `call`, tried again after what may pass quickly."""
        for attempt in range(_TRIES - 1):
            reply = await call()
            if not isinstance(reply, Fault) or not reply.retry or reply.kind in ("refused", "timeout"):
                return reply
            await asyncio.sleep(self._pause(attempt))
        return await call()

    def _say(self, problem: str) -> None:
        self.problems.append(f"{self._talk.shown}: {self._talk.hide(problem)}")
