"""The loop, stage by stage: generate, train, evaluate, report. Each stage goes on where an earlier call left it."""

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
from rlaif.evaluation.policy import evaluate_policies_now
from rlaif.evaluation.policy_specs import PolicySpec, options_of
from rlaif.evaluation.reports import PolicyReport, RewardReport
from rlaif.evaluation.reward_model import OnAnswers, OnGold, evaluate_reward_now
from rlaif.evaluation.reward_scores import Drawn, RewardModel
from rlaif.feedback.pipeline import STAGES, Report, run_pipeline
from rlaif.feedback.prompts import DIGITS, LABELS
from rlaif.inference.models import LazyModel
from rlaif.progress import Progress
from rlaif.records import Messages
from rlaif.training.text_format import asked_options
from rlaif.workflow.plan import BASE, EVALUATION, Ledger, Plan, Step, StepRecord, state_of

if TYPE_CHECKING:
    from rlaif.progress import Progress
    from rlaif.training.session import Trained

Metrics = Mapping[str, Callable[[Messages, str], float]]
"""The caller's own measures of an answer, by name."""


class Screen(Protocol):
    """Who is shown how the loop goes."""

    def stage(self, name: str) -> None:
        """A stage begins."""
        ...

    def note(self, text: str) -> None:
        """Something to know."""
        ...

    def data(self, report: Report) -> None:
        """The preference data are made."""
        ...

    def progress(self) -> AbstractContextManager[Progress]:
        """For a stage's questions, or a training."""
        ...


@dataclass
class WorkflowResult:
    """What the loop has come to."""

    plan: Plan
    data: Report
    trained: dict[str, Path] = field(default_factory=dict)
    """Folders of the finished trainings, by step."""
    stopped: str | None = None
    """The training that was asked to stop; the same command goes on with it."""
    policies: PolicyReport | None = None
    rewards: dict[str, RewardReport] = field(default_factory=dict)
    """Of the reward models, by step."""
    page: Path | None = None


def run_workflow(plan: Plan, screen: Screen, *, metrics: Metrics | None = None, command: str = "") -> WorkflowResult:
    """Take every stage that is not done yet.

    `command` is what goes on after an interrupt, for the report; `metrics` are measures of an answer that stand beside
    the judge's in the evaluation. Raises UserError for what the user can fix and ModelError where a model cannot go
    on; a second call resumes.
    """
    screen.stage("generate")
    with screen.progress() as progress:
        found = WorkflowResult(plan, run_pipeline(plan.run, STAGES, progress))
    screen.data(found.data)
    if found.data.problem is not None and _needs_pairs(plan):
        raise ModelError(found.data.problem)
    _mark(plan, command, finished=False)
    for step in plan.steps:
        screen.stage(f"train {step.name}")
        if not _trained(step, plan.run.folder, found, screen):
            found.stopped = step.name
            return found
    if plan.evaluate is not None and plan.compared:
        screen.stage("evaluate")
        found.policies = _evaluated(plan, found.data, screen, metrics)
    if plan.evaluate is not None and (plan.evaluate.reward_gold or plan.evaluate.reward_samples):
        for step in plan.steps:
            if not step.is_policy:
                screen.stage(f"evaluate {step.name}")
                found.rewards[step.name] = _rewarded(plan, step, screen)
    screen.stage("report")
    _mark(plan, command, finished=True)
    found.page = write_report(plan.run.folder)
    return found


def _needs_pairs(plan: Plan) -> bool:
    """Whether a stage after the data rests on the pairs; where there is none, the pairs are all that is wanted."""
    folder = plan.run.folder
    pairs = {folder, folder / "pairs.jsonl", folder / "pairs.parquet"}
    taught = {Path(str(getattr(step.settings, "data", ""))) for step in plan.steps if step.settings.method != "sft"}
    return not plan.steps or bool(pairs & taught)


def _mark(plan: Plan, command: str, *, finished: bool) -> None:
    ledger = Ledger.read(plan.run.folder)
    ledger.model_copy(update={"command": command, "finished": finished}).write(plan.run.folder)


def write_report(folder: Path) -> Path:
    """The page of a folder."""
    from rlaif.report.page import write_page

    return write_page(folder)


