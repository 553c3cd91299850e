"""From files to responses that a reward model can score, in the order of the file and tokenized as for training.

Known are a run's folder or its samples.jsonl (joined with the prompts beside it), preference data in every shape that
`rlaif train reward` takes, a prompt with one response or a list of them, conversations whose last turn is the response,
and plain texts. A row that cannot be scored stays in its place, without a reward, and is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from rlaif.data.opening import first_known, settled
from rlaif.data.shapes import Shape, recognise, usual
from rlaif.data.turns import UnreadableValueError
from rlaif.errors import RecordError, UserError, nearest
from rlaif.records import Prompt, Sample
from rlaif.samples.promptparts import OddPromptError, PromptColumns, joined_prompt, parts_of
from rlaif.samples.rows import Rows
from rlaif.store import read_records
from rlaif.training.intake import Intake
from rlaif.training.rows import PAIR_FILES, file_of
from rlaif.training.texts import Alone, Example, Row, Sides, Template, demonstrated, sides

FILES = ("samples.jsonl", *PAIR_FILES)
"""What is read of a folder."""

_PROMPTS = ("prompt", "instruction", "question", "query")
_REPLIES = ("response", "completion", "responses", "completions", "answer", "answers", "output", "outputs")
_TALKS = ("messages", "conversations")
_TEXTS = ("response", "text", "content", "completion", "output", "generated_text")
"""Where a response stands in an object of a list of them."""
_SAMPLE = frozenset({"prompt", "text", "policy", "index"})
"""Columns that tell a record of samples.jsonl."""
_ALONE = Shape("unpaired", {"prompt": "prompt", "completion": "completion", "label": "label"})


class Reply(NamedTuple):
    """One response."""

    given: Any
    """As it stands in the row."""
    example: Example | None
    """As texts; None where the row cannot be used."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A row: a prompt with responses to it."""

    id: str
    line: int
    prompt: Any
    """As it stands in the row; of dialogues what they share."""
    replies: tuple[Reply, ...]
    """Of preference data chosen and rejected."""
    paired: bool


class Columns(NamedTuple):
    """What the user calls columns; None looks for the usual names."""

    reply: str | None = None
    prompt: str | None = None


USUAL = Columns()


class _Form(NamedTuple):
    """How the rows of a file are read."""

    kind: Literal["pair", "replies", "messages", "text", "sample"]
    prompt: str = "prompt"
    reply: str = ""
    shape: Shape | None = None
    parts: tuple[str, ...] = ()
    """Other columns that are part of the prompt."""


def responses(
    path: str | Path,
    template: Template = "auto",
    intake: Intake | None = None,
    columns: Columns = USUAL,
) -> Iterator[Answered]:
    """The rows of a file, a run's folder or a `datasets` name. Raises UserError where there are no responses in it."""
    path, intake = file_of(path, FILES), intake or Intake()
    form, rows = first_known(path, lambda row: _form(row, columns))
    if form is None:
        _, first = next(rows, (0, None))
        raise UserError("holds no rows", where=path) if first is None else _unknown(path, first, columns)
    if form.shape is not None:
        form = form._replace(shape=settled(form.shape, path))
    if form.kind == "sample":
        rows, form = _joined(rows, path), _Form("replies", "prompt", "response")
    for line, row in rows:
        intake.rows += 1
        yield _answered(row, form, template, intake, f"{Path(path).name}:{line}", line)


def _form(row: object, columns: Columns) -> _Form | None:
    if not isinstance(row, dict):
        return None
    if columns != USUAL:
        return _replies(
            row, (columns.prompt,) if columns.prompt else _PROMPTS, (columns.reply,) if columns.reply else _REPLIES
        )
    if row.keys() >= _SAMPLE:
        return _Form("sample")
    shape = recognise(row)
    sided = ("chosen" in row and "rejected" in row) or (shape is not None and shape.sided is not None)
    if not sided and (found := _replies(row, _PROMPTS, _REPLIES)) is not None:
        return found
    talk = next((name for name in _TALKS if isinstance(row.get(name), (list, str))), None)
    if not sided and talk is not None:
        return _Form("messages", reply=talk)
    if shape is not None and shape.kind in ("preference", "dialogues"):
        return _Form("pair", shape.columns.get("prompt", ""), shape=shape)
    return _Form("text", reply="text") if "text" in row else None


def _replies(row: Row, prompts: Sequence[str], replies: Sequence[str]) -> _Form | None:
    prompt = next((name for name in prompts if name in row), None)
    reply = next((name for name in replies if name in row and name != prompt), None)
    return (
        None
        if prompt is None or reply is None
        else _Form("replies", prompt, reply, parts=parts_of(map(str, row), prompt, (reply,)))
    )


