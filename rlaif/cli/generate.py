"""`rlaif generate`, each of its stages by its own name, `rlaif preview` and `rlaif revise`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from rlaif.cli.options import COMMON, SettingsCommand, run_options, settings_of
from rlaif.cli.render import end_report
from rlaif.cli.setup import warn_of_same_family
from rlaif.cli.terminal import echo, secho
from rlaif.cli.transcript import read_story, show_transcript
from rlaif.config.schemas import RunSettings
from rlaif.feedback.dataset import tokens_of
from rlaif.feedback.pipeline import Report, run_pipeline
from rlaif.progress import show_progress
from rlaif.records import Critique, Judgement, Order, Record, Revision, Sample, Score
from rlaif.store import read_records


@click.command(cls=SettingsCommand, common=COMMON)
@click.option("-n", "count", default=3, show_default=True, type=click.IntRange(1), help="Number of prompts to show.")
@run_options
def preview(run_file: Path, flags: dict[tuple[str, ...], str], count: int) -> None:
    """Show full transcripts of the first prompts and estimate the cost of the whole run; nothing is stored."""
    settings = settings_of(run_file, flags)
    with tempfile.TemporaryDirectory(prefix="rlaif-preview-") as folder:
        few = settings.prompts.model_copy(update={"limit": min(count, settings.prompts.limit or count)})
        alone = settings.revise.model_copy(update={"helpful": None})
        small = settings.model_copy(update={"output": folder, "prompts": few, "revise": alone, "max_failed": 1.0})
        with show_progress() as progress:
            report = run_pipeline(small, progress=progress)
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
"""The files of a run folder with the outputs of each model."""


def _tokens(folder: Path) -> dict[str, tuple[int, int]]:
    """Prompt and completion tokens of each model, over all outputs in a run folder."""
    tokens = {}
    for model, files in _ANSWERS.items():
        tables = [(folder / f"{name}.jsonl", kind) for name, kind in files.items()]
        spent = tokens_of(model, (each for path, kind in tables if path.exists() for each in read_records(path, kind)))
        tokens[model] = (spent[f"{model}_prompt_tokens"], spent[f"{model}_completion_tokens"])
    return tokens


def _show_cost(report: Report, settings: RunSettings, spent: dict[str, tuple[int, int]]) -> None:
    from rlaif.data.prompts import InputIssues, read_prompts

    wanted = settings.prompts
    prompts = read_prompts(
        wanted.path, column=wanted.column, responses=wanted.responses, limit=wanted.limit, input_issues=InputIssues()
    )
    whole = sum(1 for _ in prompts)
    times = whole / report.run.prompt_count
    assert report.outcome is not None  # generate ran all its stages
    secho(f"\nThe whole run, about {times:.0f} times this ({whole:,} prompts)", bold=True)
    for tally in report.tallies:
        echo(f"  {tally.stage:<10} {tally.asked * times:>12,.0f} calls {tally.seconds * times / 60:>10,.1f} minutes")
    for name, (read, written) in spent.items():
        echo(f"  {name:<10} {read * times:>12,.0f} tokens in {written * times:>12,.0f} out")
    for kind, failed in report.outcome.failures.items():
        echo(f"  failed here: {kind} {failed}")
    echo("A larger run is faster per call: its batches are full and its prefixes are shared.")


Flags = dict[tuple[str, ...], str]

_REVISE = {each for each in COMMON if not each.startswith(("compare.", "pair."))} | {
    "revise.rounds", "revise.samples", "revise.max_tokens", "revise.temperature", "revise.helpful.path",
}  # fmt: skip

_PRECEDENCE = "A flag beats the environment (RLAIF_POLICY_SAMPLES for --policy-samples), which beats RUN.yaml."


def _run(run_file: Path, flags: Flags, stages: Sequence[str]) -> None:
    from rlaif.feedback.pipeline import run_pipeline as run_stages

    settings = settings_of(run_file, flags)
    if {"compare", "pair"} <= set(stages):
        warn_of_judges(run_file, settings)
    with show_progress() as progress:
        report = run_stages(settings, stages, progress)
    end_report(report)


def warn_of_judges(run_file: Path, settings: RunSettings) -> None:
    """Notes on standard error about the judges: their evaluations, and judges of the policy's model family."""
    from rlaif.constitution import load_constitution
    from rlaif.evaluation.judge_metrics import FOLDER, known_verdict
    from rlaif.inference.models import model_name

    constitution = load_constitution(settings.constitution)
    for judge in settings.judges:
        name = model_name(judge)
        verdict = known_verdict(name, constitution.hash)
        if verdict is None:
            server = f" --base-url {judge.base_url}" if judge.base_url else ""
            how = f"--run {run_file}" if judge is settings.judge else f"--judge {judge.model}{server}"
            hint = f"`rlaif evaluate judge {how} --gold FILE` does one"
            echo(f"note: {FOLDER} has no evaluation of {name} by this constitution; {hint}", err=True)
        elif verdict.level != "fit":
            echo(f"note: by its evaluation in {FOLDER}, the judge {name} is {verdict}", err=True)
    warn_of_same_family(settings)


@click.command(cls=SettingsCommand, common=COMMON, epilog=_PRECEDENCE)
@run_options
def generate(run_file: Path, flags: Flags) -> None:
    """Generate preference pairs from prompts: sample, critique, compare, pair.

    Every response is on disk as soon as it arrives. The same command resumes an interrupted run, and after a change of
    settings it makes only the calls that are missing.
    """
    from rlaif.feedback.pipeline import STAGES

    _run(run_file, flags, STAGES)


@click.command(cls=SettingsCommand, common=COMMON, epilog=_PRECEDENCE)
@run_options
def sample(run_file: Path, flags: Flags) -> None:
    """Generate the missing responses of the policy into samples.jsonl."""
    _run(run_file, flags, ["sample"])


@click.command(cls=SettingsCommand, common=COMMON, epilog=_PRECEDENCE)
@run_options
def critique(run_file: Path, flags: Flags) -> None:
    """Write the judge's missing critiques of the samples into critiques.jsonl."""
    _run(run_file, flags, ["critique"])


@click.command(cls=SettingsCommand, common=COMMON, epilog=_PRECEDENCE)
@run_options
def compare(run_file: Path, flags: Flags) -> None:
    """Run the judge's missing comparisons into judgements.jsonl."""
    _run(run_file, flags, ["compare"])


@click.command(cls=SettingsCommand, common=COMMON, epilog=_PRECEDENCE)
@run_options
def pair(run_file: Path, flags: Flags) -> None:
    """Derive pairs.jsonl from the judgements on disk, for instance with another --pair-margin; no model is called."""
    _run(run_file, flags, ["pair"])


@click.command(cls=SettingsCommand, common=_REVISE)
@click.option("--skip-critique", is_flag=True, help="Revise without a critique; short for --revise-skip-critique true.")
@run_options
def revise(run_file: Path, flags: dict[tuple[str, ...], str], skip_critique: bool) -> None:
    """Critique and revise the samples in rounds, and compare each final revision with its original.

    Each round samples a principle deterministically. The output is sft.jsonl (prompt, response) and
    revised_pairs.jsonl, where `chosen` is the judge's preference, revision or original. Missing samples are generated
    first. The same command resumes an interrupted run and makes only the calls that are missing.
    """
    from rlaif.feedback.pipeline import run_pipeline

    if skip_critique:
        flags = {**flags, ("revise", "skip_critique"): "true"}
    settings = settings_of(run_file, flags)
    with show_progress() as progress:
        report = run_pipeline(settings, ["revise"], progress)
    end_report(report)
