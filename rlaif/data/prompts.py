"""Prompts from files: which columns a prompt stands in, and which responses came with it.

The columns that a prompt stands in: one, and perhaps others that are part of it, as the input of an instruction is.

Every reader of rows puts a prompt together here, so that none of them loses what the responses are about.

What a row of a prompt file means: which conversation is to be answered, and which answers came with it.

Prompts from files, lazily: `read_prompts` turns rows of many forms into `Prompt` records, and counts what is odd.

Memory holds the ids of the prompts read so far (to drop repeated ones), never the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.data.conversations import (
    ROLES,
    UnparsedMessagesError,
    alternate,
    content_of,
    cut_dangling,
    is_transcript,
    joined,
    messages_in,
    parse_transcript,
    system_of,
    uses_tools,
)
from rlaif.data.files import read_rows
from rlaif.errors import UserError, nearest
from rlaif.records import GivenResponse, Message, Messages, Prompt, content_id

PROMPT_COLUMNS = ("prompt", "question", "instruction", "query", "user_prompt", "problem", "question_body", "input",
                  "context", "history", "conversations", "conversation", "messages")  # fmt: skip
"""Columns of a prompt, nearest first."""
_AFTER = ("input", "inputs")
_TEXTS = ("context", "document", "documents", "passage", "passages", "article", "background")
_TURNS = ("history", "chat_history", "conversation_history", "dialogue_history", "previous_messages")
_QUESTIONS = ("question", "query", "question_body")
"""A text that a question is about stands before it; what an instruction is about, after it."""
PARTS = (*_TURNS, *_TEXTS, *_AFTER)
_LIKE_PROMPTS = frozenset({*PROMPT_COLUMNS, *PARTS} - {"conversations", "conversation", "messages"})

Value = Any
"""A cell."""


class InvalidPromptError(Exception):
    """Columns of a prompt that cannot be joined."""


class PromptColumns(NamedTuple):
    """Where the prompts of a file stand."""

    main: str
    parts: tuple[str, ...] = ()
    """Other columns that are part of the prompt."""


def parts_of(names: Iterable[str], main: str, taken: Iterable[str] = ()) -> tuple[str, ...]:
    """The columns that are part of the prompt in `main`, of these names, but for those that are `taken` otherwise."""
    others = {name.lower().strip(): name for name in names if name not in taken}
    return tuple(others[part] for part in PARTS if part in others and others[part] != main)


def unread(row: Mapping[str, Value], columns: PromptColumns | None, texts: Iterable[str]) -> Iterator[str]:
    """Columns that look like a part of the prompt, are not read, and say what no text of the row says."""
    read = () if columns is None else (columns.main, *columns.parts)
    said: list[str] | None = None
    for name, value in row.items():
        if (
            name in read
            or not isinstance(value, str)
            or str(name).lower().strip() not in _LIKE_PROMPTS
            or not value.strip()
        ):
            continue
        said = list(texts) if said is None else said
        if not any(value.strip() in text for text in said):
            yield name


def joined_prompt(row: Mapping[str, Value], columns: PromptColumns) -> Value:
    """The prompt of a row: the cell of its main column as it stands, or joined with the others.

    Raises InvalidPromptError where a part is no text and no conversation, or cannot be joined with the prompt.
    """
    value = row[columns.main]
    for name in reversed(columns.parts):  # turns go before all texts, so they are joined last
        part = row.get(name)
        if not _blank(part):
            value = _joined(value, part, name.lower().strip(), columns.main.lower().strip())
    return value


def _blank(part: Value) -> bool:
    if isinstance(part, float):
        return part != part  # a NaN, as tables write a missing cell
    return part is None or (isinstance(part, (str, list)) and not part) or (isinstance(part, str) and not part.strip())


def _joined(value: Value, part: Value, name: str, main: str) -> Value:
    turns = _turns_in(part, name)
    if turns is not None:
        return _after(turns, value)
    text = _text(part)
    if isinstance(value, str) and text.strip() in value:
        return value  # somebody joined them already
    if not isinstance(value, str) or is_transcript(value) or _messages(value) is not None:
        if text.strip() in str(value):
            return value
        raise InvalidPromptError
    if not value.strip():
        return text
    before = name in _TEXTS and main in _QUESTIONS
    return f"{text.strip()}\n\n{value}" if before else f"{value.rstrip()}\n\n{text}"


def _text(part: Value) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, list) and all(isinstance(each, str) for each in part):
        return "\n\n".join(part)
    raise InvalidPromptError


def _turns_in(part: Value, name: str) -> list[Value] | None:
    """What was said before, as messages; None where the part is a text that belongs to the last turn."""
    if isinstance(part, str):
        if is_transcript(part):
            return [{"role": turn.role, "content": turn.content} for turn in parse_transcript(part)]
        return _messages(part)
    if not isinstance(part, list):
        raise InvalidPromptError
    if all(isinstance(each, dict) for each in part):
        return part
    if name in _TURNS and all(isinstance(each, (list, tuple)) and len(each) == 2 for each in part):
        roles = ("user", "assistant")
        return [{"role": role, "content": said} for pair in part for role, said in zip(roles, pair, strict=True)]
    if name in _TURNS:
        raise InvalidPromptError  # texts that may be anybody's
    return None


def _messages(text: str) -> list[Value] | None:
    try:
        return messages_in(text)
    except UnparsedMessagesError:
        raise InvalidPromptError from None


def _after(turns: list[Value], value: Value) -> Value:
    """The prompt after the turns before it, which it may repeat."""
    if isinstance(value, str):
        if is_transcript(value):
            raise InvalidPromptError
        messages = _messages(value)
        value = [{"role": "user", "content": value}] if messages is None else messages
    elif isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise InvalidPromptError
    if value[: len(turns)] == turns:
        return value
    if turns[-len(value) :] == value:
        return turns
    return [*turns, *value]


Note = Callable[[str], None]
"""Counts a kind of oddity."""

_PAIR = ("chosen", "rejected")
_KNOWN = ("prompt", "messages", "conversations")
_NO_TEXT = "given response that is not text (left out)"


class InvalidRowError(Exception):
    """This row holds no usable prompt; the text is the kind, for counting."""


class Found(NamedTuple):
    """What one row gave."""

    messages: Messages
    responses: tuple[GivenResponse, ...]


@dataclass(frozen=True)
class Form:
    """How the rows of one file are read."""

    column: str | None
    """Column of the conversation; none where the row is the conversation, or where a pair of dialogues implies it."""
    pair: bool = False
    """`chosen` and `rejected` hold answers, or dialogues that end in answers."""
    responses: str | None = None
    """Column of given answers, dots leading through lists and objects."""
    parts: tuple[str, ...] = ()
    """Other columns that are part of the prompt."""

    def read(self, row: object, note: Note) -> Found:
        """The conversation and the answers of one row. Raises InvalidRowError where there is none."""
        if self.pair and self.column is None:
            return _pair_of_dialogues(row, note)
        turns = _turns(self._prompt(row))
        answers = []
        if turns and turns[-1].role == "assistant":
            if turns[-1].content and self.column == "prompt":
                raise InvalidRowError("prompt that ends in an assistant turn")
            answers = [turns[-1].content] if turns[-1].content else []
            turns = turns[:-1]
        given: list[object] = [*answers]
        if self.pair:
            given += [_final_answer(value_at(row, name), turns, note) for name in _PAIR]
        if self.responses is not None:
            given += _responses(row, self.responses, note)
        self._note_unread(row, turns, given, note)
        return Found(_checked(_after_system(row, turns), note), _given(given, note))

    def _prompt(self, row: object) -> object:
        if self.column is None:
            return row
        if not self.parts or not isinstance(row, dict) or self.column not in row:
            return value_at(row, self.column)
        try:
            return joined_prompt(row, PromptColumns(self.column, self.parts))
        except InvalidPromptError:
            raise InvalidRowError("row with a column that is part of the prompt and cannot be joined with it") from None

    def _note_unread(self, row: object, turns: Messages, given: Sequence[object], note: Note) -> None:
        if self.column is None or not isinstance(row, dict) or self.column not in row:
            return
        said = [turn.content for turn in turns] + [text for text in given if isinstance(text, str)]
        read = {self.column, *self.parts, *((self.responses or "").split(".")[:1])}
        others = {name: value for name, value in row.items() if name not in read}
        for name in unread(others, None, said):
            note(f"column `{name}` that looks like a part of the prompt and is not read")


def recognise(row: object, where: str, line: int, column: str | None, responses: str | None) -> Form:
    """The form of a file from its first row. Raises UserError where it has none of the known ones."""
    if not isinstance(row, dict):
        return _whole_row(row, where, line, column or responses)
    names = [str(name) for name in row]
    for name in (column, responses):
        if name is not None and not list(_dig(row, name)):
            hint = f"columns: {', '.join(names)}"
            close = nearest(name, names)
            hint = f"{close} {hint}" if close.startswith("did") else hint
            raise UserError(f"no column `{name}`", where=where, line=line, hint=hint)
    pair = responses is None and all(name in row for name in _PAIR)
    taken = (*_PAIR, (responses or "").split(".")[0])
    if column is not None:
        return Form(column, pair and column not in _PAIR, responses, parts_of(names, column, taken))
    for known in _KNOWN:
        if known in row:
            return Form(known, pair, responses, parts_of(names, known, taken))
    if all(name in row for name in _PAIR):
        return Form(None, pair=True)
    example = names[0] if names else "NAME"
    raise UserError(
        f"no column `prompt`, `messages`, or `chosen` with `rejected`; columns: {', '.join(names) or 'none'}",
        where=where,
        line=line,
        hint=f"name yours: prompts: {{path: ..., column: {example}}}",
    )


def _whole_row(row: object, where: str, line: int, column: str | None) -> Form:
    if column is not None:
        raise UserError(f"no column `{column}`: the rows are not objects", where=where, line=line)
    if not isinstance(row, (str, list)):
        what = f"a row must be a text, a list of messages or an object, got {_shown(row)}"
        raise UserError(what, where=where, line=line)
    return Form(None)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _dig(value: object, name: str) -> Iterable[object]:
    """All that stands at a dotted path, through objects and lists; a key that holds dots itself goes first."""
    if isinstance(value, list):
        for item in value:
            yield from _dig(item, name)
    elif isinstance(value, dict):
        key, _, rest = name.partition(".")
        if name in value:
            yield value[name]
        elif rest and key in value:
            yield from _dig(value[key], rest)


def value_at(row: object, name: str) -> object:
    """What stands at a dotted path. Raises InvalidRowError where that is nothing, or several things."""
    values = list(_dig(row, name))
    if len(values) != 1:
        raise InvalidRowError(f"row without one `{name}`")
    return values[0]


def _turns(value: object) -> Messages:
    """A text, a dialogue in a text, or a list of messages, as messages."""
    if isinstance(value, str):
        text = _sound(value)
        if (messages := _written_down(text)) is not None:
            return tuple(_message(item) for item in messages)
        if not is_transcript(text):
            return (Message(role="user", content=text),)
        return parse_transcript(text)
    if isinstance(value, list) and value:
        return tuple(_message(item) for item in value)
    raise InvalidRowError("blank prompt" if value is None or value == [] else "prompt that is not text")


def _written_down(text: str) -> list[object] | None:
    """Messages that a table wrote down in a text."""
    try:
        return messages_in(text)
    except UnparsedMessagesError:
        raise InvalidRowError("messages written into a text in a form that cannot be read back") from None


def _after_system(row: object, turns: Messages) -> Messages:
    """The turns after the system prompt that the row holds in a column of its own, if they bring none."""
    system = system_of(row)
    if system is None or (turns and turns[0].role == "system"):
        return turns
    return (Message(role="system", content=_sound(system)), *turns)


def _message(item: object) -> Message:
    if not isinstance(item, dict):
        raise InvalidRowError("message that is not an object")
    if uses_tools(item):
        raise InvalidRowError("message that calls a tool, or is what one answered")
    role = ROLES.get(str(item.get("role", item.get("from"))).lower())
    if role is None:
        raise InvalidRowError("message with a role that is not system, user or assistant")
    content = content_of(item.get("content", item.get("value")))
    if content is None:
        raise InvalidRowError("message that is not text")
    return Message(role=role, content=_sound(content))


def _sound(text: str) -> str:
    if not _encodes(text):
        raise InvalidRowError("text with half a surrogate pair")
    return text


def _encodes(text: str) -> bool:
    """JSON can write half a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _checked(messages: Messages, note: Note) -> Messages:
    if not messages or not messages[-1].content.strip():
        raise InvalidRowError("blank prompt")
    if messages[-1].role != "user":
        raise InvalidRowError(f"prompt that ends in a turn of the {messages[-1].role}")
    if not alternate(messages):
        note("prompt with one speaker twice in a row (turns joined)")
        return joined(messages)
    return messages


