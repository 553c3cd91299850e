"""Edit impact: the effect that an edit of the constitution has on the labels of a finished run.

The prompts and responses on disk are planned under the old and under the new constitution. Both plans find their
answers in the run's own journals by content id. What is missing is asked and appended there, where it disturbs neither
plan and spares a later run under the new constitution its questions. Settings, pairs and manifest stay as they are.

Memory holds counters and the pairs that moved most, never the run.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from rlaif.config.judge_templates import conversation
from rlaif.constitution import Constitution
from rlaif.constitution.diff import Changes, changes
from rlaif.errors import UserError
from rlaif.feedback.aggregate import Comparison, Status, Vote, folded, moves, shares
from rlaif.feedback.critique import critique_record, require_critiques
from rlaif.feedback.judge import WHOLE, Matchup, compare_questions, judgement
from rlaif.feedback.run import Run, find_slots
from rlaif.inference.base import ModelSource, Output, Question, StageStats, ask
from rlaif.progress import Progress
from rlaif.records import Prompt
from rlaif.store import R, Table

MOST_MOVED = 10
"""Pairs that are shown side by side."""

_MIN_MOVE = 1e-9
"""A probability that changes by less did not move: weights that are scaled together round differently."""

Plans = tuple[Run, Run]
"""A run under the old and under the new constitution."""


class Missing(NamedTuple):
    """The questions of both plans together, each counted once."""

    critiques: int
    """Critiques to ask first, where the comparisons show them."""
    critiques_known: int
    comparisons: int
    """Comparison questions to ask."""
    comparisons_known: int
    waiting: int
    """Comparison questions that wait for critiques: at most so many more to ask, fewer if some are on disk."""

    @property
    def any(self) -> bool:
        """Whether a model is needed."""
        return bool(self.critiques or self.comparisons or self.waiting)


class Moved(NamedTuple):
    """A pair of responses whose probability changed."""

    prompt: str
    left: str
    right: str
    old: float
    """Probability that `left` is better, under the old constitution."""
    new: float
    statuses: tuple[Status, Status]
    """The pair's status before and after: labelled, a tie, ..."""
    cause: str
    """The principle that moved it; `a -> b` where another one was drawn for the pair."""


@dataclass
class Impact:
    """How the labels of a run differ between two constitutions."""

    pairs: int = 0
    """Pairs of responses that are compared."""
    labels: tuple[int, int] = (0, 0)
    """Labelled pairs under the old and under the new constitution."""
    flipped: int = 0
    """Labelled both times, for the other response."""
    appeared: Counter[str] = field(default_factory=Counter)
    """Labelled only under the new constitution, by their status before."""
    vanished: Counter[str] = field(default_factory=Counter)
    """Labelled only under the old one, by their status now."""
    unanswered: int = 0
    """Pairs with a question that has no answer, under either one."""
    measured: int = 0
    """Pairs with a probability under both."""
    change: float = 0.0
    """Mean distance between the two probabilities of a pair, over the measured ones."""
    causes: Counter[str] = field(default_factory=Counter)
    """Principles behind the flipped labels."""
    moved: tuple[Moved, ...] = ()
    """The pairs that moved most, widest first."""


def plans(run: Run, old: Constitution, new: Constitution) -> Plans:
    """The run under both constitutions. Raises UserError where one lacks the critiques that the run shows its judge, or
    where the two plans would not hold the same pairs: another constitution grades other samples into a final."""
    tournament = run.settings.compare.method == "tournament"
    if tournament and any(run.final_questions(prompt, run.samples_of(prompt)) for prompt in run.prompts()):
        problem = "a tournament chooses by grades which samples meet, and other grades choose others"
        raise UserError(
            problem, where=run.folder, hint="compare constitutions on a run with `compare.method: pairwise`"
        )
    if run.settings.compare.critique:
        for constitution in (old, new):
            require_critiques(run.settings.model_copy(update={"constitution": constitution.name}), constitution)
    return run.under(old), run.under(new)


