"""The evaluation of policies: answers, comparisons, grades, distances; then the figures, and the report.

In the folder: `prompts.jsonl`, `samples.jsonl`, `judgements.jsonl`, `scores.jsonl`, `likelihoods.jsonl` and
`failures.jsonl`, what all evaluations there have asked so far; and for every evaluation a report (`NAME.json`, written
last), what was said about each pair of answers (`NAME.comparisons.jsonl`) and plots. NAME is the policies' names and a
hash of everything that the figures depend on but the answers, so that several evaluations share one folder, and each
has one report. Answers are found by content id: a second call asks nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rlaif.config.judge_templates import Judge, load_templates
from rlaif.constitution import Constitution
from rlaif.data.prompts import InputIssues
from rlaif.errors import ModelError
from rlaif.evaluation import kl
from rlaif.evaluation.kl import Distance, SampledPolicy
from rlaif.evaluation.policy_metrics import Compared, Metric, Plan
from rlaif.evaluation.policy_report import Costs, Facts, Tables, derive, opened, report_stem, seconds_of, timed
from rlaif.evaluation.policy_responses import (
    Gathered,
    drawn_answers,
    given_answers,
    identity_of,
    prompts_of,
    require_told_apart,
    tag_of,
)
from rlaif.evaluation.policy_specs import EvaluateSettings, PolicySpec
from rlaif.evaluation.reports import PolicyReport
from rlaif.feedback.judge import judgement
from rlaif.feedback.matchups import criteria_of
from rlaif.feedback.prompt_forms import judge_asked
from rlaif.feedback.scoring import score_question, score_record
from rlaif.inference.base import ModelSource, Question, StageStats, ask
from rlaif.progress import Progress
from rlaif.records import Prompt
from rlaif.store import write_records, write_text

FOLDER = Path("runs/policies")
"""Where evaluations are kept if nothing else is said."""


class EvaluatedPolicies(NamedTuple):
    """A finished evaluation."""

    report: PolicyReport
    path: Path
    """Of the report."""
    tallies: tuple[StageStats, ...]
    """What was asked now."""


async def evaluate_policies(
    settings: EvaluateSettings,
    constitution: Constitution,
    contestants: Sequence[PolicySpec],
    judge: ModelSource,
    folder: Path,
    *,
    progress: Progress,
    plots: bool = True,
    metrics: Mapping[str, Metric] | None = None,
    warn_same: Sequence[str] = (),
) -> EvaluatedPolicies:
    """Put policies beside each other, and write what was found into `folder`; the last contestant is the baseline.

    `metrics` are the caller's own measures of an answer, by name. `warn_same` are the names of contestants that were
    trained on this judge's labels, where their folders do not tell it. `judge` is opened when it is first asked, and
    left to the caller to close; policies are opened one at a time, and closed here.

    Raises ValueError for fewer than two contestants, UserError for the user's mistakes, and ModelError when a model
    cannot go on or no pair has a label. A second call resumes.
    """
    if len({each.name for each in contestants}) < max(2, len(contestants)):
        raise ValueError("needs two or more contestants, each with a name of its own")
    require_told_apart(contestants)
    input_issues = InputIssues()
    progress.note(f"reading {settings.prompts.path}")
    prompts = prompts_of(settings, input_issues)
    given = {each.name: given_answers(each, settings, prompts) for each in contestants if each.answers is not None}
    with opened(folder) as tables:
        stages = _Stages(settings, constitution, prompts, judge, tables, folder, progress)
        tallies: list[StageStats] = []
        stem = report_stem(settings, constitution, judge.name, [(each.name, identity_of(each)) for each in contestants])
        with timed(folder, stem, tallies):
            gathered = await _gather(stages, contestants, given, tallies)
            plan = await _plan(stages, gathered)
            await _compare(stages, plan, tallies)
            if settings.grades:
                await _grade(stages, gathered, plan.judge, tallies)
            distances = await _distances(stages, gathered, tallies)
        facts = Facts(settings, constitution, input_issues, plan.judge, gathered, prompts, distances, tuple(warn_same))
        costs = Costs(tables)
        rows = list(plan.compared(costs.judgement))
        _require_labels(rows, tables.failures.path)
        progress.note("working out the statistics, with their intervals")
        report = derive(facts, plan, rows, costs, metrics or {}, seconds_of(folder).get(stem, 0.0))
        path = folder / f"{stem}.json"
        write_records(path.with_suffix(".comparisons.jsonl"), rows)
        if plots:
            progress.note("drawing the plots")
            from rlaif.evaluation.plots import write_policy_plots

            write_policy_plots(report, path.with_suffix(""))
        write_text(path, report.model_dump_json(indent=2) + "\n")
    return EvaluatedPolicies(report, path, tuple(tallies))


def evaluate_policies_now(
    settings: EvaluateSettings,
    constitution: Constitution,
    contestants: Sequence[PolicySpec],
    judge: ModelSource,
    folder: Path,
    *,
    progress: Progress,
    plots: bool = True,
    metrics: Mapping[str, Metric] | None = None,
    warn_same: Sequence[str] = (),
) -> EvaluatedPolicies:
    """`evaluate_policies` for callers without an event loop; it also closes the judge at the end."""
    from rlaif.inference.background import blocking

    async def whole() -> EvaluatedPolicies:
        try:
            return await evaluate_policies(
                settings, constitution, contestants, judge, folder,
                progress=progress, plots=plots, metrics=metrics, warn_same=warn_same,
            )  # fmt: skip
        finally:
            await judge.close()

    return blocking(whole())


class _Stages(NamedTuple):
    """What every stage needs."""

    settings: EvaluateSettings
    constitution: Constitution
    prompts: Sequence[Prompt]
    judge: ModelSource
    tables: Tables
    folder: Path
    progress: Progress


async def _gather(
    stages: _Stages, contestants: Sequence[PolicySpec], given: Mapping[str, Gathered], tallies: list[StageStats]
) -> list[Gathered]:
    """Every policy's answers, one policy after another; those of files are kept with the drawn ones."""
    tables = stages.tables
    tables.prompts.append(each for each in stages.prompts if each.id not in tables.prompts)
    found = []
    for each in contestants:
        if each.name in given:
            tables.samples.append(own for own in given[each.name].found() if own.id not in tables.samples)
            found.append(given[each.name])
            continue
        own, tally = await drawn_answers(
            each, stages.settings, stages.prompts, tables.samples, tables.failures, stages.folder, stages.progress
        )
        tallies.append(tally)
        found.append(own)
    return found


