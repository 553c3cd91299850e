"""What a row of a prompt file means: which conversation is to be answered, and which answers came with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rlaif.errors import UserError, nearest
from rlaif.records import GivenResponse, Message, Messages
from rlaif.samples.messages import ROLES, UnparsedMessagesError, content_of, messages_in, system_of, uses_tools
from rlaif.samples.promptparts import OddPromptError, PromptColumns, joined_prompt, parts_of, unread
from rlaif.samples.transcripts import alternate, cut_dangling, is_transcript, joined, parse_transcript

Note = Callable[[str], None]
"""Counts a kind of oddity."""

_PAIR = ("chosen", "rejected")
_KNOWN = ("prompt", "messages", "conversations")
_NO_TEXT = "given response that is not text (left out)"


class OddRowError(Exception):
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
        """The conversation and the answers of one row. Raises OddRowError where there is none."""
        if self.pair and self.column is None:
            return _pair_of_dialogues(row, note)
        turns = _turns(self._prompt(row))
        answers = []
        if turns and turns[-1].role == "assistant":
            if turns[-1].content and self.column == "prompt":
                raise OddRowError("prompt that ends in an assistant turn")
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
        except OddPromptError:
            raise OddRowError("row with a column that is part of the prompt and cannot be joined with it") from None

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
            mend = f"columns: {', '.join(names)}"
            close = nearest(name, names)
            mend = f"{close} {mend}" if close.startswith("did") else mend
            raise UserError(f"no column `{name}`", where=where, line=line, mend=mend)
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
        mend=f"name yours: prompts: {{path: ..., column: {example}}}",
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
    """What stands at a dotted path. Raises OddRowError where that is nothing, or several things."""
    values = list(_dig(row, name))
    if len(values) != 1:
        raise OddRowError(f"row without one `{name}`")
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
    raise OddRowError("blank prompt" if value is None or value == [] else "prompt that is not text")


def _written_down(text: str) -> list[object] | None:
    """Messages that a table wrote down in a text."""
    try:
        return messages_in(text)
    except UnparsedMessagesError:
        raise OddRowError("messages written into a text in a form that cannot be read back") from None


def _after_system(row: object, turns: Messages) -> Messages:
    """The turns after the system prompt that the row holds in a column of its own, if they bring none."""
    system = system_of(row)
    if system is None or (turns and turns[0].role == "system"):
        return turns
    return (Message(role="system", content=_sound(system)), *turns)


def _message(item: object) -> Message:
    if not isinstance(item, dict):
        raise OddRowError("message that is not an object")
    if uses_tools(item):
        raise OddRowError("message that calls a tool, or is what one answered")
    role = ROLES.get(str(item.get("role", item.get("from"))).lower())
    if role is None:
        raise OddRowError("message with a role that is not system, user or assistant")
    content = content_of(item.get("content", item.get("value")))
    if content is None:
        raise OddRowError("message that is not text")
    return Message(role=role, content=_sound(content))


def _sound(text: str) -> str:
    if not _encodes(text):
        raise OddRowError("text with half a surrogate pair")
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
        raise OddRowError("blank prompt")
    if messages[-1].role != "user":
        raise OddRowError(f"prompt that ends in a turn of the {messages[-1].role}")
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
        raise OddRowError("pair of dialogues that share no prompt")
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
    except OddRowError:
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
