"""What a file's columns are called, and whether each holds one kind of value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rlaif.data.report import Finding
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


def _unknown(columns: tuple[str, ...]) -> str:
    held = f"columns: {', '.join(columns)}" if columns else "the rows are not objects"
    return f"this is no preference data that is known ({held})"


def _wanted(columns: tuple[str, ...]) -> str:
    hints = {name: close for name in columns if (close := nearest(name, _WANTED)).startswith("did")}
    told = "".join(f"`{name}`: {hint} " for name, hint in hints.items() if name not in _WANTED)
    return f"{told}needed: prompt, chosen, rejected; or chosen, rejected; or prompt, completion, label"