def _pair_of_dialogues(row: object, note: Note) -> Found:
    """What two dialogues share up to a turn of the user is the prompt; what each says next is its answer."""
    dialogues = [_turns(value_at(row, name)) for name in _PAIR]
    shared = min(len(turns) for turns in dialogues) - 1
    shared = next((at for at in range(shared) if dialogues[0][at] != dialogues[1][at]), shared)
    while shared and dialogues[0][shared - 1].role != "user":
        shared -= 1
    if not shared:
        raise InvalidRowError("pair of dialogues that share no prompt")
    prompt = dialogues[0][:shared]
    answers = [_rest(turns[shared:], note) for turns in dialogues]
    return Found(_checked(prompt, note), _given(answers, note))


def _rest(turns: Messages, note: Note) -> str | None:
    if [turn.role for turn in turns] == ["assistant"]:
        return turns[0].content
    note("answer that is more than one turn (left out)")
    return None


def _final_answer(value: object, prompt: Messages, note: Note) -> str | None:
    """The answer in a `chosen` or `rejected` beside a prompt: plain, or the last turn of the whole dialogue."""
    if isinstance(value, str) and not is_transcript(value) and not _looks_written_down(value):
        return value
    try:
        turns = _turns(value)
    except InvalidRowError:
        note(_NO_TEXT)
        return None
    if turns[-1].role == "assistant" and turns[:-1] in ((), prompt):
        return turns[-1].content
    note("answer whose dialogue is not the prompt's (left out)")
    return None


