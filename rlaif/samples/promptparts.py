"""The columns that a prompt stands in: one, and perhaps others that are part of it, as the input of an instruction is.

Every reader of rows puts a prompt together here, so that none of them loses what the responses are about.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from rlaif.samples.messages import UnparsedMessagesError, messages_in
from rlaif.samples.transcripts import is_transcript, parse_transcript

PROMPT_COLUMNS = ("prompt", "question", "instruction", "query", "user_prompt", "problem", "question_body", "input",
                  "context", "history", "conversations", "conversation", "messages")  # fmt: skip
"""Columns of a prompt, nearest first."""
_AFTER = ("input", "inputs")
_TEXTS = ("context", "document", "documents", "passage", "passages", "article", "background")
_TURNS = ("history", "chat_history", "conversation_history", "dialogue_history", "previous_messages")
_QUESTIONS = ("question", "query", "question_body")
"""A text that a question is about stands before it; what an instruction is about, after it."""
PARTS = (*_TURNS, *_TEXTS, *_AFTER)

Value = Any
"""A cell."""


class OddPromptError(Exception):
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
    known = {*PROMPT_COLUMNS, *PARTS} - {"conversations", "conversation", "messages"}
    said: list[str] | None = None
    for name, value in row.items():
        if name in read or not isinstance(value, str) or str(name).lower().strip() not in known or not value.strip():
            continue
        said = list(texts) if said is None else said
        if not any(value.strip() in text for text in said):
            yield name


def joined_prompt(row: Mapping[str, Value], columns: PromptColumns) -> Value:
    """The prompt of a row: the cell of its main column as it stands, or joined with the others.

    Raises OddPromptError where a part is no text and no conversation, or cannot be joined with the prompt.
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
        raise OddPromptError
    if not value.strip():
        return text
    before = name in _TEXTS and main in _QUESTIONS
    return f"{text.strip()}\n\n{value}" if before else f"{value.rstrip()}\n\n{text}"


def _text(part: Value) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, list) and all(isinstance(each, str) for each in part):
        return "\n\n".join(part)
    raise OddPromptError


def _turns_in(part: Value, name: str) -> list[Value] | None:
    """What was said before, as messages; None where the part is a text that belongs to the last turn."""
    if isinstance(part, str):
        if is_transcript(part):
            return [{"role": turn.role, "content": turn.content} for turn in parse_transcript(part)]
        return _messages(part)
    if not isinstance(part, list):
        raise OddPromptError
    if all(isinstance(each, dict) for each in part):
        return part
    if name in _TURNS and all(isinstance(each, (list, tuple)) and len(each) == 2 for each in part):
        roles = ("user", "assistant")
        return [{"role": role, "content": said} for pair in part for role, said in zip(roles, pair, strict=True)]
    if name in _TURNS:
        raise OddPromptError  # texts that may be anybody's
    return None


def _messages(text: str) -> list[Value] | None:
    try:
        return messages_in(text)
    except UnparsedMessagesError:
        raise OddPromptError from None


def _after(turns: list[Value], value: Value) -> Value:
    """The prompt after the turns before it, which it may repeat."""
    if isinstance(value, str):
        if is_transcript(value):
            raise OddPromptError
        messages = _messages(value)
        value = [{"role": "user", "content": value}] if messages is None else messages
    elif isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise OddPromptError
    if value[: len(turns)] == turns:
        return value
    if turns[-len(value) :] == value:
        return turns
    return [*turns, *value]
