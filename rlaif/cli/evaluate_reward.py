"""`rlaif evaluate reward`: a reward model on gold pairs, and by best-of-n against another measure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlaif.cli.judgeflags import DEFAULT_CONSTITUTION, judge_of, judge_options_beside_a_model, run_of
from rlaif.cli.templateflags import template_options
from rlaif.cli.terminal import echo

if TYPE_CHECKING:
    from rlaif.evaluation.rewards.answers import Drawn, Given
    from rlaif.evaluation.rewards.evaluating import EvaluatedReward, OnAnswers, OnGold
    from rlaif.evaluation.rewards.meters import Grading
    from rlaif.inference.source import LazyModel
    from rlaif.plainwords import Where
    from rlaif.settings import JudgeSettings, PolicySettings

_AT_LEAST = click.IntRange(min=1)
_POLICY = ("policy", "policy_base_url", "policy_template_options", "prompts", "temperature", "max_tokens", "seed")
"""What goes with a policy only."""
_JUDGE = ("judge", "run_file", "constitution", "base_url", "judge_model", "api_key_env", "launch", "principles")
"""What goes with answers only."""
_WEAK = 3
"""Exit code of a model that does not beat the trivial baselines."""


@click.command()
@click.option("--model", required=True, metavar="DIR", help="A reward model: a folder (adapters too) or a hub name.")
@click.option("--gold", metavar="FILE", help="Pairs with `chosen` and `rejected`, or a `datasets` name.")
@click.option("--column", metavar="NAME", help="Column of the gold pairs' prompts, where it is not recognised.")
@click.option("--policy", metavar="MODEL", help="Draw answers from this model: shipped, a folder, a hub name.")
@click.option("--policy-base-url", metavar="URL", help="OpenAI-compatible server that has the policy.")
@click.option("--prompts", metavar="FILE", help="What the policy answers.")
@click.option("--responses", metavar="FILE", help="Instead of a policy: several answers a prompt, or a run folder.")
@click.option("--responses-column", metavar="NAME", help="Column of those answers, where it is not recognised.")
@click.option("--prompt-column", metavar="NAME", help="Column of the prompts of either, where it is not recognised.")
@click.option("--samples", type=_AT_LEAST, metavar="N", help="Answers to each prompt.  [default: 16, or what is given]")
@click.option("--temperature", type=click.FloatRange(min=0, min_open=True), help="Of the policy.  [default: 1.0]")
@click.option("--max-tokens", type=_AT_LEAST, metavar="N", help="Most tokens of an answer.  [default: 512]")
@click.option("--seed", type=int, help="Another seed draws other answers.  [default: 0]")
@judge_options_beside_a_model
@click.option(
    "--principles",
    type=click.Choice(["each", "all"]),
    help="Each principle a grade of its own, or all in one.  [default: each]",
)
@click.option("--limit", type=_AT_LEAST, metavar="N", help="Only the first gold pairs, and the first prompts.")
@click.option(
    "--template",
    type=click.Choice(["auto", "chat", "plain"]),
    help="Conversations in the chat template, or as plain dialogues.  [default: as the model was trained]",
)
@template_options("of the reward model.  [default: as it was trained]")
@template_options("of the policy.  [default: as it was trained, else as in the run]", "--policy-template-options")
@click.option("--max-length", type=_AT_LEAST, metavar="N", help="Most tokens; the model's own by default.")
@click.option("--tokens", type=click.IntRange(min=64), default=8192, show_default=True, help="Most tokens at once.")
@click.option("--device", type=click.Choice(["auto", "cpu"]), default="auto", show_default=True)
@click.option(
    "--output",
    default="runs/rewards",
    show_default=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where rewards, answers, report and plots are kept.",
)
@click.option("--plots/--no-plots", default=True, help="Draw reliability, length and best-of-n.  [default: on]")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How the report is told.",
)
def reward(output: Path, plots: bool, form: str, **flags: Any) -> None:
    """How often a reward model prefers the better reply, and what happens when many answers compete for its reward.

    With --gold: accuracy beside trivial baselines, calibration of sigmoid(margin), what length has to do with it.

    With --policy and --prompts, or with --responses, and a judge (--judge or --run): best-of-n for n = 1, 2, 4, ... up
    to --samples. Where the reward of the chosen answer rises and the judge's grade falls, the reward is being
    over-optimised.

    What was scored and asked is kept: a second call computes nothing.

    Exit codes: 0 done, 3 no better on the gold pairs than the best trivial baseline; 1 a model failed, 2 a mistake in
    what was given. Warnings change no exit code.
    """
    gold, wanted = _gold(flags), _answers(flags, output)
    done = _evaluated(flags, output, plots, gold, wanted)
    if form == "json":
        echo(done.report.model_dump_json(indent=2))
    else:
        from rlaif.cli.evaluate_reward_show import show

        show(done)
    weak = done.report.gold is not None and not done.report.gold.beats_baselines
    raise SystemExit(_WEAK if weak else 0)


def _gold(flags: Mapping[str, Any]) -> OnGold | None:
    from rlaif.evaluation.rewards.evaluating import OnGold

    if flags["gold"] is not None:
        return OnGold(flags["gold"], flags["column"], flags["limit"])
    if flags["column"] is not None:
        raise click.UsageError("--column goes with --gold; for prompts and answers it is --prompt-column")
    if flags["policy"] is None and flags["responses"] is None:
        raise click.UsageError(
            "name what to evaluate on: --gold FILE, --policy MODEL with --prompts FILE, or --responses FILE"
        )
    return None


def _answers(flags: Mapping[str, Any], output: Path) -> OnAnswers | None:
    from rlaif.evaluation.rewards.evaluating import OnAnswers

    given = [name for name in _POLICY if flags[name] is not None]
    if flags["responses"] is not None and given:
        raise click.UsageError(f"--responses brings the answers: leave out {_flag(given[0])}")
    if flags["responses"] is None and flags["responses_column"] is not None:
        raise click.UsageError("--responses-column goes with --responses FILE")
    if flags["responses"] is None and flags["policy"] is None:
        for name in (*given, "samples", "prompt_column", *_JUDGE):
            if flags[name] is not None:
                raise click.UsageError(f"{_flag(name)} goes with --policy MODEL, or with --responses FILE")
        return None
    if flags["responses"] is None and flags["prompts"] is None:
        raise click.UsageError("say what the policy answers with --prompts FILE")
    other, max_failed = _grading(flags, output)
    return OnAnswers(_given(flags) if flags["responses"] is not None else _drawn(flags, output), other, max_failed)


def _flag(name: str) -> str:
    return "--run" if name == "run_file" else f"--{name.replace('_', '-')}"


def _given(flags: Mapping[str, Any]) -> Given:
    from rlaif.evaluation.rewards.answers import Given

    columns = flags["responses_column"], flags["prompt_column"]
    return Given(flags["responses"], *columns, samples=flags["samples"], limit=flags["limit"])


def _drawn(flags: Mapping[str, Any], output: Path) -> Drawn:
    from rlaif.evaluation.rewards.answers import Drawn
    from rlaif.inference.source import LazyModel

    settings = _policy(flags)
    source = LazyModel(settings, log=output / "policy.log")
    return Drawn(source, settings, flags["prompts"], flags["prompt_column"], flags["limit"])


def _policy(flags: Mapping[str, Any]) -> PolicySettings:
    from rlaif.evaluation.policies.contestants import options_of
    from rlaif.settings import PolicySettings
    from rlaif.training.learned import asked_options
    from rlaif.yamlfile import Place, Source, validate

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
    """The judge with what it grades by, and the share of failures that stops a stage."""
    from rlaif.asking import load_templates
    from rlaif.constitution import load_constitution
    from rlaif.evaluation.rewards.meters import Grading

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
    from rlaif.inference.source import LazyModel
    from rlaif.scores.questions import DIGITS

    if flags["device"] != "auto" and flags["run_file"] is None:
        settings = settings.model_copy(update={"device": flags["device"]})
    return LazyModel(settings, log=output / "judge.log", labels=DIGITS, say=lambda text: echo(text, err=True))


def _evaluated(
    flags: Mapping[str, Any], output: Path, plots: bool, gold: OnGold | None, wanted: OnAnswers | None
) -> EvaluatedReward:
    from rlaif.cli.show import watch
    from rlaif.evaluation.now import evaluate_reward_now
    from rlaif.evaluation.rewards.scorer import RewardModel

    names = ("template", "template_options", "max_length", "tokens", "device")
    model = RewardModel(flags["model"], **{name: flags[name] for name in names})
    with watch() as told:
        return evaluate_reward_now(model, output, gold=gold, answers=wanted, watch=told, plots=plots)
