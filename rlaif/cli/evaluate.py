"""`rlaif evaluate`: a judge on gold pairs, policies by a judge, a reward model on gold pairs and by best-of-n."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, get_origin

import click
from pydantic import JsonValue

from rlaif.cli.main import Entry, LazyGroup
from rlaif.cli.options import (
    DEFAULT_CONSTITUTION,
    SettingsCommand,
    judge_of,
    judge_options,
    judge_options_beside_a_model,
    mapping,
    option,
    parameter,
    run_of,
    template_options,
)
from rlaif.cli.terminal import echo
from rlaif.config.run_file import Setting, settable
from rlaif.evaluation.policy_specs import EvaluateSettings
from rlaif.inference.models import served_model
from rlaif.progress import show_progress

if TYPE_CHECKING:
    from rlaif.config.schemas import JudgeSettings, PolicySettings
    from rlaif.config.yaml import Where
    from rlaif.evaluation.best_of_n import Grading
    from rlaif.evaluation.judge import EvaluatedJudge, Evaluation
    from rlaif.evaluation.policy import EvaluatedPolicies
    from rlaif.evaluation.policy_specs import PolicySpec
    from rlaif.evaluation.reward_model import EvaluatedReward, OnAnswers, OnGold
    from rlaif.evaluation.reward_scores import Drawn, Given
    from rlaif.inference.models import LazyModel


@click.command()
@click.option("--gold", metavar="FILE", required=True, help="Pairs with `chosen` and `rejected`, or a `datasets` name.")
@judge_options
@click.option(
    "--principles",
    type=click.Choice(["one", "each", "all"]),
    help="As compare.principles; a pair's own `principle` takes precedence.  [default: one]",
)
@click.option("--orders", type=click.Choice(["both", "random"]), help="As compare.orders.  [default: both]")
@click.option("--column", metavar="NAME", help="Column of the prompts, if it is not recognized.")
@click.option("--limit", metavar="N", type=click.IntRange(1), help="Use only the first pairs.")
@click.option(
    "--output",
    default="runs/judges",
    show_default=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder of the responses, the report and the plots.",
)
@click.option(
    "--canaries/--no-canaries", default=True, help="Test the judge with responses that must not win.  [default: on]"
)
@click.option(
    "--canary-pairs",
    default=20,
    show_default=True,
    type=click.IntRange(1),
    help="Pairs that the canaries are compared on.",
)
@click.option(
    "--plots/--no-plots", default=True, help="Plot reliability, position bias and length bias.  [default: on]"
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Output format.",
)
def judge(gold: str, output: Path, plots: bool, form: str, run_file: Path | None, **flags: Any) -> None:
    """Evaluate a judge on pairs whose better response is known.

    The judge compares each pair in both orders, with the same prompt template as a run. The report gives accuracy
    against trivial baselines, flips (the verdict changes when the order is swapped), position bias, length bias,
    calibration with a temperature to correct it, canaries (responses that must not win) and cost. Results are cached:
    re-running makes no calls.

    Exit codes: 0 the judge is fit, 3 doubtful, 4 unfit; 1 a model failed, 2 a mistake in the arguments.
    """
    from rlaif.evaluation.reports import EXIT_CODES

    settings, wanted = _wanted(gold, run_file, flags)
    done = _judge_evaluated(settings, wanted, output, plots)
    if form == "json":
        echo(done.report.model_dump_json(indent=2))
    else:
        from rlaif.cli.render_evaluation import show_judge

        show_judge(done)
    raise SystemExit(EXIT_CODES[done.report.verdict.level])


class _Base(NamedTuple):
    """The settings of a run file, or the defaults."""

    constitution: str
    values: dict[str, Any]
    """Fields of an `Evaluation`."""


def _wanted(gold: str, run_file: Path | None, flags: dict[str, Any]) -> tuple[JudgeSettings, Evaluation]:
    from rlaif.config.schemas import CompareSettings
    from rlaif.constitution import load_constitution
    from rlaif.evaluation.judge import Evaluation

    if run_file is not None:
        settings, base = _from_run(run_file, flags)
    else:
        settings, base = judge_of(flags), _Base(DEFAULT_CONSTITUTION, {})
    changed = {key: flags[key] for key in ("principles", "orders") if flags[key] is not None}
    # Critiques are not written here; the note about it is in `_from_run`.
    compare = base.values.pop("compare", CompareSettings()).model_copy(update={**changed, "critique": False})
    return settings, Evaluation(
        gold,
        load_constitution(flags["constitution"] or base.constitution),
        compare=compare,
        column=flags["column"],
        limit=flags["limit"],
        canary_pairs=flags["canary_pairs"] if flags["canaries"] else 0,
        **base.values,
    )


def _from_run(run_file: Path, flags: dict[str, Any]) -> tuple[JudgeSettings, _Base]:
    from rlaif.config.judge_templates import load_templates

    run = run_of(run_file, flags)
    if run.compare.critique:
        echo("note: the run shows the judge its critiques; this measures the judge without them", err=True)
    read = {
        "compare": run.compared_by(run.judge),
        "own_temperature": run.judge.temperature,
        "templates": load_templates(run.judge.templates),
        "pair": run.pair,
        "max_failed": run.max_failed,
    }
    return run.judge, _Base(run.constitution, read)


def _judge_evaluated(settings: JudgeSettings, wanted: Evaluation, output: Path, plots: bool) -> EvaluatedJudge:
    from rlaif.evaluation.judge import evaluate_judge
    from rlaif.feedback.prompts import LABELS
    from rlaif.inference.base import blocking
    from rlaif.inference.models import LazyModel

    with show_progress() as progress:
        source = LazyModel(settings, log=output / "judge.log", labels=LABELS, say=progress.note)
        return blocking(evaluate_judge(wanted, source, output, progress=progress, plots=plots), source)


_OF_COMPARE = ("principles", "reasoning", "reasoning_tokens", "reasoning_temperature", "max_chars", "temperature")
_OF_PAIR = ("margin", "min_label_mass")
_OF_PROMPTS = ("path", "column", "limit")


def _settings() -> dict[str, Setting]:
    """The settings that have a flag here, by the parameter's name."""
    settings = {}
    for setting in settable(EvaluateSettings):
        group, *rest = setting.path
        few = {"compare": _OF_COMPARE, "pair": _OF_PAIR, "prompts": _OF_PROMPTS, "judge": ()}.get(group)
        if few is not None and rest[0] not in few:
            continue
        if setting.path == ("compare", "principles"):  # its default is another one than a run's
            field = copy(setting.field)
            field.default = "each"
            setting = Setting(setting.path, field)
        settings[parameter(setting)] = setting
    return settings


