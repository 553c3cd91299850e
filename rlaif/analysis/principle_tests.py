"""Unit tests of principles: whether a judge decides each principle's examples the way their author did.

An example is one comparison, asked in both orders under its principle alone, with the same prompt template as a run:
with the judge's reasons, or with its critiques of both responses, where the run has those. Answers are stored by
content id: to test an edited principle asks only that principle's questions.
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
from rlaif.feedback.aggregate import Status, first_logit, folded
from rlaif.feedback.critique import critique_questions, critique_record, notes_on
from rlaif.feedback.judge import Criterion, Matchup, compare_questions, judge_asked, judgement, votes
from rlaif.inference.base import ModelSource, Question, StageStats, ask
from rlaif.progress import Progress
from rlaif.records import Critique, Failure, Judgement, Message, Prompt, Sample, content_id
from rlaif.stats import sigmoid
from rlaif.store import Table, lock_folder

_AUTHOR = "example"
"""Policy name of the responses in a constitution."""


class Result(StrEnum):
    """The result of an example."""

    PASS = "pass"
    FAIL = "fail"
    """The judge prefers the worse response, or is closer to one half than a tie may be."""
    FLIP = "flip"
    """The two orders disagree."""
    NO_VERDICT = "no verdict"
    """A call failed, or its output has neither label."""


@dataclass(frozen=True, slots=True)
class PrincipleTest:
    """One example and the judge's verdict on it."""

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
    """All examples that were tested, in the order of the constitution."""

    judge: str
    trials: tuple[PrincipleTest, ...]
    untested: tuple[str, ...]
    """Principles without examples."""
    tally: StageStats
    """How many questions were asked now, and how many answers were on disk."""

    @property
    def passed(self) -> bool:
        """Whether every example passed."""
        return all(test.passed for test in self.trials)

    def of(self, principle: str) -> list[PrincipleTest]:
        """The tests of one principle."""
        return [test for test in self.trials if test.principle == principle]

    @property
    def tested(self) -> tuple[str, ...]:
        """Principles with examples."""
        return tuple(dict.fromkeys(test.principle for test in self.trials))


@dataclass(frozen=True, slots=True)
class _Case:
    """An example as the compare stage sees it: a prompt whose two samples are compared."""

    number: int
    example: Example
    prompt: Prompt
    matchup: Matchup
    critiques: Sequence[Question] = ()
    """Asked first where the comparisons show critiques."""
    questions: Sequence[Question] = ()
    """Empty while a critique is missing."""


class _Setup(NamedTuple):
    """The judge, the settings that it is asked by, and the tables of its answers."""

    source: ModelSource
    judge: Judge
    compare: CompareSettings
    critique: CritiqueSettings
    judgements: Table[Judgement]
    critiques: Table[Critique]
    failures: Table[Failure]

    def failure_reason(self, question: Question) -> str:
        """Why a question has no answer."""
        failure = self.failures.get(question.id)
        return failure.reason if failure else "not asked"


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
    """Put the examples of a constitution (of the principles `only`) to a judge; the answers are stored in `folder`.

    `compare`, `critique` and `templates` set how the judge is asked, `pair` what counts as a tie or an unreadable
    verdict; `say` gets a note of the form that was chosen. Raises UserError where there is nothing to test or a
    critique is wanted that no text asks for, and ModelError when the judge cannot go on.
    """
    both, pair = (compare or CompareSettings()).model_copy(update={"orders": "both"}), pair or PairSettings()
    principles = _selected(constitution, only, critiqued=both.critique)
    with (
        lock_folder(folder),
        contextlib.closing(Table(folder / "judgements.jsonl", Judgement)) as judgements,
        contextlib.closing(Table(folder / "critiques.jsonl", Critique, create=False)) as critiques,
        contextlib.closing(Table(folder / "failures.jsonl", Failure)) as failures,
    ):
        in_form = await judge_asked(judge, templates, both, folder, judgements, say or (lambda _: None))
        setup = _Setup(judge, in_form, both, critique or CritiqueSettings(), judgements, critiques, failures)
        cases = [case for principle in principles for case in _cases(principle)]
        cases, tally = await _ask_cases(cases, setup, progress)
        tests = tuple(_principle_test(case, setup, pair) for case in cases)
    untested = tuple(principle.id for principle in principles if not principle.examples)
    return PrincipleTests(judge.name, tests, untested, tally)


