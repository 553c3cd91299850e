"""`rlaif report`: a folder as one HTML page."""

from __future__ import annotations

from pathlib import Path

import click

from rlaif.cli.reading import rows_read
from rlaif.cli.terminal import echo


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def report(folder: Path) -> None:
    """Write DIR/report.html: one page that opens from disk, without a network.

    DIR is a run folder, or that of a training or an evaluation. What lies up to two levels below it is told too:
    trainings with their curves, evaluations of policies, reward models and judges. The page of an unfinished run says
    so, and what is missing is named with the command that makes it. Nothing is asked of any model.
    """
    from rlaif.page.write import write_page

    with rows_read(str(folder)) as told:
        path = write_page(folder, told)
    echo(f"Report in {path} ({path.stat().st_size / 1e6:.1f} MB)")
