"""The evaluation of a judge on gold pairs: accuracy, position and length bias, calibration, canaries, verdict.

Three steps: plan the questions, ask the missing ones, and compute the report from the answers on disk. The folder of an
evaluation holds `judgements.jsonl` and `failures.jsonl`, which all judges evaluated in it share; and per evaluation a
report (`NAME.json`, written last), the judged pairs (`NAME.pairs.jsonl`) and plots. Answers are looked up by content
id: a second call asks nothing.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from rlaif import __version__
from rlaif.config.judge_templates import SHIPPED, Judge, Templates
from rlaif.config.schemas import CompareSettings, PairSettings
from rlaif.constitution import Constitution
from rlaif.data.prompts import InputIssues
from rlaif.evaluation.canaries import count_probes, count_wins, probes, sample_cases
from rlaif.evaluation.gold import Case, JudgedPair, cases, judged_pair, questions_of, read_gold
from rlaif.evaluation.judge_metrics import decide, measure, shared_errors
from rlaif.evaluation.reports import About, Cost, JudgeReport, data_word, known_reports, report_name, sha256_known
from rlaif.feedback.judge import judge_asked, judgement
from rlaif.inference.base import ModelSource, Question, StageStats, ask
from rlaif.progress import Progress
from rlaif.records import Failure, Judgement
from rlaif.store import Table, lock_folder, write_records, write_text


@dataclass(frozen=True)
class Evaluation:
    """The gold pairs and the settings that a judge is evaluated with."""

    gold: str
    """File or `datasets` name."""
    constitution: Constitution
    compare: CompareSettings = field(default_factory=CompareSettings)
    """With the judge's own temperature in its temperature, as a run reads it (`RunSettings.compared_by`)."""
    own_temperature: float = 1.0
    """The judge's part of that."""
    templates: Templates = SHIPPED
    """Prompt templates of the judge."""
    pair: PairSettings = field(default_factory=PairSettings)
    column: str | None = None
    limit: int | None = None
    canary_pairs: int = 20
    """Gold pairs with canaries; 0 for none."""
    max_failed: float = 0.5
    """Stop when more than this share of the questions failed."""

    def cases(self, input_issues: InputIssues | None = None) -> Iterator[Case]:
        """The gold pairs, streamed."""
        pairs = read_gold(self.gold, column=self.column, limit=self.limit, input_issues=input_issues)
        return cases(pairs, self.constitution, self.compare)

    def name(self, judge: str) -> str:
        """The stem of the files about one judge."""
        constitution = self.constitution.hash
        templates: list[JsonValue] = [dict(self.templates.hashes)] if self.templates.own else []
        return report_name(
            [judge, constitution[:12], data_word(self.gold)],
            [judge, constitution, sha256_known(self.gold) or self.gold, self.column, self.limit, self.canary_pairs],
            [self.compare.model_dump(mode="json"), self.pair.model_dump(mode="json"), *templates],
        )


class EvaluatedJudge(NamedTuple):
    """A finished evaluation."""

    report: JudgeReport
    path: Path
    """Of the report."""
    tallies: tuple[StageStats, ...]
    """Statistics of the stages of this call."""


@dataclass
class _Tables:
    answers: Table[Judgement]
    failures: Table[Failure]


@dataclass
class _Plan:
    """The result of a first pass over the gold pairs, which surfaces their errors before anything is asked."""

    questions: int = 0
    canaries: list[Case] = field(default_factory=list)
    input_issues: InputIssues = field(default_factory=InputIssues)


async def evaluate_judge(
    wanted: Evaluation, judge: ModelSource, folder: Path, *, progress: Progress, plots: bool = True
) -> EvaluatedJudge:
    """Measure a judge on gold pairs, and write the report into `folder`.

    Raises UserError for the user's mistakes and ModelError when the judge cannot go on; a second call resumes.
    """
    progress.note(f"reading {wanted.gold}")
    plan = _plan(wanted)
    with (
        lock_folder(folder),
        contextlib.closing(Table(folder / "judgements.jsonl", Judgement)) as answers,
        contextlib.closing(Table(folder / "failures.jsonl", Failure)) as failures,
    ):
        tables = _Tables(answers, failures)
        asker = await judge_asked(judge, wanted.templates, wanted.compare, folder, answers, progress.note)
        questions = (q for case in wanted.cases() for q in questions_of(case, wanted.compare, asker))
        tally = await _ask_stage("judge", questions, plan.questions, judge, tables, wanted, progress)
        tallies = [tally]
        if plan.canaries:
            questions = (q for probe in probes(plan.canaries) for q in probe.questions(wanted.compare, asker))
            criteria = max(len(case.matchup.criteria) for case in plan.canaries)
            most = 2 * count_probes(len(plan.canaries)) * criteria
            tallies.append(await _ask_stage("canaries", questions, most, judge, tables, wanted, progress))
        path = folder / f"{wanted.name(judge.name)}.json"
        progress.note("working out the statistics, with their intervals")
        report, judged = _report(wanted, asker, plan, tables, tally, folder)
        write_records(path.with_suffix(".pairs.jsonl"), judged)
        if plots:
            progress.note("drawing the plots")
            from rlaif.evaluation.plots import write_judge_plots

            write_judge_plots(report, path.with_suffix(""))
        write_text(path, report.model_dump_json(indent=2) + "\n")
    return EvaluatedJudge(report, path, tuple(tallies))


