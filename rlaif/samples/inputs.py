"""Prompts from files, lazily: `read_prompts` turns rows of many forms into `Prompt` records, and counts what is odd.

Memory holds the ids of the prompts read so far (to drop repeated ones), never the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rlaif.errors import UserError, nearest
from rlaif.records import Messages, Prompt, content_id
from rlaif.samples.forms import Form, OddRowError, recognise
from rlaif.samples.rows import read_rows


@dataclass
class Oddities:
    """What was odd in a prompt file, counted by kind, each with the first line where it was met."""

    rows: int = 0
    prompts: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    first_lines: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, line: int) -> None:
        """Count one."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.first_lines.setdefault(kind, line)

    def __str__(self) -> str:
        """For people: `12 x repeated prompt (first on line 40), ...`; empty where nothing was odd."""
        return ", ".join(
            f"{count} x {kind} (first on line {self.first_lines[kind]})" for kind, count in self.counts.items()
        )


def prompt_id(messages: Messages) -> str:
    """The id of a prompt: a hash of the roles and contents of its messages."""
    return content_id([{"role": message.role, "content": message.content} for message in messages])


def read_prompts(
    path: str | Path,
    *,
    column: str | None = None,
    responses: str | None = None,
    limit: int | None = None,
    oddities: Oddities | None = None,
    with_answers: bool = False,
    keep: str | None = None,
) -> Iterator[Prompt]:
    """The prompts of a file or of a `datasets` name, in its order, each once (`with_answers`: each with other answers).

    `column` names the column of the prompts; without it, `prompt`, `messages`, `conversations`, or hh-rlhf's pairs of
    dialogues are recognised in the first row. `responses` names a column of given answers (dots lead through lists).
    A dialogue that ends in an answer gives a prompt with that answer, save in a column called `prompt`, where it is
    odd. `keep` names a column that comes into the prompts' metadata. Odd rows are skipped and counted in `oddities`;
    raises UserError where the file is broken or all rows are odd.
    """
    counter = Oddities() if oddities is None else oddities
    seen: set[bytes] = set()
    form: Form | None = None
    for line, row in read_rows(path):
        counter.rows += 1
        if form is None:
            form = recognise(row, str(path), line, column, responses)
            _require_column(row, keep, path, line)
        prompt = _prompt(form, row, f"{path}:{line}", line, counter, keep)
        if prompt is None:
            continue
        texts = [given.text for given in prompt.responses] if with_answers else []
        key = bytes.fromhex(content_id(prompt.id, texts) if texts else prompt.id)
        if key in seen:
            counter.add("repeated prompt", line)
            continue
        seen.add(key)
        counter.prompts += 1
        yield prompt
        if counter.prompts == limit:
            return
    if not counter.prompts:
        raise UserError("no row holds a usable prompt" + (f": {counter}" if counter.counts else ""), where=path)


def _require_column(row: object, name: str | None, path: str | Path, line: int) -> None:
    if name is not None and not (isinstance(row, dict) and name in row):
        names = list(map(str, row)) if isinstance(row, dict) else []
        raise UserError(f"no column `{name}`", where=path, line=line, mend=nearest(name, names))


def _prompt(
    form: Form, row: object, source: str, line: int, counter: Oddities, keep: str | None = None
) -> Prompt | None:
    try:
        messages, responses = form.read(row, lambda kind: counter.add(kind, line))
    except OddRowError as odd:
        counter.add(str(odd), line)
        return None
    kept = {keep: _plain(row[keep])} if keep is not None and isinstance(row, dict) and keep in row else {}
    return Prompt(id=prompt_id(messages), messages=messages, source=source, responses=responses, metadata=kept)


def _plain(value: object) -> str | int | float | bool | None:
    """A cell as JSON can hold it: Parquet has dates and lists too."""
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
