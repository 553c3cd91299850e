"""Conversations with one model of one server: in the server's dialect, and with the same model all the time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlaif.errors import ModelError
from rlaif.inference.base import Answer, Question
from rlaif.inference.begun import Way, begun
from rlaif.inference.chat import LabelRoute, read_answers, request_body
from rlaif.inference.dialect import Dialect
from rlaif.inference.faults import Fault
from rlaif.inference.talk import Talk

_SHOWN = 100
"""Characters of a name that a message repeats."""
_VERSION = re.compile(r"[-:@._](?:v?\d[\w.-]*|latest|gguf)")
"""What may stand behind a model's name: `-2024-08-06`, `:latest`."""


class Chat:
    """Asks questions, and remembers what the server accepts and who answers."""

    def __init__(
        self,
        talk: Talk,
        model: str,
        *,
        template_options: Mapping[str, Any] | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`note` hears, a line each, what is sent otherwise than asked for, and what is lost by it."""
        self.talk, self.model, self.note = talk, model, note
        self._options = template_options
        self.dialect = Dialect()
        """What the server accepts, as far as it is known."""
        self.answering: str | None = None
        """The model's name in the server's replies."""

    async def ask(
        self, questions: Sequence[Question], route: LabelRoute, *, timeout: float, way: Way | None = None
    ) -> list[Answer] | Fault:
        """The answers to questions that share a request, in order, or the fault of the request. `way` says how their
        answers are begun, if they are.

        A request that is refused for a parameter is sent again without it, each parameter at most once. Raises
        ModelError where another model answers than before.
        """
        body = request_body(self.model, questions, route, self._options)
        if way is not None:
            body = begun(body, questions[0].prefill, way)
        path = "/chat/completions" if len(questions) == 1 else "/chat/completions/batch"
        dialect = self.dialect
        while True:
            sent = dialect.adapted(body)
            reply = await self.talk.post(path, sent, timeout=timeout)
            if not isinstance(reply, Fault):
                self._adopt(dialect)
                self._require_same(reply.get("model"))
                found = read_answers(reply, questions, route)
                return self.talk.clean(found) if isinstance(found, Fault) else found
            if reply.kind == "only_reasoning":  # an answer in its way: the model was asked, and thought
                self._adopt(dialect)
                return reply
            following = dialect if reply.refusal is None else dialect.after(reply.refusal, sent)
            if following.adapted(body) == sent:
                return reply
            dialect = following

    def _adopt(self, dialect: Dialect) -> None:
        """Keep to a dialect in which a request was answered."""
        joined = self.dialect.joined(dialect)
        for change in joined.changes[len(self.dialect.changes) :]:
            self.note(str(change))
        self.dialect = joined

    def _require_same(self, name: object) -> None:
        """Replies name the model that wrote them. Another one behind the same address would be taken for the first."""
        if not isinstance(name, str) or not name.strip():
            return
        name = "".join(letter if letter.isprintable() else "?" for letter in name.strip()[:_SHOWN])
        if self.answering is None:
            self.answering = name
            if not _same_model(self.model, name):
                self.note(f"asked for `{self.model}`, the server answers as `{name}`")
        elif name != self.answering:
            raise ModelError(
                f"{self.talk.shown}: another model answers now: `{name}`, and `{self.answering}` before (asked for: "
                f"`{self.model}`); what was answered is kept. Ask for one model by its full name, or start a new run"
            )


def _same_model(asked: str, answering: str) -> bool:
    """Whether one name is the other one with an owner before it, or a version, a date or a tag behind it."""
    short, long = sorted((re.split(r"[/\\]", name.lower())[-1] for name in (asked, answering)), key=len)
    return long == short or bool(_VERSION.fullmatch(long.removeprefix(short)) and long.startswith(short))
