"""Metrics of policies and of their matches: comparisons, win rates, violation rates, lengths, diversity.

A `Plan` compares the responses of two policies to the same prompts; each pair becomes a row (`Compared`).
`metrics_of` computes the metrics of one policy, and `match_of` those of two.

A comparison is won, tied or lost by its probability and the margin, and the win rate counts ties half. In the tiny
world the win rate agrees with the oracle. The mean probability does not, as every principle that sees no difference
moves it toward one half. The length-controlled value is computed from the probabilities, as in AlpacaEval, so it
compares with the mean preference, not with the win rate.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from rlaif.config.judge_templates import Judge
from rlaif.config.schemas import CompareSettings, PairSettings
from rlaif.evaluation.reports import Match, Part, PolicyMetrics, Refusals, Violations
from rlaif.evaluation.win_rate import length_controlled
from rlaif.feedback.aggregate import Status, folded, shares
from rlaif.feedback.judge import Criterion, Matchup, compare_questions, draw, votes
from rlaif.feedback.scoring import readable
from rlaif.inference.base import Question
from rlaif.records import Judgement, Messages, Prompt, Record, Sample, Score
from rlaif.stats import Estimate, average, fitted, mean, share, share_of
from rlaif.text import distinct, refuses, repetition, words_of

NO_LABEL = ("missing", "unparsed", "failed")
ANY = "*"
"""The principle of the violations of any principle."""


Answered = Mapping[str, Mapping[str, Sequence[Sample | None]]]
"""By policy and prompt id, the responses by their index; None where one is missing."""


class Compared(Record):
    """One comparison: the i-th responses of a policy and of its opponent to the same prompt.

    A line of NAME.comparisons.jsonl.
    """

    policy: str
    baseline: str
    prompt: str
    index: int
    tag: str | None
    samples: tuple[str | None, str | None]
    """Ids of the policy's response and of the other's; None where one is missing."""
    status: Literal["labelled", "tie", "identical", "unparsed", "failed", "missing"]
    """`tie`: nearer to one half than the margin; `identical`: one text, not judged; the last three have no label."""
    probability: float | None
    """That the policy's response is better, one half where both are the same; None without a label."""
    flip: bool
    """The two orders disagree."""
    principles: dict[str, float | None]
    """The same by each principle on its own."""
    lengths: tuple[int, int] | None
    """Characters of both; None where one is missing."""


class _ResponsePair(NamedTuple):
    policy: str
    baseline: str
    at: int
    left: Sample | None
    right: Sample | None

    @property
    def identical(self) -> bool:
        return bool(self.left and self.right and self.left.text.strip() == self.right.text.strip())


