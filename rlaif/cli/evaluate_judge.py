"""`rlaif evaluate judge`: a judge on gold pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    from rlaif.evaluation.judging import Evaluated, Evaluation
    from rlaif.plainwords import Where
    from rlaif.settings import JudgeSettings

_DEFAULT_CONSTITUTION = "helpful-honest-harmless-concise"
_FLAGS = {"model": "--judge", "base_url": "--base-url", "api_key_env": "--api-key-env", "launch": "--launch"}


@click.command()
@click.option(
    "--judge", metavar="MODEL|URL", help="A shipped name, a folder, a hub name, a server's name for it, or a URL."
)
@click.option("--gold", metavar="FILE", required=True, help="Pairs with `chosen` and `rejected`, or a `datasets` name.")
@click.option("--constitution", metavar="NAME|FILE", help=f"What is judged by.  [default: {_DEFAULT_CONSTITUTION}]")
@click.option("--base-url", metavar="URL", help="OpenAI-compatible server that has the judge.")
@click.option("--model", metavar="NAME", help="Where --judge is a URL: the model, if the server has several.")
@click.option("--api-key-env", metavar="NAME", help="Environment variable that holds the server's API key.")
@click.option("--launch", type=click.Choice(["vllm"]), help="Start `vllm serve` for this, and stop it afterwards.")
@click.option(
    "--run",
    "run_file",
    metavar="RUN.yaml",
    type=click.Path(path_type=Path),
    help="Take judge, constitution and settings from a run file.",
)
@click.option(
    "--principles",
    type=click.Choice(["one", "each", "all"]),
    help="As in compare.principles; a pair's own `principle` goes before it.  [default: one]",
)
@click.option("--orders", type=click.Choice(["both", "random"]), help="As in compare.orders.  [default: both]")
@click.option("--column", metavar="NAME", help="Column of the prompts, where it is not recognised.")
@click.option("--limit", metavar="N", type=click.IntRange(1), help="Only the first pairs.")
@click.option(
    "--output",
    default="runs/judges",
    show_default=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where answers, report and plots are kept.",
)
@click.option("--canaries/--no-canaries", default=True, help="Try replies that must not win.  [default: on]")
@click.option(
    "--canary-pairs", default=20, show_default=True, type=click.IntRange(1), help="Pairs that the canaries meet."
)
@click.option("--plots/--no-plots", default=True, help="Draw reliability, slots and length.  [default: on]")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How the report is told.",
)
def judge(gold: str, output: Path, plots: bool, form: str, run_file: Path | None, **flags: Any) -> None:
    """How often a judge agrees with pairs whose better reply is known, and what else sways it.

    Each pair is asked in both orders, in the words in which a run asks. Told are accuracy beside trivial baselines,
    flips, liking for a slot and for length, calibration with a temperature to mend it, replies that must not win, and
    cost. Answers are kept: a second call asks nothing.

    Exit codes: 0 the judge is fit, 3 doubtful, 4 unfit; 1 a model failed, 2 a mistake in what was given.
    """
    from rlaif.evaluation.verdict import EXIT_CODES

    settings, wanted = _wanted(gold, run_file, flags)
    done = _evaluated(settings, wanted, output, plots)
    if form == "json":
        click.echo(done.report.model_dump_json(indent=2))
    else:
        from rlaif.cli.evaluate_judge_show import show

        show(done)
    raise SystemExit(EXIT_CODES[done.report.verdict.level])


class _Base(NamedTuple):
    """What a run file says, or the defaults."""

    constitution: str
    values: dict[str, Any]
    """Fields of an `Evaluation`."""


def _wanted(gold: str, run_file: Path | None, flags: dict[str, Any]) -> tuple[JudgeSettings, Evaluation]:
    from rlaif.constitution import load_constitution
    from rlaif.evaluation.judging import Evaluation
    from rlaif.settings import CompareSettings

    if run_file is not None:
        settings, base = _from_run(run_file, flags)
    else:
        settings, base = _judge(flags), _Base(_DEFAULT_CONSTITUTION, {})
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
    from rlaif.runfile import load_run

    if any(flags[name] is not None for name in ("judge", "base_url", "model", "api_key_env", "launch")):
        raise click.UsageError("--run takes the judge from the run file: leave out the judge's own flags")
    run = load_run(run_file)
    if run.compare.critique:
        click.echo("note: the run shows the judge its critiques; this measures the judge without them", err=True)
    return run.judge, _Base(run.constitution, {"compare": run.compare, "pair": run.pair, "max_failed": run.max_failed})


def _judge(flags: dict[str, Any]) -> JudgeSettings:
    """The judge by its flags."""
    from rlaif.settings import JudgeSettings
    from rlaif.yamlfile import Place, Source, validate

    name = flags["judge"]
    if name is None:
        raise click.UsageError("name the judge with --judge MODEL|URL, or take it from a run file with --run RUN.yaml")
    given = {"model": name, **{key: flags[key] for key in ("base_url", "api_key_env", "launch")}}
    if name.startswith(("http://", "https://")):
        if flags["base_url"] is not None:
            raise click.UsageError("--judge is a URL already: leave out --base-url")
        given |= {"base_url": name, "model": flags["model"] or "(asked of the server)"}
    elif flags["model"] is not None:
        raise click.UsageError("--model goes with a --judge that is a URL: name the model in --judge")
    data = {key: value for key, value in given.items() if value is not None}
    places: dict[Where, Place] = {(key,): Place(flag) for key, flag in _FLAGS.items()}
    settings = validate(Source(data, "the judge's flags", places), JudgeSettings)
    if settings.base_url == name and flags["model"] is None:
        return settings.model_copy(update={"model": _only_model(settings)})
    return settings


def _only_model(settings: JudgeSettings) -> str:
    import asyncio

    from rlaif.errors import UserError
    from rlaif.inference.catalogue import only_model
    from rlaif.inference.source import api_key

    assert settings.base_url is not None
    try:
        return asyncio.run(only_model(settings.base_url, api_key(settings)))
    except UserError as error:
        raise UserError(error.what, where=error.where, mend="say which one with --model NAME") from None


def _evaluated(settings: JudgeSettings, wanted: Evaluation, output: Path, plots: bool) -> Evaluated:
    import asyncio

    from rlaif.cli.show import watch
    from rlaif.comparisons.questions import LABELS
    from rlaif.evaluation.judging import evaluate_judge
    from rlaif.inference.source import LazyModel

    async def evaluated() -> Evaluated:
        with watch() as told:
            source = LazyModel(settings, log=output / "judge.log", labels=LABELS, say=told.note)
            try:
                return await evaluate_judge(wanted, source, output, watch=told, plots=plots)
            finally:
                await source.close()

    return asyncio.run(evaluated())
