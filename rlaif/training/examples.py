"""One row of training data as texts, and the count of rows that no trainer gets.

`sides` and `demonstrated` turn a row into texts: its prompt, what continues it, and whether that was cut off. `values`
reads the numbers of the row.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rlaif.data.checks import check_texts
from rlaif.data.conversations import CUE, Turns, UnreadableValueError, system_of, transcript, turns_of
from rlaif.data.export import LEFT_OUT
from rlaif.data.findings import RULES
from rlaif.data.formats import Reading, Shape, read, truth, usual
from rlaif.data.prompts import PromptColumns
from rlaif.errors import UserError
from rlaif.records import Record

Template = Literal["auto", "chat", "plain"]
"""`auto`: messages through the chat template, strings as raw text, unless a `system` stands beside them; `chat`: all
through the template; `plain`: all as raw text."""

LearnedTurns = Literal["last", "all"]
"""Which replies of a conversation are learned."""

Row = Mapping[str, Any]

CERTAIN: Mapping[str, float] = {"probability": 1.0}
"""One for all rows without a soft label: a million dicts of their own take 200 MB."""


@dataclass(frozen=True, slots=True)
class Example:
    """A row as texts."""

    id: str
    """The row's own id, else file and line."""
    prompt: str | Turns
    """Raw text, which may be empty, or turns for the chat template."""
    completions: tuple[str, ...]
    """Texts to append to a raw prompt, or contents of the assistant's next turn; of a pair the chosen one first."""
    values: Mapping[str, float]
    """`probability` and perhaps `margin` of a pair, `label` (1 good, 0 bad) of a judged reply."""
    line: int = 0


class Sides(NamedTuple):
    """A row's prompt and what stands on either side; an unpaired reply has one side only."""

    prompt: str | Turns
    chosen: str | None
    rejected: str | None
    chosen_cut: bool = False
    """The row says that it was cut off before its end."""
    rejected_cut: bool = False


class Alone(NamedTuple):
    """How a demonstration is read that is no preference data."""

    kind: Literal["messages", "reply", "text"]
    column: str
    """Of the conversation, of the reply to a prompt, or of the text."""
    prompt: PromptColumns = PromptColumns("prompt")
    """Of a reply."""
    label: str | None = None
    """Column that says whether the text is good."""
    unused: tuple[str, ...] = ()
    """Columns that may carry meaning and are not read."""


def decided(row: Row, shape: Shape, template: Template) -> Sides:
    """As `sides`, with what the soft label calls better on the chosen side, for trainers that read no soft labels.

    Raises UnreadableValueError as `sides` does, and where the label says that neither is better.
    """
    both = sides(row, shape, template)
    probability = _number(usual(row, shape).get("probability"))
    if probability is None or shape.kind in ("rated", "unpaired") or not 0 <= probability <= 0.5:
        return both
    if probability == 0.5:
        raise UnreadableValueError("label-half")
    return Sides(both.prompt, both.rejected, both.chosen, both.rejected_cut, both.chosen_cut)


def sides(row: Row, shape: Shape, template: Template) -> Sides:
    """The texts of preference data, or of an unpaired reply.

    Raises UnreadableValueError, with the rule of the doctor that the row breaks, where it is of no use.
    """
    reading, row = _checked(read(row, shape)), usual(row, shape)
    values = {name: row[column] for name, column in shape.columns.items() if name != "label"}
    spoken = shape.kind == "rated" or not all(isinstance(value, str) for value in values.values()) or system_of(row)
    if template == "chat" or spoken or "messages-as-text" in reading.odd:
        texts = _as_conversation(reading, template)
    elif shape.kind == "dialogues":
        texts = _split_dialogues(values["chosen"], values["rejected"], reading)
    else:
        prompt, either = values["prompt"], values.get("completion", "")
        chosen, rejected = values.get("chosen", either), values.get("rejected", either)
        texts = Sides(
            prompt, _continuation(prompt, chosen, reading.chosen), _continuation(prompt, rejected, reading.rejected)
        )
    if shape.kind == "unpaired":
        return texts._replace(chosen_cut=_cut_off(row), rejected_cut=_cut_off(row))
    return texts._replace(chosen_cut=_cut_off(row, "chosen_"), rejected_cut=_cut_off(row, "rejected_"))


def _cut_off(row: Row, side: str = "") -> bool:
    """Whether a row says that its response, or that of one side of its pair, was cut off before its end."""
    return row.get(f"{side}truncated") is True or row.get(f"{side}finish_reason") == "length"