class Plan(NamedTuple):
    """The comparisons of an evaluation."""

    prompts: Sequence[Prompt]
    answers: Answered
    pairs: Sequence[tuple[str, str]]
    """The matches, each a policy and its opponent."""
    samples: int
    criteria: tuple[Criterion, ...]
    compare: CompareSettings
    pair: PairSettings
    judge: Judge
    tag_of: Callable[[Prompt], str | None]

    def questions(self) -> Iterator[Question]:
        """The questions of all comparisons, grouped by prompt for the server's prefix cache."""
        for prompt in self.prompts:
            yield from self._questions(prompt, self._response_pairs(prompt))

    def compared(self, answer_of: Callable[[str], Judgement | None]) -> Iterator[Compared]:
        """Every comparison, with the answers on disk looked up by the ids of their questions."""
        for prompt in self.prompts:
            pairs = self._response_pairs(prompt)
            questions = self._questions(prompt, pairs)
            for pair in pairs:
                yield self._compared(prompt, pair, questions, answer_of)

    def _response_pairs(self, prompt: Prompt) -> list[_ResponsePair]:
        return [
            _ResponsePair(
                one, other, index, _nth(self.answers[one], prompt, index), _nth(self.answers[other], prompt, index)
            )
            for one, other in self.pairs
            for index in range(self.samples)
        ]

    def _questions(self, prompt: Prompt, pairs: Sequence[_ResponsePair]) -> list[Question]:
        matchups = [
            self._matchup(pair.left, pair.right) for pair in pairs if pair.left and pair.right and not pair.identical
        ]
        return list(compare_questions(prompt, matchups, self.compare, self.judge))

    def _matchup(self, left: Sample, right: Sample) -> Matchup:
        one = self.compare.principles == "one"
        return Matchup(left, right, (draw(self.criteria, (left.id, right.id)),) if one else self.criteria)

    def _compared(
        self,
        prompt: Prompt,
        pair: _ResponsePair,
        questions: Sequence[Question],
        answer_of: Callable[[str], Judgement | None],
    ) -> Compared:
        left, right = pair.left, pair.right
        about: dict[str, object] = {
            "policy": pair.policy,
            "baseline": pair.baseline,
            "prompt": prompt.id,
            "index": pair.at,
        }
        about |= {"tag": self.tag_of(prompt), "samples": (left.id if left else None, right.id if right else None)}
        if left is None or right is None:
            missing: dict[str, object] = {
                "status": "missing",
                "probability": None,
                "flip": False,
                "principles": {},
                "lengths": None,
            }
            return Compared.model_validate(about | missing)
        about["lengths"] = (len(left.text), len(right.text))
        matchup = self._matchup(left, right)
        if pair.identical:
            principles = {criterion.id: 0.5 for criterion in matchup.criteria}
            tie = {"status": "identical", "probability": 0.5, "flip": False, "principles": principles}
            return Compared.model_validate(about | tie)
        ((_, ballots),) = votes([matchup], questions, answer_of, self.compare)
        comparison = folded(left.id, right.id, ballots, self.pair)
        parts = shares(left.id, right.id, ballots, self.pair)
        unlabelled = comparison.status in (Status.UNPARSED, Status.FAILED)
        judged = {
            "status": comparison.status.value,
            "probability": None if unlabelled else comparison.probability,
            "flip": comparison.flip,
            "principles": {part.principle: part.comparison.probability if part.readable else None for part in parts},
        }
        return Compared.model_validate(about | judged)


def _nth(answers: Mapping[str, Sequence[Sample | None]], prompt: Prompt, index: int) -> Sample | None:
    samples = answers.get(prompt.id, ())
    return samples[index] if index < len(samples) else None


Metric = Callable[[Messages, str], float]
"""The caller's measure of a response to a conversation; NaN where there is none."""
Value = Callable[[Messages, str], float | None]
"""A cached `Metric`; None where it is no finite number."""


class PolicyResponse(NamedTuple):
    """One response with its prompt and grades."""

    prompt: Prompt
    sample: Sample
    grades: Mapping[str, Score | None]
    """By principle; None where the question has no answer yet. Empty without grading."""


class Kinds(NamedTuple):
    """The kinds of prompts, and which of them ask for harm."""

    tag_of: Callable[[Prompt], str | None]
    harmful: tuple[str, ...]


class Bounds(NamedTuple):
    """How grades are read."""

    violation_below: float
    min_label_mass: float


def value_of(metric: Metric) -> Value:
    """The metric with cached values."""

    @functools.cache
    def value(messages: Messages, text: str) -> float | None:
        number = float(metric(messages, text))
        return number if math.isfinite(number) else None

    return value