def missing(both: Plans) -> Missing:
    """Count what both plans together lack; nothing is asked."""
    run = both[0]
    counts: Counter[str] = Counter()

    def count(name: str, questions: Sequence[Question], table: Table[R]) -> None:
        on_disk = sum(question.id in table for question in questions)
        counts.update({name: len(questions) - on_disk, f"{name}_known": on_disk})

    for prompt, pairings in _pairings(both):
        if run.settings.compare.critique:
            count("critiques", _critiques_of(both, prompt, pairings), run.critiques)
            counts["waiting"] += _waiting(both, prompt, pairings)
        count("comparisons", _comparisons_of(both, prompt, pairings), run.judgements)
    return Missing(*(counts[name] for name in Missing._fields))


async def ask_critiques(both: Plans, judge: ModelSource, progress: Progress | None = None) -> StageStats:
    """Ask the missing critiques of both plans, where their comparisons show any."""
    run = both[0]
    planned = _pairings(both) if run.settings.compare.critique else ()
    questions = (question for prompt, pairings in planned for question in _critiques_of(both, prompt, pairings))
    return await _ask(run, questions, judge, run.critiques, critique_record, "critique", progress)


async def ask_comparisons(both: Plans, judge: ModelSource, progress: Progress | None = None) -> StageStats:
    """Ask the missing comparisons of both plans."""
    run, planned = both[0], _pairings(both)
    questions = (question for prompt, pairings in planned for question in _comparisons_of(both, prompt, pairings))
    return await _ask(run, questions, judge, run.judgements, judgement, "compare", progress)


async def _ask(
    run: Run,
    questions: Iterable[Question],
    judge: ModelSource,
    table: Table[R],
    record: Callable[[Question, Output], R],
    stage: str,
    progress: Progress | None,
) -> StageStats:
    if judge.name != run.judge_name:
        raise UserError(
            f"the judge of this run was `{run.judge_name}`, and is `{judge.name}` now",
            where=run.folder,
            hint="put the old one back, or generate the run again with the new one",
        )
    return await ask(
        questions, judge, table, record, run.failures,
        stage=stage, max_failed=run.settings.max_failed, progress=progress,
    )  # fmt: skip


def impact(both: Plans) -> Impact:
    """Fold every pair under both constitutions by the answers on disk; no model is asked."""
    counter = _ImpactCounter(both, changes(both[0].constitution, both[1].constitution))
    find_slots(both[0])
    both[1].slots = both[0].slots  # the judge's, not the constitution's: nothing moves but by the edit
    for prompt, pairings in _pairings(both):
        cast = (run.votes_of(prompt, planned) for run, planned in zip(both, pairings, strict=True))
        for (matchup, before), (_, after) in zip(*cast, strict=True):
            counter.add(prompt, matchup, before, after)
    return counter.result()


def _pairings(both: Plans) -> Iterator[tuple[Prompt, Sequence[list[Matchup]]]]:
    """Every prompt, and its matchups under the old and the new constitution: the same pairs, by other criteria."""
    for prompt in both[0].prompts():
        samples = both[0].samples_of(prompt)
        yield prompt, [run.matchups_of(prompt, samples) for run in both]


def _critiques_of(both: Plans, prompt: Prompt, pairings: Sequence[list[Matchup]]) -> list[Question]:
    """The critiques of one prompt that either plan wants, each once; those of another prompt are never the same."""
    return _distinct(run.critique_questions_of(prompt, row) for run, row in zip(both, pairings, strict=True))


def _comparisons_of(both: Plans, prompt: Prompt, pairings: Sequence[list[Matchup]]) -> list[Question]:
    """The comparisons of one prompt that either plan wants, as far as they can be written yet, each once."""
    return _distinct(run.compare_questions_of(prompt, row) for run, row in zip(both, pairings, strict=True))


def _distinct(plans: Iterable[list[Question]]) -> list[Question]:
    return list({question.id: question for questions in plans for question in questions}.values())


