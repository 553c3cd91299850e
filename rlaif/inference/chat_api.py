"""The chat completions protocol: bodies of requests, and label log-probabilities out of replies.

Begun answers: how a server is told to go on with an assistant turn instead of beginning one.

There are three dialects, and all of them end the conversation with the begun turn:

- `continue`: vLLM and SGLang want `continue_final_message`, and no generation prompt.
- `prefix`: Mistral and DeepSeek want `prefix: true` in that turn.
- `plain`: llama.cpp, Ollama and servers of the Anthropic kind go on with a last assistant turn by themselves.

Which one a server speaks is found by asking it: one that does not know a field refuses the request, or answers without
going on, which the probability of the labels tells.

Label log-probabilities: which tokens say a label, and how their log-probabilities are read from a reply.

A tokenizer may hold two single tokens for one label: with a space before it and without ("A" and " A"). Which of them a
model uses after its chat template's last token differs from model to model, and both say the same thing, so a label's
probability is the sum over the two: they are different first tokens, so the events exclude each other. Other spellings
("a", "**A") are not counted; they show up as missing label mass.

Both tokens are found with one tokenizer call on a text in which every label stands after a line break and after a
space, so the rule needs no chat template and is the same on a server and in process.

Chat completions, in and out: the body of a request, and the answers in its reply.

A request carries one conversation, or several that share their sampling and their labels (vLLM's batch route). Its
choices are matched by their index; a reply whose indices are not exactly those of the conversations is a fault of the
whole request, because an answer given to the wrong question would be worse than none.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rlaif.inference.base import _MOST, FLOOR, SPACES, Output, Question, checked, last_label
from rlaif.inference.faults import Fault, incomplete, storable
from rlaif.stats import logsumexp

Way = Literal["continue", "prefix", "plain"]
WAYS: tuple[Way, ...] = ("continue", "prefix", "plain")
"""In the order in which they are tried."""


def begun(body: dict[str, Any], prefill: str, way: Way) -> dict[str, Any]:
    """A request whose answer begins with `prefill`: of one conversation, or of several on the batch route."""
    turn: dict[str, Any] = {"role": "assistant", "content": prefill}
    if way == "prefix":
        turn["prefix"] = True
    talks = body["messages"]
    several = bool(talks) and isinstance(talks[0], list)
    messages = [[*connection, turn] for connection in talks] if several else [*talks, turn]
    more = {"add_generation_prompt": False, "continue_final_message": True} if way == "continue" else {}
    return {**body, "messages": messages, **more}


TOP = 20
"""Alternatives per token that the OpenAI protocol gives at most."""


_WHOLE = 1.5
"""Of the probabilities of different tokens together: 1, and generously more for rounding; logits and probabilities,
sent in the place of log-probabilities, come to 2 and more."""
_ROUNDING = 1e-6
"""What a probability in single precision may be off."""
_NOTHING = -50.0
"""Log-probabilities below this come from no model."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A token and its log-probability, as a reply lists them."""

    token: str
    """Its name in the reply."""
    text: str
    """What it says: its bytes where they are given, else its name."""
    value: float | None
    """None where the reply has no number (JSON knows neither NaN nor infinity, and some servers write null)."""

    def says(self, label: str) -> bool:
        """Whether it is the label, with or without whitespace around it."""
        return label in (self.text.strip(SPACES), self.token.strip(SPACES))


