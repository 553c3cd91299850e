"""What a file's columns are called, and whether each holds one kind of value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rlaif.data.report import Finding, Level
from rlaif.data.rules import Tally, about_file
from rlaif.data.shapes import Shape
from rlaif.errors import nearest

_KINDS: dict[type, str] = {
    str: "text", list: "list", dict: "object", bool: "true/false", int: "number", float: "number"
}  # fmt: skip
_MOST_COLUMNS = 200
_WANTED = ("prompt", "chosen", "rejected", "completion", "label", "completions")


class Kinds:
    """The kind of value that each column held first; None fits every kind."""

    def __init__(self) -> None:
        self._kinds: dict[str, str] = {}

    def add(self, row: dict[str, object], line: int, main: Iterable[str], tally: Tally) -> None:
        """Take one row in, and count it where a column holds another kind of value than before."""
        odd = []
        for name, value in row.items():
            kind = _KINDS.get(type(value))
            if kind is None:
                continue
            first = self._kinds.get(name)
            if first is None:
                if len(self._kinds) < _MOST_COLUMNS:
                    self._kinds[name] = kind
            elif first != kind:
                odd.append(name)
        if odd:
            tally.add("mixed-types" if any(name in main for name in odd) else "other-types", line)


def main_columns(shape: Shape) -> frozenset[str]:
    """The columns that hold the data themselves."""
    sided = () if shape.sided is None else (shape.sided.first, shape.sided.second)
    prompt = () if shape.prompt is None else (shape.prompt.main, *shape.prompt.parts)
    return frozenset({*shape.columns.values(), *sided, *prompt})


def name_findings(shape: Shape | None, columns: tuple[str, ...], rows: int) -> Iterator[Finding]:
    """What to say about the names of the columns."""
    if shape is None:
        yield about_file("error", "columns", rows, _unknown(columns), _wanted(columns))
        return
    for name, wanted in shape.misnamed.items():
        yield about_file(
            "error",
            "columns",
            rows,
            f"the column `{name}` should be called `{wanted}`: it is read as that here, trainers do not find it",
            f'dataset.rename_column("{name}", "{wanted}"), or `rlaif data export`',
        )
    if shape.sided is not None or shape.talk is not None:
        yield about_file("error", "columns", rows, f"{notes_of(shape)[0]}; trainers do not find them", _EXPORT)
    for note in notes_of(shape)[shape.sided is not None or shape.talk is not None :]:
        level: Level = "warning" if note.startswith(_RIVAL) else "note"
        yield about_file(level, "column-use", rows, note, "rename a column that is meant otherwise, or drop it")


_EXPORT = "`rlaif data export FILE --format trl -o DIR` writes the usual columns"
_RIVAL = "columns that may name a winner"


def notes_of(shape: Shape) -> list[str]:
    """What to say of how columns are read, and of those that are not: a line each, the winner's first."""
    notes = []
    if shape.sided is not None and shape.winner is not None:
        names = dict.fromkeys((shape.sided.first, shape.sided.second))
        notes.append(f"{quoted(names)} are read as chosen and rejected, {shape.winner.says}")
    if shape.talk is not None:
        notes.append(f"`{shape.talk}` is read as a prompt and a completion, which `{shape.columns['label']}` judges")
    if shape.prompt is not None and shape.prompt.parts:
        notes.append(f"the prompt is {quoted((shape.prompt.main, *shape.prompt.parts))} together")
    if shape.rivals:
        notes.append(f"{_RIVAL} and are not read: {quoted(shape.rivals)}")
    if shape.unused:
        notes.append(f"columns not used: {quoted(shape.unused)}")
    return notes


def quoted(names: Iterable[str]) -> str:
    """Names of columns, for people."""
    return ", ".join(f"`{name}`" for name in names)


def _unknown(columns: tuple[str, ...]) -> str:
    held = f"columns: {', '.join(columns)}" if columns else "the rows are not objects"
    return f"this is no preference data that is known ({held})"


def _wanted(columns: tuple[str, ...]) -> str:
    hints = {name: close for name in columns if (close := nearest(name, _WANTED)).startswith("did")}
    told = "".join(f"`{name}`: {hint} " for name, hint in hints.items() if name not in _WANTED)
    return f"{told}needed: prompt, chosen, rejected; or chosen, rejected; or prompt, completion, label"
