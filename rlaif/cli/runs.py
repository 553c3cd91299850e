"""`generate`, and each of its stages by its own name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rlaif.cli.check import warn_of_kinship
from rlaif.cli.options import run_options, settings_of
from rlaif.cli.show import end_report, watch
from rlaif.cli.terminal import echo

if TYPE_CHECKING:
    from rlaif.settings import RunSettings

Flags = dict[tuple[str, ...], str]

_PRECEDENCE = "A flag beats the environment (RLAIF_POLICY_SAMPLES for --policy-samples), which beats RUN.yaml."


def _run(run_file: Path, flags: Flags, stages: Sequence[str]) -> None:
    from rlaif.pipeline import generate as run_stages

    settings = settings_of(run_file, flags)
    if {"compare", "pair"} <= set(stages):
        warn_of_judges(run_file, settings)
    with watch() as told:
        report = run_stages(settings, stages, told)
    end_report(report)


def warn_of_judges(run_file: Path, settings: RunSettings) -> None:
    """Lines on standard error about the judges of these labels: what is known of them, and who is the policy's kin."""
    from rlaif.constitution import load_constitution
    from rlaif.evaluation.verdict import FOLDER, known_verdict
    from rlaif.inference.source import model_name

    constitution = load_constitution(settings.constitution)
    for judge in settings.judges:
        name = model_name(judge)
        found = known_verdict(name, constitution.hash)
        if found is None:
            server = f" --base-url {judge.base_url}" if judge.base_url else ""
            how = f"--run {run_file}" if judge is settings.judge else f"--judge {judge.model}{server}"
            mend = f"`rlaif evaluate judge {how} --gold FILE` does one"
            echo(f"note: {FOLDER} has no evaluation of {name} by this constitution; {mend}", err=True)
        elif found.level != "fit":
            echo(f"note: by its evaluation in {FOLDER}, the judge {name} is {found}", err=True)
    warn_of_kinship(settings)


@click.command(epilog=_PRECEDENCE)
@run_options
def generate(run_file: Path, flags: Flags) -> None:
    """Sample, critique, compare, pair: prompts in, judged preference pairs out.

    Every answer is on disk as soon as it arrives. The same command resumes an interrupted run, and after a change of
    settings it asks only for what is missing.
    """
    from rlaif.pipeline import STAGES

    _run(run_file, flags, STAGES)


@click.command(epilog=_PRECEDENCE)
@run_options
def sample(run_file: Path, flags: Flags) -> None:
    """Draw the missing answers of the policy into samples.jsonl."""
    _run(run_file, flags, ["sample"])


@click.command(epilog=_PRECEDENCE)
@run_options
def critique(run_file: Path, flags: Flags) -> None:
    """Write the judge's missing critiques of the samples into critiques.jsonl."""
    _run(run_file, flags, ["critique"])


@click.command(epilog=_PRECEDENCE)
@run_options
def compare(run_file: Path, flags: Flags) -> None:
    """Ask the judge's missing comparisons into judgements.jsonl."""
    _run(run_file, flags, ["compare"])


@click.command(epilog=_PRECEDENCE)
@run_options
def pair(run_file: Path, flags: Flags) -> None:
    """Derive pairs.jsonl from the answers on disk, for instance with another --pair-margin; no model is asked."""
    _run(run_file, flags, ["pair"])
