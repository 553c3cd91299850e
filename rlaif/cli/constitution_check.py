"""`rlaif constitution check`: mistakes and weak spots of constitution files, as `file:line: ...` or as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from rlaif.cli.terminal import echo

if TYPE_CHECKING:
    from rlaif.constitution.lint import Finding


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="NAME|FILE...")
@click.option("--format", "shape", type=click.Choice(["text", "json"]), default="text", show_default=True)
def check(files: tuple[str, ...], shape: str) -> None:
    """Tell what is wrong with constitutions, and what in them is likely to weaken the labels, line by line.

    Errors keep a file from loading. Warnings are about texts that name a slot (every pair is shown in both orders),
    double negatives, near-duplicates, yes/no questions about one reply, weights that silence a principle, missing
    critiques, contradicting examples and the like.

    Exit codes: 0 nothing found, 1 warnings only, 2 errors.
    """
    from rlaif.constitution.lint import lint_constitution

    found = [finding for file in files for finding in lint_constitution(file)]
    if shape == "json":
        echo(json.dumps([finding.model_dump() for finding in found], indent=2, ensure_ascii=False))
    else:
        for finding in found:
            echo(str(finding))
        echo(_summary(len(files), found))
    if found:
        raise SystemExit(2 if any(finding.level == "error" for finding in found) else 1)


def _summary(files: int, found: list[Finding]) -> str:
    errors = sum(finding.level == "error" for finding in found)
    checked = "1 file" if files == 1 else f"{files} files"
    if not found:
        return f"{checked}: no errors, no warnings"
    return f"{checked}: {_count(errors, 'error')}, {_count(len(found) - errors, 'warning')}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
