"""The stages of `rlaif run`: generate, train, evaluate, report. Each stage resumes where an earlier call left it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rlaif.config.judge_templates import load_templates
from rlaif.config.schemas import ModelSettings, PolicySettings
from rlaif.constitution import load_constitution
from rlaif.errors import ModelError
from rlaif.evaluation.best_of_n import Grading
from rlaif.evaluation.policy import evaluate_policies
from rlaif.evaluation.policy_specs import PolicySpec, options_of
from rlaif.evaluation.reports import PolicyReport, RewardReport
from rlaif.evaluation.reward_model import OnAnswers, OnGold, evaluate_reward
from rlaif.evaluation.reward_scores import Drawn, RewardModel
from rlaif.feedback.pipeline import STAGES, Report, run_pipeline
from rlaif.feedback.prompts import DIGITS, LABELS
from rlaif.inference.base import blocking
from rlaif.inference.models import LazyModel
from rlaif.records import Messages
from rlaif.training.tokenize import asked_options
from rlaif.workflow.plan import BASE, EVALUATION, Ledger, Plan, Step, StepRecord, state_of

if TYPE_CHECKING:
    from rlaif.progress import Progress

Metrics = Mapping[str, Callable[[Messages, str], float]]
"""Functions of messages and response, by name."""


class Screen(Protocol):
    """Shows the progress of a run to the user."""

    def stage(self, name: str) -> None:
        """A stage begins."""
        ...

    def note(self, text: str) -> None:
        """A message for the user."""
        ...

    def data(self, report: Report) -> None:
        """The preference data are complete."""
        ...

    def progress(self) -> AbstractContextManager[Progress]:
        """The progress of a stage's requests, or of a training."""
        ...


@dataclass
class WorkflowResult:
    """The results of all stages."""

    plan: Plan
    data: Report
    trained: dict[str, Path] = field(default_factory=dict)
    """Folders of the finished trainings, by step."""
    stopped: str | None = None
    """The interrupted training, which the same command resumes."""
    policies: PolicyReport | None = None
    rewards: dict[str, RewardReport] = field(default_factory=dict)
    """Of the reward models, by step."""
    page: Path | None = None


def run_workflow(plan: Plan, screen: Screen, *, metrics: Metrics | None = None, command: str = "") -> WorkflowResult:
    """Run every stage that is not done yet.

    `command` is the command that resumes the run, for the report; the evaluation shows `metrics` of the responses
    beside the judge's verdicts. Raises UserError for what the user can fix and ModelError where a model fails; a second
    call resumes.
    """
    folder = plan.run.folder
    screen.stage("generate")
    with screen.progress() as progress:
        result = WorkflowResult(plan, run_pipeline(plan.run, STAGES, progress))
    screen.data(result.data)
    # Without pairs, no stage that rests on them can run; in a run of pairs alone, they are the result.
    pairs = {folder, folder / "pairs.jsonl", folder / "pairs.parquet"}
    inputs = {Path(str(getattr(step.settings, "data", ""))) for step in plan.steps if step.settings.method != "sft"}
    if result.data.problem is not None and (not plan.steps or pairs & inputs):
        raise ModelError(result.data.problem)
    _mark(plan, command, finished=False)
    for step in plan.steps:
        screen.stage(f"train {step.name}")
        if not _train(step, folder, screen):
            result.stopped = step.name
            return result
        result.trained[step.name] = step.settings.folder
    if plan.evaluate is not None and plan.compared:
        screen.stage("evaluate")
        result.policies = _evaluate_policies(plan, result.data, screen, metrics)
    if plan.evaluate is not None and (plan.evaluate.reward_gold or plan.evaluate.reward_samples):
        for step in plan.steps:
            if not step.is_policy:
                screen.stage(f"evaluate {step.name}")
                result.rewards[step.name] = _evaluate_reward(plan, step, screen)
    screen.stage("report")
    _mark(plan, command, finished=True)
    result.page = write_report(folder)
    return result


def _mark(plan: Plan, command: str, *, finished: bool) -> None:
    ledger = Ledger.read(plan.run.folder)
    ledger.model_copy(update={"command": command, "finished": finished}).write(plan.run.folder)


def write_report(folder: Path) -> Path:
    """Write the report page of a folder."""
    from rlaif.report.page import write_page

    return write_page(folder)