_SETTINGS = _settings()
_SECTIONS = {
    "responses": ("samples", "temperature", "top_p", "max_tokens", "seed", "system", "template_options"),
    "metrics": ("grades", "violation_below", "tag", "harmful", "kl"),
    "comparisons": ("matchups", "max_failed"),
}
_SECTION_OF = {name: section for section, names in _SECTIONS.items() for name in names}
_COMMON = {
    "prompts.path", "prompts.limit", "samples", "temperature", "max_tokens", "grades", "tag", "harmful", "matchups",
    "compare.principles",
}  # fmt: skip


def _policy(
    policy: str,
    against: tuple[str, ...],
    output: Path,
    plots: bool,
    form: str,
    run_file: Path | None,
    policy_api_key_env: str | None,
    **flags: Any,
) -> None:
    """Compare POLICY with one or more baselines.

    A policy is a model (a shipped name, a folder, a LoRA adapter's folder, a hub name), a model on a server
    (http://host:port/v1#model), or a file of responses: rows with a prompt and one response or several, a run folder or
    its samples.jsonl. NAME=POLICY gives it a name. All policies respond to the same prompts. The judge compares the
    responses in pairs, in both orders, under every principle; identical responses are a tie. The report gives the win
    rate, the length-controlled win rate, win rates by principle and by tag, refusals, diversity, violation rates and
    the KL to the baseline. Results are cached: re-running makes no calls.

    Exit codes: 0 done, 1 a model failed, 2 a mistake in the arguments.
    """
    wanted = _policies_wanted(run_file, flags)
    from rlaif.evaluation.policy_specs import contestants

    first, *others = against
    policies = contestants(
        [policy, *others, first],
        api_key_env=policy_api_key_env,
        served=lambda url: served_model(url, policy_api_key_env, f"{url}#NAME"),
        template_options=wanted.settings.template_options,
        of_run=wanted.of_run,
    )
    done = _policies_evaluated(wanted, policies, output, plots)
    if form == "json":
        echo(done.report.model_dump_json(indent=2))
    else:
        from rlaif.cli.render_evaluation import show_policies

        show_policies(done)


