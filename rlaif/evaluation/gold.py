"""Gold pairs: two replies to a prompt, and which of them is better.

Read as all preference data are (`rlaif.data.shapes`): our `pairs.jsonl`, `chosen` and `rejected` with a `prompt` or as
dialogues, two numbered responses with a column of the winner, RewardBench's rows; and the 438 comparisons of the HHH
evaluation (`text_correct`, `text_incorrect`).

`subset` (or `category`) groups the results; `principle` names the principle that decides a pair; `tie: true` says that
people see no difference, and then which of both is `chosen` means nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

from rlaif.data.columns import notes_of
from rlaif.data.export import LEFT_OUT
from rlaif.data.opening import first_known
from rlaif.data.rules import RULES
from rlaif.data.shapes import Reading, Shape, better_first, read, recognise
from rlaif.data.texts import check_texts
from rlaif.data.turns import UnreadableValueError
from rlaif.errors import UserError, nearest
from rlaif.records import Message, Messages, Prompt, Record, Sample, content_id
from rlaif.samples.forms import OddRowError, value_at
from rlaif.samples.inputs import Oddities, prompt_id
from rlaif.samples.transcripts import alternate, cut_dangling, joined

_WRITER = "gold"
"""Policy name of the replies."""


class GoldPair(Record):
    """A prompt, the better and the worse reply to it."""

    id: str
    prompt: Messages
    better: str
    worse: str
    subset: str | None = None
    principle: str | None = None
    tie: bool = False
    """Neither is better."""
    source: str
    """File and line."""

    def as_prompt(self) -> Prompt:
        """The prompt as the stages know it."""
        return Prompt(id=prompt_id(self.prompt), messages=self.prompt, source=self.source)

    def samples(self) -> tuple[Sample, Sample]:
        """The better and the worse reply as samples."""
        prompt = prompt_id(self.prompt)
        made = [
            Sample(id=content_id(_WRITER, prompt, text), prompt=prompt, index=at, text=text, policy=_WRITER)
            for at, text in enumerate((self.better, self.worse))
        ]
        return made[0], made[1]


def read_gold(
    path: str, *, column: str | None = None, limit: int | None = None, oddities: Oddities | None = None
) -> Iterator[GoldPair]:
    """The gold pairs of a file or of a `datasets` name, each once; odd rows are skipped and counted in `oddities`.

    Raises UserError where the file is broken, where its rows are no pairs, or where all of them are odd.
    """
    counter = Oddities() if oddities is None else oddities
    seen: set[str] = set()
    shape, rows = first_known(path, lambda row: recognise(_as_pair(row, column)))
    first = next(rows, None)
    if first is None:
        raise UserError("holds no rows", where=path)
    pairs = _require_pairs(shape, first[1], path, first[0], column)
    for note in notes_of(pairs):
        counter.add(note, first[0])
    for line, raw in itertools.chain([first], rows):
        counter.rows += 1
        pair = _pair(pairs, _as_pair(raw, column), f"{path}:{line}", line, counter)
        if pair is None:
            continue
        if pair.id in seen:
            counter.add("repeated pair", line)
            continue
        seen.add(pair.id)
        counter.prompts += 1
        yield pair
        if counter.prompts == limit:
            return
    if not counter.prompts:
        raise UserError("no row holds a usable pair" + (f": {counter}" if counter.counts else ""), where=path)


def _as_pair(row: Any, column: str | None) -> Any:
    """The HHH evaluation's names in those that all others use, and the prompt in its own column."""
    if isinstance(row, dict) and "text_correct" in row and "text_incorrect" in row:
        named = {"chosen": row["text_correct"], "rejected": row["text_incorrect"]}
        return {**named, **{key: row[key] for key in ("subset", "category", "principle") if key in row}}
    if column is None or column == "prompt" or not isinstance(row, dict):
        return row
    try:
        prompt = value_at(row, column)
    except OddRowError:
        prompt = None
    return {"prompt": prompt, **{name: value for name, value in row.items() if name not in ("prompt", column)}}


def _require_pairs(shape: Shape | None, row: Any, path: str, line: int, column: str | None) -> Shape:
    names = list(map(str, row)) if isinstance(row, dict) else []
    if column is not None and column.split(".")[0] not in names and column not in names:
        raise UserError(f"no column `{column}`", where=path, line=line, mend=nearest(column, names))
    if shape is None or shape.kind == "unpaired":
        what = "gold pairs need the columns `chosen` and `rejected`, or two responses and a column of the winner"
        raise UserError(what, where=path, line=line, mend=f"columns: {', '.join(names) or 'none'}")
    return shape


def _sound(shape: Shape, row: Any) -> Reading:
    """What a row says. Raises UnreadableValueError where it is of no use."""
    reading = better_first(read(row, shape))
    reading.chosen, reading.rejected = (cut_dangling(text or "").strip() for text in (reading.chosen, reading.rejected))
    broken = set(reading.odd)
    check_texts(reading, broken.add)
    turns = tuple(turn for turn in reading.prompt if turn.role != "system")
    if "unknown-role" not in broken and turns and turns[-1].role == "user":
        broken.discard("role-order")  # one speaker twice in a row is joined
    wrong = min(broken & LEFT_OUT, default=None)
    if wrong is not None:
        raise UnreadableValueError(wrong)
    if reading.probability in (0.5, "0.5"):
        raise UnreadableValueError("label-half")
    return reading


_LEFT_OUT = {
    "identical": "pair of equal answers (left out)",
    "empty-reply": "pair without two answers (left out)",
    "several-turns": "pair without two answers (left out)",
}


def _pair(shape: Shape, row: Any, source: str, line: int, counter: Oddities) -> GoldPair | None:
    try:
        reading = _sound(shape, row)
    except UnreadableValueError as odd:
        rule = str(odd)
        counter.add(_LEFT_OUT.get(rule, f"{RULES[rule].what} (left out)"), line)
        return None
    turns = tuple(Message.model_validate(turn._asdict()) for turn in reading.prompt)
    prompt = turns if alternate(turns) else joined(turns)
    better, worse = reading.chosen or "", reading.rejected or ""
    subset, principle = _named(row, "subset") or _named(row, "category"), _named(row, "principle")
    return GoldPair(
        id=content_id("gold", prompt_id(prompt), better, worse, principle),
        prompt=prompt,
        better=better,
        worse=worse,
        subset=subset,
        principle=principle,
        tie=_is_tie(row),
        source=source,
    )


def _is_tie(row: Any) -> bool:
    return (_named(row, "tie") or "").lower() in ("true", "1", "1.0", "yes")


def _named(row: Any, column: str) -> str | None:
    """What stands in a column; a blank cell, and the NaN that some tables have instead, is nothing."""
    value = row.get(column)
    nothing = value is None or (isinstance(value, float) and math.isnan(value))
    return None if nothing else str(value).strip() or None
