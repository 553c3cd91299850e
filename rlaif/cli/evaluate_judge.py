"""`rlaif evaluate judge`: a judge on gold pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from rlaif.cli.judgeflags import DEFAULT_CONSTITUTION, judge_of, judge_options, run_of
from rlaif.cli.terminal import echo

if TYPE_CHECKING:
    from rlaif.evaluation.judging import Evaluated, Evaluation
    from rlaif.settings import JudgeSettings


@click.command()
@click.option("--gold", metavar="FILE", required=True, help="Pairs with `chosen` and `rejected`, or a `datasets` name.")
@judge_options
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
    flips, liking for a slot and for length, calibration with a temperature to fix it, replies that must not win, and
    cost. Answers are kept: a second call asks nothing.

    Exit codes: 0 the judge is fit, 3 doubtful, 4 unfit; 1 a model failed, 2 a mistake in what was given.
    """
    from rlaif.evaluation.verdict import EXIT_CODES

    settings, wanted = _wanted(gold, run_file, flags)
    done = _evaluated(settings, wanted, output, plots)
    if form == "json":
        echo(done.report.model_dump_json(indent=2))
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
    from rlaif.asking import load_templates

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


def _evaluated(settings: JudgeSettings, wanted: Evaluation, output: Path, plots: bool) -> Evaluated:
    from rlaif.cli.show import watch
    from rlaif.comparisons.questions import LABELS
    from rlaif.evaluation.now import evaluate_judge_now
    from rlaif.inference.source import LazyModel

    with watch() as told:
        source = LazyModel(settings, log=output / "judge.log", labels=LABELS, say=told.note)
        return evaluate_judge_now(wanted, source, output, watch=told, plots=plots)
