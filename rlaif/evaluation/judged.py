"""Gold pairs put to a judge in the words of a run, and what the answers on disk say about each of them.

Everything is about the better reply: its log-odds are above zero where the judge agrees with the gold pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from rlaif.asking import Judge
from rlaif.comparisons.fold import Status, Vote, first_logit
from rlaif.comparisons.plan import compare_questions, votes
from rlaif.comparisons.shares import folded, shares
from rlaif.constitution import Constitution
from rlaif.errors import UserError, nearest
from rlaif.evaluation.gold import GoldPair
from rlaif.inference.base import Question
from rlaif.records import Judgement, Prompt, Record
from rlaif.samples.meetings import Criterion, Meeting, criteria_of, draw
from rlaif.settings import CompareSettings, PairSettings


class Case(NamedTuple):
    """A gold pair as the compare stage sees it: the better reply (left) meets the worse one."""

    pair: GoldPair
    prompt: Prompt
    meeting: Meeting


class JudgedPair(Record):
    """What the judge said about one gold pair."""

    id: str
    """Of the gold pair."""
    source: str
    """File and line of the gold pair."""
    prompt: str
    """Id of its prompt: pairs of one prompt are right or wrong together."""
    subset: str | None
    status: str
    """`labelled`, `tie` (closer to one half than `pair.margin`), or why there is no label: `unparsed`, `failed`."""
    logit: float | None
    """Log-odds of the better reply, both orders and all principles folded; None where there is no label."""
    orders: tuple[float, ...]
    """The same by each order alone: with the better reply first, and with it second, as far as they were asked."""
    better_first: float
    """Share of the orders that were asked which show the better reply first: one half, or, of a single one, 0 or 1."""
    flip: bool
    """The two orders disagree."""
    own: dict[str, float | None]
    """Log-odds of the better reply by each principle on its own; None where it has no label."""
    slots: tuple[float, ...]
    """Log-odds of the first *slot*, for every single verdict that can be read."""
    masses: tuple[float, ...]
    """Probability of both labels together, for every answer with log-probabilities."""
    lengths: tuple[int, int]
    """Characters of the better and of the worse reply."""
    tie: bool = False
    """Neither reply is better, by the gold pair."""

    @property
    def labelled(self) -> bool:
        """Whether there is a label at all, be it a tie."""
        return self.logit is not None


def cases(pairs: Iterable[GoldPair], constitution: Constitution, compare: CompareSettings) -> Iterator[Case]:
    """The gold pairs as meetings, judged by their own principle where they name one, else by `compare.principles`.

    Raises UserError where a pair names a principle that the constitution does not have.
    """
    criteria = criteria_of(constitution, compare.principles)
    single = {each.id: each for each in criteria_of(constitution, "each")}
    for pair in pairs:
        better, worse = pair.samples()
        if pair.principle is not None:
            if pair.principle not in single:
                what = f"`{constitution.name}` has no principle `{pair.principle}`"
                raise UserError(what, where=pair.source, mend=nearest(pair.principle, single))
            chosen: tuple[Criterion, ...] = (single[pair.principle],)
        elif compare.principles == "one":
            chosen = (draw(criteria, (better.id, worse.id)),)
        else:
            chosen = criteria
        yield Case(pair, pair.as_prompt(), Meeting(better, worse, chosen))


def questions_of(case: Case, compare: CompareSettings, judge: Judge) -> list[Question]:
    """The ordered questions of a gold pair: the same, by content and so by id, as a run would ask about its replies."""
    return list(compare_questions(case.prompt, [case.meeting], compare, judge))


def judged_pair(
    case: Case,
    questions: Sequence[Question],
    answer_of: Callable[[str], Judgement | None],
    compare: CompareSettings,
    pair: PairSettings,
) -> JudgedPair:
    """One gold pair with the answers to its questions, which are found by their ids."""
    better, worse, _ = case.meeting
    ((_, cast),) = votes([case.meeting], questions, answer_of, compare)
    comparison = folded(better.id, worse.id, cast, pair.model_copy(update={"flips": "soft"}))
    silent = comparison.status in (Status.UNPARSED, Status.FAILED)
    parts = shares(better.id, worse.id, cast, pair)
    return JudgedPair(
        id=case.pair.id,
        source=case.pair.source,
        prompt=case.prompt.id,
        subset=case.pair.subset,
        status=comparison.status.value,
        logit=None if silent else comparison.logit,
        orders=comparison.orders,
        better_first=sum(vote.wanted[0] for vote in cast) / sum(sum(vote.wanted) for vote in cast),
        flip=comparison.flip,
        own={part.principle: part.own.logit if part.readable else None for part in parts},
        slots=tuple(_slots(cast, pair.min_label_mass)),
        masses=tuple(each.label_mass for each in _answers(cast) if each.label_mass is not None),
        lengths=(len(case.pair.better), len(case.pair.worse)),
        tie=case.pair.tie,
    )


def _answers(cast: Sequence[Vote]) -> Iterator[Judgement]:
    yield from (each for vote in cast for each in vote.asked if each is not None)


def _slots(cast: Sequence[Vote], min_mass: float) -> Iterator[float]:
    for vote in cast:
        for each in vote.asked:
            logit = None if each is None else first_logit(each, min_mass=min_mass, temperature=vote.temperature)
            if logit is not None:
                yield logit
