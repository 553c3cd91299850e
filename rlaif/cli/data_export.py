"""`rlaif data export`: a dataset folder for a trainer, and perhaps to the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from rlaif.cli.reading import rows_read
from rlaif.cli.terminal import echo
from rlaif.errors import UserError

if TYPE_CHECKING:
    from rlaif.data.dataset import Dataset
    from rlaif.data.export import Form
    from rlaif.data.files import FileKind

_HALF = click.FloatRange(0, 0.5, max_open=True)


@click.command()
@click.argument("file")
@click.option("--format", "form", type=click.Choice(["trl", "openrlhf", "kto"]), required=True, help="See above.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="New folder.")
@click.option("--parquet/--jsonl", default=True, show_default=True, help="Kind of the files.")
@click.option("--margin", type=_HALF, default=0.0, metavar="M", help="Leave out soft labels within M of one half.")
@click.option("--split", type=_HALF, default=0.0, metavar="SHARE", help="Share of the prompts for `test`, e.g. 0.05.")
@click.option("--push", "push_to", metavar="OWNER/NAME", help="Upload DIR to this dataset on the hub, private.")
@click.option("--public", is_flag=True, help="Let --push make a public dataset.")
def export(
    file: str, form: str, output: Path, parquet: bool, margin: float, split: float, push_to: str | None, public: bool
) -> None:
    """Make a dataset in DIR out of FILE: `train`, with --split `test`, and README.md, the dataset card.

    \b
    trl       prompt, chosen, rejected as message lists: DPOTrainer, RewardTrainer
    openrlhf  chosen, rejected as whole conversations, for --data.apply_chat_template
    kto       prompt, completion, label: one reply a row

    FILE is a run's pairs.jsonl or whatever `rlaif data check` recognises; rows that no trainer can use are left out and
    counted. Soft labels are kept in `probability` and `label_margin`, which trainers do not read. The split is by
    prompt. The card tells the run's constitution, judge, policy and counts where its manifest.json lies beside FILE,
    and the biases that were measured.
    """
    from rlaif.data.dataset import make_dataset

    if public and push_to is None:
        raise UserError("--public goes with --push", mend="give --push OWNER/NAME, or leave it out")
    kind = "parquet" if parquet else "jsonl"
    with rows_read(file) as told:
        made = make_dataset(
            file, output, cast("Form", form), kind=cast("FileKind", kind), margin=margin, split=split, name=push_to,
            told=told,
        )  # fmt: skip
    for line in _told(made):
        echo(line)
    if push_to is not None:
        from rlaif.data.push import push

        echo(f"Pushed to {push(output, push_to, public=public)}")


def _told(made: Dataset) -> list[str]:
    rows = ", ".join(f"{count:,} {name}" for name, count in made.exported.rows.items() if count)
    told = [f"Made {made.folder}: {rows} rows, README.md"]
    if made.exported.left_out:
        left = ", ".join(f"{count:,} {rule}" for rule, count in made.exported.left_out.most_common())
        told.append(f"left out: {left}")
    if made.report.worst in ("error", "warning"):
        told.append(f"note: the source has findings; see `rlaif data check {made.report.path}`")
    return told