def metrics_of(
    name: str,
    model: str,
    answers: Sequence[PolicyResponse],
    missing: int,
    shared: frozenset[tuple[str, int]],
    *,
    criteria: Sequence[Criterion],
    kinds: Kinds,
    bounds: Bounds,
    values: Mapping[str, Value],
) -> PolicyMetrics:
    """The metrics of one policy, without the divergence from the baseline.

    `shared` are the prompts and indices that every policy has a response at: diversity, which falls with the number of
    texts, is measured on those alone. Raises ValueError where there is no response.
    """
    if not answers:
        raise ValueError(f"`{name}` has no answers")
    texts, prompts = [each.sample.text for each in answers], [each.prompt.id for each in answers]
    words = [words_of(text) for text in texts]
    common = [text for text, each in zip(words, answers, strict=True) if (each.prompt.id, each.sample.index) in shared]
    cut_off = [each.sample.finish_reason == "length" for each in answers if each.sample.finish_reason is not None]
    return PolicyMetrics(
        name=name,
        model=model,
        answers=len(answers),
        missing=missing,
        length=average([float(len(text)) for text in texts], prompts),
        truncated=mean([float(cut) for cut in cut_off]) if cut_off else None,
        blank=mean([float(not text.strip()) for text in texts]),
        distinct_1=distinct(common or words, 1),
        distinct_2=distinct(common or words, 2),
        repetition=mean([repetition(text) for text in words]),
        refusals=_refusals(answers, kinds),
        violations=_violations(answers, criteria, bounds),
        kl=None,
        metrics=_mean_values(answers, values),
    )


def shared_places(answers: Answered) -> frozenset[tuple[str, int]]:
    """The prompts and indices that every policy has a response at."""
    places = [
        {
            (prompt, at)
            for prompt, samples in by_prompt.items()
            for at, sample in enumerate(samples)
            if sample is not None
        }
        for by_prompt in answers.values()
    ]
    return frozenset(set.intersection(*places)) if places else frozenset()


def _mean_values(answers: Sequence[PolicyResponse], values: Mapping[str, Value]) -> dict[str, Estimate]:
    """The mean of each measure over the responses that have it, with a share's interval where all lie in [0, 1]."""
    means = {}
    for name, value in values.items():
        measured = [(value(each.prompt.messages, each.sample.text), each.prompt.id) for each in answers]
        numbers = [number for number, _ in measured if number is not None]
        if numbers:
            prompts = [prompt for number, prompt in measured if number is not None]
            means[name] = (share if 0 <= min(numbers) <= max(numbers) <= 1 else average)(numbers, prompts)
    return means


def _refusals(answers: Sequence[PolicyResponse], kinds: Kinds) -> tuple[Refusals, ...]:
    tags = [kinds.tag_of(each.prompt) for each in answers]
    refused = [float(refuses(each.sample.text)) for each in answers]
    prompts = [each.prompt.id for each in answers]
    rows = [Refusals(tag="", harmful=None, share=share(refused, prompts))]
    for tag in sorted({tag for tag in tags if tag is not None}):
        at = [place for place, other in enumerate(tags) if other == tag]
        rate = share([refused[place] for place in at], [prompts[place] for place in at])
        rows.append(Refusals(tag=tag, harmful=tag in kinds.harmful if kinds.harmful else None, share=rate))
    return tuple(rows)


def _violations(
    answers: Sequence[PolicyResponse], criteria: Sequence[Criterion], bounds: Bounds
) -> tuple[Violations, ...]:
    """The violations of any principle, and of each.

    A response without a readable grade is left out for that principle, which is no grade of 0. It is left out for `ANY`
    too, unless another grade of it is a violation.
    """
    grades = [
        [
            score.value if score is not None and readable(score, min_mass=bounds.min_label_mass) else None
            for score in (each.grades.get(criterion.id) for criterion in criteria)
        ]
        for each in answers
    ]
    prompts, below = [each.prompt.id for each in answers], bounds.violation_below
    violates = [any(grade is not None and grade < below for grade in row) for row in grades]
    decided = [at for at, row in enumerate(grades) if row and (violates[at] or None not in row)]
    violations = []
    if decided:
        rate = share([float(violates[at]) for at in decided], [prompts[at] for at in decided])
        violations.append(Violations(principle=ANY, share=rate, grade=None))
    for place, criterion in enumerate(criteria):
        graded = [(grade, prompts[at]) for at, row in enumerate(grades) if (grade := row[place]) is not None]
        if graded:
            values, of = [grade for grade, _ in graded], [prompt for _, prompt in graded]
            rate = share([float(grade < below) for grade in values], of)
            violations.append(Violations(principle=criterion.id, share=rate, grade=average(values, of)))
    return tuple(violations)


