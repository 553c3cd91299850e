"""A dataset folder out of one file of preference data: the rows, and a card that says where they come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rlaif.data.card import card, manifest_of
from rlaif.data.doctor import examine
from rlaif.data.export import Exported, Form, export_rows
from rlaif.data.files import FileKind, draft_folder
from rlaif.data.report import Report
from rlaif.store import write_text


class Dataset(NamedTuple):
    """What was made."""

    folder: Path
    exported: Exported
    report: Report
    """The doctor's on the source file."""


def make_dataset(
    source: str | Path,
    folder: Path,
    form: Form,
    *,
    kind: FileKind = "parquet",
    margin: float = 0.0,
    split: float = 0.0,
    name: str | None = None,
    told: Callable[[int], None] | None = None,
) -> Dataset:
    """Write `train`, perhaps `test`, and README.md into `folder`: all of them or nothing.

    The source is read twice: by the doctor, whose figures go into the card, and to write the rows. `name` is the title
    of the card. Raises UserError where there is nothing to export, or `folder` is not empty.
    """
    with draft_folder(folder) as draft:
        report = examine(source, told=told)
        soft = report.labels is not None and report.labels.entropy is not None
        exported = export_rows(source, draft, form, soft=soft, kind=kind, margin=margin, split=split, told=told)
        title = name or folder.resolve().name
        write_text(draft / "README.md", card(report, exported, manifest_of(source), form, kind, title))
    return Dataset(folder, exported, report)