def _unknown(path: str | Path, row: object, columns: Columns) -> UserError:
    names = tuple(map(str, row)) if isinstance(row, dict) else ()
    for name, flag in ((columns.reply, "--column"), (columns.prompt, "--prompt-column")):
        if name is not None and name not in names:
            return UserError(f"no column `{name}` ({flag})", where=path, mend=nearest(name, names))
    held = f"columns: {', '.join(names)}" if names else "the rows are not objects"
    needed = "needed: prompt with response or responses; or prompt, chosen, rejected; or messages; or text"
    mend = f"{needed}; --prompt-column and --column name others"
    return UserError(f"no responses that can be recognised ({held})", where=path, mend=mend)


def _joined(rows: Rows, path: str | Path) -> Rows:
    """Samples as rows with the messages of their prompts."""
    beside = Path(path).expanduser().with_name("prompts.jsonl")
    if not beside.is_file():
        mend = "give the run's folder, or rows with `prompt` and `response`"
        raise UserError("samples name their prompts by id, and no prompts.jsonl lies beside", where=path, mend=mend)
    prompts = {prompt.id: prompt.messages for prompt in read_records(beside, Prompt)}
    for line, row in rows:
        try:
            sample = Sample.model_validate(row)
        except ValidationError as error:
            raise RecordError(path, line, error.errors()[0]["msg"]) from None
        if sample.prompt not in prompts:
            raise UserError(f"no prompt `{sample.prompt}` in prompts.jsonl", where=path, line=line)
        messages = [message.model_dump() for message in prompts[sample.prompt]]
        yield line, {"id": sample.id, "prompt": messages, "response": sample.text}


def _answered(row: object, form: _Form, template: Template, intake: Intake, name: str, line: int) -> Answered:
    try:
        if not isinstance(row, dict):
            raise UnreadableValueError("type")
        own = row.get("id")
        name = str(own) if isinstance(own, (str, int)) and not isinstance(own, bool) and own != "" else name
        if form.kind == "pair":
            return _pair(row, form, template, name, line)
        if form.kind != "replies":
            return _whole(row, form, template, name, line)
        given = _items(row.get(form.reply))
        prompt = _prompt(row, form)
    except UnreadableValueError as odd:
        intake.leave_out(str(odd), line)
        prompt = row.get(form.prompt) if isinstance(row, dict) else None
        blank = (Reply(None, None),) * (2 if form.kind == "pair" else 1)
        return Answered(name, line, prompt, blank, form.kind == "pair")
    replies = tuple(_reply(prompt, each, template, intake, line) for each in given)
    return Answered(name, line, prompt, replies, paired=False)


def _prompt(row: Row, form: _Form) -> Any:
    if form.prompt not in row:
        return None
    try:
        return joined_prompt(row, PromptColumns(form.prompt, form.parts))
    except OddPromptError:
        raise UnreadableValueError("prompt-part") from None


def _pair(row: Row, form: _Form, template: Template, name: str, line: int) -> Answered:
    assert form.shape is not None
    found, row = sides(row, form.shape, template), usual(row, form.shape)
    given = [row[form.shape.columns[side]] for side in ("chosen", "rejected")]
    texts = (found.chosen or "", found.rejected or "")
    replies = (Reply(*each) for each in zip(given, (_example(found, text, line) for text in texts), strict=True))
    prompt = row[form.prompt] if form.prompt else _plain(found)
    return Answered(name, line, prompt, tuple(replies), paired=True)


def _whole(row: Row, form: _Form, template: Template, name: str, line: int) -> Answered:
    """A conversation or a text that holds its response."""
    found = demonstrated(row, Alone("messages" if form.kind == "messages" else "text", form.reply), template)
    text = found.chosen or ""
    return Answered(name, line, _plain(found), (Reply(text, _example(found, text, line)),), paired=False)


def _items(value: Any) -> list[Any]:
    """The responses of a row: one, or those of a list. Messages in a list are one response."""
    if value is None:
        raise UnreadableValueError("missing")
    if not isinstance(value, list) or (value and isinstance(value[0], dict) and {"role", "from"} & value[0].keys()):
        return [value]
    if not value:
        raise UnreadableValueError("empty-reply")
    return value


def _reply(prompt: Any, given: Any, template: Template, intake: Intake, line: int) -> Reply:
    text = given
    if isinstance(given, dict) and "role" not in given:
        text = next((given[name] for name in _TEXTS if isinstance(given.get(name), str)), None)
        # As for training: nothing in rated completions tells where the instruction ends, so they are messages.
        prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    try:
        found = sides({"prompt": prompt, "completion": text, "label": True}, _ALONE, template)
    except UnreadableValueError as odd:
        intake.leave_out(str(odd), line)
        return Reply(given, None)
    return Reply(given, _example(found, found.chosen or "", line))


def _example(found: Sides, text: str, line: int) -> Example:
    return Example("", found.prompt, (text,), {}, line)


def _plain(found: Sides) -> Any:
    return found.prompt if isinstance(found.prompt, str) else [turn._asdict() for turn in found.prompt]
