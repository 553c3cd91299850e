"""The shapes that preference data comes in, and what a row of each of them holds.

preference   a prompt with a chosen and a rejected reply, texts or message lists; the replies may repeat the prompt
dialogues    chosen and rejected as whole dialogues (hh-rlhf's texts, or message lists): what they share is the prompt
rated        a prompt with several completions and a rating of each (UltraFeedback): best against worst
unpaired     a prompt, one completion and whether it is good (KTO)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rlaif.data.ratings import best_and_worst, number_of
from rlaif.data.turns import Odd, Turn, Turns, UnreadableValueError, turns_of
from rlaif.samples.messages import system_of

Kind = Literal["preference", "dialogues", "rated", "unpaired"]

_OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "prompt": ("question", "instruction", "query", "input", "user_prompt", "context", "problem"),
    "chosen": ("chosen_response", "response_chosen", "chosen_answer", "accepted", "preferred", "winner", "better",
               "response_w", "positive", "output_1"),
    "rejected": ("rejected_response", "response_rejected", "rejected_answer", "dispreferred", "loser", "worse",
                 "response_l", "negative", "reject", "output_2"),
    "completion": ("response", "output", "answer", "reply", "generation"),
    "label": ("desirable", "is_good", "thumbs_up", "good"),
    "completions": ("responses", "answers", "generations"),
}  # fmt: skip
"""What others call a column, nearest first. A column that holds a known name with a slip in it counts as well."""

_NEEDED: dict[Kind, tuple[str, ...]] = {
    "preference": ("prompt", "chosen", "rejected"),
    "dialogues": ("chosen", "rejected"),
    "rated": ("prompt", "completions"),
    "unpaired": ("prompt", "completion", "label"),
}
_SCORES = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"),
           ("chosen_rating", "rejected_rating"), ("chosen-rating", "rejected-rating"))  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """How the rows of one file are read."""

    kind: Kind
    columns: Mapping[str, str]
    """Column of each thing that a row of this kind holds, by its proper name."""
    misnamed: Mapping[str, str] = field(default_factory=dict)
    """Columns that go by another name than trainers look for, with the name that they look for."""


@dataclass(slots=True)
class Reading:
    """What one row says; an unpaired reply stands on the side that its label puts it."""

    prompt: Turns
    chosen: str | None
    rejected: str | None
    probability: object = None
    """As it stands in the row: perhaps no number, perhaps out of range."""
    scores: tuple[float, float] | None = None
    odd: set[str] = field(default_factory=set)
    """Names of the rules that the row breaks."""


def recognise(row: object) -> Shape | None:
    """The shape of a file from one of its rows, or None where it is none of the known ones."""
    if not isinstance(row, dict):
        return None
    names = [str(name) for name in row]
    found = {wanted: name for wanted in _OTHER_NAMES if (name := _column(wanted, names)) is not None}
    for kind in _kinds(row, found):
        if all(wanted in found for wanted in _NEEDED[kind]):
            columns = {wanted: found[wanted] for wanted in _NEEDED[kind]}
            proper = {"instruction"} if kind == "rated" else set()
            wrong = {name: wanted for wanted, name in columns.items() if name != wanted and name not in proper}
            return Shape(kind, columns, wrong)
    return None


def _kinds(row: Mapping[str, object], found: Mapping[str, str]) -> tuple[Kind, ...]:
    """The kinds to try: where chosen is a whole dialogue, a column with some other name is not taken for its prompt."""
    whole = "prompt" not in row and "chosen" in found and _holds_user(row[found["chosen"]])
    return ("dialogues",) if whole else ("preference", "dialogues", "unpaired", "rated")


def _holds_user(value: object) -> bool:
    try:
        return any(turn.role == "user" for turn in turns_of(value, "assistant", lambda _: None))
    except UnreadableValueError:
        return False


def _column(wanted: str, names: Sequence[str]) -> str | None:
    if wanted in names:
        return wanted
    folded = {name.lower().strip(): name for name in names}
    for other in (wanted, *_OTHER_NAMES[wanted]):
        if other in folded and folded[other] not in _OTHER_NAMES:
            return folded[other]
    close = difflib.get_close_matches(wanted, [name for name in folded if name not in _OTHER_NAMES], n=1, cutoff=0.85)
    return folded[close[0]] if close else None


def read(row: object, shape: Shape) -> Reading:
    """What one row says. Raises UnreadableValueError, with the rule that it breaks, where it says nothing usable."""
    if not isinstance(row, dict):
        raise UnreadableValueError("type")
    if any(shape.columns[name] not in row for name in _NEEDED[shape.kind]):
        raise UnreadableValueError("missing")
    reading = Reading((), None, None)
    parts = {name: row[column] for name, column in shape.columns.items()}
    if shape.kind == "dialogues":
        _read_dialogues(reading, parts["chosen"], parts["rejected"])
    else:
        reading.prompt = _prompt(parts["prompt"], reading.odd.add)
    if shape.kind == "rated":
        reading.chosen, reading.rejected, reading.scores = best_and_worst(parts["completions"])
    elif shape.kind == "unpaired":
        reply = _reply(parts["completion"], parts["prompt"], reading)
        reading.chosen, reading.rejected = (reply, None) if _truth(parts["label"]) else (None, reply)
    elif shape.kind == "preference":
        reading.chosen = _reply(parts["chosen"], parts["prompt"], reading)
        reading.rejected = _reply(parts["rejected"], parts["prompt"], reading)
    if shape.kind in ("preference", "dialogues"):
        _label(reading, row)
    system = system_of(row)
    if system is not None and not any(turn.role == "system" for turn in reading.prompt[:1]):
        reading.prompt = (Turn("system", system), *reading.prompt)
    return reading


def _label(reading: Reading, row: Mapping[str, object]) -> None:
    reading.probability = row.get("probability")
    for high, low in _SCORES:
        better, worse = number_of(row.get(high)), number_of(row.get(low))
        if better is not None and worse is not None:
            reading.scores = (better, worse)


def _prompt(value: object, odd: Odd) -> Turns:
    """The conversation to answer, without the empty turn at its end that is only the cue for the reply."""
    turns = turns_of(value, "user", odd)
    cue = isinstance(value, str) and len(turns) > 1 and turns[-1] == Turn("assistant", "")
    return turns[:-1] if cue else turns


def _reply(value: object, prompt_value: object, reading: Reading) -> str:
    """The reply, from a text or from messages, which may repeat the conversation before it."""
    turns = turns_of(value, "assistant", reading.odd.add)
    if isinstance(prompt_value, str) != isinstance(value, str):
        reading.odd.add("forms")  # a text on one side and messages on the other
    if len(turns) == 1:
        if turns[0].role != "assistant":
            reading.odd.add("role-order")
        return turns[0].content
    if turns[:-1] == reading.prompt:
        reading.odd.add("forms")
    elif turns[0].role == "assistant":
        reading.odd.add("several-turns")
        return joined(turns)
    else:
        reading.odd.add("prompt-mismatch")
    if turns[-1].role != "assistant":
        reading.odd.add("role-order")
    return turns[-1].content


def _read_dialogues(reading: Reading, *values: object) -> None:
    """What two dialogues share, up to a turn of the user, is the prompt; what each says next is its reply."""
    one, other = (turns_of(value, "assistant", reading.odd.add) for value in values)
    most = min(len(one), len(other)) - 1
    shared = next((at for at in range(most) if one[at] != other[at]), most)
    while shared and one[shared - 1].role != "user":
        shared -= 1
    if shared <= 0:
        raise UnreadableValueError("no-shared-prompt")
    reading.prompt = one[:shared]
    reading.chosen, reading.rejected = (_rest(turns[shared:], reading) for turns in (one, other))


def _rest(turns: Turns, reading: Reading) -> str:
    if len(turns) > 1:
        reading.odd.add("several-turns")
    if turns[0].role != "assistant":
        reading.odd.add("role-order")
    return joined(turns)


def joined(turns: Iterable[Turn]) -> str:
    """The texts of several turns as one."""
    return "\n\n".join(turn.content for turn in turns)


def _truth(label: object) -> bool:
    """A KTO label: true or false, 1 or 0, or, out of CSV, either in letters."""
    if isinstance(label, str):
        label = {"true": True, "1": True, "false": False, "0": False}.get(label.strip().lower(), label)
    if label in (0, 1) and isinstance(label, (bool, int, float)):
        return bool(label)
    raise UnreadableValueError("missing" if label is None or label == "" else "label-type")