async def _plan(stages: _Stages, gathered: Sequence[Gathered]) -> Plan:
    """Who meets whom: each its baseline first, then, with `matchups: all`, every two of the others."""
    settings, names = stages.settings, [each.name for each in gathered]
    pairs = [(name, names[-1]) for name in names[:-1]]
    if settings.matchups == "all":
        pairs += [(one, other) for at, one in enumerate(names[:-1]) for other in names[at + 1 : -1]]
    own = settings.judge
    templates = load_templates(None if own is None else own.templates)
    plan = Plan(
        prompts=stages.prompts,
        answers={each.name: each.answers for each in gathered},
        pairs=pairs,
        samples=settings.samples,
        criteria=criteria_of(stages.constitution, settings.compare.principles),
        asked=settings.asked,
        read=settings.read,
        judge=Judge(stages.judge.name, templates),
        tag_of=tag_of(settings),
    )
    if next(plan.questions(), None) is None:
        return plan
    answers, say = stages.tables.judgements, stages.progress.note
    return plan._replace(judge=await judge_asked(stages.judge, templates, settings.asked, stages.folder, answers, say))


async def _compare(stages: _Stages, plan: Plan, tallies: list[StageStats]) -> None:
    tables, progress = stages.tables, stages.progress
    criteria = 1 if plan.asked.principles == "one" else len(plan.criteria)
    progress.begin("compare", 2 * criteria * len(plan.pairs) * len(plan.prompts) * plan.samples)
    tally = await ask(
        plan.questions(), stages.judge, tables.judgements, judgement, tables.failures,
        stage="compare", max_failed=stages.settings.max_failed, progress=progress,
    )  # fmt: skip
    tallies.append(tally)
    progress.end(tally.stage, tally.summary)


def grade_questions(
    prompts: Sequence[Prompt], gathered: Sequence[Gathered], constitution: Constitution, judge: Judge, max_chars: int
) -> Iterator[Question]:
    """A question an answer and principle; those about one prompt together."""
    criteria = criteria_of(constitution, "each")
    for prompt in prompts:
        for each in gathered:
            for sample in each.answers[prompt.id]:
                if sample is not None:
                    yield from (
                        score_question(prompt, sample, criterion, judge, max_chars=max_chars) for criterion in criteria
                    )


async def _grade(stages: _Stages, gathered: Sequence[Gathered], judge: Judge, tallies: list[StageStats]) -> None:
    tables, progress, settings = stages.tables, stages.progress, stages.settings
    most = len(stages.constitution.principles) * sum(len(each.found()) for each in gathered)
    progress.begin("grade", most)
    tally = await ask(
        grade_questions(stages.prompts, gathered, stages.constitution, judge, settings.compare.max_chars),
        stages.judge, tables.scores, score_record, tables.failures,
        stage="grade", max_failed=settings.max_failed, progress=progress,
    )  # fmt: skip
    tallies.append(tally)
    progress.end(tally.stage, tally.summary)


async def _distances(stages: _Stages, gathered: Sequence[Gathered], tallies: list[StageStats]) -> dict[str, Distance]:
    """How far each policy is from the baseline; why not, where it cannot be told."""
    if not stages.settings.kl:
        return {}
    *others, last = gathered
    by_id = {prompt.id: prompt for prompt in stages.prompts}
    notes = {each.name: kl.obstacle(each.contestant, last.contestant, stages.settings) for each in others}
    drawn = {
        each.name: SampledPolicy(
            each.contestant, each.identity, [(by_id[sample.prompt], sample) for sample in each.found()]
        )
        for each in gathered
    }
    able = [drawn[name] for name, note in notes.items() if not note]
    found = {name: Distance(None, note) for name, note in notes.items() if note}
    if able:
        stages.progress.begin(kl.STAGE, kl.most(able))
        measured, tally = await kl.measure(
            able, drawn[last.name], stages.settings, stages.tables.likelihoods, stages.progress
        )
        tallies.append(tally)
        stages.progress.end(tally.stage, tally.summary)
        found |= measured
    return found


def _require_labels(rows: Sequence[Compared], failures: Path) -> None:
    if all(row.probability is None for row in rows):
        counts: dict[str, int] = {}
        for row in rows:
            counts[row.status] = counts.get(row.status, 0) + 1
        told = ", ".join(f"{count:,} {status}" for status, count in counts.items())
        raise ModelError(f"none of the {len(rows):,} pairs has a label ({told}); see {failures}, and run this again")
