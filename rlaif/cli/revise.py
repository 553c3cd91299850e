"""`rlaif revise`: critique and revision, for supervised fine-tuning."""

from __future__ import annotations

from pathlib import Path

import click

from rlaif.cli.options import run_options, settings_of
from rlaif.cli.show import end_report, watch


@click.command()
@click.option("--skip-critique", is_flag=True, help="Ask for revisions at once: --revise-skip-critique true.")
@run_options
def revise(run_file: Path, flags: dict[tuple[str, ...], str], skip_critique: bool) -> None:
    """Critique and rewrite the samples round by round, and let the judge compare each end with its beginning.

    Each round goes by a principle drawn by hash. Out come sft.jsonl (prompt, response) and revised_pairs.jsonl, where
    `chosen` is what the judge preferred, revision or original. Missing samples are drawn first. The same command
    resumes an interrupted run, and asks only for what is missing.
    """
    from rlaif.pipeline import generate

    if skip_critique:
        flags = {**flags, ("revise", "skip_critique"): "true"}
    settings = settings_of(run_file, flags)
    with watch() as told:
        report = generate(settings, ["revise"], told)
    end_report(report)
