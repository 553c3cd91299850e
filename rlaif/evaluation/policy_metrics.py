"""Figures of policies and their matches: comparisons, violation rates, lengths, diversity.

How varied what a policy says is: different words, repetition, openings. Pure functions of texts.

A policy that has found a hole in its reward repeats itself and opens every answer alike; one that has lost its range
says fewer different things.

Two policies' answers to the same prompts put to the judge, and what its answers say about each pair of them.

What the answers of one policy are like: a `Player`.

What the comparisons of two policies come to: a `Match`.

A comparison is won, tied or lost by its probability and the margin, and the win rate counts ties half. In the tiny
world that agrees with what the oracle counts; the mean probability does not, as it is drawn to one half by every
principle that sees no difference. What length does to a judge is told from the probabilities, as AlpacaEval does: the
value at equal length stands beside the mean preference, not the win rate.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from rlaif.config.judge_templates import Judge
from rlaif.config.schemas import CompareSettings, PairSettings
from rlaif.data.checks import refuses
from rlaif.evaluation.reports import Match, Part, PolicyMetrics, Refusals, Violations
from rlaif.evaluation.win_rate import length_controlled
from rlaif.feedback.aggregate import Comparison, Share, Status, folded, shares
from rlaif.feedback.judge import compare_questions, votes
from rlaif.feedback.matchups import Criterion, Matchup, draw
from rlaif.feedback.scoring import readable
from rlaif.inference.base import Question
from rlaif.records import Judgement, Messages, Prompt, Record, Sample, Score
from rlaif.stats import Estimate, average, fitted, mean, share, share_of

_REPEATED = 4
_OPENING = 4

_WITHOUT_SPACES = r"\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f"
"""Kana, Han and Thai: each character counts as a word."""
_WORD = re.compile(rf"[{_WITHOUT_SPACES}]|[^\W{_WITHOUT_SPACES}]+(?:['’][^\W{_WITHOUT_SPACES}]+)*")

Words = Sequence[str]
"""Of one text, as `words_of` finds them."""


def words_of(text: str) -> list[str]:
    """The words of a text in small letters, without its marks; in scripts without spaces, its characters."""
    return _WORD.findall(text.lower())


def distinct(texts: Sequence[Words], size: int) -> float:
    """Different runs of `size` neighbouring words over all such runs of the texts (Li et al. 2016, arXiv:1510.03055).

    It falls as texts are added, as more of what is said was said before: compare it at the same number of texts only.
    0 where no text has so many words.
    """
    different: set[tuple[str, ...]] = set()
    total = 0
    for each in texts:
        runs = _runs(each, size)
        different.update(runs)
        total += len(runs)
    return len(different) / total if total else 0.0


def repetition(words: Words) -> float:
    """Share of a text's runs of four words that stood in it before; a text of fewer words repeats nothing."""
    runs = _runs(words, _REPEATED)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def commonest_opening(texts: Sequence[Words]) -> tuple[str, float]:
    """The first four words with which most texts begin, and the share of the texts that do.

    A shorter text opens with all its words; one without a word opens with nothing, and counts in the share alone. Of
    equally common openings the first one is told; of no texts, or none with a word, it is ("", 0).
    """
    counts = Counter(" ".join(each[:_OPENING]) for each in texts if each)
    if not counts:
        return "", 0.0
    ((opening, count),) = counts.most_common(1)
    return opening, count / len(texts)


def _runs(words: Words, size: int) -> list[tuple[str, ...]]:
    """All runs of so many neighbouring words."""
    return list(zip(*(words[start:] for start in range(size)), strict=False))


Answered = Mapping[str, Mapping[str, Sequence[Sample | None]]]
"""By policy and prompt id, the answers by their index; None where one is missing."""

NO_LABEL = ("missing", "unparsed", "failed")


class Compared(Record):
    """One pair of answers: the i-th of a policy and the i-th of its opponent to the same prompt. A line of
    NAME.comparisons.jsonl."""

    policy: str
    baseline: str
    prompt: str
    index: int
    tag: str | None
    samples: tuple[str | None, str | None]
    """Ids of the policy's answer and of the other's; None where one is missing."""
    status: Literal["labelled", "tie", "identical", "unparsed", "failed", "missing"]
    """`tie`: nearer to one half than the margin; `identical`: one text, not asked; the last three have no label."""
    probability: float | None
    """That the policy's answer is better, one half where both are the same; None without a label."""
    flip: bool
    """The two orders disagree."""
    principles: dict[str, float | None]
    """The same by each principle on its own."""
    lengths: tuple[int, int] | None
    """Characters of both; None where one is missing."""


class _Bout(NamedTuple):
    policy: str
    baseline: str
    at: int
    left: Sample | None
    right: Sample | None