def _looks_written_down(text: str) -> bool:
    try:
        return messages_in(text) is not None
    except UnparsedMessagesError:
        return True


def _responses(row: object, name: str, note: Note) -> list[object]:
    found = list(_dig(row, name))
    if not found:
        note("row without given responses")
    return [item for value in found for item in (value if isinstance(value, list) else [value])]


def _given(items: Sequence[object], note: Note) -> tuple[GivenResponse, ...]:
    """Given answers from texts and `{text, revision_of}` objects; None stands for one left out already."""
    places: dict[int, int] = {}
    given: list[GivenResponse] = []
    for at, item in enumerate(items):
        text = _answer(item.get("text") if isinstance(item, dict) else item, note)
        if text is None:
            continue
        places[at] = len(given)
        parent = item.get("revision_of") if isinstance(item, dict) else None
        origin = places.get(parent) if isinstance(parent, int) and not isinstance(parent, bool) else None
        if parent is not None and origin in (None, places[at]):
            note("revision of an answer that is not there (kept as an answer)")
            origin = None
        given.append(GivenResponse(text=text, revision_of=origin))
    return tuple(given)


def _answer(value: object, note: Note) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _encodes(value):
        note(_NO_TEXT)
        return None
    text = cut_dangling(value)
    if text != value:
        note("given response with a dangling `Human:` (cut)")
    if not text.strip():
        note("blank given response (left out)")
        return None
    return text.strip()


