"""Gold pairs: two replies to a prompt, and which of them is better.

Read from our `pairs.jsonl` and any data with `chosen` and `rejected` (a `prompt` beside them, or dialogues as in
hh-rlhf), from RewardBench's rows, and from the 438 comparisons of the HHH evaluation (`text_correct`,
`text_incorrect`). `subset` (or `category`) groups the results; `principle` names the principle that decides a pair;
`tie: true` says that people see no difference, and then which of both is `chosen` means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from rlaif.errors import UserError
from rlaif.records import Messages, Prompt, Record, Sample, content_id
from rlaif.samples.forms import Form, OddRowError, recognise
from rlaif.samples.inputs import Oddities, prompt_id
from rlaif.samples.rows import read_rows

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
    form: Form | None = None
    for line, raw in read_rows(path):
        counter.rows += 1
        row = _as_pair(raw)
        form = form or _pair_form(row, path, line, column)
        pair = _pair(form, row, f"{path}:{line}", line, counter)
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


def _as_pair(row: Any) -> Any:
    """The HHH evaluation's names in those that all others use."""
    if isinstance(row, dict) and "text_correct" in row and "text_incorrect" in row:
        named = {"chosen": row["text_correct"], "rejected": row["text_incorrect"]}
        return {**named, **{key: row[key] for key in ("subset", "category", "principle") if key in row}}
    return row


def _pair_form(row: Any, path: str, line: int, column: str | None) -> Form:
    if not isinstance(row, dict) or not {"chosen", "rejected"} <= row.keys():
        names = ", ".join(map(str, row)) if isinstance(row, dict) else "none"
        mend = f"columns: {names}"
        raise UserError("gold pairs need the columns `chosen` and `rejected`", where=path, line=line, mend=mend)
    return recognise(row, path, line, column, None)


def _pair(form: Form, row: Any, source: str, line: int, counter: Oddities) -> GoldPair | None:
    try:
        found = form.read(row, lambda kind: counter.add(kind, line))
    except OddRowError as odd:
        counter.add(str(odd), line)
        return None
    texts = [given.text for given in found.responses]
    if len(texts) != 2:
        counter.add("pair without two answers (left out)", line)
        return None
    better, worse = texts
    if better == worse:
        counter.add("pair of equal answers (left out)", line)
        return None
    subset, principle = _named(row, "subset") or _named(row, "category"), _named(row, "principle")
    return GoldPair(
        id=content_id("gold", prompt_id(found.messages), better, worse, principle),
        prompt=found.messages,
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
