"""Label log-probabilities: which tokens say a label, and how their log-probabilities are read from a reply.

A tokenizer may hold two single tokens for one label: with a space before it and without ("A" and " A"). Which of them a
model uses after its chat template's last token differs from model to model, and both say the same thing, so a label's
probability is the sum over the two: they are different first tokens, so the events exclude each other. Other spellings
("a", "**A") are not counted; they show up as missing label mass.

Both tokens are found with one tokenizer call on a text in which every label stands after a line break and after a
space, so the rule needs no chat template and is the same on a server and in process.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlaif.inference.base import Answer

_SPACES = "Ġ▁Ċ "
"""Whitespace as byte-level BPE and SentencePiece vocabularies write it; a label never starts or ends with it."""

_ENDS = re.compile(r"[\s.*_`'\")\]}。ĊĠ▁]*|<[^<>\s]*>")
"""What may follow the label at a text's end."""

TOP = 20
"""Alternatives per token that the OpenAI protocol gives at most."""

FLOOR = -9999.0
"""What vLLM sends for a log-probability of minus infinity, which JSON cannot carry."""

_MOST = 0.1
"""Of a log-probability: 0 but for rounding."""


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


def first_token(choice: Mapping[str, Any]) -> list[tuple[str, float]] | None:
    """(token, log-probability) of the first generated token and of its listed alternatives; None where none came."""
    content = (choice.get("logprobs") or {}).get("content")
    if not content:
        return None
    first = content[0]
    # Two tokens may be spelled alike ("A", and " A" decoded without its space): both are kept.
    listed = [(entry["token"], float(entry["logprob"])) for entry in first.get("top_logprobs") or ()]
    if listed and first["token"] not in [token for token, _ in listed]:
        listed.append((first["token"], float(first["logprob"])))
    return listed or None


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

    As in `read_top`, a label that is not listed there gets the value of the least probable listed token.
    """
    content = (choice.get("logprobs") or {}).get("content") or ()
    at = last_label([entry["token"] for entry in content], labels)
    return None if at is None else read_top({"logprobs": {"content": content[at:]}}, labels)


def read_exact(choice: Mapping[str, Any], wanted: Sequence[Sequence[str]]) -> tuple[float, ...] | None:
    """Log-probability of each label, from a vLLM reply that lists its tokens as `token_id:N`; None if one is absent."""
    content = (choice.get("logprobs") or {}).get("content")
    if not content:
        return None
    listed = {entry["token"]: float(entry["logprob"]) for entry in content[0].get("top_logprobs") or ()}
    try:
        return tuple([logsumexp([listed[token] for token in tokens]) for tokens in wanted])
    except KeyError:
        return None


def read_top(choice: Mapping[str, Any], labels: Sequence[str]) -> tuple[float, ...] | None:
    """Log-probability of each label from the most probable tokens, stripped of whitespace; None if none is listed.

    A label that is not listed gets the value of the least probable listed token, which none of its spellings exceeds.
    The listed label is at least as probable as that, so the bound can understate its lead and never overturn it.
    """
    listed = first_token(choice)
    if listed is None:
        return None
    values = [logsumexp(value for token, value in listed if token.strip(_SPACES) == label) for label in labels]
    if all(value == -math.inf for value in values):
        return None
    known = [value for _, value in listed]
    bound = math.nan if any(map(math.isnan, known)) else max(FLOOR, min(known))
    return tuple(bound if value == -math.inf else value for value in values)