class Plan(NamedTuple):
    """What is compared."""

    prompts: Sequence[Prompt]
    answers: Answered
    pairs: Sequence[tuple[str, str]]
    """Policies that meet: who is told of, and against whom."""
    samples: int
    criteria: tuple[Criterion, ...]
    asked: CompareSettings
    read: PairSettings
    judge: Judge
    tag_of: Callable[[Prompt], str | None]

    def questions(self) -> Iterator[Question]:
        """Everything to ask; all about one prompt together, for the server's prefix cache."""
        for prompt in self.prompts:
            yield from self._questions(prompt, self._bouts(prompt))

    def compared(self, answer_of: Callable[[str], Judgement | None]) -> Iterator[Compared]:
        """What the answers on disk, found by the ids of their questions, say about every pair."""
        for prompt in self.prompts:
            bouts = self._bouts(prompt)
            questions = self._questions(prompt, bouts)
            for bout in bouts:
                yield self._compared(prompt, bout, questions, answer_of)

    def _bouts(self, prompt: Prompt) -> list[_Bout]:
        return [
            _Bout(one, other, index, _nth(self.answers[one], prompt, index), _nth(self.answers[other], prompt, index))
            for one, other in self.pairs
            for index in range(self.samples)
        ]

    def _questions(self, prompt: Prompt, bouts: Sequence[_Bout]) -> list[Question]:
        met = [self._meeting(bout.left, bout.right) for bout in bouts if bout.left and bout.right and not _alike(bout)]
        return list(compare_questions(prompt, met, self.asked, self.judge))

    def _meeting(self, left: Sample, right: Sample) -> Matchup:
        one = self.asked.principles == "one"
        return Matchup(left, right, (draw(self.criteria, (left.id, right.id)),) if one else self.criteria)

    def _compared(
        self,
        prompt: Prompt,
        bout: _Bout,
        questions: Sequence[Question],
        answer_of: Callable[[str], Judgement | None],
    ) -> Compared:
        left, right = bout.left, bout.right
        about = {"policy": bout.policy, "baseline": bout.baseline, "prompt": prompt.id, "index": bout.at}
        about |= {"tag": self.tag_of(prompt), "samples": (left.id if left else None, right.id if right else None)}
        if left is None or right is None:
            silent: dict[str, object] = {
                "status": "missing",
                "probability": None,
                "flip": False,
                "principles": {},
                "lengths": None,
            }
            return Compared.model_validate(about | silent)
        about["lengths"] = (len(left.text), len(right.text))
        matchup = self._meeting(left, right)
        if _alike(bout):
            evens = {criterion.id: 0.5 for criterion in matchup.criteria}
            even = {"status": "identical", "probability": 0.5, "flip": False, "principles": evens}
            return Compared.model_validate(about | even)
        ((_, cast),) = votes([matchup], questions, answer_of, self.asked)
        said = folded(left.id, right.id, cast, self.read)
        return Compared.model_validate(about | _told(said, shares(left.id, right.id, cast, self.read)))


def _told(said: Comparison, parts: Sequence[Share]) -> dict[str, object]:
    silent = said.status in (Status.UNPARSED, Status.FAILED)
    return {
        "status": said.status.value,
        "probability": None if silent else said.probability,
        "flip": said.flip,
        "principles": {part.principle: part.comparison.probability if part.readable else None for part in parts},
    }


def _nth(answers: Mapping[str, Sequence[Sample | None]], prompt: Prompt, index: int) -> Sample | None:
    own = answers.get(prompt.id, ())
    return own[index] if index < len(own) else None


def _alike(bout: _Bout) -> bool:
    return bool(bout.left and bout.right and bout.left.text.strip() == bout.right.text.strip())


Metric = Callable[[Messages, str], float]
"""A measure of an answer to a conversation: the caller's own; NaN where there is none."""
Value = Callable[[Messages, str], float | None]
"""The same, asked once of each answer; None where it is no finite number."""

ANY = "*"
"""For the answers that break any principle."""


class PolicyResponse(NamedTuple):
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


def value_of(metric: Metric) -> Value:
    """The measure as the figures take it."""

    @functools.cache
    def value(messages: Messages, text: str) -> float | None:
        found = float(metric(messages, text))
        return found if math.isfinite(found) else None

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
    return PolicyMetrics(
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
        metrics=dict(_meters(answers, values)),
    )


def shared_places(answers: Answered) -> frozenset[tuple[str, int]]:
    """The prompts and indices that every policy has an answer at."""
    places = [
        {(prompt, at) for prompt, found in own.items() for at, each in enumerate(found) if each is not None}
        for own in answers.values()
    ]
    return frozenset(set.intersection(*places)) if places else frozenset()


def _meters(answers: Sequence[PolicyResponse], values: Mapping[str, Value]) -> Iterator[tuple[str, Estimate]]:
    """The mean of each measure over the answers that have it; a share's interval where it is one."""
    for name, value in values.items():
        found = [(value(each.prompt.messages, each.sample.text), each.prompt.id) for each in answers]
        told = [(number, prompt) for number, prompt in found if number is not None]
        if told:
            numbers, prompts = [number for number, _ in told], [prompt for _, prompt in told]
            yield name, (share if 0 <= min(numbers) <= max(numbers) <= 1 else average)(numbers, prompts)


