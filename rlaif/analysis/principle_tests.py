"""Unit tests of principles: does a judge decide each principle's examples the way their author did?

An example is one comparison, asked in both orders under its principle alone, in the words in which a run asks: with
the judge's reasons, or with its critiques of both replies, where the run has those. Answers are kept by content id: to
test an edited principle asks only that principle's questions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from rlaif.config.judge_templates import SHIPPED, Judge, Templates
from rlaif.config.schemas import CompareSettings, CritiqueSettings, PairSettings
from rlaif.constitution import Constitution, Example, Principle
from rlaif.data.prompts import prompt_id
from rlaif.errors import UserError, nearest
from rlaif.feedback.aggregate import Comparison, Status, Vote, first_logit, folded
from rlaif.feedback.critique import critique_questions, critique_record, notes_on
from rlaif.feedback.judge import compare_questions, judgement, votes
from rlaif.feedback.matchups import Criterion, Matchup
from rlaif.feedback.prompt_forms import judge_asked
from rlaif.inference.base import ModelSource, Question, StageStats, ask
from rlaif.progress import Progress
from rlaif.records import Critique, Failure, Judgement, Message, Prompt, Sample, content_id
from rlaif.stats import sigmoid
from rlaif.store import Table, lock_folder

_AUTHOR = "example"
"""Policy name of the replies in a constitution."""


class Result(StrEnum):
    """What became of an example."""

    PASS = "pass"
    FAIL = "fail"
    """The judge prefers the worse reply, or is closer to one half than a tie may be."""
    FLIP = "flip"
    """The two orders disagree."""
    NO_VERDICT = "no verdict"
    """A call failed, or said neither label."""


@dataclass(frozen=True, slots=True)
class PrincipleTest:
    """One example and what the judge said to it."""

    principle: str
    number: int
    """Which of the principle's examples, from 1."""
    example: Example
    result: Result
    probability: float | None
    """Probability that `better` is better, both orders folded."""
    orders: tuple[float | None, float | None]
    """The same by each order alone: with `better` shown first, and shown second."""
    reason: str = ""
    """Why there is no verdict."""

    @property
    def passed(self) -> bool:
        """Whether the judge agrees with the author."""
        return self.result is Result.PASS


@dataclass(frozen=True)
class PrincipleTests:
    """All examples that were tried, in the order of the constitution."""

    judge: str
    trials: tuple[PrincipleTest, ...]
    untested: tuple[str, ...]
    """Principles without examples."""
    tally: StageStats
    """How many questions were asked now, and how many answers were on disk."""

    @property
    def passed(self) -> bool:
        """Whether every example passed."""
        return all(trial.passed for trial in self.trials)

    def of(self, principle: str) -> list[PrincipleTest]:
        """The trials of one principle."""
        return [trial for trial in self.trials if trial.principle == principle]

    @property
    def tested(self) -> tuple[str, ...]:
        """Principles with examples."""
        return tuple(dict.fromkeys(trial.principle for trial in self.trials))


@dataclass(frozen=True, slots=True)
class _Case:
    """An example as the compare stage sees it: a prompt whose two samples meet."""

    number: int
    example: Example
    prompt: Prompt
    matchup: Matchup
    critiques: Sequence[Question] = ()
    """What is asked first where the comparisons show critiques."""
    questions: Sequence[Question] = ()
    """None while a critique is missing."""


class _Asking(NamedTuple):
    """Who is asked, how, and where the answers are."""

    judge: ModelSource
    asked: Judge
    compare: CompareSettings
    critique: CritiqueSettings
    answers: Table[Judgement]
    critiques: Table[Critique]
    failures: Table[Failure]


