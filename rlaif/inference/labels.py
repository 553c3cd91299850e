"""Label log-probabilities: which tokens say a label, and how their log-probabilities are read from a reply.

A tokenizer may hold two single tokens for one label: with a space before it and without ("A" and " A"). Which of them a
model uses after its chat template's last token differs from model to model, and both say the same thing, so a label's
probability is the sum over the two: they are different first tokens, so the events exclude each other. Other spellings
("a", "**A") are not counted; they show up as missing label mass.

Both tokens are found with one tokenizer call on a text in which every label stands after a line break and after a
space, so the rule needs no chat template and is the same on a server and in process.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlaif.inference.base import Answer

_SPACES = "Ġ▁Ċĉč \t\r\n"
"""Whitespace as byte-level BPE and SentencePiece vocabularies write it; a label never starts or ends with it."""

_ENDS = re.compile(r"[\s.*_`'\")\]}。ĊĠ▁]*|<[^<>\s]*>")
"""What may follow the label at a text's end."""

TOP = 20
"""Alternatives per token that the OpenAI protocol gives at most."""

FLOOR = -9999.0
"""What vLLM sends for a log-probability of minus infinity, which JSON cannot carry."""

_MOST = 0.1
"""Of a log-probability: 0 but for rounding."""
_WHOLE = 1.5
"""Of the probabilities of different tokens together: 1, and generously more for rounding; logits and probabilities,
sent in the place of log-probabilities, come to 2 and more."""
_ROUNDING = 1e-6
"""What a probability in single precision may be off."""
_NOTHING = -50.0
"""Log-probabilities below this come from no model."""


def checked(answer: Answer) -> Answer:
    """The answer with minus infinity as `FLOOR`, so that its record can be stored; or a failure where a value is NaN,
    or far above 0: a model that gives such numbers (half precision that overflowed) has not answered."""
    if answer.logprobs is None:
        return answer
    if not all(value <= _MOST for value in answer.logprobs):
        return Answer(failure="bad_logprobs", detail=f"not log-probabilities: {answer.logprobs}")
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
            if string.strip(_SPACES) == label and token not in found[at]:
                found[at].append(token)
    return found if all(found) else None


def logsumexp(values: Iterable[float]) -> float:
    """log of the sum of exponentials; minus infinity for nothing, NaN where one is NaN."""
    known = list(values)
    if len(known) == 1:
        return known[0]
    top = math.nan if any(map(math.isnan, known)) else max(known, default=-math.inf)
    return top if math.isinf(top) else top + math.log(sum(math.exp(value - top) for value in known))


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
        return label in (self.text.strip(_SPACES), self.token.strip(_SPACES))


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


def last_label(tokens: Sequence[str], labels: Sequence[str]) -> int | None:
    """Where the label stands that these tokens end in; None where they end in something else.

    After it only blanks, closing marks and special tokens may come.
    """
    for at in reversed(range(len(tokens))):
        if tokens[at].strip(_SPACES) in labels:
            return at
        if not _ENDS.fullmatch(tokens[at]):
            return None
    return None


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
