"""The other ways of judging over a run: by grades, by rankings of all samples at once, and the tournament.

- `score`: every sample is graded alone, and a pair is decided by the two distributions over the grades. Calls grow
  with the samples, not with their pairs.
- `rank`: all samples of a prompt stand in one question, in several orders.
- `tournament`: every sample is graded once under the whole constitution, and only the two best and the two worst meet,
  in the usual ordered comparisons: for eight samples 8 + 12 calls where the round robin has 56.

All answers are in tables of their own (`scores.jsonl`, `orders.jsonl`), found again by the hash of their question.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from rlaif.comparisons.fold import HARD_LOGIT, Comparison
from rlaif.inference.base import Question
from rlaif.records import Order, Prompt, Sample, Score
from rlaif.run import Run
from rlaif.samples.meetings import Criterion, Meeting, distinct_samples, draw, meetings
from rlaif.scores.fold import Said, settle
from rlaif.scores.grades import grade_logit, readable
from rlaif.scores.orders import MOST, order_questions, win_shares


def score_questions(run: Run) -> Iterator[Question]:
    """Every grade that the run's way of judging wants, as far as there are samples."""
    for prompt in run.prompts():
        yield from score_questions_of(run, prompt)


def score_questions_of(run: Run, prompt: Prompt) -> list[Question]:
    """The grades of one prompt's samples, each once."""
    samples = run.samples_of(prompt)
    if run.settings.compare.method == "tournament":
        return run.final_questions(prompt, samples)
    if run.settings.compare.method == "score":
        met = meetings(samples, run.criteria, run.settings.compare)
        sides = [(side, criterion) for each in met for side in (each.left, each.right) for criterion in each.criteria]
        wanted = {(sample.id, criterion.id): (sample, criterion) for sample, criterion in sides}
        return [run.score_question(prompt, sample, criterion) for sample, criterion in wanted.values()]
    return []


def rank_questions(run: Run) -> Iterator[Question]:
    """Every ranking that the run wants."""
    for prompt in run.prompts():
        yield from rank_questions_of(run, prompt)


def rank_questions_of(run: Run, prompt: Prompt) -> list[Question]:
    """The rankings of one prompt's samples."""
    if run.settings.compare.method != "rank":
        return []
    found = [_rank_questions(run, prompt, criterion, samples) for criterion, samples in _rankings(run, prompt)]
    return [question for questions in found for question in questions]


def comparisons(run: Run, prompt: Prompt, met: Sequence[Meeting]) -> list[Comparison]:
    """What the grades, or the rankings, of one prompt say about its pairs."""
    margin = run.settings.pair.margin
    if run.settings.compare.method == "rank":
        return [settle(*pair, said, margin=margin) for pair, said in _ranked_pairs(run, prompt)]
    return [
        settle(each.left.id, each.right.id, [_graded(run, prompt, each, one) for one in each.criteria], margin=margin)
        for each in met
    ]


def _graded(run: Run, prompt: Prompt, met: Meeting, criterion: Criterion) -> Said:
    left, right = (run.scores.get(run.score_question(prompt, side, criterion).id) for side in (met.left, met.right))
    known = [score for score in (left, right) if score is not None]
    logit = None
    if _both(run, left, right):
        assert left is not None and right is not None
        logit = grade_logit(left, right)
    hard = any(score.logprobs is None for score in known)
    return Said(criterion.id, criterion.weight, logit, len(known) == 2, tuple(score.id for score in known), hard)


def _both(run: Run, left: Score | None, right: Score | None) -> bool:
    mass = run.settings.pair.min_label_mass
    return readable(left, min_mass=mass) and readable(right, min_mass=mass)


def _ranked_pairs(run: Run, prompt: Prompt) -> Iterator[tuple[tuple[str, str], list[Said]]]:
    """Every pair of samples with what the rankings under each criterion say."""
    said: dict[tuple[str, str], list[Said]] = {}
    for criterion, samples in _rankings(run, prompt):
        asked = _rank_questions(run, prompt, criterion, samples)
        found: list[Order | None] = [run.orders.get(question.id) for question in asked]
        orders = [order for order in found if order is not None]
        shares = win_shares(orders)
        ids = tuple(order.id for order in orders)
        for left, right in itertools.combinations([sample.id for sample in samples], 2):
            share = shares.get((left, right))
            logit = None if share is None else max(-HARD_LOGIT, min(HARD_LOGIT, math.log(share / (1 - share))))
            word = Said(criterion.id, criterion.weight, logit, len(orders) == len(asked), ids, hard=True)
            said.setdefault((left, right), []).append(word)
    yield from said.items()


def _rankings(run: Run, prompt: Prompt) -> Iterator[tuple[Criterion, list[Sample]]]:
    """Under which criteria the samples of a prompt are ranked, and which: the first ten."""
    samples = distinct_samples(run.samples_of(prompt))[:MOST]
    if len(samples) < 2:
        return
    one = run.settings.compare.principles == "one"
    for criterion in (draw(run.criteria, ("rank", prompt.id)),) if one else run.criteria:
        yield criterion, samples


def _rank_questions(run: Run, prompt: Prompt, criterion: Criterion, samples: Sequence[Sample]) -> list[Question]:
    compare = run.settings.compare
    return order_questions(
        prompt, samples, criterion, run.judge, shuffles=compare.shuffles, max_chars=compare.max_chars
    )