async def run_principle_tests(
    constitution: Constitution,
    judge: ModelSource,
    folder: Path,
    *,
    only: Sequence[str] = (),
    compare: CompareSettings | None = None,
    critique: CritiqueSettings | None = None,
    pair: PairSettings | None = None,
    templates: Templates = SHIPPED,
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> PrincipleTests:
    """Put the examples of a constitution (of the principles `only`) to a judge; the answers are kept in `folder`.

    `compare`, `critique` and `templates` say how the judge is asked, `pair` what counts as a tie or an unreadable
    verdict; `say` hears of the form that was chosen. Raises UserError where there is nothing to try or a critique is
    wanted that no text asks for, and ModelError when the judge cannot go on.
    """
    both, pair = (compare or CompareSettings()).model_copy(update={"orders": "both"}), pair or PairSettings()
    principles = _chosen(constitution, only)
    if both.critique:
        _require_requests(constitution, principles)
    with (
        lock_folder(folder),
        contextlib.closing(Table(folder / "judgements.jsonl", Judgement)) as answers,
        contextlib.closing(Table(folder / "critiques.jsonl", Critique, create=False)) as critiques,
        contextlib.closing(Table(folder / "failures.jsonl", Failure)) as failures,
    ):
        asked = await judge_asked(judge, templates, both, folder, answers, say or (lambda _: None))
        asking = _Asking(judge, asked, both, critique or CritiqueSettings(), answers, critiques, failures)
        cases, tally = await _asked([case for each in principles for case in _cases(each)], asking, progress)
        trials = tuple(_trial(case, asking, pair) for case in cases)
    untested = tuple(principle.id for principle in principles if not principle.examples)
    return PrincipleTests(judge.name, trials, untested, tally)


def _chosen(constitution: Constitution, only: Sequence[str]) -> list[Principle]:
    """The principles to test. Raises UserError where one is unknown, or where there is no example at all."""
    known = [principle.id for principle in constitution.principles]
    for name in only:
        if name not in known:
            raise UserError(f"`{constitution.name}` has no principle `{name}`", hint=nearest(name, known))
    chosen = [principle for principle in constitution.principles if not only or principle.id in only]
    if not any(principle.examples for principle in chosen):
        names = ", ".join(f"`{name}`" for name in only)
        what = f"no examples under {names}" if only else "no principle has an example"
        raise UserError(what, where=constitution.name, hint="give it `examples`, each a prompt, `better` and `worse`")
    return chosen


def _require_requests(constitution: Constitution, principles: Sequence[Principle]) -> None:
    for principle in principles:
        if principle.examples and principle.critique is None:
            what = f"principle `{principle.id}` has no `critique`, which this run shows its judge"
            raise UserError(what, where=constitution.name, hint="write one, or set `compare.critique` to false")


def _cases(principle: Principle) -> Iterator[_Case]:
    criterion = Criterion(principle.id, principle.weight, principle.compare, principle.critique)
    for number, example in enumerate(principle.examples, start=1):
        messages = (Message(role="user", content=example.prompt),)
        prompt = Prompt(id=prompt_id(messages), messages=messages, source=_AUTHOR)
        better, worse = (_sample(prompt, at, text) for at, text in enumerate((example.better, example.worse)))
        yield _Case(number, example, prompt, Matchup(better, worse, (criterion,)))


async def _asked(
    cases: Sequence[_Case], asking: _Asking, progress: Progress | None
) -> tuple[Sequence[_Case], StageStats]:
    """The cases with their questions, of which none that can be asked lacks an answer without a failure."""
    judge, own, compare, critique, answers, critiques, failures = asking
    chars, told = compare.max_chars, StageStats("test")
    if compare.critique:
        cases = [
            replace(case, critiques=critique_questions(case.prompt, [case.matchup], critique, own, max_chars=chars))
            for case in cases
        ]
        asked = (question for case in cases for question in case.critiques)
        told = await ask(asked, judge, critiques, critique_record, failures, stage="test", progress=progress)

    def questions(case: _Case) -> list[Question]:
        notes = notes_on(case.prompt, critiques.get, critique, own, max_chars=chars)
        return list(compare_questions(case.prompt, [case.matchup], compare, own, notes if compare.critique else None))

    cases = [replace(case, questions=questions(case)) for case in cases]
    asked = (question for case in cases for question in case.questions)
    tally = await ask(asked, judge, answers, judgement, failures, stage="test", progress=progress)
    return cases, told + tally


def _sample(prompt: Prompt, index: int, text: str) -> Sample:
    return Sample(
        id=content_id(_AUTHOR, prompt.id, index, text), prompt=prompt.id, index=index, text=text, policy=_AUTHOR
    )


def _trial(case: _Case, asking: _Asking, pair: PairSettings) -> PrincipleTest:
    better, worse, (criterion,) = case.matchup
    ((_, cast),) = votes([case.matchup], case.questions, asking.answers.get, asking.compare)
    strict = pair.model_copy(update={"flips": "drop"})
    comparison = folded(better.id, worse.id, cast, strict)
    result = _result(comparison)
    silent = result is Result.NO_VERDICT
    return PrincipleTest(
        criterion.id,
        case.number,
        case.example,
        result,
        None if silent else comparison.probability,
        _orders(cast[0], pair.min_label_mass),
        _reason(case, asking, pair.min_label_mass) if silent else "",
    )


def _result(comparison: Comparison) -> Result:
    if comparison.status in (Status.UNPARSED, Status.FAILED):
        return Result.NO_VERDICT
    if comparison.status is Status.FLIP:
        return Result.FLIP
    return Result.PASS if comparison.status is Status.LABELLED and comparison.logit > 0 else Result.FAIL


def _orders(vote: Vote, min_mass: float) -> tuple[float | None, float | None]:
    def better(judged: Judgement | None, sign: float) -> float | None:
        logit = None if judged is None else first_logit(judged, min_mass=min_mass, temperature=vote.temperature)
        return None if logit is None else sigmoid(sign * logit)

    return better(vote.forward, 1.0), better(vote.backward, -1.0)


def _reason(case: _Case, asking: _Asking, min_mass: float) -> str:
    """What kept the first question without a label from having one."""
    for question in case.critiques:
        if question.id not in asking.critiques:
            return f"critique: {_failure(question, asking)}"
    for question in case.questions:
        answer = asking.answers.get(question.id)
        if answer is None:
            return _failure(question, asking)
        if first_logit(answer, min_mass=min_mass) is None:
            return _unreadable(answer)
    return ""


def _failure(question: Question, asking: _Asking) -> str:
    failure = asking.failures.get(question.id)
    return failure.reason if failure else "not asked"


def _unreadable(answer: Judgement) -> str:
    if answer.label_mass is None:
        return f"neither label in {answer.text[:40]!r}"
    return f"label mass {answer.label_mass:.2f}"