def _waiting(both: Plans, prompt: Prompt, pairings: Sequence[list[Matchup]]) -> int:
    """Comparison questions of one prompt that cannot be written yet, for want of a critique."""
    waiting: set[tuple[str, str, str, str | None]] = set()
    for run, planned in zip(both, pairings, strict=True):
        criteria = {criterion.id: criterion for criterion in run.criteria}
        written = {_about(question) for question in run.compare_questions_of(prompt, planned)}
        for question in compare_questions(prompt, planned, run.settings.compare, run.judge):
            first, second, name = about = _about(question)
            if about not in written:
                waiting.add((first, second, criteria[name].compare, criteria[name].critique))
    return len(waiting)


def _about(question: Question) -> tuple[str, str, str]:
    about = question.about
    return str(about["first"]), str(about["second"]), str(about["principle"])


class _ImpactCounter:
    """Counts pairs one by one, and holds the widest moves."""

    def __init__(self, both: Plans, changed: Changes) -> None:
        self._pair, self._changed = both[0].settings.pair, changed
        self._one = both[0].settings.compare.principles == "one"
        self._impact = Impact()
        self._labels = [0, 0]
        self._distance = 0.0
        self._widest: list[tuple[float, int, Moved]] = []

    def add(self, prompt: Prompt, matchup: Matchup, before: list[Vote], after: list[Vote]) -> None:
        """Count one pair."""
        ends = matchup.left.id, matchup.right.id
        total, old, new = self._impact, *(folded(*ends, cast, self._pair) for cast in (before, after))
        total.pairs += 1
        total.unanswered += Status.FAILED in (old.status, new.status)
        was, now = (row.status is Status.LABELLED for row in (old, new))
        self._labels[0] += was
        self._labels[1] += now
        if now and not was:
            total.appeared[old.status.value] += 1
        if was and not now:
            total.vanished[new.status.value] += 1
        if was and now and (old.logit > 0) != (new.logit > 0):
            total.flipped += 1
            total.causes[self._cause(ends, before, after, old, new)] += 1
        if old.readable and new.readable:
            self._measure(prompt, matchup, (before, after), (old, new))

    def _measure(
        self, prompt: Prompt, matchup: Matchup, cast: tuple[list[Vote], list[Vote]], ends: tuple[Comparison, Comparison]
    ) -> None:
        old, new = ends
        distance = abs(new.probability - old.probability)
        self._impact.measured += 1
        self._distance += distance
        if distance < _MIN_MOVE or (len(self._widest) == MOST_MOVED and distance <= self._widest[0][0]):
            return
        moved = Moved(
            conversation(prompt.messages),
            matchup.left.text,
            matchup.right.text,
            old.probability,
            new.probability,
            (old.status, new.status),
            self._cause((matchup.left.id, matchup.right.id), *cast, old, new),
        )
        entry = (distance, -self._impact.pairs, moved)  # of equal moves, the earliest stay
        if len(self._widest) < MOST_MOVED:
            heapq.heappush(self._widest, entry)
        else:
            heapq.heapreplace(self._widest, entry)

    def _cause(
        self, ends: tuple[str, str], before: list[Vote], after: list[Vote], old: Comparison, new: Comparison
    ) -> str:
        """The changed principle that moved the pair furthest in the direction in which it went."""
        if before[0].principle == WHOLE:
            return "the whole constitution"
        renamed = self._changed.renamed
        before = [replace(vote, principle=renamed.get(vote.principle, vote.principle)) for vote in before]
        if self._one:
            was, now = before[0].principle, after[0].principle
            return now if was == now else f"{was} -> {now}"
        move = moves(shares(*ends, before, self._pair), shares(*ends, after, self._pair), old.logit)
        suspects = [name for name in move if name in self._changed.loud] or list(move)
        direction = 1 if new.logit > old.logit else -1
        return max(suspects, key=lambda name: direction * move[name])

    def result(self) -> Impact:
        """The impact over everything counted, with the widest moves first."""
        total = self._impact
        total.labels = (self._labels[0], self._labels[1])
        total.change = self._distance / total.measured if total.measured else 0.0
        total.moved = tuple(moved for _, _, moved in sorted(self._widest, key=lambda entry: (-entry[0], -entry[1])))
        return total
