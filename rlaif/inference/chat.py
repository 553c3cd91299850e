"""Chat completions, in and out: the body of a request, and the answers in its reply.

A request carries one conversation, or several that share their sampling and their labels (vLLM's batch route). Its
choices are matched by their index; a reply whose indices are not exactly those of the conversations is a fault of the
whole request, because an answer given to the wrong question would be worse than none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rlaif.inference.base import Answer, Question
from rlaif.inference.faults import Fault, incomplete, storable
from rlaif.inference.labels import (
    Listed,
    checked,
    first_token,
    is_collapsed,
    listed_mass,
    read_exact,
    read_last,
    read_top,
    wrong_listing,
)

VERDICT_TOKENS = 16
"""Room for a verdict in words, where a server gives no log-probabilities."""
THINKING_TOKENS = 2048
"""The same where the model thinks before it says a word."""
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
    temperature: float = 0.0
    """1 for a server that applies the temperature to its values: what is drawn does not matter, only they are read."""
    room: int = VERDICT_TOKENS
    """For `text`: tokens in which the verdict has to come."""

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
        return {"max_tokens": max(question.sampling.max_tokens, route.room), "temperature": 0}
    options: dict[str, Any] = {"max_tokens": 1, "temperature": route.temperature or 0, "logprobs": True}
    if route.temperature:
        options["top_p"] = 1.0  # the server's own would cut the distribution
    if route.kind == "exact":
        return options | {"logprob_token_ids": route.ids, "return_tokens_as_token_ids": True}
    return options | {"top_logprobs": route.top} if route.top else options


def read_answers(payload: Mapping[str, Any], questions: Sequence[Question], route: LabelRoute) -> list[Answer] | Fault:
    """The answers to `questions`, in order, or the fault of the whole reply."""
    try:
        return _read(payload["choices"], payload.get("usage"), questions, route)
    # Some field is not what the protocol says.
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        return incomplete("broken_json", f"the reply is not a chat completion: {payload}")


def _read(
    choices: Sequence[Mapping[str, Any]],
    spent: object,
    questions: Sequence[Question],
    route: LabelRoute,
) -> list[Answer] | Fault:
    found = {choice.get("index") or 0: choice for choice in choices}
    if len(choices) == len(questions) == 1:
        found = {0: choices[0]}  # whatever its number
    if len(choices) != len(questions) or found.keys() != set(range(len(questions))):
        places = [choice.get("index") for choice in choices]
        return incomplete("short_batch", f"{len(questions)} conversations sent, choices {places[:40]} came back")
    usage = _shares(spent if isinstance(spent, dict) else {}, questions)
    answers: list[Answer] = []
    for at, question in enumerate(questions):
        answer = _read_choice(found[at], question, route, usage[at])
        if isinstance(answer, Fault):
            return answer
        # A reply with reasons that was cut off has no verdict, and is kept: it shows what the reasons were.
        answers.append(answer if question.reasoned else _unless_only_thoughts(answer, found[at], spent))
    return answers


def _read_choice(
    choice: Mapping[str, Any], question: Question, route: LabelRoute, usage: tuple[int, int, int]
) -> Answer | Fault:
    message = choice.get("message") or {}
    finish = _text_of(choice.get("finish_reason")) or None
    text = _text_of(message.get("content")) or _text_of(message.get("refusal"))
    answer = Answer(text, None, finish, *usage, reasoning=_thoughts_of(message))
    if question.reasoned:
        return checked(replace(answer, logprobs=read_last(choice, question.labels)))
    if question.labels and route.kind != "text":
        return _labelled(replace(answer, reasoning=""), first_token(choice), question.labels, route)
    return answer


def _labelled(answer: Answer, listed: Sequence[Listed], labels: Sequence[str], route: LabelRoute) -> Answer | Fault:
    """The answer with the labels' log-probabilities out of those of its first token."""
    if not listed:
        return incomplete("no_logprobs", "the reply lacks the label log-probabilities")
    if (wrong := wrong_listing(listed)) is not None:
        return Answer(failure="bad_logprobs", detail=wrong)
    exact = route.kind == "exact"
    likeliest = max(listed, key=lambda each: -math.inf if each.value is None else each.value).text
    answer = replace(answer, text=answer.text or likeliest)  # without a text: a special token, which none shows
    if is_collapsed(listed, part=exact):
        # They say which token was drawn and nothing more: what it says is read as a word, as without any values.
        return answer
    values = read_exact(listed, route.names) if exact else read_top(listed, labels)
    known = [each.value for each in listed if each.value is not None]
    if values is None and exact:
        return incomplete("no_logprobs", "the reply lacks the label log-probabilities")
    if values is None:
        what = f"no label is among the {len(listed)} most probable tokens; the most probable is {likeliest[:40]!r}"
        return Answer(failure="no_labels", detail=what)
    mass = None if exact else listed_mass(listed, labels)
    return checked(
        replace(answer, logprobs=values, label_mass=mass, listed=len(listed), lowest=min(known, default=0.0))
    )


def _unless_only_thoughts(answer: Answer, choice: Mapping[str, Any], spent: object) -> Answer:
    """The answer, or the failure that it is where thinking took all the tokens and nothing was said; some servers hide
    the thoughts, and count them."""
    if answer.failure is not None or answer.text or answer.logprobs is not None or answer.finish_reason != "length":
        return answer
    details = spent.get("completion_tokens_details") if isinstance(spent, dict) else None
    hidden = isinstance(details, dict) and bool(details.get("reasoning_tokens"))
    if not hidden and not _thoughts_of(choice.get("message") or {}):
        return answer
    mend = "raise `max_tokens`, or switch reasoning off through the chat template"
    return Answer(failure="only_reasoning", detail=f"the model used up its tokens on reasoning; {mend}")


_THOUGHTS = ("thinking", "reasoning", "reasoning_content", "reasoning.text", "redacted_thinking")
"""Types of the parts of a message that are not said."""


def _text_of(content: object) -> str:
    """The reply proper: text, or the text parts of a list; what was thought travels in other fields or parts."""
    if isinstance(content, list):
        content = "".join(
            str(part.get("text") or "") if isinstance(part, dict) else part if isinstance(part, str) else ""
            for part in content
            if not (isinstance(part, dict) and part.get("type") in _THOUGHTS)
        )
    return storable(content) if isinstance(content, str) else ""


def _thoughts_of(message: Mapping[str, Any]) -> str:
    """What the model thought before its reply, where the server tells that apart: in a field, or in parts of a list."""
    for name in ("reasoning_content", "reasoning", "thinking"):
        if thoughts := _text_of(message.get(name)):
            return thoughts
    content = message.get("content")
    parts = content if isinstance(content, list) else message.get("reasoning_details")
    thought = [part for part in parts or () if isinstance(part, dict) and part.get("type") in _THOUGHTS]
    return "".join(_text_of(part.get("thinking") or part.get("text") or part.get("reasoning")) for part in thought)


def _shares(usage: Mapping[str, Any], questions: Sequence[Question]) -> list[tuple[int, int, int]]:
    """(prompt, completion, cached) tokens of each question. A reply counts them for the whole request: they are shared
    out by the length of the conversations, and add up to what the server said."""
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"), cached)
    totals = [max(0, count) if isinstance(count, int) else 0 for count in counts]
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
