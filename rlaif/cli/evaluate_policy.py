"""`rlaif evaluate policy`: policies beside each other on the same prompts, by a judge."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_origin

import click

from rlaif.cli.judgeflags import DEFAULT_CONSTITUTION, judge_of, judge_options, run_of, served_model
from rlaif.cli.options import flag, parameter
from rlaif.cli.terminal import echo
from rlaif.evaluation.policies.settings import EvaluateSettings
from rlaif.runfile import Setting, settable

if TYPE_CHECKING:
    from rlaif.evaluation.policies.contestants import Contestant
    from rlaif.evaluation.policies.evaluating import Evaluated

_OF_COMPARE = ("principles", "reasoning", "reasoning_tokens", "reasoning_temperature", "max_chars", "temperature")
_OF_PAIR = ("margin", "min_label_mass")
_OF_PROMPTS = ("path", "column", "limit")


def _settings() -> dict[str, Setting]:
    """The settings that have a flag here, by the parameter's name."""
    found = {}
    for setting in settable(EvaluateSettings):
        group, *rest = setting.path
        few = {"compare": _OF_COMPARE, "pair": _OF_PAIR, "prompts": _OF_PROMPTS, "judge": ()}.get(group)
        if few is not None and rest[0] not in few:
            continue
        if setting.path == ("compare", "principles"):  # its default is another one than a run's
            field = copy(setting.field)
            field.default = "each"
            setting = Setting(setting.path, field)
        found[parameter(setting)] = setting
    return found


_SETTINGS = _settings()


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
    """Whose answers are better: those of POLICY, or those of the policies that it is put beside.

    A policy is a model (a shipped name, a folder, a LoRA adapter's folder, a hub name), a model on a server
    (http://host:port/v1#model), or a file of answers: rows with a prompt and one response or several, a run folder or
    its samples.jsonl. NAME=POLICY gives it a name. All answer the same prompts, and the judge compares them two by two,
    in both orders, under every principle; identical answers are a tie. Told are the win rate as it is and at equal
    length, by principle and by kind of prompt, refusals, variety, grades, and the distance from the baseline. Answers
    are kept: a second call asks nothing.

    Exit codes: 0 done, 1 a model failed, 2 a mistake in what was given.
    """
    wanted = _wanted(run_file, flags)
    from rlaif.evaluation.policies.contestants import contestants

    first, *others = against
    found = contestants(
        [policy, *others, first],
        api_key_env=policy_api_key_env,
        served=lambda url: served_model(url, policy_api_key_env, f"{url}#NAME"),
    )
    done = _evaluated(wanted, found, output, plots)
    if form == "json":
        echo(done.report.model_dump_json(indent=2))
    else:
        from rlaif.cli.evaluate_policy_show import show

        show(done)


_PARAMETERS: tuple[click.Parameter, ...] = (
    click.Argument(["policy"], metavar="POLICY"),
    click.Option(
        ["--against"],
        multiple=True,
        required=True,
        metavar="POLICY",
        help="Whom it is put beside; may be given again. The first one is the baseline.",
    ),
    *map(flag, _SETTINGS.values()),
    click.Option(["--policy-api-key-env"], metavar="NAME", help="Variable with the API key of the policies' servers."),
    click.Option(
        ["--output"],
        default="runs/policies",
        show_default=True,
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="Where answers, report and plots are kept.",
    ),
    click.Option(["--plots/--no-plots"], default=True, help="Draw win rates, principles and ratings.  [default: on]"),
    click.Option(
        ["--format", "form"],
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="How the report is told.",
    ),
)

policy = judge_options(click.Command("policy", callback=_policy, params=list(_PARAMETERS), help=_policy.__doc__))
"""The command."""


class _Wanted(NamedTuple):
    settings: EvaluateSettings
    constitution: str


def _wanted(run_file: Path | None, flags: Mapping[str, Any]) -> _Wanted:
    """The settings by flags and run file. Raises UserError on the first mistake, with the flag that it is in."""
    from rlaif.yamlfile import Place, Source, validate

    if flags["prompts"] is None:
        raise click.UsageError("Missing option '--prompts'.")
    constitution = DEFAULT_CONSTITUTION
    data: dict[str, Any] = {}
    if run_file is not None:
        run = run_of(run_file, flags)
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
            source = source.with_value(setting.path, parsed, setting.flag)
    return _Wanted(validate(source, EvaluateSettings), flags["constitution"] or constitution)


def _evaluated(wanted: _Wanted, policies: tuple[Contestant, ...], output: Path, plots: bool) -> Evaluated:
    from rlaif.cli.show import watch
    from rlaif.comparisons.questions import LABELS
    from rlaif.constitution import load_constitution
    from rlaif.evaluation.policies.evaluating import evaluate_policies_now
    from rlaif.inference.source import LazyModel

    judge = wanted.settings.judge
    assert judge is not None
    constitution = load_constitution(wanted.constitution)
    with watch() as told:
        source = LazyModel(judge, log=output / "judge.log", labels=LABELS, say=told.note)
        return evaluate_policies_now(wanted.settings, constitution, policies, source, output, watch=told, plots=plots)