def demonstrated(row: Row, form: Alone, template: Template, learned: LearnedTurns = "last") -> Sides:
    """The texts of a demonstration. Raises UnreadableValueError as `sides` does.

    Where all replies are learned, a turn of the user at the end is no more than a reply that is missing.
    """
    if form.column not in row:
        raise UnreadableValueError("missing")
    value = row[form.column]
    if form.label is not None and not truth(row.get(form.label)):
        raise UnreadableValueError("undesirable")
    if form.kind == "reply":
        columns = {"prompt": form.prompt.main, "completion": form.column, "label": "label"}
        return sides({**row, "label": True}, Shape("unpaired", columns, prompt=form.prompt), template)
    reading = Reading((), None, None)
    turns = turns_of(value, "assistant", reading.odd.add)
    if form.kind == "text" and (template != "chat" or len(turns) == 1):
        return _raw_text(value)._replace(chosen_cut=_cut_off(row))
    if learned == "all" and turns[-1].role == "user":
        turns = turns[:-1]
    if not turns or turns[-1].role != "assistant":
        raise UnreadableValueError("role-order")
    reading.prompt, reading.chosen = turns[:-1], turns[-1].content
    return _as_conversation(_checked(reading), template)._replace(chosen_cut=_cut_off(row))


def every_reply(conversation: Sides, template: Template) -> Iterator[Sides]:
    """Each response of a conversation with the turns before it; the last one, which the row is about, comes last."""
    if not isinstance(conversation.prompt, str):
        for at, turn in enumerate(conversation.prompt):
            if turn.role == "assistant" and turn.content.strip():
                yield _as_conversation(Reading(conversation.prompt[:at], turn.content, None), template)
        conversation = _as_conversation(Reading(conversation.prompt, conversation.chosen, None), template)
    yield conversation


def values(row: Row, shape: Shape, path: str | Path, line: int) -> Mapping[str, float]:
    """The numbers of a pair, of a row that `sides` took. Raises UserError where they are none.

    A `margin` is passed on as reward trainers use it: by how much the rewards should differ. Not so in our own pairs,
    where the column of that name is the probability minus one half, which is on another scale.
    """
    row = usual(row, shape)
    probability, margin = row.get("probability"), row.get("margin")
    soft = 1.0 if probability in (None, "") else _number(probability)
    if soft is None or not 0 <= soft <= 1:
        message = f"`probability` is {str(probability)[:40]!r}, not a number between 0 and 1"
        raise UserError(message, where=path, line=line, hint="it is P(chosen is better)")
    if margin in (None, "") or "raw_probability" in row:
        return CERTAIN if soft == 1 else {"probability": soft}
    number = _number(margin)
    if number is None:
        message = f"`margin` is {str(margin)[:40]!r}, not a number"
        raise UserError(message, where=path, line=line, hint="rename the column if it means something else")
    return {"probability": soft, "margin": number}