_PARAMETERS: tuple[click.Parameter, ...] = (
    click.Argument(["policy"], metavar="POLICY"),
    click.Option(
        ["--against"],
        multiple=True,
        required=True,
        metavar="POLICY",
        help="Policy to compare with; may be given again. The first one is the baseline.",
    ),
    *(option(setting, _SECTION_OF) for setting in _SETTINGS.values()),
    click.Option(
        ["--policy-api-key-env"],
        metavar="NAME",
        help="Environment variable with the API key of the policies.",
    ),
    click.Option(
        ["--output"],
        default="runs/policies",
        show_default=True,
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="Folder of the responses, the report and the plots.",
    ),
    click.Option(["--plots/--no-plots"], default=True, help="Plot win rates, principles and ratings.  [default: on]"),
    click.Option(
        ["--format", "form"],
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="Output format.",
    ),
)

policy = judge_options(
    SettingsCommand("policy", callback=_policy, params=list(_PARAMETERS), help=_policy.__doc__, common=_COMMON)
)
"""The command."""


class _Wanted(NamedTuple):
    settings: EvaluateSettings
    constitution: str
    of_run: Mapping[str, JsonValue] | None = None
    """The options of the chat template of the run's policy."""


def _policies_wanted(run_file: Path | None, flags: Mapping[str, Any]) -> _Wanted:
    """The settings by flags and run file. Raises UserError on the first mistake, with the flag that it is in."""
    from rlaif.config.yaml import Place, Source, validate

    if flags["prompts"] is None:
        raise click.UsageError("Missing option '--prompts'.")
    constitution = DEFAULT_CONSTITUTION
    data: dict[str, Any] = {}
    of_run = None
    if run_file is not None:
        run = run_of(run_file, flags)
        of_run = run.policy.template_options if run.policy is not None else None
        given = {"compare": run.compare, "pair": run.pair, "judge": run.judge}
        data = {key: value.model_dump(mode="json", exclude_unset=True) for key, value in given.items()}
        data["max_failed"], constitution = run.max_failed, run.constitution
    else:
        data["judge"] = judge_of(flags).model_dump(mode="json", exclude_unset=True)
    source = Source({**data, "prompts": {}}, "rlaif evaluate policy", {("prompts",): Place("--prompts")})
    for name, setting in _SETTINGS.items():
        if (value := flags[name]) is not None:
            listed = get_origin(setting.field.annotation) is tuple
            parsed = [part.strip() for part in value.split(",") if part.strip()] if listed else value
            if name == "template_options":
                parsed = mapping(value)
            source = source.with_value(setting.path, parsed, setting.flag)
    return _Wanted(validate(source, EvaluateSettings), flags["constitution"] or constitution, of_run)


def _policies_evaluated(
    wanted: _Wanted, policies: tuple[PolicySpec, ...], output: Path, plots: bool
) -> EvaluatedPolicies:
    from rlaif.constitution import load_constitution
    from rlaif.evaluation.policy import evaluate_policies
    from rlaif.feedback.prompts import LABELS
    from rlaif.inference.base import blocking
    from rlaif.inference.models import LazyModel

    judge = wanted.settings.judge
    assert judge is not None
    constitution = load_constitution(wanted.constitution)
    with show_progress() as progress:
        source = LazyModel(judge, log=output / "judge.log", labels=LABELS, say=progress.note)
        work = evaluate_policies(
            wanted.settings, constitution, policies, source, output, progress=progress, plots=plots
        )
        return blocking(work, source)


_AT_LEAST = click.IntRange(min=1)
_POLICY = ("policy", "policy_base_url", "policy_template_options", "prompts", "temperature", "max_tokens", "seed")
"""Parameters that require a policy."""
_JUDGE = ("judge", "run_file", "constitution", "base_url", "judge_model", "api_key_env", "launch", "principles")
"""Parameters that require a policy or responses."""
_WEAK = 3
"""Exit code of a model that does not beat the trivial baselines."""