def _plan(wanted: Evaluation) -> _Plan:
    plan = _Plan()

    def counted() -> Iterator[Case]:
        for case in wanted.cases(plan.input_issues):
            plan.questions += len(case.matchup.criteria) * (2 if wanted.compare.orders == "both" else 1)
            yield case

    decided = (case for case in counted() if not case.pair.tie)  # canaries are compared with the better reply
    plan.canaries = sample_cases(decided, max(wanted.canary_pairs, 1))[: wanted.canary_pairs]
    return plan


async def _ask_stage(
    stage: str,
    questions: Iterable[Question],
    most: int,
    judge: ModelSource,
    tables: _Tables,
    wanted: Evaluation,
    progress: Progress,
) -> StageStats:
    progress.begin(stage, most)
    tally = await ask(
        questions,
        judge,
        tables.answers,
        judgement,
        tables.failures,
        stage=stage,
        max_failed=wanted.max_failed,
        progress=progress,
    )
    progress.end(tally.stage, tally.summary)
    return tally


def _report(
    wanted: Evaluation, judge: Judge, plan: _Plan, tables: _Tables, tally: StageStats, folder: Path
) -> tuple[JudgeReport, list[JudgedPair]]:
    counter = _AnswerCounter(wanted, judge, tables)
    judged = list(counter.judged())
    form: dict[str, JsonValue] = {"prefill": judge.form.prefill or "none", "fence": judge.form.fence}
    templates: dict[str, JsonValue] = {"templates": dict(judge.templates.hashes)} if judge.templates.own else {}
    about = About(
        judge=judge.name,
        constitution=wanted.constitution.name,
        constitution_hash=wanted.constitution.hash,
        gold=wanted.gold,
        gold_sha256=sha256_known(wanted.gold),
        input_issues=plan.input_issues.counts,
        compare=wanted.compare.model_dump(mode="json") | form | templates,
        pair=wanted.pair.model_dump(mode="json"),
    )
    seconds = None  # per 1,000 labels, in the latest report with the same pairs and settings
    for other in known_reports(about.judge, about.constitution_hash, folder):
        if (other.about.gold, other.about.gold_sha256, other.about.compare) == (
            about.gold,
            about.gold_sha256,
            about.compare,
        ):
            seconds = other.measures.cost.seconds_per_1000
    measures = measure(
        judged,
        wanted.pair,
        canaries=count_wins(probes(plan.canaries), tables.answers.get, wanted.compare, wanted.pair, judge),
        cost=counter.cost(tally, sum(each.labelled for each in judged), seconds),
        failures=dict(counter.failures),
        temperature=wanted.compare.temperature / wanted.own_temperature,  # for `compare.temperature`, beside the other
    )
    report = JudgeReport(
        made_by=f"rlaif {__version__}",
        about=about,
        verdict=decide(measures),
        measures=measures,
        shared_errors=shared_errors(about, judged, folder),
    )
    return report, judged


class _AnswerCounter:
    """Reads the answers from disk and counts their cost on the way."""

    def __init__(self, wanted: Evaluation, judge: Judge, tables: _Tables) -> None:
        self._wanted, self._judge, self._tables = wanted, judge, tables
        self.failures: Counter[str] = Counter()
        self._spent: Counter[str] = Counter()

    def judged(self) -> Iterator[JudgedPair]:
        """The judgement of every gold pair."""
        compare, pair = self._wanted.compare, self._wanted.pair
        for case in self._wanted.cases():
            yield judged_pair(case, questions_of(case, compare, self._judge), self._lookup, compare, pair)

    def _lookup(self, key: str) -> Judgement | None:
        output = self._tables.answers.get(key)
        if output is None:
            failure = self._tables.failures.get(key)
            self.failures[failure.reason if failure else "not asked"] += 1
            return None
        self._spent.update(
            calls=1, prompt=output.prompt_tokens, cached=output.cached_tokens, completion=output.completion_tokens
        )
        return output

    def cost(self, tally: StageStats, labels: int, earlier_seconds: float | None) -> Cost:
        """The cost of the answers; their time is measured in this call or taken from an earlier report."""
        spent = self._spent

        def per_1000(total: float) -> float | None:
            return 1000 * total / labels if labels else None

        timed = per_1000(tally.seconds / tally.asked * spent["calls"]) if tally.asked else earlier_seconds
        return Cost(
            calls=spent["calls"],
            prompt_tokens=spent["prompt"],
            cached_tokens=spent["cached"],
            completion_tokens=spent["completion"],
            calls_per_1000=per_1000(spent["calls"]),
            prompt_tokens_per_1000=per_1000(spent["prompt"]),
            seconds_per_1000=timed,
        )
