"""What the answers of one policy are like: a `Player`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from rlaif.data.texts import refuses
from rlaif.evaluation.intervals import average, share
from rlaif.evaluation.metrics import mean
from rlaif.evaluation.policies.comparing import Answered
from rlaif.evaluation.policies.report import Player, Refusals, Violations
from rlaif.evaluation.report import Estimate
from rlaif.evaluation.variety import distinct, repetition, words_of
from rlaif.records import Messages, Prompt, Sample, Score
from rlaif.samples.meetings import Criterion
from rlaif.scores.grades import readable

Meter = Callable[[Messages, str], float]
"""A measure of an answer to a conversation: the caller's own; NaN where there is none."""
Value = Callable[[Messages, str], float | None]
"""The same, asked once of each answer; None where it is no finite number."""

ANY = "*"
"""For the answers that break any principle."""


class Answer(NamedTuple):
    """One answer with its prompt."""

    prompt: Prompt
    sample: Sample
    grades: Mapping[str, Score | None]
    """By principle; None where the question has no answer yet. Empty where none were asked."""


class Kinds(NamedTuple):
    """The kinds of prompts."""

    tag_of: Callable[[Prompt], str | None]
    harmful: tuple[str, ...]


class Bounds(NamedTuple):
    """How grades are read."""

    violation_below: float
    min_label_mass: float


def value_of(meter: Meter) -> Value:
    """The measure as the figures take it."""

    @functools.cache
    def value(messages: Messages, text: str) -> float | None:
        found = float(meter(messages, text))
        return found if math.isfinite(found) else None

    return value


def player_of(
    name: str,
    model: str,
    answers: Sequence[Answer],
    missing: int,
    shared: frozenset[tuple[str, int]],
    *,
    criteria: Sequence[Criterion],
    kinds: Kinds,
    bounds: Bounds,
    values: Mapping[str, Value],
) -> Player:
    """The figures of one policy.

    `shared` are the prompts and indices that every policy answered: variety, which falls with the number of texts, is
    measured on those alone. The divergence from the baseline is left open. Raises ValueError where there is no answer.
    """
    if not answers:
        raise ValueError(f"`{name}` has no answers")
    texts, prompts = [each.sample.text for each in answers], [each.prompt.id for each in answers]
    words = [words_of(text) for text in texts]
    alike = [own for own, each in zip(words, answers, strict=True) if (each.prompt.id, each.sample.index) in shared]
    ends = [each.sample.finish_reason == "length" for each in answers if each.sample.finish_reason is not None]
    return Player(
        name=name,
        model=model,
        answers=len(answers),
        missing=missing,
        length=average([float(len(text)) for text in texts], prompts),
        truncated=mean([float(each) for each in ends]) if ends else None,
        blank=mean([float(not text.strip()) for text in texts]),
        distinct_1=distinct(alike or words, 1),
        distinct_2=distinct(alike or words, 2),
        repetition=mean([repetition(own) for own in words]),
        refusals=_refusals(answers, kinds),
        violations=_violations(answers, criteria, bounds),
        kl=None,
        meters=dict(_meters(answers, values)),
    )


def shared_places(answers: Answered) -> frozenset[tuple[str, int]]:
    """The prompts and indices that every policy has an answer at."""
    places = [
        {(prompt, at) for prompt, found in own.items() for at, each in enumerate(found) if each is not None}
        for own in answers.values()
    ]
    return frozenset(set.intersection(*places)) if places else frozenset()


def _meters(answers: Sequence[Answer], values: Mapping[str, Value]) -> Iterator[tuple[str, Estimate]]:
    """The mean of each measure over the answers that have it; a share's interval where it is one."""
    for name, value in values.items():
        found = [(value(each.prompt.messages, each.sample.text), each.prompt.id) for each in answers]
        told = [(number, prompt) for number, prompt in found if number is not None]
        if told:
            numbers, prompts = [number for number, _ in told], [prompt for _, prompt in told]
            yield name, (share if 0 <= min(numbers) <= max(numbers) <= 1 else average)(numbers, prompts)


def _refusals(answers: Sequence[Answer], kinds: Kinds) -> tuple[Refusals, ...]:
    tags = [kinds.tag_of(each.prompt) for each in answers]
    said = [float(refuses(each.sample.text)) for each in answers]
    prompts = [each.prompt.id for each in answers]
    found = [Refusals(tag="", harmful=None, share=share(said, prompts))]
    for tag in sorted({tag for tag in tags if tag is not None}):
        at = [place for place, other in enumerate(tags) if other == tag]
        own = share([said[place] for place in at], [prompts[place] for place in at])
        found.append(Refusals(tag=tag, harmful=tag in kinds.harmful if kinds.harmful else None, share=own))
    return tuple(found)


def _violations(answers: Sequence[Answer], criteria: Sequence[Criterion], bounds: Bounds) -> tuple[Violations, ...]:
    """Of any principle and of each. An answer without a readable grade is left out of a principle's, and of `ANY` where
    no other grade of it is a violation, for then nothing tells."""
    values = [_values(each, criteria, bounds.min_label_mass) for each in answers]
    prompts, below = [each.prompt.id for each in answers], bounds.violation_below
    breaks = [any(grade is not None and grade < below for grade in own) for own in values]
    told = [at for at, own in enumerate(values) if own and (breaks[at] or None not in own)]
    found = []
    if told:
        known = share([float(breaks[at]) for at in told], [prompts[at] for at in told])
        found.append(Violations(principle=ANY, share=known, grade=None))
    for place, criterion in enumerate(criteria):
        graded = [(grade, prompts[at]) for at, own in enumerate(values) if (grade := own[place]) is not None]
        if graded:
            grades, of = [grade for grade, _ in graded], [prompt for _, prompt in graded]
            broken = [float(grade < below) for grade in grades]
            found.append(Violations(principle=criterion.id, share=share(broken, of), grade=average(grades, of)))
    return tuple(found)


def _values(answer: Answer, criteria: Sequence[Criterion], min_mass: float) -> list[float | None]:
    """The grade by each principle; None where there is none to be read, which is no grade of 0."""
    scores = (answer.grades.get(criterion.id) for criterion in criteria)
    return [score.value if score is not None and readable(score, min_mass=min_mass) else None for score in scores]
