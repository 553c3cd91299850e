"""Grades of single responses, and rankings of many at once: the other ways of judging.

Grades: the question about one sample, its answer as a record, and what two grades say about a pair.

Rankings of several samples at once: the questions, their answers read strictly, and what they say about pairs.

The judge sees all samples of a prompt together, in several orders drawn by hash, so that where a sample stands in the
list averages out. An answer counts only if it names every reply exactly once.

What grades or rankings say about a pair, folded over the criteria into one comparison.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from rlaif.config.judge_templates import Judge
from rlaif.feedback.aggregate import HARD_LOGIT, Comparison, Status
from rlaif.feedback.matchups import Criterion
from rlaif.feedback.prompts import DIGITS, LETTERS, rank_messages, score_messages
from rlaif.inference.base import Output, Question
from rlaif.records import Order, Prompt, Sample, Sampling, Score, mean_grade
from rlaif.stats import sigmoid
from rlaif.text import without_thinking

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


def score_record(question: Question, answer: Output) -> Score:
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


MOST = len(LETTERS)
"""Samples that one question can show."""

_LIST = re.compile(r"(?<!\w)([A-J])(?!\w)")
_TALK = re.compile(r"[A-Za-z]{2,}")
_BEST_FIRST = re.compile(r"(?:(?:final )?(?:ranking|order)\W{1,20})?(?:from )?best to worst\b", re.IGNORECASE)
_CUES = {"ranking", "order", "answer", "final", "the", "is", "reply", "replies", "and"}


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
                [each.text for each in shown],
                criterion.compare,
                max_chars=max_chars,
                templates=judge.templates,
            ),
            Sampling(max_tokens=max_tokens),
            about={
                "prompt": prompt.id,
                "shown": " ".join(each.id for each in shown),
                "principle": criterion.id,
            },
        )
        for shown in shuffled(samples, shuffles)
    ]


def shuffled(samples: Sequence[Sample], count: int) -> list[list[Sample]]:
    """`count` different orders of the samples (all there are, of few), drawn by hash; every second one is the one
    before it turned round.

    A list and its reverse together put every sample as early as late, which cancels a steady preference for a place.
    """
    orders: list[list[Sample]] = []
    count = min(count, math.factorial(len(samples)))
    number = 0
    while len(orders) < count:
        drawn = sorted(samples, key=lambda each, number=number: _hash(str(number), each.id))  # type: ignore[misc]
        number += 1
        if drawn not in orders:
            orders += [drawn, drawn[::-1]]
    return orders[:count]


def order_record(question: Question, answer: Output) -> Order:
    """The record of one ranking."""
    shown = tuple(str(question.about["shown"]).split())
    places = parse_order(answer.text, len(shown))
    return Order(
        id=question.id,
        prompt=str(question.about["prompt"]),
        shown=shown,
        ranking=None if places is None else tuple(shown[at] for at in places),
        principle=str(question.about["principle"]),
        judge=question.model,
        text=answer.text,
        prompt_tokens=answer.prompt_tokens,
        cached_tokens=answer.cached_tokens,
        completion_tokens=answer.completion_tokens,
    )


def parse_order(text: str, count: int) -> list[int] | None:
    """The places of `count` replies from best to worst, or None.

    The whole answer or its last line must be a list of all letters, each once, with no more words around it than
    `ranking` or `best to worst` before it; ties ("A = B") are no order.
    """
    said = without_thinking(text).strip()
    for each in (said, said.splitlines()[-1] if said else ""):
        line = _BEST_FIRST.sub("", each, count=1)
        letters = _LIST.findall(line)
        wanted = sorted(LETTERS[:count])
        words = {word.lower() for word in _TALK.findall(line)}
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


def _hash(*parts: str) -> bytes:
    return hashlib.blake2b("\0".join(("rank", *parts)).encode(), digest_size=8).digest()


class Said(NamedTuple):
    """One criterion's word on a pair."""

    principle: str
    weight: float
    logit: float | None
    """Log-odds that the left sample is better; None where nothing readable was said."""
    answered: bool
    """Whether every question behind it has an answer."""
    evidence: tuple[str, ...]
    """Ids of those answers."""
    hard: bool = False
    """It comes from words, not from log-probabilities."""


def aggregate_scores(left: str, right: str, said: Sequence[Said], *, margin: float) -> Comparison:
    """Average the criteria by weight. A missing answer leaves the pair without a label, as everywhere."""
    ids = tuple(dict.fromkeys(key for each in said for key in each.evidence))
    if not all(each.answered for each in said):
        return Comparison(left, right, Status.FAILED, judgements=ids)
    read = [(each, each.logit) for each in said if each.logit is not None]
    if not read:
        return Comparison(left, right, Status.UNPARSED, judgements=ids)
    logit = sum(each.weight * own for each, own in read) / sum(each.weight for each, _ in read)
    tie = abs(sigmoid(logit) - 0.5) < margin or logit == 0
    return Comparison(
        left,
        right,
        Status.TIE if tie else Status.LABELLED,
        logit=logit,
        hard=any(each.hard for each, _ in read),
        principles=tuple(each.principle for each, _ in read),
        judgements=ids,
    )
