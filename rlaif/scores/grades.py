"""Grades: the question about one sample, its answer as a record, and what two grades say about a pair."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from rlaif.asking import Judge
from rlaif.comparisons.fold import HARD_LOGIT
from rlaif.inference.base import Answer, Question
from rlaif.records import Prompt, Sample, Sampling, Score, mean_grade
from rlaif.samples.meetings import Criterion
from rlaif.scores.questions import DIGITS, score_messages
from rlaif.thinking import without_thinking

_ONE_TOKEN = Sampling(max_tokens=1)
_DRESS = r"[\s*_`\"'()\[\]#>.:]*"
_SAID = re.compile(
    rf"{_DRESS}(?:(?:grade|score|answer|rating)\b{_DRESS}(?:is\b{_DRESS})?)?(?<!\.)([0-9])(?:\s*/\s*9)?{_DRESS}",
    re.IGNORECASE,
)


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


def score_record(question: Question, answer: Answer) -> Score:
    """The record of one grade."""
    value: float | None
    mass: float | None = None
    if answer.logprobs:
        value, mass = mean_grade(answer.logprobs)
        if answer.label_mass is not None:  # of the digits that were listed: bounds say nothing
            mass = answer.label_mass
    else:
        value = parse_grade(answer.text.strip().removeprefix(question.prefill))
    return Score(
        id=question.id,
        prompt=str(question.about["prompt"]),
        sample=str(question.about["sample"]),
        principle=str(question.about["principle"]),
        judge=question.model,
        value=value,
        logprobs=answer.logprobs,
        label_mass=mass,
        text=answer.text,
        prompt_tokens=answer.prompt_tokens,
        cached_tokens=answer.cached_tokens,
        completion_tokens=answer.completion_tokens,
    )


def parse_grade(text: str) -> float | None:
    """The digit of an answer in words: alone, after `grade:` and the like, or so on its last line; else None."""
    said = without_thinking(text).strip()
    last = said.splitlines()[-1] if said else ""
    match = _SAID.fullmatch(said) or _SAID.fullmatch(last)
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
    ours, theirs = (_normalised(score.logprobs or ()) for score in (left, right))
    win = math.fsum(a * b for at, a in enumerate(ours) for b in theirs[:at])
    lose = math.fsum(a * b for at, b in enumerate(theirs) for a in ours[:at])
    tie = max(0.0, 1.0 - win - lose) / 2
    odds = (win + tie) / (lose + tie) if lose + tie else math.inf
    return max(-most, min(most, math.log(odds) if odds else -math.inf))


FINALISTS = 2
"""Samples at either end that a tournament compares."""


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


def _normalised(logprobs: tuple[float, ...]) -> list[float]:
    top = max(logprobs)
    chances = [math.exp(each - top) for each in logprobs]
    whole = math.fsum(chances)
    return [chance / whole for chance in chances]
