"""`rlaif constitution test`: every principle's examples put to a judge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlaif.cli.judgeflags import judge_of, judge_options_beside_a_constitution, run_of
from rlaif.cli.terminal import echo

if TYPE_CHECKING:
    from rich.text import Text

    from rlaif.settings import JudgeSettings
    from rlaif.trials import Result, Trial, Trials

_STYLES = {"pass": "green", "fail": "red", "flip": "yellow", "no verdict": "magenta"}


@click.command()
@click.argument("constitution", metavar="NAME|FILE")
@judge_options_beside_a_constitution
@click.option("--principle", "only", metavar="ID", multiple=True, help="Only this principle; may be given repeatedly.")
@click.option(
    "--answers",
    default="runs/constitution-tests",
    show_default=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where the judge's answers are kept, to be asked only once.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="How the results are told.",
)
def test(
    constitution: str, run_file: Path | None, only: tuple[str, ...], answers: Path, form: str, **flags: Any
) -> None:
    """Unit tests for principles: does the judge decide their examples as their author did?

    Each example is asked under its principle alone and in both orders, in the words in which a run asks; with `--run`
    after the critiques that this run shows its judge. Exit code 0 where all pass, 1 where any fails, flips (the orders
    disagree) or has no verdict.

    An edited principle asks its own examples again, and no other's.
    """
    import json

    trials = _tried(constitution, *_asked(run_file, flags), answers, only)
    if form == "json":
        echo(json.dumps(_document(constitution, trials), ensure_ascii=False, indent=2))
    else:
        _show(trials)
    raise SystemExit(0 if trials.passed else 1)


def _asked(run_file: Path | None, flags: Mapping[str, Any]) -> tuple[JudgeSettings, dict[str, Any]]:
    """The judge by its flags, or by the run file, which also says how it is asked and read."""
    if run_file is None:
        return judge_of(flags), {}
    from rlaif.asking import load_templates

    run = run_of(run_file, flags)
    asked = {"compare": run.compared_by(run.judge), "templates": load_templates(run.judge.templates)}
    return run.judge, {**asked, "critique": run.critique, "pair": run.pair}


def _tried(name: str, judge: JudgeSettings, settings: dict[str, Any], answers: Path, only: tuple[str, ...]) -> Trials:
    import asyncio

    from rlaif.cli.show import watch
    from rlaif.comparisons.questions import LABELS
    from rlaif.constitution import load_constitution
    from rlaif.inference.source import LazyModel
    from rlaif.trials import run_trials

    loaded = load_constitution(name)

    async def tried() -> Trials:
        with watch() as told:
            source = LazyModel(judge, log=answers / "judge.log", labels=LABELS, say=told.note)
            chosen = [each for each in loaded.principles if not only or each.id in only]
            told.begin("test", 2 * sum(len(each.examples) for each in chosen))
            try:
                trials = await run_trials(
                    loaded, source, answers, only=only, say=told.note, progress=told.progress, **settings
                )
            finally:
                await source.close()
            told.end(trials.tally)
        return trials

    return asyncio.run(tried())


def _show(trials: Trials) -> None:
    from rlaif.cli.tables import decimal, print_table, short

    print_table(
        ("principle", "prompt", "P(better)", "1st", "2nd", "result"),
        [
            (
                each.principle,
                short(each.example.prompt),
                decimal(each.probability),
                decimal(each.orders[0]),
                decimal(each.orders[1]),
                _coloured(each.result),
            )
            for each in trials.trials
        ],
        right=("P(better)", "1st", "2nd"),
        cut=("prompt",),
    )
    for each in trials.trials:
        if not each.passed:
            _show_failure(each)
    echo()
    for name in trials.tested:
        tried = trials.of(name)
        echo(f"{name}: {sum(each.passed for each in tried)}/{len(tried)}")
    if trials.untested:
        echo(f"Without examples: {', '.join(trials.untested)}")
    passed = sum(each.passed for each in trials.trials)
    echo(f"{passed} of {len(trials.trials)} examples pass with {trials.judge}")
    tally = trials.tally
    echo(f"{tally.asked} questions asked now ({tally.seconds:.1f} s), {tally.known} on disk already")


def _coloured(result: Result) -> Text:
    from rich.text import Text

    return Text(result.value, style=_STYLES[result.value])


def _show_failure(trial: Trial) -> None:
    """What the judge should have seen, in full."""
    example = trial.example
    because = f" ({trial.reason})" if trial.reason else ""
    echo(f"\n{trial.result.value}{because}: {trial.principle}, example {trial.number}")
    for name, text in (("prompt", example.prompt), ("better", example.better), ("worse", example.worse)):
        echo(f"  {name:<7} {text}")
    if example.why:
        echo(f"  {'why':<7} {example.why}")


def _document(name: str, trials: Trials) -> dict[str, Any]:
    return {
        "constitution": name,
        "judge": trials.judge,
        "passed": sum(each.passed for each in trials.trials),
        "total": len(trials.trials),
        "asked": trials.tally.asked,
        "on_disk": trials.tally.known,
        "failed": dict(trials.tally.failed),
        "without_examples": list(trials.untested),
        "principles": [
            {
                "id": principle,
                "passed": sum(each.passed for each in trials.of(principle)),
                "total": len(trials.of(principle)),
                "examples": [
                    {
                        **each.example.model_dump(exclude_none=True),
                        "result": each.result.value,
                        "probability": each.probability,
                        "orders": list(each.orders),
                        **({"reason": each.reason} if each.reason else {}),
                    }
                    for each in trials.of(principle)
                ],
            }
            for principle in trials.tested
        ],
    }
