"""`rlaif constitution import`: a constitution out of other projects' formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rlaif.cli.terminal import echo, emit

if TYPE_CHECKING:
    from rlaif.constitution.imports import Imported

_FORMATS = ("auto", "choices", "requests", "critic-revision", "text")


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUT", help="Write it there.")
@click.option("--name", metavar="NAME", help="Name of the constitution; the file's name if not given.")
@click.option("--format", "shape", type=click.Choice(_FORMATS), default="auto", show_default=True, help="See above.")
@click.option("--force", is_flag=True, help="Overwrite OUT.")
def import_(file: Path, output: Path | None, name: str | None, shape: str, force: bool) -> None:
    """Make a constitution out of FILE, as YAML on standard output or in OUT.

    \b
    choices          a JSON list of texts that choose between two replies
    requests         a JSON mapping: id -> {"prompt": [critique request], "edit_request": revision request}
    critic-revision  a JSON list of {"critic", "revision"}, or a mapping with one under "constitutions"
    text             Markdown or plain text, a principle a bullet point (or a paragraph); headings become tags

    Where the source does not say how to compare two replies, that text is derived by a fixed sentence; a comment on top
    says so.
    """
    from typing import cast

    from rlaif.cli.constitution_files import write_new
    from rlaif.constitution.imports import Shape, import_constitution
    from rlaif.constitution.writing import constitution_yaml

    imported = import_constitution(file, name=name, shape=None if shape == "auto" else cast("Shape", shape))
    text = constitution_yaml(imported.constitution, _comment(imported, file))
    if output is None:
        emit(text)
    else:
        write_new(output, text, force=force)
    count = len(imported.constitution.principles)
    echo(f"{count} principle{'' if count == 1 else 's'} from {file} (format `{imported.shape}`)", err=True)
    for note in imported.notes:
        echo(f"note: {note}", err=True)
    if output is not None:
        echo(f"Made {output}. Next: rlaif constitution check {output}", err=True)


def _comment(imported: Imported, file: Path) -> str:
    head = f"Imported from {file.name} by `rlaif constitution import` (format `{imported.shape}`)."
    return "\n".join([head, *imported.notes])
