"""`rlaif data`: `check` lints preference data from rlaif or elsewhere; `export` makes datasets for trainers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

import click

from rlaif.cli.main import Entry, LazyGroup
from rlaif.cli.terminal import echo
from rlaif.errors import UserError
from rlaif.progress import show_rows

if TYPE_CHECKING:
    from rlaif.data.export import FileKind, Form
    from rlaif.data.findings import Finding, Report
    from rlaif.data.publish import Dataset

_CODES = {None: 0, "note": 0, "warning": 1, "error": 2}
_AT_LEAST = click.IntRange(min=1)


@click.command()
@click.argument("file")
@click.option("--format", "shape", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option(
    "--tokenizer",
    metavar="NAME",
    help="A model whose tokenizer counts tokens for --max-length and whose special tokens the check looks for.",
)
@click.option(
    "--max-length",
    type=_AT_LEAST,
    metavar="N",
    help="Report what a limit of N tokens (prompt and response) truncates; an estimate without --tokenizer.",
)
@click.option(
    "--against", multiple=True, metavar="EVALFILE", help="Evaluation set to search FILE for; may be given again."
)
@click.option("--limit", type=_AT_LEAST, metavar="N", help="Read only the first N rows.")
def check(
    file: str, shape: str, tokenizer: str | None, max_length: int | None, against: tuple[str, ...], limit: int | None
) -> None:
    """Report problems of FILE as training data, with a suggested fix for each.

    Recognized formats: prompt, chosen, rejected (texts or message lists, with or without the prompt repeated in the
    responses); chosen and rejected dialogues as in hh-rlhf; two numbered responses with a column of the winner, votes
    or scores; completions with ratings or ranks as in UltraFeedback; prompt (or messages), completion, label as for
    KTO. The report names unused columns.

    An error breaks a training or makes it learn nonsense (blank or equal responses, roles out of order, contradicting
    rows). A warning makes it learn something unintended (length bias, turn leakage, overlap with an evaluation set).
    Line numbers are row numbers in Parquet and on the hub.

    Exit codes: 0 nothing above a note, 1 warnings, 2 errors, or FILE cannot be read.
    """
    from rlaif.data.doctor import examine

    with show_rows(file) as progress:
        report = examine(file, against=against, tokenizer=tokenizer, max_length=max_length, limit=limit, told=progress)
    if shape == "json":
        echo(report.model_dump_json(indent=2))
    else:
        show(report)
    raise SystemExit(_CODES[report.worst])


def show(report: Report) -> None:
    """The report for people."""
    from rlaif.cli.terminal import print_table

    kind = report.shape or "of no known shape"
    echo(f"{report.path}: {report.rows:,} rows, {kind}, {report.usable:,} usable")
    for line in _figures(report):
        echo(line)
    echo("")
    if report.findings:
        rows = [(each.level, each.rule, *_measure(each), _finding_text(each)) for each in report.findings]
        print_table(
            ("level", "rule", "rows", "share", "what, where, how to fix it"), rows,
            right=("rows", "share"), folded=("what, where, how to fix it",)
        )  # fmt: skip
        echo("")
    echo(_summary(report))


def _figures(report: Report) -> list[str]:
    lines = []
    if (lengths := report.lengths) is not None:
        often = "" if lengths.chosen_longer is None else f"chosen longer in {lengths.chosen_longer:.1%} of the pairs, "
        effect = "" if lengths.effect_size is None else f"effect size d {lengths.effect_size:+.2f}, "
        medians = f"medians {lengths.median_chosen:,} and {lengths.median_rejected:,} characters"
        lines.append(f"length: {often}{effect}length-only AUC {lengths.auc:.3f}, {medians}")
    if (labels := report.labels) is not None:
        if labels.desirable is not None:
            lines.append(f"labels: {labels.desirable:.1%} desirable")
        else:
            exact = f"{labels.half or 0:.1%} exactly 0.5, {labels.certain or 0:.1%} exactly 0 or 1"
            lines.append(f"labels: soft, mean entropy {labels.entropy or 0:.2f} bits, {exact}")
    if (refusals := report.refusals) is not None:
        lines.append(
            f"refusals: {refusals.chosen:.1%} of the chosen, {refusals.rejected:.1%} of the rejected responses"
        )
    lines += [f"overlap: {each.rows:,} rows with the {each.items:,} items of {each.path}" for each in report.overlaps]
    return lines


def _measure(finding: Finding) -> tuple[str, str]:
    """Rows and share of a rule about rows; nothing to count where the whole file is meant."""
    if not finding.lines:
        return "all", ""
    return f"{finding.count:,}", f"{finding.share:.0%}" if finding.share >= 0.0995 else f"{finding.share:.2%}"


def _finding_text(finding: Finding) -> str:
    where = ""
    if finding.lines:
        more = ", ..." if finding.count > len(finding.lines) else ""
        where = f" (line{'' if finding.count == 1 else 's'} {', '.join(map(str, finding.lines))}{more})"
    return f"{finding.what}{where}\n-> {finding.hint}"


def _summary(report: Report) -> str:
    counts = {level: sum(each.level == level for each in report.findings) for level in ("error", "warning", "note")}
    if not report.findings:
        return "nothing found"
    return ", ".join(f"{count} {level}{'' if count == 1 else 's'}" for level, count in counts.items())


_HALF = click.FloatRange(0, 0.5, max_open=True)


@click.command()
@click.argument("file")
@click.option("--format", "form", type=click.Choice(["trl", "openrlhf", "kto"]), required=True, help="See above.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="New folder.")
@click.option("--parquet/--jsonl", default=True, show_default=True, help="File format.")
@click.option("--margin", type=_HALF, default=0.0, metavar="M", help="Leave out soft labels within M of one half.")
@click.option(
    "--split", type=_HALF, default=0.0, metavar="SHARE", help="Share of the prompts for `test`, for instance 0.05."
)
@click.option("--push", "push_to", metavar="OWNER/NAME", help="Upload DIR to this private dataset on the hub.")
@click.option("--public", is_flag=True, help="Make the dataset of --push public.")
def export(
    file: str, form: str, output: Path, parquet: bool, margin: float, split: float, push_to: str | None, public: bool
) -> None:
    """Export FILE as a dataset in DIR: `train`, with --split also `test`, and README.md, the dataset card.

    \b
    trl       prompt, chosen, rejected as message lists: DPOTrainer, RewardTrainer
    openrlhf  chosen, rejected as whole conversations, for --data.apply_chat_template
    kto       prompt, completion, label: one response per row

    FILE is a run's pairs.jsonl or any file that `rlaif data check` recognizes; rows that no trainer can use are left
    out and counted. Soft labels are kept in `probability` and `label_margin`, which trainers do not read. The split is
    by prompt. The card has the measured biases and, if manifest.json lies beside FILE, the run's constitution, judge,
    policy and counts.
    """
    from rlaif.data.publish import make_dataset

    if public and push_to is None:
        raise UserError("--public goes with --push", hint="give --push OWNER/NAME, or leave it out")
    kind = "parquet" if parquet else "jsonl"
    with show_rows(file) as progress:
        made = make_dataset(
            file, output, cast("Form", form), kind=cast("FileKind", kind), margin=margin, split=split, name=push_to,
            told=progress,
        )  # fmt: skip
    for line in _export_message(made):
        echo(line)
    if push_to is not None:
        from rlaif.data.publish import push

        echo(f"Pushed to {push(output, push_to, public=public)}")


def _export_message(made: Dataset) -> list[str]:
    rows = ", ".join(f"{count:,} {name}" for name, count in made.exported.rows.items() if count)
    lines = [f"Made {made.folder}: {rows} rows, README.md"]
    if made.exported.left_out:
        left = ", ".join(f"{count:,} {rule}" for rule, count in made.exported.left_out.most_common())
        lines.append(f"left out: {left}")
    if made.report.worst in ("error", "warning"):
        lines.append(f"note: the source has findings; see `rlaif data check {made.report.path}`")
    return lines


class _Commands(LazyGroup):
    entries: ClassVar[Mapping[str, Entry]] = {
        "check": Entry("rlaif.cli.data", "check", "Report problems of a file as training data, with line numbers."),
        "export": Entry("rlaif.cli.data", "export", "Make a dataset for TRL or OpenRLHF, with its card."),
    }


@click.command(cls=_Commands)
def data() -> None:
    """Check and export preference data.

    FILE is JSONL, JSON or CSV (also with .gz), Parquet, or a `datasets` name (owner/name or owner/name:split).
    """
