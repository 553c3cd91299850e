"""How good a judge, a reward model or a policy is: `rlaif evaluate` as functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from rlaif.api.keywords import (
    Judge,
    at_least_one,
    checked,
    constitution_of,
    given,
    in_python,
    judge_settings,
    named_model,
    one_of,
    plain,
    progress_of,
    run_of,
    valid,
)
from rlaif.config.judge_templates import load_templates
from rlaif.config.schemas import CompareSettings, ModelSettings, PolicySettings
from rlaif.config.yaml import Source
from rlaif.constitution import Constitution
from rlaif.errors import UserError
from rlaif.inference.base import blocking
from rlaif.progress import Progress

if TYPE_CHECKING:
    from rlaif.evaluation.best_of_n import Measure
    from rlaif.evaluation.judge import EvaluatedJudge
    from rlaif.evaluation.policy import EvaluatedPolicies
    from rlaif.evaluation.policy_metrics import Metric
    from rlaif.evaluation.reward_model import EvaluatedReward, OnAnswers
    from rlaif.training.examples import Template

Principles = Literal["one", "each", "all"]
Device = Literal["auto", "cpu"]
AnyModel = TypeVar("AnyModel", bound=ModelSettings)


@in_python
def evaluate_judge(
    *,
    gold: str | Path,
    judge: Judge | None = None,
    run: str | Path | None = None,
    constitution: str | Path | Constitution | None = None,
    principles: Principles | None = None,
    orders: Literal["both", "random"] | None = None,
    column: str | None = None,
    limit: int | None = None,
    canaries: bool = True,
    canary_pairs: int = 20,
    output: str | Path = "runs/judges",
    plots: bool = True,
    quiet: bool = False,
) -> EvaluatedJudge:
    """A judge on pairs whose better reply is known: `rlaif evaluate judge`. Its `report` has verdict and measures.

    `judge` is a model, a URL or a mapping; or `run`, a run file, names it. A second call requests only what is missing.

    Raises UserError for mistakes, ModelError where the judge fails.

        >>> import rlaif
        >>> done = rlaif.evaluate_judge(
        ...     judge="demo-judge", gold="gold.jsonl", constitution="demo", canary_pairs=2, quiet=True
        ... )
        >>> done.report.measures.accuracy.pairs
        12
        >>> done.path.parent.as_posix()
        'runs/judges'
    """
    from rlaif.evaluation.judge import Evaluation
    from rlaif.evaluation.judge import evaluate_judge as evaluate
    from rlaif.feedback.prompts import LABELS
    from rlaif.inference.models import LazyModel

    at_least_one(limit=limit, canary_pairs=canary_pairs)
    base, settings = run_of(run, judge), judge_settings(run, judge)
    overrides = {
        name: value for name, value in {"principles": principles, "orders": orders}.items() if value is not None
    }
    compare = (base.compare if base is not None else CompareSettings()).model_dump(exclude_unset=True)
    compare["temperature"] = settings.temperature * compare.get("temperature", 1.0)
    options: dict[str, Any] = {} if base is None else {"pair": base.pair, "max_failed": base.max_failed}
    evaluation = Evaluation(
        str(gold),
        constitution_of(constitution, base),
        compare=valid({**compare, **overrides, "critique": False}, CompareSettings, ""),
        column=column,
        limit=limit,
        own_temperature=settings.temperature,
        templates=load_templates(settings.templates),
        canary_pairs=canary_pairs if canaries else 0,
        **options,
    )
    folder = Path(output)
    with progress_of(quiet) as progress:
        source = LazyModel(settings, log=folder / "judge.log", labels=LABELS, say=progress.note)
        return blocking(evaluate(evaluation, source, folder, progress=progress, plots=plots), source)


@in_python
def evaluate_policies(
    policies: str | Path | Sequence[str | Path],
    *,
    against: str | Path,
    judge: Judge | None = None,
    run: str | Path | None = None,
    constitution: str | Path | Constitution | None = None,
    policy_api_key_env: str | None = None,
    metrics: Mapping[str, Metric] | None = None,
    output: str | Path = "runs/policies",
    plots: bool = True,
    quiet: bool = False,
    **settings: Any,
) -> EvaluatedPolicies:
    """Compare policies on the same prompts: `rlaif evaluate policy`. `against` is the baseline.

    A policy is a model, `http://host:port/v1#model`, or a file of responses; `name=...` before it names it. Keywords
    are those of the command: `prompts` (needed), `samples`, `temperature`, `max_tokens`, `tag`, `harmful`, `grades`,
    `kl`, `compare_principles`, ... `metrics` are your own metrics of a response, functions of messages and text, by
    name. A second call requests only what is missing.

    Raises UserError for mistakes, ModelError where a model fails.

        >>> import rlaif
        >>> done = rlaif.evaluate_policies(
        ...     "warm=demo-policy", against="cold=answers.jsonl", prompts="prompts.jsonl", judge="demo-judge",
        ...     constitution="demo", compare_principles="all", max_tokens=96, grades=False, quiet=True,
        ...     metrics={"characters": lambda messages, text: len(text)},
        ... )
        >>> done.report.baseline, done.report.matches[0].win_rate.pairs
        ('cold', 8)
    """
    from rlaif.evaluation.policy import evaluate_policies as evaluate
    from rlaif.evaluation.policy_specs import contestants, options_of
    from rlaif.feedback.prompts import LABELS
    from rlaif.inference.models import LazyModel, served_model

    resolved = _policy_settings(run, judge, settings)
    candidates = [policies] if isinstance(policies, (str, Path)) else list(policies)
    specs = contestants(
        [str(policy) for policy in [*candidates, against]],
        api_key_env=policy_api_key_env,
        served=lambda url: served_model(url, policy_api_key_env, f"{url}#NAME"),
        template_options=resolved.template_options,
        of_run=options_of(run_of(run, judge)),
    )
    folder = Path(output)
    assert resolved.judge is not None
    with progress_of(quiet) as progress:
        source = LazyModel(resolved.judge, log=folder / "judge.log", labels=LABELS, say=progress.note)
        work = evaluate(
            resolved, constitution_of(constitution, run_of(run, judge)), specs, source, folder,
            progress=progress, plots=plots, metrics=metrics,
        )  # fmt: skip
        return blocking(work, source)


def _policy_settings(run: str | Path | None, judge: Judge | None, settings: Mapping[str, Any]) -> Any:
    from rlaif.evaluation.policy_specs import EvaluateSettings

    call, base = "evaluate_policies()", run_of(run, judge)
    if settings.get("prompts") is None:
        raise UserError("does not say what the policies answer", where=call, hint="add prompts=FILE")
    data: dict[str, Any] = {"judge": plain(judge_settings(run, judge)), "prompts": {}}
    if base is not None:
        data |= {"compare": plain(base.compare), "pair": plain(base.pair), "max_failed": base.max_failed}
    source = Source(data, call)
    reserved = (
        "policies",
        "against",
        "run",
        "constitution",
        "policy_api_key_env",
        "metrics",
        "output",
        "plots",
        "quiet",
    )
    for path, value in given(EvaluateSettings, settings, call, reserved).items():
        source = source.with_value(path, *value)
    return checked(source, EvaluateSettings)


@in_python
def evaluate_reward(
    model: str | Path,
    *,
    gold: str | Path | None = None,
    column: str | None = None,
    policy: str | Mapping[str, Any] | PolicySettings | None = None,
    prompts: str | Path | None = None,
    responses: str | Path | None = None,
    responses_column: str | None = None,
    prompt_column: str | None = None,
    samples: int | None = None,
    judge: Judge | None = None,
    run: str | Path | None = None,
    measure: Measure | None = None,
    constitution: str | Path | Constitution | None = None,
    principles: Literal["each", "all"] | None = None,
    limit: int | None = None,
    template: Template | None = None,
    template_options: Mapping[str, Any] | None = None,
    max_length: int | None = None,
    tokens: int = 8192,
    device: Device = "auto",
    output: str | Path = "runs/rewards",
    plots: bool = True,
    quiet: bool = False,
) -> EvaluatedReward:
    """A reward model on gold pairs, and by best-of-n: `rlaif evaluate reward`.

    With `gold`: how often it prefers the better response. With `policy` and `prompts`, or with `responses`: what the
    response with the highest of n rewards is worth to a `judge` (or to `measure`, a function of messages and text of
    your own). `policy` is a model, or settings (`{"model": ..., "max_tokens": 96}`). `device` applies to all of them.

    Raises UserError for mistakes, ModelError where a model fails.

        >>> import rlaif
        >>> done = rlaif.evaluate_reward("models/reward", gold="gold.jsonl", quiet=True)
        >>> done.report.gold.pairs
        12
    """
    from rlaif.evaluation import reward_model as evaluation
    from rlaif.evaluation.reward_scores import Drawn, Given, RewardModel

    _require_inputs(gold, policy, prompts, responses, judge=judge, run=run, measure=measure, constitution=constitution,
                    principles=principles, samples=samples, prompt_column=prompt_column)  # fmt: skip
    at_least_one(limit=limit, samples=samples)
    one_of(template, ("auto", "chat", "plain", None), "template")
    options: dict[str, Any] = {"template_options": template_options, "max_length": max_length, "tokens": tokens}
    grades = _Grades(run, judge, measure, constitution, device, one_of(principles, ("each", "all", None), "principles"))
    folder = Path(output)
    with progress_of(quiet) as progress:
        scorer = RewardModel(str(model), template=template, device=one_of(device, ("auto", "cpu"), "device"), **options)
        source: Drawn | Given | None = None
        if responses is not None:
            source = Given(str(responses), responses_column, prompt_column, samples, limit)
        elif policy is not None:
            source = Drawn(*_policy(policy, samples, device, folder, progress), str(prompts), prompt_column, limit)
        answers = None if source is None else grades.on(source, folder, progress)
        pairs = None if gold is None else evaluation.OnGold(str(gold), column, limit)
        work = evaluation.evaluate_reward(scorer, folder, gold=pairs, answers=answers, progress=progress, plots=plots)
        return blocking(work, *(answers.models if answers is not None else ()))


def _require_inputs(gold: object, policy: object, prompts: object, responses: object, **best_of_n: object) -> None:
    """Raise UserError without inputs, with contradictory ones, or with options of best-of-n and no responses."""
    call = "evaluate_reward()"
    if policy is not None and responses is not None:
        raise UserError("`responses` bring the answers", where=call, hint="leave `policy` out")
    if (policy is None) != (prompts is None):
        raise UserError("`policy` and `prompts` go together", where=call, hint="give both, or neither")
    has_responses = policy is not None or responses is not None
    if gold is None and not has_responses:
        hint = "give `gold`, `policy` with `prompts`, or `responses`"
        raise UserError("there is nothing to evaluate on", where=call, hint=hint)
    for name, value in best_of_n.items():
        if value is not None and not has_responses:
            raise UserError("goes with `policy`, or with `responses`", where=name, hint="leave it out, or give either")


def _policy(
    policy: object, samples: int | None, device: Device, folder: Path, progress: Progress
) -> tuple[Any, PolicySettings]:
    """The policy and its sampling settings, with 16 samples per prompt by default."""
    from rlaif.inference.models import LazyModel

    data = named_model(policy, "policy") if isinstance(policy, str) else plain(policy)
    if isinstance(data, dict):
        data = {"samples": 16, **data} if samples is None else {**data, "samples": samples}
    settings = _on(valid(data, PolicySettings, "policy"), device)
    return LazyModel(settings, log=folder / "policy.log", say=progress.note), settings


def _on(settings: AnyModel, device: Device) -> AnyModel:
    """A model on the given device, unless its settings name one."""
    is_set = device == "auto" or "device" in settings.model_fields_set
    return settings if is_set else settings.model_copy(update={"device": device})


class _Grades(NamedTuple):
    """The metric against which best-of-n compares the reward: a judge's grades, or a function."""

    run: str | Path | None
    judge: Judge | None
    measure: Measure | None
    constitution: str | Path | Constitution | None
    device: Device
    principles: Literal["each", "all"] | None

    def on(self, answers: Any, folder: Path, progress: Progress) -> OnAnswers:
        from rlaif.evaluation.best_of_n import CustomMeasure, Grading
        from rlaif.evaluation.reward_model import OnAnswers
        from rlaif.feedback.prompts import DIGITS
        from rlaif.inference.models import LazyModel

        if self.measure is not None:
            if self.judge is not None or self.run is not None:
                raise UserError("`measure` stands in for a judge", where="measure", hint="leave the judge out")
            return OnAnswers(answers, CustomMeasure(getattr(self.measure, "__name__", "measure"), self.measure))
        base = run_of(self.run, self.judge)
        options: dict[str, Any] = {} if self.principles is None else {"principles": self.principles}
        if base is not None:
            default = "all" if base.compare.principles == "all" else "each"
            options = {"principles": default, "max_chars": base.compare.max_chars, **options}
            options |= {"min_mass": base.pair.min_label_mass, "max_failed": base.max_failed}
        settings = judge_settings(self.run, self.judge)
        settings = settings if base is not None else _on(settings, self.device)
        source = LazyModel(settings, log=folder / "judge.log", labels=DIGITS, say=progress.note)
        templates = load_templates(settings.templates)
        grading = Grading(source, constitution_of(self.constitution, base), templates=templates, **options)
        return OnAnswers(answers, grading, grading.max_failed)
