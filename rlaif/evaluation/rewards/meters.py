"""The measure that does not see the reward: a judge's mean grade of an answer, or whatever the caller brings."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import JsonValue

from rlaif.asking import SHIPPED, Judge, Templates
from rlaif.constitution import Constitution
from rlaif.evaluation.rewards.answers import Answers
from rlaif.inference.ask import Tally, ask
from rlaif.inference.base import ModelSource, Question
from rlaif.records import Failure, Messages, Prompt, Sample, Score
from rlaif.samples.meetings import Criterion, criteria_of
from rlaif.scores.grades import readable, score_question, score_record
from rlaif.store import Table

Measure = Callable[[Messages, str], float]
"""A number for an answer in a conversation, the higher the better; NaN where there is none."""

Meter = Callable[[Prompt, Sample], float | None]
"""The measure of one answer; None where there is none."""


@dataclass(frozen=True)
class Own:
    """A measure that the caller brings."""

    name: str
    measure: Measure

    @property
    def identity(self) -> JsonValue:
        """What its values depend on, as far as that can be told."""
        return self.name

    def meter(self) -> Meter:
        """The measure of an answer; None where it is no finite number."""

        def of(prompt: Prompt, sample: Sample) -> float | None:
            value = float(self.measure(prompt.messages, sample.text))
            return value if math.isfinite(value) else None

        return of


@dataclass(frozen=True)
class Grading:
    """A judge's grades, from 0 to 9, mean over the principles by their weights.

    A grade is the expectation over the digits (arXiv:2309.00267, section 2.2.2).
    """

    judge: ModelSource
    constitution: Constitution
    principles: Literal["each", "all"] = "each"
    """Every principle a question of its own, or all in one."""
    max_chars: int = 12_000
    """Longer conversations and answers are cut in the middle."""
    min_mass: float = 0.5
    """A grade with less probability on the digits cannot be read."""
    templates: Templates = SHIPPED
    """In whose words it is asked."""
    max_failed: float = 0.5
    """Stop when more than this share of the questions failed."""

    @property
    def name(self) -> str:
        """For people."""
        return f"mean grade by {self.judge.name} under `{self.constitution.name}` (0 to 9)"

    @property
    def identity(self) -> JsonValue:
        """What its values depend on."""
        own: list[JsonValue] = [self.templates.hashes["score"]] if "score" in self.templates.own else []
        return [self.judge.name, self.constitution.hash, self.principles, self.max_chars, self.min_mass, *own]

    @functools.cached_property
    def _asked_as(self) -> Judge:
        return Judge(self.judge.name, self.templates)

    @functools.cached_property
    def _criteria(self) -> tuple[Criterion, ...]:
        return criteria_of(self.constitution, self.principles)

    def most(self, answers: Sequence[Answers]) -> int:
        """Questions at most."""
        return len(self._criteria) * sum(len(each.samples) for each in answers)

    async def ask(
        self, answers: Sequence[Answers], scores: Table[Score], failures: Table[Failure], **options: Any
    ) -> Tally:
        """Ask for the grades that are missing; `options` go to `ask`."""
        questions = (question for each in answers for sample in each.samples for question in self._asked(each, sample))
        return await ask(questions, self.judge, scores, score_record, failures, max_failed=self.max_failed, **options)

    def meter(self, scores: Table[Score]) -> Meter:
        """The mean grade on disk; None where one is missing or cannot be read: it is never 0."""

        def of(prompt: Prompt, sample: Sample) -> float | None:
            total = 0.0
            for criterion in self._criteria:
                score = scores.get(self._question(prompt, sample, criterion).id)
                if score is None or score.value is None or not readable(score, min_mass=self.min_mass):
                    return None
                total += criterion.weight * score.value
            return total / sum(criterion.weight for criterion in self._criteria)

        return of

    def _asked(self, answers: Answers, sample: Sample) -> Iterator[Question]:
        """Those of one answer next to each other: a server's cache then holds all but the principle."""
        return (self._question(answers.prompt, sample, criterion) for criterion in self._criteria)

    def _question(self, prompt: Prompt, sample: Sample, criterion: Criterion) -> Question:
        return score_question(prompt, sample, criterion, self._asked_as, max_chars=self.max_chars)
