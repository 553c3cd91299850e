"""`rlaif generate`, each of its stages by its own name, `rlaif preview` and `rlaif revise`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from rlaif.cli.flags import COMMON, run_options, settings_of
from rlaif.cli.options import SettingsCommand
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
@click.option("-n", "count", default=3, show_default=True, type=click.IntRange(1), help="Prompts to show.")
@run_options
def preview(run_file: Path, flags: dict[tuple[str, ...], str], count: int) -> None:
    """Full transcripts of the first prompts; nothing is stored. Then the cost of the whole run, extrapolated."""
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
    from rlaif.data.prompts import InputIssues, read_prompts

    wanted = settings.prompts
    found = read_prompts(
        wanted.path, column=wanted.column, responses=wanted.responses, limit=wanted.limit, input_issues=InputIssues()
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
    """Lines on standard error about the judges of these labels: what is known of them, and who is the policy's kin."""
    from rlaif.constitution import load_constitution
    from rlaif.evaluation.judge_metrics import FOLDER, known_verdict
    from rlaif.inference.models import model_name

    constitution = load_constitution(settings.constitution)
    for judge in settings.judges:
        name = model_name(judge)
        found = known_verdict(name, constitution.hash)
        if found is None:
            server = f" --base-url {judge.base_url}" if judge.base_url else ""
            how = f"--run {run_file}" if judge is settings.judge else f"--judge {judge.model}{server}"
            hint = f"`rlaif evaluate judge {how} --gold FILE` does one"
            echo(f"note: {FOLDER} has no evaluation of {name} by this constitution; {hint}", err=True)
        elif found.level != "fit":
            echo(f"note: by its evaluation in {FOLDER}, the judge {name} is {found}", err=True)
    warn_of_same_family(settings)


@click.command(cls=SettingsCommand, common=COMMON, epilog=_PRECEDENCE)
@run_options
def generate(run_file: Path, flags: Flags) -> None:
    """Sample, critique, compare, pair: prompts in, judged preference pairs out.

    Every answer is on disk as soon as it arrives. The same command resumes an interrupted run, and after a change of
    settings it asks only for what is missing.
    """
    from rlaif.feedback.pipeline import STAGES

    _run(run_file, flags, STAGES)


@click.command(cls=SettingsCommand, common=COMMON, epilog=_PRECEDENCE)
@run_options
def sample(run_file: Path, flags: Flags) -> None:
    """Draw the missing answers of the policy into samples.jsonl."""
    _run(run_file, flags, ["sample"])


@click.command(cls=SettingsCommand, common=COMMON, epilog=_PRECEDENCE)
@run_options
def critique(run_file: Path, flags: Flags) -> None:
    """Write the judge's missing critiques of the samples into critiques.jsonl."""
    _run(run_file, flags, ["critique"])


@click.command(cls=SettingsCommand, common=COMMON, epilog=_PRECEDENCE)
@run_options
def compare(run_file: Path, flags: Flags) -> None:
    """Ask the judge's missing comparisons into judgements.jsonl."""
    _run(run_file, flags, ["compare"])


@click.command(cls=SettingsCommand, common=COMMON, epilog=_PRECEDENCE)
@run_options
def pair(run_file: Path, flags: Flags) -> None:
    """Derive pairs.jsonl from the answers on disk, for instance with another --pair-margin; no model is asked."""
    _run(run_file, flags, ["pair"])


@click.command(cls=SettingsCommand, common=_REVISE)
@click.option("--skip-critique", is_flag=True, help="Ask for revisions at once: --revise-skip-critique true.")
@run_options
def revise(run_file: Path, flags: dict[tuple[str, ...], str], skip_critique: bool) -> None:
    """Critique and rewrite the samples round by round, and let the judge compare each end with its beginning.

    Each round goes by a principle drawn by hash. Out come sft.jsonl (prompt, response) and revised_pairs.jsonl, where
    `chosen` is what the judge preferred, revision or original. Missing samples are drawn first. The same command
    resumes an interrupted run, and asks only for what is missing.
    """
    from rlaif.feedback.pipeline import run_pipeline

    if skip_critique:
        flags = {**flags, ("revise", "skip_critique"): "true"}
    settings = settings_of(run_file, flags)
    with show_progress() as progress:
        report = run_pipeline(settings, ["revise"], progress)
    end_report(report)