def _refusals(answers: Sequence[PolicyResponse], kinds: Kinds) -> tuple[Refusals, ...]:
    tags = [kinds.tag_of(each.prompt) for each in answers]
    said = [float(refuses(each.sample.text)) for each in answers]
    prompts = [each.prompt.id for each in answers]
    found = [Refusals(tag="", harmful=None, share=share(said, prompts))]
    for tag in sorted({tag for tag in tags if tag is not None}):
        at = [place for place, other in enumerate(tags) if other == tag]
        own = share([said[place] for place in at], [prompts[place] for place in at])
        found.append(Refusals(tag=tag, harmful=tag in kinds.harmful if kinds.harmful else None, share=own))
    return tuple(found)


def _violations(
    answers: Sequence[PolicyResponse], criteria: Sequence[Criterion], bounds: Bounds
) -> tuple[Violations, ...]:
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


def _values(answer: PolicyResponse, criteria: Sequence[Criterion], min_mass: float) -> list[float | None]:
    """The grade by each principle; None where there is none to be read, which is no grade of 0."""
    scores = (answer.grades.get(criterion.id) for criterion in criteria)
    return [score.value if score is not None and readable(score, min_mass=min_mass) else None for score in scores]


class _Labelled(NamedTuple):
    """The comparisons of a match that have a label."""

    rows: Sequence[Compared]
    said: list[float]
    """Their probabilities."""
    ends: list[float]
    """Their outcomes."""
    prompts: list[str]

    @classmethod
    def of(cls, rows: Sequence[Compared], margin: float) -> _Labelled:
        kept = [row for row in rows if row.probability is not None]
        said = [row.probability for row in kept if row.probability is not None]
        return cls(kept, said, [outcome(each, margin) for each in said], [row.prompt for row in kept])


class _AtEqualLength(NamedTuple):
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

    A probability at least `margin` above one half is a win. `principles` are told in their order.
    """
    known = _Labelled.of(rows, margin)
    ends, prompts = known.ends, known.prompts
    controlled = _controlled(known)
    judged = [row for row in known.rows if row.status != "identical"]
    statuses: Counter[str] = Counter(row.status for row in rows)
    return Match(
        policy=policy,
        baseline=baseline,
        compared=len(ends),
        identical=statuses["identical"],
        no_label={name: statuses[name] for name in NO_LABEL if statuses[name]},
        wins=share_of([float(each == 1) for each in ends], prompts),
        ties=share_of([float(each == 0.5) for each in ends], prompts),
        losses=share_of([float(each == 0) for each in ends], prompts),
        win_rate=share_of(ends, prompts),
        preference=share_of(known.said, prompts),
        length_controlled=controlled.preference,
        length_controlled_note=controlled.note,
        length_slope=controlled.slope,
        length_ratio=_ratio(rows),
        flips=mean([float(row.flip) for row in judged]) if judged else None,
        principles=tuple(_principle(name, known.rows, margin) for name in principles),
        tags=tuple(_tag(name, known) for name in sorted({row.tag for row in rows if row.tag is not None})),
    )


def _controlled(known: _Labelled) -> _AtEqualLength:
    """The mean preference at equal length; none, with the reason, where the comparisons cannot tell it."""
    if not known.said:
        return _AtEqualLength(None, "nothing was compared", None)
    gaps = [float(row.lengths[0] - row.lengths[1]) if row.lengths else 0.0 for row in known.rows]
    found = length_controlled(known.said, gaps, known.prompts)
    plain = share(known.said, known.prompts)
    if found.length_controlled is None or found.error is None:
        return _AtEqualLength(None, found.note, None)
    if found.slope is None:  # length makes no difference
        return _AtEqualLength(plain, found.note, None)
    controlled = fitted(found.length_controlled, found.error, len(set(known.prompts)), plain)
    return _AtEqualLength(controlled, found.note, found.slope)


def _ratio(rows: Sequence[Compared]) -> float | None:
    lengths = [row.lengths for row in rows if row.lengths is not None]
    own, other = (sum(each[side] for each in lengths) for side in (0, 1))
    return own / other if other else None


def _principle(name: str, rows: Sequence[Compared], margin: float) -> Part:
    said = [(value, row.prompt) for row in rows if (value := row.principles.get(name)) is not None]
    found = [(outcome(value, margin), prompt) for value, prompt in said]
    return Part(name=name, rate=share_of([value for value, _ in found], [prompt for _, prompt in found]))


def _tag(name: str, known: _Labelled) -> Part:
    found = [(end, row.prompt) for row, end in zip(known.rows, known.ends, strict=True) if row.tag == name]
    return Part(name=name, rate=share_of([end for end, _ in found], [prompt for _, prompt in found]))