def tokens_of(choice: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The generated tokens with their alternatives, in the form of chat completions; servers that keep to the older
    form of text completions (lists of tokens, of values, and of alternatives by token) are read as well."""
    logprobs = choice.get("logprobs") or {}
    if isinstance(logprobs, list):
        return logprobs
    if logprobs.get("content") or not logprobs.get("tokens"):
        return list(logprobs.get("content") or ())
    tokens, values, tops = (logprobs.get(name) or [] for name in ("tokens", "token_logprobs", "top_logprobs"))
    return [
        {"token": token, "logprob": value, "top_logprobs": top}
        for token, value, top in itertools.zip_longest(tokens, values, tops[: len(tokens)])
    ]


def first_token(choice: Mapping[str, Any]) -> list[Listed]:
    """The first generated token and its listed alternatives, each once; empty where no values came."""
    content = tokens_of(choice)
    if not content:
        return []
    first = content[0]
    found: dict[tuple[Any, ...], Listed] = {}
    for entry in _alternatives(first):
        listed = _listed(entry)
        value = None if listed.value is None else round(listed.value, 4)
        # Two tokens may be spelled alike ("A", and " A" decoded without its space); one that is listed twice has the
        # same value both times.
        found.setdefault((listed.token, listed.text, entry.get("id"), value), listed)
    drawn = _listed(first)
    if drawn.token not in [each.token for each in found.values()] and (found or drawn.value is not None):
        found[drawn.token, drawn.text, None, None] = drawn
    return list(found.values())


def _alternatives(token: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    listed = token.get("top_logprobs") or ()
    if isinstance(listed, Mapping):
        return [{"token": name, "logprob": value} for name, value in listed.items()]
    return list(listed)


def _listed(entry: Mapping[str, Any]) -> Listed:
    token, value, raw = str(entry["token"]), entry.get("logprob"), entry.get("bytes")
    try:
        text = bytes(raw).decode() if isinstance(raw, list) and raw else token
    except (TypeError, ValueError):  # part of a character, or no bytes at all
        text = token
    return Listed(token, text, None if value is None else float(value))


def wrong_listing(listed: Sequence[Listed]) -> str | None:
    """What shows that these numbers are no log-probabilities of different tokens; None where nothing does."""
    known = [each.value for each in listed if each.value is not None and not math.isnan(each.value)]
    if any(value > _MOST for value in known):
        return f"not log-probabilities: {max(known):g} is above 0"
    total = sum(math.exp(value) for value in known)
    return f"not log-probabilities: together they come to {total:.2f}" if total > _WHOLE else None


def is_collapsed(listed: Sequence[Listed], *, part: bool = False) -> bool:
    """Whether one token has everything: what a server lists that applies a temperature of 0 to its values. They say
    which token it draws and nothing more; no model leaves all alternatives below e^-50.

    Of `part` of the vocabulary, the labels alone, that is so only where the one has all probability.
    """
    values = sorted((-math.inf if each.value is None else each.value for each in listed), reverse=True)
    if not values or any(map(math.isnan, values)):
        return False
    if part or len(values) == 1:
        return values[0] > -_ROUNDING and all(value <= _NOTHING for value in values[1:])
    return all(value <= _NOTHING for value in values[1:])


def read_last(choice: Mapping[str, Any], labels: Sequence[str]) -> tuple[float, ...] | None:
    """Log-probability of each label where a text ends in one; None where it does not, or where no values came.

    As in `read_top`, a label that is not listed there gets a bound.
    """
    content = tokens_of(choice)
    at = last_label([str(entry["token"]) for entry in content], labels)
    if at is None:
        return None
    listed = first_token({"logprobs": content[at:]})
    return None if is_collapsed(listed) or wrong_listing(listed) else read_top(listed, labels)


def read_exact(listed: Sequence[Listed], wanted: Sequence[Sequence[str]]) -> tuple[float, ...] | None:
    """Log-probability of each label, from a vLLM reply that lists its tokens as `token_id:N`; None if one is absent."""
    values = {each.token: _number(each.value) for each in listed}
    try:
        return tuple([logsumexp([values[token] for token in tokens]) for tokens in wanted])
    except KeyError:
        return None


def read_top(listed: Sequence[Listed], labels: Sequence[str]) -> tuple[float, ...] | None:
    """Log-probability of each label from the most probable tokens, stripped of whitespace; None if none is listed.

    A label that is not listed gets a bound: the value of the least probable listed token, which none of its spellings
    exceeds, and no more than its share of what the listed tokens leave of the whole. The listed label is at least as
    probable as that, so the bound can understate its lead and never overturn it.
    """
    values = [logsumexp(_number(each.value) for each in listed if each.says(label)) for label in labels]
    if all(value == -math.inf for value in values):
        return None
    known = [each.value for each in listed if each.value is not None]
    if any(map(math.isnan, known)):
        bound = math.nan
    else:
        rest = max(_ROUNDING, 1 - sum(map(math.exp, known)))
        bound = max(FLOOR, min([*known, math.log(rest / max(1, values.count(-math.inf)))]))
    return tuple(bound if value == -math.inf else value for value in values)


def listed_mass(listed: Sequence[Listed], labels: Sequence[str]) -> float:
    """Probability of the labels that are listed; bounds are not counted."""
    said = [each.value for each in listed if each.value is not None and any(map(each.says, labels))]
    return min(1.0, sum(math.exp(min(0.0, value)) for value in said))


def _number(value: float | None) -> float:
    return math.nan if value is None else value


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


def read_answers(payload: Mapping[str, Any], questions: Sequence[Question], route: LabelRoute) -> list[Output] | Fault:
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
) -> list[Output] | Fault:
    found = {choice.get("index") or 0: choice for choice in choices}
    if len(choices) == len(questions) == 1:
        found = {0: choices[0]}  # whatever its number
    if len(choices) != len(questions) or found.keys() != set(range(len(questions))):
        places = [choice.get("index") for choice in choices]
        return incomplete("short_batch", f"{len(questions)} conversations sent, choices {places[:40]} came back")
    usage = _shares(spent if isinstance(spent, dict) else {}, questions)
    answers: list[Output] = []
    for at, question in enumerate(questions):
        answer = _read_choice(found[at], question, route, usage[at])
        if isinstance(answer, Fault):
            return answer
        # A reply with reasons that was cut off has no verdict, and is kept: it shows what the reasons were.
        answers.append(answer if question.reasoned else _unless_only_thoughts(answer, found[at], spent))
    return answers


def _read_choice(
    choice: Mapping[str, Any], question: Question, route: LabelRoute, usage: tuple[int, int, int]
) -> Output | Fault:
    message = choice.get("message") or {}
    finish = _text_of(choice.get("finish_reason")) or None
    text = _text_of(message.get("content")) or _text_of(message.get("refusal"))
    answer = Output(text, None, finish, *usage, reasoning=_thoughts_of(message))
    if question.reasoned:
        return checked(replace(answer, logprobs=read_last(choice, question.labels)))
    if question.labels and route.kind != "text":
        return _labelled(replace(answer, reasoning=""), first_token(choice), question.labels, route)
    return answer


def _labelled(answer: Output, listed: Sequence[Listed], labels: Sequence[str], route: LabelRoute) -> Output | Fault:
    """The answer with the labels' log-probabilities out of those of its first token."""
    if not listed:
        return incomplete("no_logprobs", "the reply lacks the label log-probabilities")
    if (wrong := wrong_listing(listed)) is not None:
        return Output(failure="bad_logprobs", detail=wrong)
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
        return Output(failure="no_labels", detail=what)
    mass = None if exact else listed_mass(listed, labels)
    return checked(
        replace(answer, logprobs=values, label_mass=mass, listed=len(listed), lowest=min(known, default=0.0))
    )


def _unless_only_thoughts(answer: Output, choice: Mapping[str, Any], spent: object) -> Output:
    """The answer, or the failure that it is where thinking took all the tokens and nothing was said; some servers hide
    the thoughts, and count them."""
    if answer.failure is not None or answer.text or answer.logprobs is not None or answer.finish_reason != "length":
        return answer
    details = spent.get("completion_tokens_details") if isinstance(spent, dict) else None
    hidden = isinstance(details, dict) and bool(details.get("reasoning_tokens"))
    if not hidden and not _thoughts_of(choice.get("message") or {}):
        return answer
    hint = "raise `max_tokens`, or switch reasoning off through the chat template"
    return Output(failure="only_reasoning", detail=f"the model used up its tokens on reasoning; {hint}")


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
