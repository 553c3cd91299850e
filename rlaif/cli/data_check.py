"""`rlaif data check`: the doctor's report, as a table or as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rlaif.cli.reading import rows_read
from rlaif.cli.terminal import echo

if TYPE_CHECKING:
    from rlaif.data.report import Finding, Report

_CODES = {None: 0, "note": 0, "warning": 1, "error": 2}
_AT_LEAST = click.IntRange(min=1)


@click.command()
@click.argument("file")
@click.option("--format", "shape", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option(
    "--tokenizer",
    metavar="NAME",
    help="A model: its tokenizer counts tokens for --max-length, and its special tokens are looked for.",
)
@click.option(
    "--max-length",
    type=_AT_LEAST,
    metavar="N",
    help="Tell what a limit of N tokens (prompt and reply) cuts; estimated without --tokenizer.",
)
@click.option("--against", multiple=True, metavar="EVALFILE", help="An evaluation set to find in FILE. Repeatable.")
@click.option("--limit", type=_AT_LEAST, metavar="N", help="Read only the first N rows.")
def check(
    file: str, shape: str, tokenizer: str | None, max_length: int | None, against: tuple[str, ...], limit: int | None
) -> None:
    """Tell what would spoil a training on FILE, ours or anybody's, and how to fix it.

    Recognised: prompt, chosen, rejected (texts or message lists, with or without the prompt repeated in the replies);
    chosen and rejected dialogues as in hh-rlhf; two numbered responses with a column of the winner, votes or scores;
    completions with ratings or ranks as in UltraFeedback; prompt (or messages), completion, label as for KTO. The
    columns that are not used are named.

    An error breaks a training or makes it learn nonsense (blank or equal replies, roles out of order, contradicting
    rows). A warning makes it learn something unmeant (a bias for length, the next turn in a reply, overlap with an
    evaluation set). Line numbers are row numbers in Parquet and on the hub.

    Exit codes: 0 nothing above a note, 1 warnings, 2 errors, or FILE cannot be read.
    """
    from rlaif.data.doctor import examine

    with rows_read(file) as told:
        report = examine(file, against=against, tokenizer=tokenizer, max_length=max_length, limit=limit, told=told)
    if shape == "json":
        echo(report.model_dump_json(indent=2))
    else:
        show(report)
    raise SystemExit(_CODES[report.worst])


def show(report: Report) -> None:
    """The report for people."""
    from rlaif.cli.tables import print_table

    kind = report.shape or "of no known shape"
    echo(f"{report.path}: {report.rows:,} rows, {kind}, {report.usable:,} usable")
    for line in _figures(report):
        echo(line)
    echo("")
    if report.findings:
        rows = [(each.level, each.rule, *_measure(each), _told(each)) for each in report.findings]
        print_table(
            ("level", "rule", "rows", "share", "what, where, how to fix it"), rows,
            right=("rows", "share"), folded=("what, where, how to fix it",)
        )  # fmt: skip
        echo("")
    echo(_summary(report))


def _figures(report: Report) -> list[str]:
    told = []
    if (lengths := report.lengths) is not None:
        often = "" if lengths.chosen_longer is None else f"chosen longer in {lengths.chosen_longer:.1%} of the pairs, "
        effect = "" if lengths.effect_size is None else f"effect size d {lengths.effect_size:+.2f}, "
        medians = f"medians {lengths.median_chosen:,} and {lengths.median_rejected:,} characters"
        told.append(f"length: {often}{effect}length-only AUC {lengths.auc:.3f}, {medians}")
    if (labels := report.labels) is not None:
        if labels.desirable is not None:
            told.append(f"labels: {labels.desirable:.1%} desirable")
        else:
            exact = f"{labels.half or 0:.1%} exactly 0.5, {labels.certain or 0:.1%} exactly 0 or 1"
            told.append(f"labels: soft, mean entropy {labels.entropy or 0:.2f} bits, {exact}")
    if (refusals := report.refusals) is not None:
        told.append(f"refusals: {refusals.chosen:.1%} of the chosen, {refusals.rejected:.1%} of the rejected replies")
    told += [f"overlap: {each.rows:,} rows with the {each.items:,} items of {each.path}" for each in report.overlaps]
    return told


def _measure(finding: Finding) -> tuple[str, str]:
    """Rows and share of a rule about rows; nothing to count where the whole file is meant."""
    if not finding.lines:
        return "all", ""
    return f"{finding.count:,}", f"{finding.share:.0%}" if finding.share >= 0.0995 else f"{finding.share:.2%}"


def _told(finding: Finding) -> str:
    where = ""
    if finding.lines:
        more = ", ..." if finding.count > len(finding.lines) else ""
        where = f" (line{'' if finding.count == 1 else 's'} {', '.join(map(str, finding.lines))}{more})"
    return f"{finding.what}{where}\n-> {finding.mend}"


def _summary(report: Report) -> str:
    counts = {level: sum(each.level == level for each in report.findings) for level in ("error", "warning", "note")}
    if not report.findings:
        return "nothing found"
    return ", ".join(f"{count} {level}{'' if count == 1 else 's'}" for level, count in counts.items())
