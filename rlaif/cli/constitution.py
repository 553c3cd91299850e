"""`rlaif constitution`: list, show, write, import and check constitution files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from rlaif.cli.main import Entry, LazyGroup
from rlaif.cli.terminal import Styled, echo, emit

if TYPE_CHECKING:
    from rlaif.constitution import Constitution, Principle
    from rlaif.constitution.importers import Imported
    from rlaif.constitution.lint import Finding


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="NAME|FILE...")
@click.option("--format", "shape", type=click.Choice(["text", "json"]), default="text", show_default=True)
def check(files: tuple[str, ...], shape: str) -> None:
    """Check constitutions for errors and for texts that are likely to weaken the labels, line by line.

    Errors prevent a file from loading. Warnings are about texts that name a slot (the judge sees every pair in both
    orders), double negatives, near-duplicates, yes/no questions about one response, weights that silence a principle,
    missing critiques, contradicting examples and similar problems.

    Exit codes: 0 nothing found, 1 warnings only, 2 errors.
    """
    from rlaif.constitution.lint import lint_constitution

    findings = [finding for file in files for finding in lint_constitution(file)]
    if shape == "json":
        echo(json.dumps([finding.model_dump() for finding in findings], indent=2, ensure_ascii=False))
    else:
        for finding in findings:
            echo(str(finding))
        echo(_summary(len(files), findings))
    if findings:
        raise SystemExit(2 if any(finding.level == "error" for finding in findings) else 1)


def _summary(files: int, findings: list[Finding]) -> str:
    errors = sum(finding.level == "error" for finding in findings)
    checked = "1 file" if files == 1 else f"{files} files"
    if not findings:
        return f"{checked}: no errors, no warnings"
    return f"{checked}: {_count(errors, 'error')}, {_count(len(findings) - errors, 'warning')}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_(as_json: bool) -> None:
    """List the constitutions that ship with the package."""
    from rlaif.constitution import load_constitution, shipped_constitutions

    rows = [_row(load_constitution(path), path) for path in shipped_constitutions().values()]
    if as_json:
        echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for row in rows:
        parts = _part(row["critiques_and_revises"], row["principles"])
        counts = f"{row['principles']} principles ({parts}), {row['examples']} examples"
        echo(f"{row['name']}: {counts}\n  {row['description']}")


def _row(constitution: Constitution, path: Path) -> dict[str, Any]:
    principles = constitution.principles
    return {
        "name": path.stem,
        "file": str(path),
        "description": constitution.description or "",
        "principles": len(principles),
        "critiques_and_revises": sum(bool(one.critique and one.revise) for one in principles),
        "examples": sum(len(one.examples) for one in principles),
    }


def _part(number: int, whole: int) -> str:
    which = {0: "none", whole: "all"}.get(number, f"{number}")
    return f"{which} with critique and revision"


@click.command()
@click.argument("constitution", metavar="NAME|FILE")
@click.option("--full", is_flag=True, help="All texts and examples instead of the table.")
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON, with the hash that is written into pairs.")
def show(constitution: str, full: bool, as_json: bool) -> None:
    """Show the principles of a constitution as a table."""
    from rlaif.constitution import load_constitution

    loaded = load_constitution(constitution)
    if as_json:
        content = loaded.model_dump(mode="json")
        whole = {"name": content.pop("name"), "hash": loaded.hash, **content}
        echo(json.dumps(whole, indent=2, ensure_ascii=False))
        return
    echo(f"{loaded.name}{f': {loaded.description}' if loaded.description else ''}")
    echo(f"{_count(len(loaded.principles), 'principle')}, hash {loaded.hash}\n")
    if full:
        for at, principle in enumerate(loaded.principles):
            echo("\n" if at else "", *_paragraph(principle))
    else:
        _table(loaded)


def _table(constitution: Constitution) -> None:
    """A row a principle: tags below the id, so that the question keeps some room on a narrow terminal."""
    from rlaif.cli.terminal import print_table

    rows = [
        (
            "\n".join((one.id, *([f"({', '.join(one.tags)})"] if one.tags else []))),
            f"{one.weight:g}",
            " ".join(one.compare.split()),
            "\n".join(key for key in ("critique", "revise") if getattr(one, key)) or "-",
            str(len(one.examples)),
        )
        for one in constitution.principles
    ]
    columns = ("id (tags)", "weight", "compare", "has", "examples")
    print_table(columns, rows, right=("weight", "examples"), folded=("compare",))


def _paragraph(principle: Principle) -> tuple[Styled, str]:
    """All of a principle: its name, and below it the indented texts."""
    tags = f"; {', '.join(principle.tags)}" if principle.tags else ""
    lines = [""]
    for key in ("compare", "critique", "revise"):
        lines += _wrapped(key, getattr(principle, key), indent="  ")
    for number, example in enumerate(principle.examples, start=1):
        lines.append(f"  example {number}")
        for key in ("prompt", "better", "worse", "why"):
            lines += _wrapped(key, getattr(example, key), indent="    ")
    return Styled(f"{principle.id}  (weight {principle.weight:g}{tags})", bold=True), "\n".join(lines)


def _wrapped(key: str, text: str | None, indent: str) -> list[str]:
    import shutil
    import textwrap

    if text is None:
        return []
    width = max(shutil.get_terminal_size((100, 24)).columns - len(indent) - 10, 40)
    parts = [part for line in text.splitlines() for part in (textwrap.wrap(line, width) or [""])]
    return [f"{indent}{key if at == 0 else '':<10}{part}".rstrip() for at, part in enumerate(parts)]


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write it there.")
def new(output: Path | None) -> None:
    """Write a commented constitution to start from: valid as it is, with every key explained.

    It goes to standard output, or to FILE, together with the JSON Schema that gives editors completion and checks.
    """
    from rlaif.constitution.model import MODELINE, SCHEMA_FILE, schema_text
    from rlaif.constitution.write import STARTER

    if output is None:
        emit(STARTER)
        return
    schema_file = output.with_name(SCHEMA_FILE)
    with_schema = not schema_file.exists()
    write_new(output, f"{MODELINE}\n{STARTER}")
    if with_schema:
        write_new(schema_file, schema_text())
    beside = f" and {schema_file}" if with_schema else ""
    echo(f"Made {output}{beside}. Next: rlaif constitution check {output}")


def write_new(path: Path, text: str, *, force: bool = False) -> None:
    """Write a file that must not exist yet, unless forced. Raises UserError where that cannot be done."""
    from rlaif.errors import UserError

    try:
        with path.open("w" if force else "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError:
        hint = "choose another name, or move it away"
        raise UserError("already there", where=path, hint=hint) from None
    except OSError as error:
        raise UserError(f"cannot write: {error.strerror}", where=path, hint="choose another place") from error


@click.command()
def schema() -> None:
    """Print the JSON Schema of constitution files, for editors and other tools."""
    from rlaif.constitution.model import schema_text

    emit(schema_text())


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
    choices          a JSON list of texts that choose between two responses
    requests         a JSON mapping: id -> {"prompt": [critique request], "edit_request": revision request}
    critic-revision  a JSON list of {"critic", "revision"}, or a mapping with one under "constitutions"
    text             Markdown or plain text, a principle a bullet point (or a paragraph); headings become tags

    If the source does not say how to compare two responses, a fixed sentence derives that text; a comment at the top of
    the file says so.
    """
    from typing import cast

    from rlaif.constitution.importers import Shape, import_constitution
    from rlaif.constitution.write import constitution_yaml

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


class _Commands(LazyGroup):
    entries: ClassVar[Mapping[str, Entry]] = {
        "list": Entry("rlaif.cli.constitution", "list_", "The constitutions that ship with the package."),
        "show": Entry("rlaif.cli.constitution", "show", "The principles of one, as a table or as JSON."),
        "new": Entry("rlaif.cli.constitution", "new", "A commented file to start from."),
        "schema": Entry("rlaif.cli.constitution", "schema", "The JSON Schema that editors check by."),
        "check": Entry("rlaif.cli.constitution", "check", "Mistakes and weak spots, with their lines."),
        "test": Entry("rlaif.cli.constitution_runs", "test", "Test a judge on each principle's examples."),
        "diff": Entry("rlaif.cli.constitution_runs", "diff", "Show what changed, and which labels of a run change."),
        "coverage": Entry("rlaif.cli.constitution_runs", "coverage", "Show what each principle decided in a run."),
        "import": Entry("rlaif.cli.constitution", "import_", "A constitution from other projects' formats."),
    }


@click.command(cls=_Commands)
def constitution() -> None:
    """Write, check, test and compare constitutions.

    NAME|FILE is a constitution that ships with the package, or the path of a YAML file.
    """