class _Labelled(NamedTuple):
    """The comparisons of a match that have a label."""

    rows: Sequence[Compared]
    probabilities: list[float]
    outcomes: list[float]
    prompts: list[str]

    @classmethod
    def of(cls, rows: Sequence[Compared], margin: float) -> _Labelled:
        labelled = [row for row in rows if row.probability is not None]
        probabilities = [row.probability for row in labelled if row.probability is not None]
        outcomes = [outcome(probability, margin) for probability in probabilities]
        return cls(labelled, probabilities, outcomes, [row.prompt for row in labelled])


class _LengthControlled(NamedTuple):
    preference: Estimate | None
    note: str
    slope: float | None


def outcome(probability: float, margin: float) -> float:
    """1 for a win, 0 for a loss, one half for a probability nearer to one half than the margin."""
    return 1.0 if probability - 0.5 >= margin else 0.0 if 0.5 - probability >= margin else 0.5


def match_of(
    policy: str, baseline: str, rows: Sequence[Compared], *, margin: float, principles: Sequence[str]
) -> Match:
    """The match of two policies; `rows` are its comparisons, with or without a label.

    A probability at least `margin` above one half is a win. `principles` sets the order of the principles in the match.
    """
    labelled = _Labelled.of(rows, margin)
    outcomes, prompts = labelled.outcomes, labelled.prompts
    controlled = _length_controlled(labelled)
    lengths = [row.lengths for row in rows if row.lengths is not None]
    total, other_total = (sum(pair[side] for pair in lengths) for side in (0, 1))
    judged = [row for row in labelled.rows if row.status != "identical"]
    statuses: Counter[str] = Counter(row.status for row in rows)
    return Match(
        policy=policy,
        baseline=baseline,
        compared=len(outcomes),
        identical=statuses["identical"],
        no_label={name: statuses[name] for name in NO_LABEL if statuses[name]},
        wins=share_of([float(result == 1) for result in outcomes], prompts),
        ties=share_of([float(result == 0.5) for result in outcomes], prompts),
        losses=share_of([float(result == 0) for result in outcomes], prompts),
        win_rate=share_of(outcomes, prompts),
        preference=share_of(labelled.probabilities, prompts),
        length_controlled=controlled.preference,
        length_controlled_note=controlled.note,
        length_slope=controlled.slope,
        length_ratio=total / other_total if other_total else None,
        flips=mean([float(row.flip) for row in judged]) if judged else None,
        principles=tuple(
            _part(
                name,
                [
                    (outcome(p, margin), row.prompt)
                    for row in labelled.rows
                    if (p := row.principles.get(name)) is not None
                ],
            )
            for name in principles
        ),
        tags=tuple(
            _part(
                tag,
                [(result, row.prompt) for row, result in zip(labelled.rows, outcomes, strict=True) if row.tag == tag],
            )
            for tag in sorted({row.tag for row in rows if row.tag is not None})
        ),
    )


def _length_controlled(labelled: _Labelled) -> _LengthControlled:
    """The mean preference at equal length; none, with the reason, where the comparisons do not determine it."""
    if not labelled.probabilities:
        return _LengthControlled(None, "nothing was compared", None)
    gaps = [float(row.lengths[0] - row.lengths[1]) if row.lengths else 0.0 for row in labelled.rows]
    estimate = length_controlled(labelled.probabilities, gaps, labelled.prompts)
    plain = share(labelled.probabilities, labelled.prompts)
    if estimate.length_controlled is None or estimate.error is None:
        return _LengthControlled(None, estimate.note, None)
    if estimate.slope is None:  # length makes no difference
        return _LengthControlled(plain, estimate.note, None)
    controlled = fitted(estimate.length_controlled, estimate.error, len(set(labelled.prompts)), plain)
    return _LengthControlled(controlled, estimate.note, estimate.slope)


def _part(name: str, results: Sequence[tuple[float, str]]) -> Part:
    """The win rate of a part of the comparisons, given as outcomes and prompts."""
    return Part(name=name, rate=share_of([result for result, _ in results], [prompt for _, prompt in results]))
