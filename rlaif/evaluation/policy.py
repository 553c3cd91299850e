"""The evaluation of policies: responses, comparisons, grades and divergences, and then the report.

The folder of an evaluation holds `prompts.jsonl`, `samples.jsonl`, `judgements.jsonl`, `scores.jsonl`,
`likelihoods.jsonl` and `failures.jsonl`, which all evaluations in it share; and for each evaluation a report
(`NAME.json`, written last), the comparisons (`NAME.comparisons.jsonl`) and plots. NAME is the policies' names and a
hash of everything that the figures depend on except the responses, so several evaluations share one folder and each has
one report. Answers are looked up by content id: a second call asks nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rlaif.config.judge_templates import Judge, load_templates
from rlaif.constitution import Constitution
from rlaif.data.prompts import InputIssues
from rlaif.errors import ModelError
from rlaif.evaluation.policy_metrics import Metric, Plan
from rlaif.evaluation.policy_report import Costs, Facts, Tables, derive, opened, report_stem, seconds_of, timed
from rlaif.evaluation.policy_responses import (
    STAGE,
    Distance,
    Gathered,
    SampledPolicy,
    identity_of,
    max_likelihoods,
    measure_kl,
    obstacle,
    prompts_of,
    read_responses,
    require_distinct,
    sample_responses,
    tag_of,
)
from rlaif.evaluation.policy_specs import EvaluateSettings, PolicySpec
from rlaif.evaluation.reports import PolicyReport
from rlaif.feedback.judge import criteria_of, judge_asked, judgement
from rlaif.feedback.scoring import score_question, score_record
from rlaif.inference.base import ModelSource, Question, StageStats, ask
from rlaif.progress import Progress
from rlaif.records import Prompt
from rlaif.store import write_records, write_text

FOLDER = Path("runs/policies")
"""The default folder of evaluations."""


class EvaluatedPolicies(NamedTuple):
    """A finished evaluation."""

    report: PolicyReport
    path: Path
    """Of the report."""
    tallies: tuple[StageStats, ...]
    """Statistics of the stages of this call."""


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
    """Compare policies and write the report into `folder`; the last contestant is the baseline.

    `metrics` are the caller's measures of a response, by name. `warn_same` names contestants that were trained on this
    judge's labels, where their folders do not record it. `judge` is opened at its first question, and the caller closes
    it; policies are opened one at a time, and closed here.

    Raises ValueError for fewer than two contestants, UserError for the user's mistakes, and ModelError when a model
    cannot go on or no pair has a label. A second call resumes.
    """
    if len({each.name for each in contestants}) < max(2, len(contestants)):
        raise ValueError("needs two or more contestants, each with a name of its own")
    require_distinct(contestants)
    input_issues = InputIssues()
    progress.note(f"reading {settings.prompts.path}")
    prompts = prompts_of(settings, input_issues)
    given = {each.name: read_responses(each, settings, prompts) for each in contestants if each.answers is not None}
    with opened(folder) as tables:
        stages = _Stages(settings, constitution, prompts, judge, tables, folder, progress)
        tallies: list[StageStats] = []
        stem = report_stem(settings, constitution, judge.name, [(each.name, identity_of(each)) for each in contestants])
        with timed(folder, stem, tallies):
            gathered = await _gather(stages, contestants, given, tallies)
            plan = await _plan(stages, gathered)
            await _ask_judge(stages, plan, gathered, tallies)
            distances = await _distances(stages, gathered, tallies)
        facts = Facts(settings, constitution, input_issues, plan.judge, gathered, prompts, distances, tuple(warn_same))
        costs = Costs(tables)
        rows = list(plan.compared(costs.judgement))
        if all(row.probability is None for row in rows):
            counts = ", ".join(f"{count:,} {status}" for status, count in Counter(row.status for row in rows).items())
            message = f"none of the {len(rows):,} pairs has a label ({counts}); see {tables.failures.path}"
            raise ModelError(f"{message}, and run this again")
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


class _Stages(NamedTuple):
    """The inputs of every stage."""

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
    """The responses of every policy, one policy after another; those of files are stored with the sampled ones."""
    tables = stages.tables
    tables.prompts.append(each for each in stages.prompts if each.id not in tables.prompts)
    gathered = []
    for each in contestants:
        if each.name in given:
            tables.samples.append(sample for sample in given[each.name].present() if sample.id not in tables.samples)
            gathered.append(given[each.name])
            continue
        sampled, tally = await sample_responses(
            each, stages.settings, stages.prompts, tables.samples, tables.failures, stages.folder, stages.progress
        )
        tallies.append(tally)
        gathered.append(sampled)
    return gathered


async def _plan(stages: _Stages, gathered: Sequence[Gathered]) -> Plan:
    """The comparisons: each policy with the baseline first, then, with `matchups: all`, every two of the others."""
    settings, names = stages.settings, [each.name for each in gathered]
    pairs = [(name, names[-1]) for name in names[:-1]]
    if settings.matchups == "all":
        pairs += [(one, other) for at, one in enumerate(names[:-1]) for other in names[at + 1 : -1]]
    templates = load_templates(None if settings.judge is None else settings.judge.templates)
    plan = Plan(
        prompts=stages.prompts,
        answers={each.name: each.answers for each in gathered},
        pairs=pairs,
        samples=settings.samples,
        criteria=criteria_of(stages.constitution, settings.compare.principles),
        compare=settings.compare_settings,
        pair=settings.pair_settings,
        judge=Judge(stages.judge.name, templates),
        tag_of=tag_of(settings),
    )
    if next(plan.questions(), None) is None:
        return plan
    judgements, say = stages.tables.judgements, stages.progress.note
    judge = await judge_asked(stages.judge, templates, settings.compare_settings, stages.folder, judgements, say)
    return plan._replace(judge=judge)


async def _ask_judge(stages: _Stages, plan: Plan, gathered: Sequence[Gathered], tallies: list[StageStats]) -> None:
    """Ask the judge the missing comparisons, and then the missing grades."""
    tables, progress, settings = stages.tables, stages.progress, stages.settings
    criteria = 1 if plan.compare.principles == "one" else len(plan.criteria)
    progress.begin("compare", 2 * criteria * len(plan.pairs) * len(plan.prompts) * plan.samples)
    stats = await ask(
        plan.questions(), stages.judge, tables.judgements, judgement, tables.failures,
        stage="compare", max_failed=settings.max_failed, progress=progress,
    )  # fmt: skip
    tallies.append(stats)
    progress.end(stats.stage, stats.summary)
    if not settings.grades:
        return
    progress.begin("grade", len(stages.constitution.principles) * sum(len(each.present()) for each in gathered))
    stats = await ask(
        grade_questions(stages.prompts, gathered, stages.constitution, plan.judge, settings.compare.max_chars),
        stages.judge, tables.scores, score_record, tables.failures,
        stage="grade", max_failed=settings.max_failed, progress=progress,
    )  # fmt: skip
    tallies.append(stats)
    progress.end(stats.stage, stats.summary)


def grade_questions(
    prompts: Sequence[Prompt], gathered: Sequence[Gathered], constitution: Constitution, judge: Judge, max_chars: int
) -> Iterator[Question]:
    """One question per response and principle, grouped by prompt."""
    criteria = criteria_of(constitution, "each")
    for prompt in prompts:
        for each in gathered:
            for sample in each.answers[prompt.id]:
                if sample is not None:
                    yield from (
                        score_question(prompt, sample, criterion, judge, max_chars=max_chars) for criterion in criteria
                    )


async def _distances(stages: _Stages, gathered: Sequence[Gathered], tallies: list[StageStats]) -> dict[str, Distance]:
    """The divergence of each policy from the baseline, or why it cannot be computed."""
    if not stages.settings.kl:
        return {}
    *policies, baseline = gathered
    by_id = {prompt.id: prompt for prompt in stages.prompts}
    notes = {each.name: obstacle(each.contestant, baseline.contestant, stages.settings) for each in policies}
    sampled = {
        each.name: SampledPolicy(
            each.contestant, each.identity, [(by_id[sample.prompt], sample) for sample in each.present()]
        )
        for each in gathered
    }
    measurable = [sampled[name] for name, note in notes.items() if not note]
    distances = {name: Distance(None, note) for name, note in notes.items() if note}
    if measurable:
        stages.progress.begin(STAGE, max_likelihoods(measurable))
        measured, tally = await measure_kl(
            measurable, sampled[baseline.name], stages.settings, stages.tables.likelihoods, stages.progress
        )
        tallies.append(tally)
        stages.progress.end(tally.stage, tally.summary)
        distances |= measured
    return distances
