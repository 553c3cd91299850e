"""From a judge's answer to a judgement: label log-probabilities where there are any, else the text, read strictly."""

from __future__ import annotations

import math
import re

from rlaif.comparisons.questions import LABELS
from rlaif.inference.base import Answer, Question
from rlaif.records import Judgement, Verdict

_FIRST, _SECOND = LABELS
_WORDS = {_FIRST: Verdict.FIRST, _SECOND: Verdict.SECOND, "TIE": Verdict.TIE}
# "Verdict: A", "the answer is **B**": the greedy head finds the last one, and the word after it must be on the menu.
_STATED = re.compile(r"(?is).*\b(?:verdict|answer)\b\s*(?:is)?\s*[:=]?[\s*_`\"'(\[]*(\w+)")
_BARE = re.compile(r"(?is)[\s*_`\"'(\[]*(?:(?:reply|response|option)\s+)?(\w+)[\s*_`\"')\].:]*")


def parse_verdict(text: str) -> Verdict:
    """Read a text verdict: a reply that is only a label, or the last stated one ("verdict: A").

    The word is checked after the match: an off-menu last verdict is `unparsed`; it never falls back to an earlier one,
    and no letter is ever picked out of prose.
    """
    match = _BARE.fullmatch(text) or _STATED.match(text)
    return _WORDS.get(match[1].upper(), Verdict.UNPARSED) if match else Verdict.UNPARSED


def label_mass(logprobs: tuple[float, float]) -> float:
    """Probability of both labels together, at most 1."""
    return min(1.0, math.exp(logprobs[0]) + math.exp(logprobs[1]))


def judgement(question: Question, answer: Answer) -> Judgement:
    """The record of one ordered judge call. A higher log-probability of the first label means the first reply won."""
    about = question.about
    logprobs: tuple[float, float] | None = None
    if answer.logprobs is None:
        verdict, mass = parse_verdict(answer.text), None
    else:
        logprobs = (answer.logprobs[0], answer.logprobs[1])
        mass = label_mass(logprobs)
        gap = logprobs[0] - logprobs[1]
        verdict = Verdict.TIE if gap == 0 else Verdict.FIRST if gap > 0 else Verdict.SECOND
    return Judgement(
        id=question.id,
        prompt=str(about["prompt"]),
        first=str(about["first"]),
        second=str(about["second"]),
        principle=str(about["principle"]),
        judge=question.model,
        verdict=verdict,
        logprobs=logprobs,
        label_mass=mass,
        text=answer.text,
        prompt_tokens=answer.prompt_tokens,
        cached_tokens=answer.cached_tokens,
        completion_tokens=answer.completion_tokens,
    )