@click.command()
@click.option("--model", required=True, metavar="DIR", help="A reward model: a folder (adapters too) or a hub name.")
@click.option("--gold", metavar="FILE", help="Pairs with `chosen` and `rejected`, or a `datasets` name.")
@click.option("--column", metavar="NAME", help="Column of the gold pairs' prompts, if it is not recognized.")
@click.option("--policy", metavar="MODEL", help="Policy to sample from: a shipped name, a folder, a hub name.")
@click.option("--policy-base-url", metavar="URL", help="OpenAI-compatible server of the policy.")
@click.option("--prompts", metavar="FILE", help="Prompts for the policy.")
@click.option("--responses", metavar="FILE", help="Instead of a policy: several responses per prompt, or a run folder.")
@click.option("--responses-column", metavar="NAME", help="Column of those responses, if it is not recognized.")
@click.option("--prompt-column", metavar="NAME", help="Column of the prompts of either, if it is not recognized.")
@click.option(
    "--samples", type=_AT_LEAST, metavar="N", help="Responses per prompt.  [default: 16, or all of --responses]"
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    help="Sampling temperature of the policy.  [default: 1.0]",
)
@click.option("--max-tokens", type=_AT_LEAST, metavar="N", help="Maximum tokens of a response.  [default: 512]")
@click.option("--seed", type=int, help="Seed of sampling.  [default: 0]")
@judge_options_beside_a_model
@click.option(
    "--principles",
    type=click.Choice(["each", "all"]),
    help="Grade each principle separately, or all in one.  [default: each]",
)
@click.option("--limit", type=_AT_LEAST, metavar="N", help="Use only the first gold pairs and the first prompts.")
@click.option(
    "--template",
    type=click.Choice(["auto", "chat", "plain"]),
    help="Format conversations by the chat template, or as plain dialogues.  [default: as the model was trained]",
)
@template_options("of the reward model.  [default: as it was trained]")
@template_options("of the policy.  [default: as it was trained, else as in the run]", "--policy-template-options")
@click.option(
    "--max-length", type=_AT_LEAST, metavar="N", help="Maximum tokens of a text.  [default: as the model was trained]"
)
@click.option(
    "--tokens", type=click.IntRange(min=64), default=8192, show_default=True, help="Maximum tokens per forward pass."
)
@click.option("--device", type=click.Choice(["auto", "cpu"]), default="auto", show_default=True)
@click.option(
    "--output",
    default="runs/rewards",
    show_default=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder of the rewards, the responses, the report and the plots.",
)
@click.option("--plots/--no-plots", default=True, help="Plot reliability, length bias and best-of-n.  [default: on]")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Output format.",
)
def reward(output: Path, plots: bool, form: str, **flags: Any) -> None:
    """Evaluate a reward model on gold pairs, and by best-of-n sampling.

    With --gold, the report gives accuracy against trivial baselines, the calibration of sigmoid(margin), and the length
    bias.

    With --policy and --prompts, or with --responses, and a judge (--judge or --run), the report gives best-of-n for
    n = 1, 2, 4, ... up to --samples. If the reward of the chosen response rises and the judge's grade falls, the reward
    is over-optimized.

    Results are cached: re-running computes nothing.

    Exit codes: 0 done, 3 no better on the gold pairs than the best trivial baseline; 1 a model failed, 2 a mistake in
    the arguments. Warnings do not change the exit code.
    """
    gold, wanted = _gold(flags), _answers(flags, output)
    done = _reward_evaluated(flags, output, plots, gold, wanted)
    if form == "json":
        echo(done.report.model_dump_json(indent=2))
    else:
        from rlaif.cli.render_evaluation import show_reward

        show_reward(done)
    weak = done.report.gold is not None and not done.report.gold.beats_baselines
    raise SystemExit(_WEAK if weak else 0)


def _gold(flags: Mapping[str, Any]) -> OnGold | None:
    from rlaif.evaluation.reward_model import OnGold

    if flags["gold"] is not None:
        return OnGold(flags["gold"], flags["column"], flags["limit"])
    if flags["column"] is not None:
        raise click.UsageError("--column goes with --gold; for prompts and responses it is --prompt-column")
    if flags["policy"] is None and flags["responses"] is None:
        raise click.UsageError(
            "name what to evaluate on: --gold FILE, --policy MODEL with --prompts FILE, or --responses FILE"
        )
    return None


def _answers(flags: Mapping[str, Any], output: Path) -> OnAnswers | None:
    from rlaif.evaluation.reward_model import OnAnswers

    given = [name for name in _POLICY if flags[name] is not None]
    if flags["responses"] is not None and given:
        raise click.UsageError(f"--responses provides the responses: leave out {_flag(given[0])}")
    if flags["responses"] is None and flags["responses_column"] is not None:
        raise click.UsageError("--responses-column goes with --responses FILE")
    if flags["responses"] is None and flags["policy"] is None:
        for name in (*given, "samples", "prompt_column", *_JUDGE):
            if flags[name] is not None:
                raise click.UsageError(f"{_flag(name)} goes with --policy MODEL, or with --responses FILE")
        return None
    if flags["responses"] is None and flags["prompts"] is None:
        raise click.UsageError("name the prompts of the policy with --prompts FILE")
    other, max_failed = _grading(flags, output)
    return OnAnswers(_given(flags) if flags["responses"] is not None else _drawn(flags, output), other, max_failed)


def _flag(name: str) -> str:
    return "--run" if name == "run_file" else f"--{name.replace('_', '-')}"