def _train(step: Step, folder: Path, screen: Screen) -> bool:
    """Run a training that is not finished; returns whether it is finished now."""
    ledger, settings = Ledger.read(folder), step.settings
    state, key, moved = state_of(step, ledger)
    if moved is not None:
        screen.note(f"{settings.folder} was made with other settings or data; it is {moved.name} now")
    if state == "finished":
        screen.note(f"finished before, in {settings.folder}")
        return True

    from rlaif.rl.config import OnlineSettings
    from rlaif.rl.run import train_online
    from rlaif.training.config import TrainSettings
    from rlaif.training.session import train

    ledger = ledger.with_step(folder, step.name, StepRecord(key=key))
    with screen.progress() as progress:
        if isinstance(settings, OnlineSettings):
            trained = train_online(settings, progress, resume=state == "started")
        else:
            assert isinstance(settings, TrainSettings)
            trained = train(settings.method, settings, progress, resume=state == "started")
    if trained.finished:
        ledger.with_step(folder, step.name, StepRecord(key=key, seconds=trained.metrics.get("seconds")))
    return trained.finished


def _evaluate_policies(plan: Plan, data: Report, screen: Screen, metrics: Metrics | None) -> PolicyReport:
    """Compare the trained policies with the one from which they started."""
    assert plan.evaluate is not None
    judge = plan.evaluate.judge or plan.run.judge
    folder = plan.run.folder / EVALUATION
    labellers = (data.run.judge_name, *data.run.panel_names)
    given, of_run = plan.evaluate.template_options, options_of(plan.run)
    trained = []
    for step in plan.compared:
        model = step.settings.output
        options = asked_options(model, given, of_run)
        trained.append(PolicySpec(step.name, ModelSettings(model=model, template_options=options)))
    with screen.progress() as progress:
        source = LazyModel(judge, log=folder / "judge.log", labels=LABELS, say=progress.note)
        work = evaluate_policies(
            plan.evaluate.model_copy(update={"judge": judge}),  # with its calibration
            load_constitution(plan.run.constitution),
            [*trained, _base(plan)],
            source,
            folder,
            progress=progress,
            metrics=metrics,
            warn_same=[policy.name for policy in trained] if source.name in labellers else [],
        )
        return blocking(work, source).report


def _evaluate_reward(plan: Plan, step: Step, screen: Screen) -> RewardReport:
    """Measure a trained reward model on gold pairs, and by best-of-n on responses of the run's policy."""
    assert plan.evaluate is not None
    settings, folder = plan.evaluate, plan.run.folder / EVALUATION / "rewards"
    with screen.progress() as progress:
        responses = _responses(plan, progress) if settings.reward_samples else None
        gold = None if settings.reward_gold is None else OnGold(settings.reward_gold)
        model = RewardModel(step.settings.output)
        work = evaluate_reward(model, folder, gold=gold, answers=responses, progress=progress)
        return blocking(work, *(responses.models if responses is not None else ())).report


def _responses(plan: Plan, progress: Progress) -> OnAnswers:
    """The responses among which reward models choose, and the judge that grades them."""
    assert plan.evaluate is not None
    settings, base = plan.evaluate, _base(plan).model
    assert base is not None
    sampling = {**settings.drawing, "samples": settings.reward_samples}
    folder, judge = plan.run.folder / EVALUATION, settings.judge or plan.run.judge
    return OnAnswers(
        Drawn(
            LazyModel(base, log=folder / "policy.log", say=progress.note),
            PolicySettings.model_validate(
                {"model": base.model, "template_options": base.template_options, **sampling}
            ),
            settings.prompts.path, settings.prompts.column, settings.prompts.limit,
        ),
        Grading(
            LazyModel(judge, log=folder / "judge.log", say=progress.note, labels=DIGITS),
            load_constitution(plan.run.constitution), max_failed=settings.max_failed,
            templates=load_templates(judge.templates),
        ),
        settings.max_failed,
    )  # fmt: skip


def _base(plan: Plan) -> PolicySpec:
    """The policy from which all trainings started."""
    model = plan.start
    if plan.evaluate is not None and plan.evaluate.template_options is not None:
        model = model.model_copy(update={"template_options": plan.evaluate.template_options})
    return PolicySpec(BASE, model)