def _number(value: Any) -> float | None:
    """A finite number; out of CSV it is a text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _checked(reading: Reading) -> Reading:
    """The row as it was read, if a trainer can use it."""
    broken = set(reading.odd)
    check_texts(reading, broken.add)
    wrong = min(broken & LEFT_OUT, default=None)
    if wrong is not None:
        raise UnreadableValueError(wrong)
    return reading


def _as_conversation(reading: Reading, template: Template) -> Sides:
    """Turns for the chat template, or as the text of a dialogue."""
    if template != "plain":
        return Sides(reading.prompt, reading.chosen, reading.rejected)
    chosen, rejected = (None if reply is None else f" {reply}" for reply in (reading.chosen, reading.rejected))
    return Sides(transcript(reading.prompt), chosen, rejected)


def _split_dialogues(chosen: str, rejected: str, reading: Reading) -> Sides:
    """Two dialogues as the text that they share, up to the last cue for a reply, and the rest of each."""
    at = chosen.rfind(CUE)
    while at >= 0 and not rejected.startswith(chosen[: at + len(CUE)]):
        at = chosen.rfind(CUE, 0, at)
    cut = at + len(CUE)
    rests = [chosen[cut:], rejected[cut:]]
    replies = [reading.chosen or "", reading.rejected or ""]
    if at < 0 or [text.strip() for text in rests] != [reply.strip() for reply in replies]:
        raise UnreadableValueError("no-shared-prompt")  # marked otherwise than with a cue of its own paragraph
    return Sides(chosen[:cut], rests[0], rests[1])


def _continuation(prompt: str, text: str, reply: str | None) -> str | None:
    """What a text adds to the prompt, which it may repeat."""
    if reply is None or text == reply:
        return reply
    if not text.startswith(prompt):
        raise UnreadableValueError("prompt-mismatch")
    return text[len(prompt) :]


def _raw_text(value: object) -> Sides:
    """A text that continues nothing."""
    if not isinstance(value, str):
        raise UnreadableValueError("missing" if value is None else "type")
    if not value.strip():
        raise UnreadableValueError("empty-reply")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UnreadableValueError("half-character") from None
    return Sides("", value, None)


_MOST_LINES = 5

_REASONS = {
    "undesirable": "labelled as bad: nothing to imitate",
    "cut-off": "a response was cut off at `max_tokens`: to learn where it stops would be wrong",
    "repeated": "the same reply to the same prompt stood in a pair before",
    "template": "the chat template refuses the conversation",
    "lost-system": "the chat template leaves out the system prompt",
    "lost-turn": "the chat template leaves out a turn of the prompt",
    "lost-reply": "the chat template leaves out what the reply says",
    "closed-thought": "a reply thinks behind a cue that has closed the thinking",
    "special-token": "a special token of the model, or the end of a reply in another chat format, stands in a reply",
    "no-form": "the model was trained on single prompts as text, and this is a conversation of several turns",
    "same-tokens": "chosen and rejected are the same tokens",
    "no-start": "an empty prompt, and the tokenizer has no beginning-of-sequence token to start from",
    "no-completion": "nothing is left of a completion after the prompt",
    "too-long": "a completion alone is longer than max_length",
}
"""Reasons beside the rules of the doctor."""
_HINTS = {
    "too-long": "raise max_length",
    "lost-system": "put the system prompt into the first turn of the user, or change the chat template",
    "lost-turn": "change the chat template, or set `template: plain`",
    "lost-reply": "change the chat template, or set `template: plain`",
    "closed-thought": "set `template_options: {enable_thinking: true}`, or take the thoughts out of the replies",
}
"""What helps where nothing is left, most likely first."""


@dataclass
class RowCounts:
    """Counts of one file. `rows` reads it, `tokens` goes on with what that gives: both count in here."""

    rows: int = 0
    """Rows read."""
    left_out: Counter[str] = field(default_factory=Counter)
    """What no trainer gets, by reason. A row that is a good and a bad reply to KTO may count twice."""
    lines: dict[str, list[int]] = field(default_factory=dict)
    """The first lines of each reason."""
    notes: list[str] = field(default_factory=list)
    """What else the user should know."""
    conversations: int = 0
    """Demonstrations, of which each may hold several replies."""
    replies: int = 0
    """Their replies, those in their prompts included."""
    merged: int = 0
    """Rows whose prompt lost its last tokens, as what follows makes other tokens of them."""
    ended: int = 0
    """Completions that got an end-of-sequence token, for neither they nor the chat template had one."""
    separate: int = 0
    """Rows whose prompt and replies are tokenized apart, as they share more than a token or two."""
    unended: int = 0
    """Replies that held an end token as text at their end, which was cut off."""
    apart: int = 0
    """Rows whose prompt the chat template writes otherwise once a reply follows: the reply is its own text."""
    thoughtless: int = 0
    """Rows with a reply that has no thought, where the chat template's cue begins one."""
    thoughts: int = 0
    """Rows with a reply whose thinking the chat template leaves out: it is learned with it."""
    truncated: int = 0
    """Rows that were cut to the limit on their tokens."""
    prompts: array[int] = field(default_factory=lambda: array("i"))
    """Tokens of each prompt."""
    completions: array[int] = field(default_factory=lambda: array("i"))
    """Tokens of each completion."""

    def leave_out(self, reason: str, line: int) -> None:
        """Count a row that is of no use."""
        self.left_out[reason] += 1
        lines = self.lines.setdefault(reason, [])
        if len(lines) < _MOST_LINES:
            lines.append(line)

    def note(self, text: str) -> None:
        """Keep what the user should know, once."""
        if text not in self.notes:
            self.notes.append(text)

    def nothing(self, path: str | Path) -> UserError:
        """The error for a file of which nothing is left."""
        why = "; ".join([*(left.describe() for left in self.reasons()[:3]), *self.notes[:1]])
        hint = next((hint for reason, hint in _HINTS.items() if reason in self.left_out), "")
        return UserError(f"no row of {self.rows:,} can be trained on: {why}", where=path, hint=hint)

    def reasons(self) -> tuple[LeftOut, ...]:
        """What was left out, most frequent reason first."""
        return tuple(
            LeftOut(
                reason=reason,
                count=count,
                lines=tuple(self.lines[reason]),
                what=_REASONS[reason] if reason in _REASONS else RULES[reason].what,
            )
            for reason, count in self.left_out.most_common()
        )


class LeftOut(Record):
    """Rows that no trainer gets, for one reason."""

    reason: str
    count: int
    lines: tuple[int, ...]
    """The first lines (row numbers in Parquet and on the hub)."""
    what: str

    def describe(self) -> str:
        """The reason with its count and its first lines, for people."""
        word = "line" if self.count == 1 else "lines"
        more = ", ..." if self.count > len(self.lines) else ""
        return f"{self.count:,} where {self.what} ({word} {', '.join(map(str, self.lines))}{more})"
