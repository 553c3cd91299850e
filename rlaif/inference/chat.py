"""Chat completions, in and out: the body of a request, and the answers in its reply.

A request carries one conversation, or several that share their sampling and their labels (vLLM's batch route). Its
choices are matched by their index; a reply whose indices are not exactly those of the conversations is a fault of the
whole request, because an answer given to the wrong question would be worse than none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlaif.inference.base import Answer, Question
from rlaif.inference.faults import Fault, incomplete, storable
from rlaif.inference.labels import checked, first_token, read_exact, read_last, read_top

_VERDICT_TOKENS = 16
"""Room for a verdict in words, where a server gives no log-probabilities."""
_REASONED_TOP = 5
"""Alternatives for every token of a reply with reasons: those of a thousand tokens are a large reply already."""


@dataclass(frozen=True, slots=True)
class LabelRoute:
    """How label questions are asked. `exact`: full-vocabulary values of the labels' tokens; `top`: those of the most
    probable tokens; `text`: no log-probabilities, a verdict in words."""

    kind: Literal["exact", "top", "text"]
    top: int = 0
    tokens: tuple[tuple[int, ...], ...] = ()
    """For `exact`: the token ids of each label."""

    @property
    def names(self) -> list[list[str]]:
        """The tokens as a reply names them."""
        return [[f"token_id:{token}" for token in tokens] for tokens in self.tokens]

    @property
    def ids(self) -> list[int]:
        """The tokens of all labels."""
        return [token for tokens in self.tokens for token in tokens]


def request_body(
    model: str, questions: Sequence[Question], route: LabelRoute, template_options: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The JSON of one request; with several questions, that of the batch route."""
    talks = [
        [{"role": message.role, "content": message.content} for message in question.messages] for question in questions
    ]
    body: dict[str, Any] = {"model": model, "messages": talks if len(talks) > 1 else talks[0]}
    body.update(_options(questions[0], route))
    if template_options:
        body["chat_template_kwargs"] = dict(template_options)
    return body


def _options(question: Question, route: LabelRoute) -> dict[str, Any]:
    if not question.labels:
        return _text_options(question)
    return _reasoned_options(question, route) if question.reasoned else _label_options(question, route)


def _reasoned_options(question: Question, route: LabelRoute) -> dict[str, Any]:
    """A text, with the labels' values at every token: which one says the verdict is known when all has been said."""
    options = _text_options(question)
    if route.kind == "text":
        return options
    if route.kind == "top":
        return options | {"logprobs": True, "top_logprobs": min(route.top, _REASONED_TOP)}
    return options | {"logprobs": True, "logprob_token_ids": route.ids}


def _text_options(question: Question) -> dict[str, Any]:
    sampling = question.sampling
    options = {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p}
    return options if sampling.seed is None else options | {"seed": sampling.seed}


def _label_options(question: Question, route: LabelRoute) -> dict[str, Any]:
    if route.kind == "text":
        return {"max_tokens": max(question.sampling.max_tokens, _VERDICT_TOKENS), "temperature": 0}
    options: dict[str, Any] = {"max_tokens": 1, "temperature": 0, "logprobs": True}
    if route.kind == "top":
        return options | {"top_logprobs": route.top}
    return options | {"logprob_token_ids": route.ids, "return_tokens_as_token_ids": True}


def read_answers(payload: Mapping[str, Any], questions: Sequence[Question], route: LabelRoute) -> list[Answer] | Fault:
    """The answers to `questions`, in order, or the fault of the whole reply."""
    try:
        return _read(payload["choices"], payload.get("usage"), questions, route)
    # Some field is not what the protocol says.
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        return incomplete("broken_json", f"the reply is not a chat completion: {payload}")


def _read(
    choices: Sequence[Mapping[str, Any]],
    spent: Mapping[str, Any] | None,
    questions: Sequence[Question],
    route: LabelRoute,
) -> list[Answer] | Fault:
    found = {choice.get("index", 0): choice for choice in choices}
    if len(choices) != len(questions) or found.keys() != set(range(len(questions))):
        places = [choice.get("index") for choice in choices]
        return incomplete("short_batch", f"{len(questions)} conversations sent, choices {places[:40]} came back")
    usage = _shares(spent or {}, questions)
    answers: list[Answer] = []
    for at, question in enumerate(questions):
        answer = _read_choice(found[at], question, route, usage[at])
        if isinstance(answer, Fault):
            return answer
        answers.append(answer)
    return answers


def _read_choice(
    choice: Mapping[str, Any], question: Question, route: LabelRoute, usage: tuple[int, int, int]
) -> Answer | Fault:
    message = choice.get("message") or {}
    text, finish = _text_of(message.get("content")), _text_of(choice.get("finish_reason")) or None
    thoughts = _text_of(message.get("reasoning_content") or message.get("reasoning"))
    logprobs: tuple[float, ...] | None = None
    if question.reasoned:
        return checked(Answer(text, read_last(choice, question.labels), finish, *usage, reasoning=thoughts))
    if question.labels and route.kind != "text":
        exact = route.kind == "exact"
        logprobs = read_exact(choice, route.names) if exact else read_top(choice, question.labels)
        if logprobs is None and (exact or first_token(choice) is None):
            return incomplete("no_logprobs", "the reply lacks the label log-probabilities")
        if logprobs is None:
            return Answer(failure="no_labels", detail=f"no label is among the {route.top} most probable tokens")
    elif not text and finish == "length" and thoughts:
        mend = "raise `max_tokens`, or switch reasoning off through the chat template"
        return Answer(failure="only_reasoning", detail=f"the model used up its tokens on reasoning; {mend}")
    return checked(Answer(text, logprobs, finish, *usage))


def _text_of(content: object) -> str:
    """The reply proper: text, or the text parts of a list; reasoning travels in other fields and is left there."""
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return storable(content) if isinstance(content, str) else ""


def _shares(usage: Mapping[str, Any], questions: Sequence[Question]) -> list[tuple[int, int, int]]:
    """(prompt, completion, cached) tokens of each question. A reply counts them for the whole request: they are shared
    out by the length of the conversations, and add up to what the server said."""
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    totals = [int(count or 0) for count in (usage.get("prompt_tokens"), usage.get("completion_tokens"), cached)]
    if len(questions) == 1:
        return [(totals[0], totals[1], totals[2])]
    sizes = [1 + sum(len(message.content) for message in question.messages) for question in questions]
    prompt, hits = _split(totals[0], sizes), _split(totals[2], sizes)
    return list(zip(prompt, _split(totals[1], [1] * len(sizes)), hits, strict=True))


def _split(total: int, sizes: Sequence[int]) -> list[int]:
    """`total` in whole parts proportional to `sizes`."""
    whole, so_far, given = sum(sizes), 0, 0
    parts = []
    for size in sizes:
        so_far += size
        upto = total * so_far // whole
        parts.append(upto - given)
        given = upto
    return parts
