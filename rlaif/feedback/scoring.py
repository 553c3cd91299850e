"""Scoring: grades of single responses and rankings of many at once, as alternatives to pairwise judging.

- Grades: the question about one sample, its output as a record, and the log-odds that two grades give a pair.
- Rankings: the judge sees all samples of a prompt together, in several orders sampled by hash, so that where a sample
  stands in the list averages out. An output counts only if it names every response exactly once.
- `aggregate_scores` folds grades or rankings over the criteria into one comparison.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from rlaif.config.judge_templates import Judge
from rlaif.feedback.aggregate import HARD_LOGIT, Comparison, Status, status_of
from rlaif.feedback.judge import Criterion
from rlaif.feedback.prompts import DIGITS, LETTERS, rank_messages, score_messages
from rlaif.feedback.sampling import hash64
from rlaif.inference.base import Output, Question
from rlaif.records import Order, Prompt, Sample, Sampling, Score, mean_grade
from rlaif.text import without_thinking

FINALISTS = 2
"""Samples at either end that a tournament compares."""

MAX_RANKED = len(LETTERS)
"""Most samples that one question can show."""

_ONE_TOKEN = Sampling(max_tokens=1)
_MARKUP = r"[\s*_`\"'()\[\]#>.:]*"
_GRADE = re.compile(
    rf"{_MARKUP}(?:(?:grade|score|answer|rating)\b{_MARKUP}(?:is\b{_MARKUP})?)?(?<!\.)([0-9])(?:\s*/\s*9)?{_MARKUP}",
    re.IGNORECASE,
)
_LETTER = re.compile(r"(?<!\w)([A-J])(?!\w)")
_WORD = re.compile(r"[A-Za-z]{2,}")
_BEST_FIRST = re.compile(r"(?:(?:final )?(?:ranking|order)\W{1,20})?(?:from )?best to worst\b", re.IGNORECASE)
_CUES = {"ranking", "order", "answer", "final", "the", "is", "reply", "replies", "and"}


def score_question(prompt: Prompt, sample: Sample, criterion: Criterion, judge: Judge, *, max_chars: int) -> Question:
    """The question behind the grade of one sample under one criterion."""
    return Question(
        "score",
        judge.name,
        score_messages(prompt.messages, sample.text, criterion.compare, max_chars=max_chars, templates=judge.templates),
        _ONE_TOKEN,
        labels=DIGITS,
        prefill=judge.templates["score"].prefill,
        about={"prompt": prompt.id, "sample": sample.id, "principle": criterion.id},
    )


def score_record(question: Question, output: Output) -> Score:
    """The record of one grade."""
    value: float | None
    mass: float | None = None
    if output.logprobs:
        value, mass = mean_grade(output.logprobs)
        if output.label_mass is not None:  # of the digits that were listed: bounds say nothing
            mass = output.label_mass
    else:
        value = parse_grade(output.text.strip().removeprefix(question.prefill))
    return Score(
        id=question.id,
        prompt=str(question.about["prompt"]),
        sample=str(question.about["sample"]),
        principle=str(question.about["principle"]),
        judge=question.model,
        value=value,
        logprobs=output.logprobs,
        label_mass=mass,
        text=output.text,
        prompt_tokens=output.prompt_tokens,
        cached_tokens=output.cached_tokens,
        completion_tokens=output.completion_tokens,
    )


def parse_grade(text: str) -> float | None:
    """The digit of an output in words: alone, after `grade:` and the like, or so on its last line; else None."""
    visible = without_thinking(text).strip()
    last = visible.splitlines()[-1] if visible else ""
    match = _GRADE.fullmatch(visible) or _GRADE.fullmatch(last)
    return float(match[1]) if match else None


def readable(score: Score | None, *, min_mass: float) -> bool:
    """Whether a grade can be counted."""
    if score is None or score.value is None or math.isnan(score.value):
        return False
    return score.label_mass is None or score.label_mass >= min_mass


def grade_logit(left: Score, right: Score, *, most: float = 30.0) -> float:
    """Log-odds that the left sample has the higher grade, if each grade is drawn from the judge's own distribution.

    Equal grades count half for either side, so two samples with the same distribution are at even odds. For grades in
    words, which have no distribution, the higher one counts as much as a verdict in words.
    """
    if left.logprobs is None or right.logprobs is None:
        gap = (left.value or 0.0) - (right.value or 0.0)
        return math.copysign(HARD_LOGIT, gap) if gap else 0.0
    distributions = []
    for logprobs in (left.logprobs, right.logprobs):
        top = max(logprobs)
        weights = [math.exp(logprob - top) for logprob in logprobs]
        total = math.fsum(weights)
        distributions.append([weight / total for weight in weights])
    p, q = distributions
    win = math.fsum(a * b for at, a in enumerate(p) for b in q[:at])
    lose = math.fsum(a * b for at, b in enumerate(q) for a in p[:at])
    tie = max(0.0, 1.0 - win - lose) / 2
    odds = (win + tie) / (lose + tie) if lose + tie else math.inf
    return max(-most, min(most, math.log(odds) if odds else -math.inf))


def finalists(samples: Sequence[Sample], score_of: Callable[[Sample], Score | None]) -> list[Sample]:
    """The two best and the two worst by grade, in their own order; all of up to four, none while a grade is missing.

    What cannot be read has the lowest grade: it is compared before it is believed.
    """
    if len(samples) <= 2 * FINALISTS:
        return list(samples)
    scores = {sample.id: score_of(sample) for sample in samples}
    if None in scores.values():
        return []
    values = {key: score.value if readable(score, min_mass=0.0) else -1.0 for key, score in scores.items() if score}
    ranked = sorted(samples, key=lambda sample: (-(values[sample.id] or 0.0), sample.index))
    chosen = {sample.id for sample in (*ranked[:FINALISTS], *ranked[-FINALISTS:])}
    return [sample for sample in samples if sample.id in chosen]


def order_questions(
    prompt: Prompt,
    samples: Sequence[Sample],
    criterion: Criterion,
    judge: Judge,
    *,
    shuffles: int,
    max_chars: int,
    max_tokens: int = 64,
) -> list[Question]:
    """The samples of a prompt (two to ten) in `shuffles` orders, each a question."""
    return [
        Question(
            "rank",
            judge.name,
            rank_messages(
                prompt.messages,
                [sample.text for sample in shown],
                criterion.compare,
                max_chars=max_chars,
                templates=judge.templates,
            ),
            Sampling(max_tokens=max_tokens),
            about={
                "prompt": prompt.id,
                "shown": " ".join(sample.id for sample in shown),
                "principle": criterion.id,
            },
        )
        for shown in shuffled(samples, shuffles)
    ]


def shuffled(samples: Sequence[Sample], count: int) -> list[list[Sample]]:
    """`count` different orders of the samples (all there are, of few), sampled by hash; every second one is the one
    before it reversed.

    A list and its reverse together put every sample as early as late, which cancels a steady preference for a place.
    """
    orders: list[list[Sample]] = []
    count = min(count, math.factorial(len(samples)))
    number = 0
    while len(orders) < count:
        order = sorted(samples, key=lambda sample, number=number: hash64("rank", str(number), sample.id))  # type: ignore[misc]
        number += 1
        if order not in orders:
            orders += [order, order[::-1]]
    return orders[:count]


def order_record(question: Question, output: Output) -> Order:
    """The record of one ranking."""
    shown = tuple(str(question.about["shown"]).split())
    places = parse_order(output.text, len(shown))
    return Order(
        id=question.id,
        prompt=str(question.about["prompt"]),
        shown=shown,
        ranking=None if places is None else tuple(shown[at] for at in places),
        principle=str(question.about["principle"]),
        judge=question.model,
        text=output.text,
        prompt_tokens=output.prompt_tokens,
        cached_tokens=output.cached_tokens,
        completion_tokens=output.completion_tokens,
    )


def parse_order(text: str, count: int) -> list[int] | None:
    """The places of `count` responses from best to worst, or None.

    The whole output or its last line must be a list of all letters, each once, with no more words around it than
    `ranking` or `best to worst` before it; ties ("A = B") are no order.
    """
    visible = without_thinking(text).strip()
    for part in (visible, visible.splitlines()[-1] if visible else ""):
        line = _BEST_FIRST.sub("", part, count=1)
        letters = _LETTER.findall(line)
        wanted = sorted(LETTERS[:count])
        words = {word.lower() for word in _WORD.findall(line)}
        if sorted(letters) == wanted and words <= _CUES and not re.search(r"[=~≈<≺]", line):
            return [LETTERS.index(letter) for letter in letters]
    return None


def win_shares(orders: Iterable[Order]) -> dict[tuple[str, str], float]:
    """For every ordered pair of samples, the share of the readable rankings in which the first one stands before.

    One half is added to either side's count (Krichevsky and Trofimov 1981), so that no pair is ever certain.
    """
    wins: dict[tuple[str, str], float] = {}
    for order in orders:
        for better, worse in itertools.combinations(order.ranking or (), 2):
            wins[better, worse] = wins.get((better, worse), 0.0) + 1.0
    pairs = {tuple(sorted(pair)) for pair in wins}
    shares: dict[tuple[str, str], float] = {}
    for one, other in pairs:
        first, second = wins.get((one, other), 0.0), wins.get((other, one), 0.0)
        shares[one, other] = (first + 0.5) / (first + second + 1.0)
        shares[other, one] = 1.0 - shares[one, other]
    return shares


class CriterionVerdict(NamedTuple):
    """One criterion's log-odds on a pair, from grades or rankings."""

    principle: str
    weight: float
    logit: float | None
    """Log-odds that the left sample is better; None where no answer is readable."""
    answered: bool
    """Whether every question behind it has an output."""
    evidence: tuple[str, ...]
    """Ids of those answers."""
    hard: bool = False
    """It comes from words, not from log-probabilities."""


def aggregate_scores(left: str, right: str, verdicts: Sequence[CriterionVerdict], *, margin: float) -> Comparison:
    """Average the criteria by weight. A missing answer leaves the pair without a label, as everywhere."""
    ids = tuple(dict.fromkeys(key for verdict in verdicts for key in verdict.evidence))
    if not all(verdict.answered for verdict in verdicts):
        return Comparison(left, right, Status.FAILED, judgements=ids)
    read = [(verdict, verdict.logit) for verdict in verdicts if verdict.logit is not None]
    if not read:
        return Comparison(left, right, Status.UNPARSED, judgements=ids)
    logit = sum(verdict.weight * value for verdict, value in read) / sum(verdict.weight for verdict, _ in read)
    return Comparison(
        left,
        right,
        status_of(logit, flip=False, margin=margin, drop_flips=False),
        logit=logit,
        hard=any(verdict.hard for verdict, _ in read),
        principles=tuple(verdict.principle for verdict, _ in read),
        judgements=ids,
    )
