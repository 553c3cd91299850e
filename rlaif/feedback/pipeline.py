"""The stages of a run in order: sample, revise, critique, compare, pair. No stage prints or exits.

Every stage is the same three steps: plan the questions, ask those without an answer, append the answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from rlaif.config.judge_templates import load_templates
from rlaif.config.schemas import RunSettings
from rlaif.constitution import load_constitution
from rlaif.data.files import require_rows
from rlaif.demo.oracle import outside_its_world
from rlaif.errors import UserError
from rlaif.feedback.critique import critique_record, require_critiques
from rlaif.feedback.dataset import Outcome, derive, rank_questions, score_questions, why_no_labels, why_no_pairs
from rlaif.feedback.judge import Forms, chosen_form, judgement
from rlaif.feedback.revise import MANIFEST as REVISED
from rlaif.feedback.revise import (
    Revised,
    confirm_questions,
    critique_questions,
    derive_revised,
    helpful_demonstrations,
    reviser_principles,
    revision_questions,
    revision_record,
)
from rlaif.feedback.run import Run, open_run, opened_models
from rlaif.feedback.sampling import given_samples, sample_record
from rlaif.feedback.scoring import order_record, score_record
from rlaif.inference.base import ModelSource, Output, Question, StageStats, ask, blocking
from rlaif.progress import Progress, Silent
from rlaif.store import R, Table

STAGES = ("sample", "revise", "critique", "compare", "pair")


@dataclass
class Report:
    """One session of a run: its stages, and the dataset as it is by now."""

    run: Run
    outcome: Outcome | None = None
    """None where the session had no pair stage."""
    revised: Revised | None = None
    """None where it had no revise stage."""
    tallies: list[StageStats] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def problem(self) -> str | None:
        """Why this run has no usable label, and what to change; None where it has one, or where none was wanted."""
        if self.outcome is not None:
            return why_no_pairs(self.run, self.outcome)
        return None if self.revised is None else why_no_labels(self.run, self.revised)


def run_pipeline(settings: RunSettings, stages: Sequence[str] = STAGES, progress: Progress | None = None) -> Report:
    """Run `stages` of a run, asking only for what is missing, and derive the dataset.

    Raises UserError for the user's mistakes and ModelError when a model cannot go on; a second call resumes.
    It also works inside a running event loop, and blocks it.
    """
    return blocking(generate_async(settings, stages, progress or Silent()))


async def generate_async(settings: RunSettings, stages: Sequence[str], progress: Progress) -> Report:
    """`generate` for callers in an event loop that is not to be blocked."""
    start = time.perf_counter()
    _require_texts(settings, stages)
    async with opened_models(settings, stages, progress.note) as (policy, judge, panel):
        names = tuple(source.name for source in panel)
        with open_run(settings, policy.name if policy else None, judge.name, names) as run:
            _begin(run, stages, progress)
            report = Report(run)
            if "sample" in stages:
                report.tallies.append(await sample(run, policy, progress))
            if _revises(settings, stages):
                most = settings.revise.samples if "sample" not in stages else 0
                report.tallies += await revise(run, policy, judge, progress, draw=most)
                report.seconds = time.perf_counter() - start
                report.revised = derive_revised(run, _session(report))
            if {"critique", "compare"} & set(stages):
                report.tallies += await grade(run, judge, progress)
            if _critiques(settings, stages):
                report.tallies.append(await critique(run, judge, progress))
            if "compare" in stages and settings.compare.method in ("pairwise", "tournament"):
                report.tallies += await compare(run, [judge, *panel], progress)
            report.seconds = time.perf_counter() - start
            if "pair" in stages:
                report.outcome = derive(run, _session(report))
                report.seconds = time.perf_counter() - start
    return report


def _critiques(settings: RunSettings, stages: Sequence[str]) -> bool:
    return "critique" in stages and (settings.writes_critiques or len(stages) == 1)


def _revises(settings: RunSettings, stages: Sequence[str]) -> bool:
    return "revise" in stages and (settings.revise.enabled or len(stages) == 1)


def _require_texts(settings: RunSettings, stages: Sequence[str]) -> None:
    """Raise UserError, before anything is asked or written, where the prompts, the constitution, the templates or the
    helpful responses lack what the stages need."""
    constitution = load_constitution(settings.constitution)
    require_rows(settings.prompts.path)
    for judge in settings.judges:
        load_templates(judge.templates)
    if _critiques(settings, stages):
        require_critiques(settings, constitution)
    if _revises(settings, stages):
        reviser_principles(constitution, settings)
        next(helpful_demonstrations(settings), None)


def _begin(run: Run, stages: Sequence[str], progress: Progress) -> None:
    """Read the prompts, save the settings, and remove the manifests that this session makes untrue.

    These are the manifests of what it derives again, and all of them where the prompts, or settings that everything
    depends on, differ from before. A mistake in the prompts leaves a finished run as it was.
    """
    run.read_prompts(lambda: run.invalidate_manifest("manifest.json", REVISED))
    if run.before is not None and run.before.prompts.path != run.settings.prompts.path:
        progress.note(
            f"{run.folder} was a run on {run.before.prompts.path}: its answers are kept, its pairs are replaced"
        )
    dumped = [None if row is None else row.model_dump(exclude={"output"}) for row in (run.before, run.settings)]
    revise_before, revise_now = (None if row is None else row.pop("revise") for row in dumped)
    changed = dumped[0] != dumped[1]
    if changed or set(stages) - {"revise"}:
        run.invalidate_manifest()
    if changed or revise_before != revise_now or _revises(run.settings, stages):
        run.invalidate_manifest(REVISED)
    run.save_settings()
    warnings = (outside_its_world(judge.model, run.constitution, run.prompts()) for judge in run.settings.judges)
    run.warnings = tuple(warning for warning in warnings if warning is not None)
    for warning in run.warnings:
        progress.note(f"WARNING: {warning}")


async def sample(run: Run, policy: ModelSource | None, progress: Progress, *, most: int | None = None) -> StageStats:
    """Store the given responses and generate the missing ones, of each prompt the first `most`."""
    count = run.settings.policy.samples if run.settings.policy else 0
    count = count if most is None else min(count, most)
    progress.begin("sample", run.prompt_count * count)
    given = False
    for prompt in run.prompts():
        samples = given_samples(prompt)
        run.samples.append([sample for sample in samples if sample.id not in run.samples])
        given = given or bool(samples)
    tally = StageStats("sample")
    if policy is not None:
        tally = await ask(
            run.sample_questions(most),
            policy,
            run.samples,
            sample_record,
            run.failures,
            stage="sample",
            max_failed=run.settings.max_failed,
            progress=progress,
        )
        await policy.close()  # its memory, or its server, makes room for the judge
    elif not given and not len(run.samples):
        raise UserError(
            "there is nothing to judge: no `policy`, and no answers in the input",
            where=run.settings.prompts.path,
            hint="set `policy`, or name the column of the answers in `prompts.responses`",
        )
    progress.end(tally.stage, tally.summary)
    return tally


async def critique(run: Run, judge: ModelSource, progress: Progress) -> StageStats:
    """Write the missing critiques."""
    progress.begin("critique", 0)
    return await _ask(run, run.critique_questions(), judge, run.critiques, critique_record, "critique", progress)


async def revise(
    run: Run, policy: ModelSource | None, judge: ModelSource, progress: Progress, *, draw: int
) -> list[StageStats]:
    """Generate the first `draw` samples if need be, revise the samples round by round, and let the judge compare.

    A round needs the revisions of the one before, so it asks its critiques and then its revisions.
    """
    tallies = [await sample(run, policy, progress, most=draw)] if draw else []
    settings = run.settings.revise
    for number in range(1, settings.rounds + 1):
        most = run.prompt_count * settings.samples
        if not settings.skip_critique:
            progress.begin(stage := f"critique {number}", most)
            questions = critique_questions(run, number)
            tallies.append(await _ask(run, questions, judge, run.critiques, critique_record, stage, progress))
        progress.begin(stage := f"revise {number}", most)
        questions = revision_questions(run, number)
        tallies.append(await _ask(run, questions, judge, run.revisions, revision_record, stage, progress))
    progress.begin("confirm", 0)
    await _choose_form(run, judge, confirm_questions(run), progress)
    questions = confirm_questions(run)
    tallies.append(await _ask(run, questions, judge, run.judgements, judgement, "confirm", progress))
    return tallies


async def grade(run: Run, judge: ModelSource, progress: Progress) -> list[StageStats]:
    """Ask the missing grades and rankings, where `compare.method` needs any; a tournament chooses by its grades."""
    method = run.settings.compare.method
    if method in ("score", "tournament"):
        progress.begin("score", 0)
        return [await _ask(run, score_questions(run), judge, run.scores, score_record, "score", progress)]
    if method == "rank":
        progress.begin("rank", 0)
        return [await _ask(run, rank_questions(run), judge, run.orders, order_record, "rank", progress)]
    return []


async def compare(run: Run, judges: Sequence[ModelSource], progress: Progress) -> list[StageStats]:
    """Ask each judge its missing ordered comparisons, one judge after the other."""
    tallies = []
    for judge in judges:
        stage = "compare" if judge is judges[0] else f"compare by {judge.name}"
        progress.begin(stage, run.max_comparisons)
        await _choose_form(run, judge, run.compare_questions(judge.name), progress)
        questions = run.compare_questions(judge.name)
        tallies.append(await _ask(run, questions, judge, run.judgements, judgement, stage, progress))
        if len(judges) > 1:
            await judge.close()  # its memory, or its server, makes room for the next one
    return tallies


async def _choose_form(run: Run, judge: ModelSource, questions: Iterator[Question], progress: Progress) -> None:
    """Choose the form of a judge's comparisons, where there are any and it was not chosen before."""
    if next(questions, None) is None:
        return
    forms, templates = Forms(run.folder), run.judge_named(judge.name).templates
    await chosen_form(judge, templates, run.settings.compare, forms, run.judgements, progress.note)
    run.use_form(judge.name, forms)


async def _ask(
    run: Run,
    questions: Iterable[Question],
    judge: ModelSource,
    table: Table[R],
    record: Callable[[Question, Output], R],
    stage: str,
    progress: Progress,
) -> StageStats:
    tally = await ask(
        questions,
        judge,
        table,
        record,
        run.failures,
        stage=stage,
        max_failed=run.settings.max_failed,
        progress=progress,
    )
    progress.end(tally.stage, tally.summary)
    return tally


def _session(report: Report) -> JsonValue:
    """The manifest's record of this session."""
    stages: dict[str, JsonValue] = {
        tally.stage: {
            "asked": tally.asked,
            "answered": tally.answered,
            "on_disk_already": tally.known,
            "failed": dict(tally.failed),
            "seconds": round(tally.seconds, 3),
        }
        for tally in report.tallies
    }
    return {"seconds": round(report.seconds, 3), "stages": stages}
