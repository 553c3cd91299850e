"""`rlaif preview`: a few prompts through all stages, nothing stored, and what the whole run would cost."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from rlaif.cli.options import run_options, settings_of
from rlaif.cli.show import watch
from rlaif.cli.terminal import echo, secho
from rlaif.cli.transcript import read_story, show_transcript
from rlaif.outcome import tokens_of
from rlaif.pipeline import Report, generate
from rlaif.records import Critique, Judgement, Order, Record, Revision, Sample, Score
from rlaif.settings import RunSettings
from rlaif.store import read_records


@click.command()
@click.option("-n", "count", default=3, show_default=True, type=click.IntRange(1), help="Prompts to show.")
@run_options
def preview(run_file: Path, flags: dict[tuple[str, ...], str], count: int) -> None:
    """Full transcripts of the first prompts; nothing is stored. Then the cost of the whole run, extrapolated."""
    settings = settings_of(run_file, flags)
    with tempfile.TemporaryDirectory(prefix="rlaif-preview-") as folder:
        few = settings.prompts.model_copy(update={"limit": min(count, settings.prompts.limit or count)})
        alone = settings.revise.model_copy(update={"helpful": None})
        small = settings.model_copy(update={"output": folder, "prompts": few, "revise": alone, "max_failed": 1.0})
        with watch() as told:
            report = generate(small, watch=told)
        story = read_story(Path(folder))
        for at, prompt in enumerate(story.prompts):
            echo("" if at == 0 else "\n" + "-" * 72)
            show_transcript(story, prompt)
        spent = _tokens(Path(folder))
    _show_cost(report, settings, spent)


_ANSWERS: dict[str, dict[str, type[Record]]] = {
    "policy": {"samples": Sample},
    "judge": {"critiques": Critique, "revisions": Revision, "judgements": Judgement, "scores": Score, "orders": Order},
}
"""Whose answers are in which files of a run folder."""


def _tokens(folder: Path) -> dict[str, tuple[int, int]]:
    """Tokens read and written by each model, over all answers in a run folder."""
    told = {}
    for model, files in _ANSWERS.items():
        found = [(folder / f"{name}.jsonl", kind) for name, kind in files.items()]
        spent = tokens_of(model, (each for path, kind in found if path.exists() for each in read_records(path, kind)))
        told[model] = (spent[f"{model}_prompt_tokens"], spent[f"{model}_completion_tokens"])
    return told


def _show_cost(report: Report, settings: RunSettings, spent: dict[str, tuple[int, int]]) -> None:
    from rlaif.samples.inputs import Oddities, read_prompts

    wanted = settings.prompts
    found = read_prompts(
        wanted.path, column=wanted.column, responses=wanted.responses, limit=wanted.limit, oddities=Oddities()
    )
    whole = sum(1 for _ in found)
    times = whole / report.run.prompt_count
    assert report.outcome is not None  # generate ran all its stages
    secho(f"\nThe whole run, about {times:.0f} times this ({whole:,} prompts)", bold=True)
    for tally in report.tallies:
        echo(f"  {tally.stage:<10} {tally.asked * times:>12,.0f} calls {tally.seconds * times / 60:>10,.1f} minutes")
    for name, (read, written) in spent.items():
        echo(f"  {name:<10} {read * times:>12,.0f} tokens in {written * times:>12,.0f} out")
    for kind, failed in report.outcome.failures.items():
        echo(f"  failed here: {kind} {failed}")
    echo("Larger runs are faster a call than this: their batches are full and prefixes are shared.")
