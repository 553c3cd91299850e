"""Pairwise judging: the ordered questions of a prompt's matchups, and the judgements read from the outputs.

A judgement takes the label log-probabilities where there are any, else it reads the text strictly
(`rlaif.feedback.verdict_reader`). An output with reasons is always read as a text: the log-probabilities of its last
word soften the verdict where they agree with it. An output that was cut off has no verdict, even where it states one:
the last one counts, and that may have been still to come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from rlaif.config.judge_templates import Judge
from rlaif.config.schemas import CompareSettings
from rlaif.feedback.aggregate import Vote
from rlaif.feedback.matchups import Criterion, Matchup, drawn_order
from rlaif.feedback.prompts import LABELS, compare_messages
from rlaif.feedback.verdict_reader import parse_verdict
from rlaif.inference.base import Output, Question
from rlaif.records import Judgement, Prompt, Sample, Sampling, Verdict

_ONE_TOKEN = Sampling(max_tokens=1)

Notes = Callable[[Sample, Criterion], str | None]
"""Looks up the critique of a sample under a criterion; None while there is none."""


def compare_questions(
    prompt: Prompt,
    pairings: Sequence[Matchup],
    settings: CompareSettings,
    judge: Judge,
    notes: Notes | None = None,
    *,
    fenced: bool = True,
) -> Iterator[Question]:
    """The questions of one prompt, in an order that serves the prefix cache: equal first responses follow each other.

    With `notes`, a question that lacks a critique is left out: it cannot be asked yet. `fenced` as in
    `compare_messages`.
    """
    shown = [
        (first, second, criterion)
        for matchup in pairings
        for first, second in _orders(matchup, settings.orders)
        for criterion in matchup.criteria
    ]
    reasoned, warm = settings.reasoning == "reply", settings.reasoning_temperature
    sampling = Sampling(max_tokens=settings.reasoning_tokens, temperature=warm, seed=0 if warm else None)
    place = {sample: at for at, sample in enumerate(dict.fromkeys(first.id for first, _, _ in shown))}
    for first, second, criterion in sorted(shown, key=lambda row: place[row[0].id]):
        critiques = None
        if notes is not None:
            on_first, on_second = notes(first, criterion), notes(second, criterion)
            if on_first is None or on_second is None:
                continue
            critiques = (on_first, on_second)
        yield Question(
            "compare_reasoned" if reasoned else "compare",
            judge.name,
            compare_messages(
                prompt.messages,
                first.text,
                second.text,
                criterion.compare,
                critiques=critiques,
                max_chars=settings.max_chars,
                fenced=fenced,
                reasoned=reasoned,
                templates=judge.templates,
                kind=judge.form.fence,
            ),
            sampling if reasoned else _ONE_TOKEN,
            labels=LABELS,
            prefill="" if reasoned else judge.form.prefill,
            about={"prompt": prompt.id, "first": first.id, "second": second.id, "principle": criterion.id},
        )


def _orders(matchup: Matchup, orders: str) -> Iterator[tuple[Sample, Sample]]:
    pair = (matchup.left, matchup.right)
    if orders == "both":
        yield from (pair, pair[::-1])
    else:
        first, _ = drawn_order((pair[0].id, pair[1].id))
        yield pair if first == pair[0].id else pair[::-1]


def label_mass(logprobs: tuple[float, float]) -> float:
    """Probability of both labels together, at most 1."""
    return min(1.0, math.exp(logprobs[0]) + math.exp(logprobs[1]))


def judgement(question: Question, output: Output) -> Judgement:
    """The record of one ordered judge call; a higher log-probability of the first label favors the first response."""
    about = question.about
    logprobs: tuple[float, float] | None = None
    mass: float | None = None
    if output.logprobs is not None:
        logprobs = (output.logprobs[0], output.logprobs[1])
        mass = label_mass(logprobs) if output.label_mass is None else output.label_mass
        verdict = Verdict.likelier(*logprobs)
    truncated = question.reasoned and output.finish_reason == "length"
    if logprobs is None or question.reasoned:
        text = output.text
        if question.prefill:  # a prefilled output continues a stated verdict; some servers repeat the beginning
            text = f"Verdict: {text.strip().removeprefix(question.prefill).strip()}"
        stated = Verdict.UNPARSED if truncated else parse_verdict(text)
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
        text=output.text,
        reasoning=output.reasoning,
        truncated=truncated,
        prompt_tokens=output.prompt_tokens,
        cached_tokens=output.cached_tokens,
        completion_tokens=output.completion_tokens,
    )


def votes(
    pairings: Sequence[Matchup],
    questions: Sequence[Question],
    judgement_of: Callable[[str], Judgement | None],
    settings: CompareSettings,
    *,
    slot: float = 0.0,
) -> Iterator[tuple[Matchup, list[Vote]]]:
    """Every matchup with one vote a criterion, joined by what a question is about, not by place.

    `slot` is the judge's position bias, to be taken off.
    """
    ids = {(q.about["first"], q.about["second"], q.about["principle"]): q.id for q in questions}

    def judgement_on(first: Sample, second: Sample, criterion: Criterion) -> Judgement | None:
        key = ids.get((first.id, second.id, criterion.id))
        return None if key is None else judgement_of(key)

    for matchup in pairings:
        shown = {(first.id, second.id) for first, second in _orders(matchup, settings.orders)}
        left, right = matchup.left, matchup.right
        yield (
            matchup,
            [
                Vote(
                    criterion.id,
                    criterion.weight,
                    judgement_on(left, right, criterion),
                    judgement_on(right, left, criterion),
                    wanted=((left.id, right.id) in shown, (right.id, left.id) in shown),
                    temperature=settings.temperature,
                    slot=slot,
                )
                for criterion in matchup.criteria
            ],
        )