def _selected(constitution: Constitution, only: Sequence[str], *, critiqued: bool) -> list[Principle]:
    """The principles to test. Raises UserError where one is unknown, where there is no example at all, and where
    critiques are shown and a principle has no request for them."""
    names = [principle.id for principle in constitution.principles]
    for name in only:
        if name not in names:
            raise UserError(f"`{constitution.name}` has no principle `{name}`", hint=nearest(name, names))
    selected = [principle for principle in constitution.principles if not only or principle.id in only]
    if not any(principle.examples for principle in selected):
        listed = ", ".join(f"`{name}`" for name in only)
        problem = f"no examples under {listed}" if only else "no principle has an example"
        raise UserError(
            problem, where=constitution.name, hint="give it `examples`, each a prompt, `better` and `worse`"
        )
    for principle in selected if critiqued else ():
        if principle.examples and principle.critique is None:
            problem = f"principle `{principle.id}` has no `critique`, which this run shows its judge"
            raise UserError(problem, where=constitution.name, hint="write one, or set `compare.critique` to false")
    return selected


def _cases(principle: Principle) -> Iterator[_Case]:
    criterion = Criterion(principle.id, principle.weight, principle.compare, principle.critique)
    for number, example in enumerate(principle.examples, start=1):
        messages = (Message(role="user", content=example.prompt),)
        prompt = Prompt(id=prompt_id(messages), messages=messages, source=_AUTHOR)
        better, worse = (
            Sample(id=content_id(_AUTHOR, prompt.id, at, text), prompt=prompt.id, index=at, text=text, policy=_AUTHOR)
            for at, text in enumerate((example.better, example.worse))
        )
        yield _Case(number, example, prompt, Matchup(better, worse, (criterion,)))


async def _ask_cases(cases: list[_Case], setup: _Setup, progress: Progress | None) -> tuple[list[_Case], StageStats]:
    """The cases with their questions, of which none that can be asked lacks an answer without a failure."""
    source, judge, compare, critique, judgements, critiques, failures = setup
    max_chars, tally = compare.max_chars, StageStats("test")
    if compare.critique:
        cases = [
            replace(
                case,
                critiques=critique_questions(case.prompt, [case.matchup], critique, judge, max_chars=max_chars),
            )
            for case in cases
        ]
        asking = (question for case in cases for question in case.critiques)
        tally = await ask(asking, source, critiques, critique_record, failures, stage="test", progress=progress)

    def questions(case: _Case) -> list[Question]:
        notes = notes_on(case.prompt, critiques.get, critique, judge, max_chars=max_chars)
        return list(compare_questions(case.prompt, [case.matchup], compare, judge, notes if compare.critique else None))

    cases = [replace(case, questions=questions(case)) for case in cases]
    asking = (question for case in cases for question in case.questions)
    return cases, tally + await ask(asking, source, judgements, judgement, failures, stage="test", progress=progress)


def _principle_test(case: _Case, setup: _Setup, pair: PairSettings) -> PrincipleTest:
    better, worse, (criterion,) = case.matchup
    ((_, (vote,)),) = votes([case.matchup], case.questions, setup.judgements.get, setup.compare)
    comparison = folded(better.id, worse.id, [vote], pair, drop_flips=True)
    result = Result.FAIL
    if not comparison.readable:
        result = Result.NO_VERDICT
    elif comparison.status is Status.FLIP:
        result = Result.FLIP
    elif comparison.status is Status.LABELLED and comparison.logit > 0:
        result = Result.PASS

    def preference(judged: Judgement | None, sign: float) -> float | None:
        temperature, min_mass = vote.temperature, pair.min_label_mass
        logit = None if judged is None else first_logit(judged, min_mass=min_mass, temperature=temperature)
        return None if logit is None else sigmoid(sign * logit)

    return PrincipleTest(
        criterion.id,
        case.number,
        case.example,
        result,
        comparison.probability if comparison.readable else None,
        (preference(vote.forward, 1.0), preference(vote.backward, -1.0)),
        "" if comparison.readable else _reason(case, setup, pair.min_label_mass),
    )


def _reason(case: _Case, setup: _Setup, min_mass: float) -> str:
    """Why the first question without a label has none."""
    for question in case.critiques:
        if question.id not in setup.critiques:
            return f"critique: {setup.failure_reason(question)}"
    for question in case.questions:
        judged = setup.judgements.get(question.id)
        if judged is None:
            return setup.failure_reason(question)
        if first_logit(judged, min_mass=min_mass) is None:
            if judged.label_mass is None:
                return f"neither label in {judged.text[:40]!r}"
            return f"label mass {judged.label_mass:.2f}"
    return ""