def _trained(step: Step, folder: Path, found: WorkflowResult, screen: Screen) -> bool:
    """Whether a training is finished, now or before."""
    ledger = Ledger.read(folder)
    now = state_of(step, ledger)
    if now.moved is not None:
        screen.note(f"{step.settings.folder} was made with other settings or data; it is {now.moved.name} now")
    if now.state == "finished":
        screen.note(f"finished before, in {step.settings.folder}")
    else:
        ledger = ledger.noted(folder, step.name, StepRecord(key=now.key))
        with screen.progress() as progress:
            trained = _train(step, progress, resume=now.state == "begun")
        if not trained.finished:
            return False
        ledger.noted(folder, step.name, StepRecord(key=now.key, seconds=trained.metrics.get("seconds")))
    found.trained[step.name] = step.settings.folder
    return True


def _train(step: Step, progress: Progress, *, resume: bool) -> Trained:
    from rlaif.rl.config import OnlineSettings
    from rlaif.rl.run import train_online
    from rlaif.training.config import TrainSettings
    from rlaif.training.session import train

    if isinstance(step.settings, OnlineSettings):
        return train_online(step.settings, progress, resume=resume)
    assert isinstance(step.settings, TrainSettings)
    return train(step.settings.method, step.settings, progress, resume=resume)


def _evaluated(plan: Plan, data: Report, screen: Screen, metrics: Metrics | None) -> PolicyReport:
    """The trained policies beside the one that they started from."""
    assert plan.evaluate is not None
    judge = plan.evaluate.judge or plan.run.judge
    folder = plan.run.folder / EVALUATION
    labellers = (data.run.judge_name, *data.run.panel_names)
    given, of_run = plan.evaluate.template_options, options_of(plan.run)
    trained = [
        PolicySpec(
            step.name,
            ModelSettings(
                model=step.settings.output, template_options=asked_options(step.settings.output, given, of_run)
            ),
        )
        for step in plan.compared
    ]
    with screen.progress() as progress:
        source = LazyModel(judge, log=folder / "judge.log", labels=LABELS, say=progress.note)
        done = evaluate_policies_now(
            plan.evaluate.model_copy(update={"judge": judge}),  # with its calibration
            load_constitution(plan.run.constitution),
            [*trained, _base(plan)],
            source,
            folder,
            progress=progress,
            metrics=metrics,
            warn_same=[each.name for each in trained] if source.name in labellers else [],
        )
    return done.report


def _rewarded(plan: Plan, step: Step, screen: Screen) -> RewardReport:
    """A trained reward model on gold pairs, and choosing among answers of the run's policy."""
    assert plan.evaluate is not None
    wanted, folder = plan.evaluate, plan.run.folder / EVALUATION / "rewards"
    with screen.progress() as progress:
        answers = _answers(plan, progress) if wanted.reward_samples else None
        gold = None if wanted.reward_gold is None else OnGold(wanted.reward_gold)
        model = RewardModel(step.settings.output)
        return evaluate_reward_now(model, folder, gold=gold, answers=answers, progress=progress).report


def _answers(plan: Plan, progress: Progress) -> OnAnswers:
    assert plan.evaluate is not None
    wanted, base = plan.evaluate, _base(plan)
    assert base.model is not None
    drawing = {**wanted.drawing, "samples": wanted.reward_samples}
    folder = plan.run.folder / EVALUATION
    return OnAnswers(
        Drawn(
            LazyModel(base.model, log=folder / "policy.log", say=progress.note),
            PolicySettings.model_validate(
                {"model": base.model.model, "template_options": base.model.template_options, **drawing}
            ),
            wanted.prompts.path, wanted.prompts.column, wanted.prompts.limit,
        ),
        Grading(
            LazyModel(wanted.judge or plan.run.judge, log=folder / "judge.log", say=progress.note, labels=DIGITS),
            load_constitution(plan.run.constitution), max_failed=wanted.max_failed,
            templates=load_templates((wanted.judge or plan.run.judge).templates),
        ),
        wanted.max_failed,
    )  # fmt: skip


def _base(plan: Plan) -> PolicySpec:
    """The policy that all began with."""
    model = plan.start
    if plan.evaluate is not None and plan.evaluate.template_options is not None:
        model = model.model_copy(update={"template_options": plan.evaluate.template_options})
    return PolicySpec(BASE, model)
