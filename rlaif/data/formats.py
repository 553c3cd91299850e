"""The shapes that preference data comes in, and what a row of each of them holds.

preference   a prompt with a chosen and a rejected reply, texts or message lists; the replies may repeat the prompt
dialogues    chosen and rejected as whole dialogues (hh-rlhf's texts, or message lists): what they share is the prompt
rated        a prompt with several completions and a rating of each (UltraFeedback): best against worst
unpaired     a prompt, one completion and whether it is good (KTO); or messages and whether their last turn is good

Two numbered responses with a column of the winner are a preference, or dialogues: `rlaif.data.winners`. `usual` writes
a row of any of these in the usual columns, and all readers of preference data read what it says.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from rlaif.data.conversations import SYSTEM_COLUMNS, Odd, Turn, Turns, UnreadableValueError, system_of, turns_of
from rlaif.data.files import Rows, read_rows
from rlaif.data.prompts import PROMPT_COLUMNS, InvalidPromptError, PromptColumns, joined_prompt, parts_of, unread
from rlaif.data.winners import (
    Row,
    Sided,
    Winner,
    best_and_worst,
    find_sided,
    number_of,
    plain_name,
    settle_winner,
    winner_columns,
)
from rlaif.text import loads

_TRIED = 20
"""Rows that the shape of a file is looked for in, for the first may lack a value."""


F = TypeVar("F")


Kind = Literal["preference", "dialogues", "rated", "unpaired"]

_OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "prompt": PROMPT_COLUMNS[1:],
    "chosen": ("chosen_response", "response_chosen", "chosen_answer", "accepted", "preferred", "winner", "better",
               "response_w", "response_j", "positive", "text_correct"),
    "rejected": ("rejected_response", "response_rejected", "rejected_answer", "dispreferred", "loser", "worse",
                 "response_l", "response_k", "negative", "reject", "text_incorrect"),
    "completion": ("response", "output", "answer", "reply", "generation"),
    "label": ("desirable", "is_good", "thumbs_up", "good"),
    "completions": ("responses", "answers", "generations"),
}  # fmt: skip
"""What others call a column, nearest first. A column that holds a known name with a slip in it counts as well."""
_TALKS = ("messages", "conversations", "conversation")

_NEEDED: dict[Kind, tuple[str, ...]] = {
    "preference": ("prompt", "chosen", "rejected"),
    "dialogues": ("chosen", "rejected"),
    "rated": ("prompt", "completions"),
    "unpaired": ("prompt", "completion", "label"),
}
_SCORES = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"),
           ("chosen_rating", "rejected_rating"), ("chosen-rating", "rejected-rating"),
           ("chosen_avg_rating", "rejected_avg_rating"))  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """How the rows of one file are read."""

    kind: Kind
    columns: Mapping[str, str]
    """Column of each thing that a row of this kind holds, by its proper name, as `usual` writes the row."""
    misnamed: Mapping[str, str] = field(default_factory=dict)
    """Columns that go by another name than trainers look for, with the name that they look for."""
    prompt: PromptColumns | None = None
    """Where the prompt stands, where a column of its own holds it."""
    sided: Sided | None = None
    """Two numbered responses and what ranks them, where the rows hold these."""
    winner: Winner | None = None
    """How the better of the two is known; `rlaif.data.export` finds it in the whole file."""
    dialogue: str | None = None
    """Column of the conversation whose last turn is judged, of unpaired rows without a prompt of their own."""
    ratings: str | None = None
    """Column with a list of ratings, of completions in a list beside it."""
    unused: tuple[str, ...] = ()
    """Columns that may carry meaning and are not read."""
    rivals: tuple[str, ...] = ()
    """Columns that may name a winner and are not read."""


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
    """The shape of a file from one of its rows, or None where it is none of the known ones.

    Where it has a `sided` and no `winner` yet, the whole file has to be looked at: see `rlaif.data.export`.
    """
    if not isinstance(row, dict):
        return None
    names = [str(name) for name in row]
    found = {wanted: name for wanted in _OTHER_NAMES if (name := column_of(wanted, names)) is not None}
    sided = find_sided(row)
    if sided is not None and not _says_chosen(row, found, sided):
        shape = _of_sided(row, found, sided)
    else:
        shape = _of_names(row, found) or _of_talk(row, found)
    return None if shape is None else _with_rest(row, shape)


def _says_chosen(row: Row, found: Mapping[str, str], sided: Sided) -> bool:
    """Whether chosen and rejected stand in columns of their own as texts, not as names of the two numbered ones."""
    if not {"chosen", "rejected"} <= found.keys() or {found["chosen"], found["rejected"]} & {sided.first, sided.second}:
        return False
    values = [row[found[name]] for name in ("chosen", "rejected")]
    return all(isinstance(value, (list, dict)) or (isinstance(value, str) and len(value) > 20) for value in values)


def _of_sided(row: Row, found: Mapping[str, str], sided: Sided) -> Shape | None:
    first, _ = sided.responses(row)
    columns = {"chosen": "chosen", "rejected": "rejected"}
    prompt = found.get("prompt")
    if prompt in sided.columns or (prompt in _TALKS and _holds_user(first)):
        prompt = None
    if prompt is None or (prompt not in ("prompt", "context") and _holds_user(first)):
        return Shape("dialogues", columns, sided=sided) if _holds_user(first) else None
    joined = PromptColumns(prompt, parts_of(map(str, row), prompt, sided.columns))
    return Shape("preference", {"prompt": "prompt", **columns}, {}, joined, sided)


def _of_names(row: Row, found: Mapping[str, str]) -> Shape | None:
    for kind in _kinds(row, found):
        if not all(wanted in found for wanted in _NEEDED[kind]):
            continue
        columns = {wanted: found[wanted] for wanted in _NEEDED[kind]}
        if kind == "unpaired" and columns["prompt"] == columns["completion"]:
            continue
        proper = {"instruction"} if kind == "rated" else set()
        wrong = {name: wanted for wanted, name in columns.items() if name != wanted and name not in proper}
        prompt = None
        if "prompt" in columns:
            prompt = PromptColumns(columns["prompt"], parts_of(map(str, row), columns["prompt"], columns.values()))
        ratings = _ratings(row, columns["completions"]) if kind == "rated" else None
        return Shape(kind, columns, wrong, prompt, ratings=ratings)
    return None


def _ratings(row: Row, completions: str) -> str | None:
    """A list of numbers, one for each of a list of plain completions."""
    items = row[completions]
    if not isinstance(items, list) or not any(isinstance(each, str) for each in items):
        return None
    names = ("scores", "ratings", "rewards", "ranks", "rankings", "rank", "score", "rating")
    lists = (name for name in names if isinstance(row.get(name), list) and len(row[name]) == len(items))
    return next(lists, None)


def _of_talk(row: Row, found: Mapping[str, str]) -> Shape | None:
    """Messages with a label of their last turn."""
    dialogue = next((name for name in _TALKS if name in row), None)
    if dialogue is None or "label" not in found:
        return None
    label = found["label"]
    columns = {"prompt": "prompt", "completion": "completion", "label": label}
    return Shape("unpaired", columns, {} if label == "label" else {label: "label"}, dialogue=dialogue)


def _kinds(row: Mapping[str, object], found: Mapping[str, str]) -> tuple[Kind, ...]:
    """The kinds to try: where chosen is a whole dialogue, a column with some other name is not taken for its prompt."""
    whole = "prompt" not in row and "chosen" in found and _holds_user(row[found["chosen"]])
    return ("dialogues",) if whole else ("preference", "dialogues", "unpaired", "rated")


def _holds_user(value: object) -> bool:
    try:
        return any(turn.role == "user" for turn in turns_of(value, "assistant", lambda _: None))
    except UnreadableValueError:
        return False


_KNOWN = frozenset({"id", "idx", "index", "split", "subset", "category", "categories", "principle", "lang", "language",
                    "turn", "tstamp", "timestamp", "date", "created", "updated", "url", "license", "metadata", "meta",
                    "tag", "tags", "domain", "topic", "type", "version", "name", "hash", "uuid", "qid", "source",
                    "sources", "dataset", "models", "model", "judge", "task", "margin", "probability",
                    "label_margin", "messages", "corrects", "incorrects", *SYSTEM_COLUMNS})  # fmt: skip
_KNOWN_WORDS = frozenset({"id", "ids", "model", "source", "dataset", "timestamp", "date", "index", "policy"})
_OWN = "raw_probability"
"""A column that only our own pairs have; of these all is known."""


def _with_rest(row: Row, shape: Shape) -> Shape:
    """The shape with what it does not read."""
    if _OWN in row:
        return shape
    read = {*shape.columns.values(), *shape.misnamed, *(name for pair in _SCORES for name in pair)}
    read |= {name for name in (shape.dialogue, shape.ratings) if name is not None}
    if shape.prompt is not None:
        read |= {shape.prompt.main, *shape.prompt.parts}
    if shape.sided is not None:
        read |= shape.sided.columns
        rivals = shape.sided.others
    else:
        rivals = tuple(name for name in winner_columns(row) if "chosen" not in plain_name(name))
    rivals = tuple(name for name in rivals if name not in read)
    others = (name for name in map(str, row) if name not in read and name not in rivals)
    unused = tuple(name for name in others if not is_known(name) and row[name] not in (None, "", [], {}))
    return replace(shape, unused=unused, rivals=rivals)


def is_known(name: str) -> bool:
    """Whether a column is about the row, not part of what it says."""
    plain = plain_name(name)
    return plain in _KNOWN or bool(_KNOWN_WORDS & set(plain.split("_")))


def column_of(wanted: str, names: Sequence[str]) -> str | None:
    """The column of what is properly called `wanted`, under that name or another."""
    if wanted in names:
        return wanted
    folded = {name.lower().strip(): name for name in names}
    for other in (wanted, *_OTHER_NAMES[wanted]):
        if other in folded and folded[other] not in _OTHER_NAMES:
            return folded[other]
    close = difflib.get_close_matches(wanted, [name for name in folded if name not in _OTHER_NAMES], n=1, cutoff=0.85)
    return folded[close[0]] if close else None


def usual(row: Row, shape: Shape) -> Row:
    """A row in the usual columns, as `shape.columns` names them: its prompt whole, its winner chosen.

    Raises UnreadableValueError, with the rule that it breaks, where the row does not say them.
    """
    changed: dict[str, Any] = {}
    if shape.dialogue is not None:
        changed |= _parted(row.get(shape.dialogue))
    if shape.sided is not None:
        changed |= _ranked(row, shape)
    if shape.prompt is not None and shape.prompt.main in row and (shape.prompt.parts or shape.sided is not None):
        try:
            changed[shape.columns["prompt"]] = joined_prompt(row, shape.prompt)
        except InvalidPromptError:
            raise UnreadableValueError("prompt-part") from None
    if shape.ratings is not None:
        changed[shape.columns["completions"]] = _zipped(row, shape)
    if not changed:
        return row
    if shape.sided is not None:
        row = {name: value for name, value in row.items() if name not in ("probability", "margin")}
    return {**row, **changed}


def _parted(dialogue: object) -> dict[str, Any]:
    """A conversation as a prompt and its last turn, both as messages."""
    if isinstance(dialogue, str):
        dialogue = [turn._asdict() for turn in turns_of(dialogue, "assistant", lambda _: None)]
    if not isinstance(dialogue, list):
        raise UnreadableValueError("missing" if dialogue is None else "type")
    if len(dialogue) < 2:
        raise UnreadableValueError("empty-prompt")
    return {"prompt": dialogue[:-1], "completion": dialogue[-1:]}


def _ranked(row: Row, shape: Shape) -> dict[str, Any]:
    """The two responses as the chosen and the rejected one."""
    assert shape.sided is not None
    assert shape.winner is not None, "the file was looked at"
    one, two = shape.sided.responses(row)
    first = shape.winner.first_is_better(row)
    scores: tuple[Any, Any] = (None, None)
    if shape.sided.winner is not None and not shape.sided.ranks:
        scores = shape.sided.measured(row)
    if first < 0.5:
        one, two, scores = two, one, scores[::-1]
    ranked = {"chosen": one, "rejected": two, "chosen_score": scores[0], "rejected_score": scores[1]}
    if shape.winner.soft:
        ranked["probability"] = max(first, 1 - first)
    return ranked


def _zipped(row: Row, shape: Shape) -> list[dict[str, Any]]:
    texts, ratings = row.get(shape.columns["completions"]), row.get(shape.ratings or "")
    if not isinstance(texts, list) or not isinstance(ratings, list) or len(texts) != len(ratings):
        raise UnreadableValueError("unrated")
    measure = "rank" if plain_name(shape.ratings or "").startswith("rank") else "rating"
    return [{"response": text, measure: rating} for text, rating in zip(texts, ratings, strict=True)]


def read(row: object, shape: Shape) -> Reading:
    """What one row says. Raises UnreadableValueError, with the rule that it breaks, where it says nothing usable."""
    if not isinstance(row, dict):
        raise UnreadableValueError("type")
    given, row = row, usual(row, shape)
    if any(shape.columns[name] not in row for name in _NEEDED[shape.kind]):
        raise UnreadableValueError("missing")
    reading = Reading((), None, None)
    parts = {name: row[column] for name, column in shape.columns.items()}
    if shape.kind == "dialogues":
        _read_dialogues(reading, parts["chosen"], parts["rejected"])
    else:
        reading.prompt = _prompt(parts["prompt"], reading.odd.add)
    if shape.kind == "rated":
        _read_rated(reading, parts["completions"])
    elif shape.kind == "unpaired":
        reply = _reply(parts["completion"], parts["prompt"], reading)
        reading.chosen, reading.rejected = (reply, None) if truth(parts["label"]) else (None, reply)
    elif shape.kind == "preference":
        reading.chosen = _reply(parts["chosen"], parts["prompt"], reading)
        reading.rejected = _reply(parts["rejected"], parts["prompt"], reading)
    if shape.kind in ("preference", "dialogues"):
        _label(reading, row)
    system = system_of(row)
    if system is not None and not any(turn.role == "system" for turn in reading.prompt[:1]):
        reading.prompt = (Turn("system", system), *reading.prompt)
    said = [turn.content for turn in reading.prompt] + [reading.chosen or "", reading.rejected or ""]
    if _OWN not in given and any(unread(given, shape.prompt, said)):
        reading.odd.add("prompt-column")
    return reading


def _read_rated(reading: Reading, completions: object) -> None:
    if isinstance(completions, str) and completions[:1] == "[":  # as tables write a list into a cell
        try:
            completions = loads(completions)
        except ValueError:
            raise UnreadableValueError("type") from None
    found = best_and_worst(completions)
    reading.chosen, reading.rejected, reading.scores = found.best, found.worst, found.scores
    if found.disputed:
        reading.odd.add("ratings-disagree")


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


def truth(label: object) -> bool:
    """A KTO label: true or false, 1 or 0, or, out of CSV, either in letters."""
    if isinstance(label, str):
        label = {"true": True, "1": True, "false": False, "0": False}.get(label.strip().lower(), label)
    if label in (0, 1) and isinstance(label, (bool, int, float)):
        return bool(label)
    raise UnreadableValueError("missing" if label is None or label == "" else "label-type")


def better_first(reading: Reading) -> Reading:
    """The reading with the reply first that its soft label calls better: trainers read no label, but the order."""
    probability = number_of(reading.probability)
    if probability is None or not 0 <= probability < 0.5 or reading.rejected is None or reading.chosen is None:
        return reading
    scores = None if reading.scores is None else reading.scores[::-1]
    return Reading(reading.prompt, reading.rejected, reading.chosen, 1 - probability, scores, reading.odd)


def first_known(path: str | Path, known: Callable[[object], F | None]) -> tuple[F | None, Rows]:
    """What one of the first rows of a file is known as, and all rows. Raises UserError as `open_rows` does."""
    rows = read_rows(path)
    tried = list(itertools.islice(rows, _TRIED))
    found = next((form for _, row in tried if (form := known(row)) is not None), None)
    if isinstance(found, Shape):
        found = settled(found, path)  # type: ignore[assignment]
    return found, itertools.chain(tried, rows)


def settled(shape: Shape, path: str | Path) -> Shape:
    """The shape with the meaning of its winner's column, which the whole file says."""
    if shape.sided is None or shape.winner is not None:
        return shape
    return replace(shape, winner=settle_winner(shape.sided, _values(path), str(path)))


def _values(path: str | Path) -> Iterator[object]:
    return (row for _, row in read_rows(path))
