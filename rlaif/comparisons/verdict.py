"""From a judge's answer to a judgement: label log-probabilities where there are any, else the text, read strictly.

A reply with reasons is always read as a text; the log-probabilities of its last word soften the verdict where they are
of the same mind. One that was cut off has no verdict, even where one is stated in it: the last one counts, and that
may have been still to come.
"""

from __future__ import annotations

import math

from rlaif.comparisons.reading import parse_verdict
from rlaif.inference.base import Answer, Question
from rlaif.records import Judgement, Verdict


def label_mass(logprobs: tuple[float, float]) -> float:
    """Probability of both labels together, at most 1."""
    return min(1.0, math.exp(logprobs[0]) + math.exp(logprobs[1]))


def _said(question: Question, answer: Answer) -> str:
    """What is read: of a begun answer what follows, as a stated verdict. (Some servers repeat the beginning.)"""
    if not question.prefill:
        return answer.text
    return f"Verdict: {answer.text.strip().removeprefix(question.prefill).strip()}"


def judgement(question: Question, answer: Answer) -> Judgement:
    """The record of one ordered judge call. A higher log-probability of the first label means the first reply won."""
    about = question.about
    logprobs: tuple[float, float] | None = None
    mass: float | None = None
    if answer.logprobs is not None:
        logprobs = (answer.logprobs[0], answer.logprobs[1])
        mass = label_mass(logprobs) if answer.label_mass is None else answer.label_mass
        verdict = Verdict.likelier(*logprobs)
    truncated = question.reasoned and answer.finish_reason == "length"
    if logprobs is None or question.reasoned:
        stated = Verdict.UNPARSED if truncated else parse_verdict(_said(question, answer))
        if logprobs is None or stated is not verdict:
            verdict, logprobs, mass = stated, None, None
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
        reasoning=answer.reasoning,
        truncated=truncated,
        prompt_tokens=answer.prompt_tokens,
        cached_tokens=answer.cached_tokens,
        completion_tokens=answer.completion_tokens,
    )
