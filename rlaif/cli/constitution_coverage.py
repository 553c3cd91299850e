"""`rlaif constitution coverage`: what each principle decided in a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlaif.cli.terminal import echo

if TYPE_CHECKING:
    from rlaif.coverage import Agreement, Coverage


@click.command()
@click.argument("folder", metavar="RUN_DIR", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON.")
def coverage(folder: Path, as_json: bool) -> None:
    """What each principle decided in a finished run, which never decide anything, and which contradict each other.

    Read from the answers on disk; no model is asked.
    """
    import json

    from rlaif.coverage import coverage as covered

    found = covered(folder)
    if as_json:
        echo(json.dumps(_document(found), ensure_ascii=False, indent=2))
    else:
        _show(found)


def _show(found: Coverage) -> None:
    echo(f"{found.constitution}: {found.comparisons:,} comparisons, {found.labels:,} of them labelled\n")
    if found.edited:
        echo("note: the constitution has changed since this run; reworded principles have no answers here yet")
    if found.unanswered:
        echo(f"note: {found.unanswered:,} comparisons lack an answer and have no label")
    _show_principles(found)
    echo()
    if found.agreements:
        _show_matrix(found)
    elif found.mode != "each":
        reason = {"one": "a single principle was drawn for each pair", "all": "all principles were one question"}
        echo(f"No two principles met on a pair ({reason[found.mode]}); to compare them, `compare.principles: each`")
    if found.idle:
        echo(f"Never decided a label: {', '.join(found.idle)}")
    for each in found.contradictions:
        echo(f"Contradict each other: {each.first} and {each.second} agree in {_of(each)} comparisons")


def _show_principles(found: Coverage) -> None:
    from rlaif.cli.tables import decimal, percent, print_table

    columns = ("principle", "asked", "decided", "agrees", "|margin|", "flips", "ties")
    rows = [
        (
            each.id,
            f"{each.asked:,}",
            f"{each.decided:,}",
            percent(each.agrees / each.labels if each.labels else None),
            decimal(each.margin),
            percent(each.flips),
            percent(each.ties),
        )
        for each in found.principles
    ]
    print_table(columns, rows, right=columns[1:])
    echo(
        "\ndecided: labels in which it weighs most; agrees: labels on the side of its own verdict;\n"
        "|margin|: mean distance of its own probability from one half; flips, ties: shares of its own verdicts"
    )


def _show_matrix(found: Coverage) -> None:
    from rlaif.cli.tables import print_table

    known = {(each.first, each.second): each for each in found.agreements}
    names = [each.id for each in found.principles]
    numbers = [str(at) for at in range(1, len(names) + 1)]
    rows = []
    for at, name in enumerate(names):
        cells = [_cell(known.get((name, other))) for other in names[at + 1 :]]
        rows.append((f"{at + 1} {name}", *([""] * (at + 1)), *cells))
    echo("Agreement of every two principles where both have a clear verdict (and in how many comparisons)\n")
    print_table(("", *numbers), rows, right=numbers)
    echo()


def _cell(agreement: Agreement | None) -> str:
    from rlaif.cli.tables import percent

    if agreement is None or not agreement.both:
        return percent(None)
    return f"{percent(agreement.share)}\n{agreement.both:,}"


def _of(agreement: Agreement) -> str:
    return f"{agreement.agree:,} of {agreement.both:,}"


def _document(found: Coverage) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        **asdict(found),
        "agreements": [{**asdict(each), "share": each.share} for each in found.agreements],
        "never_decide": list(found.idle),
        "contradict": [[each.first, each.second] for each in found.contradictions],
    }