def _given(flags: Mapping[str, Any]) -> Given:
    from rlaif.evaluation.reward_scores import Given

    columns = flags["responses_column"], flags["prompt_column"]
    return Given(flags["responses"], *columns, samples=flags["samples"], limit=flags["limit"])


def _drawn(flags: Mapping[str, Any], output: Path) -> Drawn:
    from rlaif.evaluation.reward_scores import Drawn
    from rlaif.inference.models import LazyModel

    settings = _best_of_n_policy(flags)
    source = LazyModel(settings, log=output / "policy.log")
    return Drawn(source, settings, flags["prompts"], flags["prompt_column"], flags["limit"])


def _best_of_n_policy(flags: Mapping[str, Any]) -> PolicySettings:
    from rlaif.config.schemas import PolicySettings
    from rlaif.config.yaml import Place, Source, validate
    from rlaif.evaluation.policy_specs import options_of
    from rlaif.training.tokenize import asked_options

    given: dict[str, Any] = {
        "model": flags["policy"],
        "base_url": flags["policy_base_url"],
        "samples": flags["samples"] or 16,
        "device": flags["device"],
        **{name: flags[name] for name in ("temperature", "max_tokens", "seed")},
    }
    run = run_of(flags["run_file"], flags) if flags["run_file"] is not None else None
    local = flags["policy"] if flags["policy_base_url"] is None else ""
    given["template_options"] = asked_options(local, flags["policy_template_options"], options_of(run))
    data = {key: value for key, value in given.items() if value is not None}
    names = {"model": "--policy", "base_url": "--policy-base-url"}
    places: dict[Where, Place] = {(key,): Place(names.get(key, _flag(key))) for key in data}
    return validate(Source(data, "the policy's flags", places), PolicySettings)


def _grading(flags: Mapping[str, Any], output: Path) -> tuple[Grading, float]:
    """How the judge grades, and the share of failures that stops a stage."""
    from rlaif.config.judge_templates import load_templates
    from rlaif.constitution import load_constitution
    from rlaif.evaluation.best_of_n import Grading

    name = flags["constitution"] or DEFAULT_CONSTITUTION
    more: dict[str, Any] = {}
    if flags["run_file"] is not None:
        run = run_of(flags["run_file"], flags)
        settings, name = run.judge, flags["constitution"] or run.constitution
        more = {"max_chars": run.compare.max_chars, "min_mass": run.pair.min_label_mass, "max_failed": run.max_failed}
        more["principles"] = "all" if run.compare.principles == "all" else "each"
    else:
        settings = judge_of(flags)
    if flags["principles"] is not None:
        more["principles"] = flags["principles"]
    source = _judge_source(settings, flags, output)
    more["templates"] = load_templates(settings.templates)
    return Grading(source, load_constitution(name), **more), more.get("max_failed", 0.5)


def _judge_source(settings: JudgeSettings, flags: Mapping[str, Any], output: Path) -> LazyModel:
    from rlaif.feedback.prompts import DIGITS
    from rlaif.inference.models import LazyModel

    if flags["device"] != "auto" and flags["run_file"] is None:
        settings = settings.model_copy(update={"device": flags["device"]})
    return LazyModel(settings, log=output / "judge.log", labels=DIGITS, say=lambda text: echo(text, err=True))


def _reward_evaluated(
    flags: Mapping[str, Any], output: Path, plots: bool, gold: OnGold | None, wanted: OnAnswers | None
) -> EvaluatedReward:
    from rlaif.evaluation.reward_model import evaluate_reward
    from rlaif.evaluation.reward_scores import RewardModel
    from rlaif.inference.base import blocking

    names = ("template", "template_options", "max_length", "tokens", "device")
    model = RewardModel(flags["model"], **{name: flags[name] for name in names})
    with show_progress() as progress:
        work = evaluate_reward(model, output, gold=gold, answers=wanted, progress=progress, plots=plots)
        return blocking(work, *(wanted.models if wanted is not None else ()))


class _Commands(LazyGroup):
    entries: ClassVar[Mapping[str, Entry]] = {
        "judge": Entry("rlaif.cli.evaluate", "judge", "Evaluate a judge on pairs whose better response is known."),
        "policy": Entry("rlaif.cli.evaluate", "policy", "Compare policies on the same prompts."),
        "reward": Entry("rlaif.cli.evaluate", "reward", "Evaluate a reward model on gold pairs and by best-of-n."),
    }


@click.command(cls=_Commands)
def evaluate() -> None:
    """Evaluate a judge, policies or a reward model against baselines, with confidence intervals."""