@dataclass
class InputIssues:
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
    input_issues: InputIssues | None = None,
    with_answers: bool = False,
    keep: str | None = None,
) -> Iterator[Prompt]:
    """The prompts of a file or of a `datasets` name, in its order, each once (`with_answers`: each with other answers).

    `column` names the column of the prompts; without it, `prompt`, `messages`, `conversations`, or hh-rlhf's pairs of
    dialogues are recognised in the first row. `responses` names a column of given answers (dots lead through lists).
    A dialogue that ends in an answer gives a prompt with that answer, save in a column called `prompt`, where it is
    odd. `keep` names a column that comes into the prompts' metadata. Odd rows are skipped and counted in
    `input_issues`; raises UserError where the file is broken or all rows are odd.
    """
    counter = InputIssues() if input_issues is None else input_issues
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
        raise UserError(f"no column `{name}`", where=path, line=line, hint=nearest(name, names))


def _prompt(
    form: Form, row: object, source: str, line: int, counter: InputIssues, keep: str | None = None
) -> Prompt | None:
    try:
        messages, responses = form.read(row, lambda kind: counter.add(kind, line))
    except InvalidRowError as odd:
        counter.add(str(odd), line)
        return None
    kept = {keep: _plain(row[keep])} if keep is not None and isinstance(row, dict) and keep in row else {}
    return Prompt(id=prompt_id(messages), messages=messages, source=source, responses=responses, metadata=kept)


def _plain(value: object) -> str | int | float | bool | None:
    """A cell as JSON can hold it: Parquet has dates and lists too."""
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
