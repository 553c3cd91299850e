"""What the values of a winner's column mean: found out over all rows of a file, and refused where they are ambiguous.

1 may be the first of two or, counted from 0, the second; 0 may be the first or a tie. The columns' own names decide
(`output_1` and `output_2`, `response_0` and `response_1`), the values that occur, or scores beside them; where none of
these does, no label is made.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlaif.data.ratings import number_of
from rlaif.data.sided import Row, Sided, plain_name
from rlaif.data.turns import UnreadableValueError
from rlaif.errors import UserError

_MOST_VALUES = 1000
"""Different numbers that are told apart; graded preferences are between 1 and 2 whatever their number."""
_TIES = frozenset({"tie", "ties", "tied", "both", "both_good", "both_bad", "bothgood", "bothbad", "tie_bothbad",
                   "tie_both_bad", "tie_bothgood", "neither", "equal", "same", "draw", "a_b_tie"})  # fmt: skip
_NAMED = re.compile(
    r"(?:(?:the|model|assistant|response|answer|output|option|candidate|reply|completion|summary|text|conversation"
    r"|human_ref|side)_?)*"
    r"(?P<side>a|b|0|1|2|i|ii|first|second|one|two|left|right)(?:_(?:is_better|wins|better|response|answer|output))?"
)
_COMPARED = re.compile(r"\[*\s*([abAB])\s*(>{1,3}|<{1,3}|=)\s*([abAB])\s*\]*")
_SIDES = {"a": 0, "b": 1, "i": 0, "ii": 1, "first": 0, "second": 1, "one": 0, "two": 1, "left": 0, "right": 1}
_SIGNED = frozenset({"overall_preference", "preference_strength"})
"""From -3, the first is much better, to 3, the second is (HelpSteer)."""
_INDEX = frozenset({"index", "idx", "id", "choice"})


@dataclass(frozen=True)
class Winner:
    """How the better one of two is known."""

    sided: Sided
    of_number: Mapping[float, float] | None = None
    """P(the first is better) of each number; None where numbers say P(the second is better) plus one."""
    signed: bool = False
    soft: bool = False
    """The labels are probabilities."""
    says: str = ""
    """How it is read, for people."""

    def first_is_better(self, row: Row) -> float:
        """The probability that the first response is better.

        Raises UnreadableValueError where the row does not say it, and where it says that neither is.
        """
        if self.sided.winner is None and not self.sided.voters:
            probability = _by_scores(self.sided, row)
        else:
            names = self.sided.voters or (self.sided.winner or "",)
            votes = [self._one(value, row) for name in names for value in _values(row.get(name))]
            known = [vote for vote in votes if vote is not None]
            if not known:
                raise UnreadableValueError("missing")
            probability = sum(known) / len(known)
        if probability == 0.5:
            raise UnreadableValueError("tie")
        return probability

    def _one(self, value: Any, row: Row) -> float | None:
        if _is_missing(value):
            return None
        number = number_of(value)
        if number is None:
            return _by_name(value, row, self.sided)
        if self.signed:
            return 0.5 if number == 0 else float(number < 0)
        if self.of_number is not None:
            if number not in self.of_number:
                raise UnreadableValueError("winner")
            return self.of_number[number]
        if not 1 <= number <= 2:
            raise UnreadableValueError("winner")
        return 2 - number


@dataclass
class _Seen:
    """The numbers that a winner's column holds over all rows."""

    numbers: set[float] = field(default_factory=set)
    rows: int = 0
    with_scores: Counter[tuple[float, bool]] = field(default_factory=Counter)
    """Numbers beside scores, by whether the first one has the higher score."""
    several: bool = False
    """A cell holds several votes."""


def settle_winner(sided: Sided, rows: Iterable[object], where: str) -> Winner:
    """How the better one is known, over all rows of a file. Raises UserError where they do not say it clearly."""
    if sided.winner is None and not sided.voters:
        if sided.scores is None:
            what = f"two responses a row ({_both(sided)}), and no column that says which is better"
            raise UserError(what, where=where, mend="add one that is called `preference`: 1 the first, 2 the second")
        order = "the lower" if sided.ranks else "the higher"
        return Winner(sided, says=f"{order} of {_quoted(sided.scores)} is better")
    seen = _look(sided, rows)
    column = _quoted(sided.voters or (sided.winner or "",))
    soft = seen.several or bool(sided.voters)
    if not seen.numbers:
        return Winner(sided, {}, soft=soft, says=f"by {column}")
    found = _meaning(sided, seen)
    if found is None:
        held = ", ".join(f"{each:g}" for each in sorted(seen.numbers)[:5])
        what = f"{column} says which of {_both(sided)} is better, but not clearly: it holds {held}"
        mend = "write `preference` as 1 (the first), 2 (the second), or between; 1.5 is a tie"
        raise UserError(what, where=where, mend=mend)
    of_number, signed, says = found
    graded = of_number is None and bool(seen.numbers - {1.0, 1.5, 2.0})
    return Winner(sided, of_number, signed, soft or graded, f"by {column}: {says}")


def _look(sided: Sided, rows: Iterable[object]) -> _Seen:
    seen = _Seen()
    for row in rows:
        if not isinstance(row, dict):
            continue
        seen.rows += 1
        for name in sided.voters or (sided.winner or "",):
            values = list(_values(row.get(name)))
            seen.several |= len(values) > 1
            for number in map(number_of, values):
                if number is None:
                    continue
                if len(seen.numbers) < _MOST_VALUES or not 1 < number < 2:
                    seen.numbers.add(number)
                _beside_scores(sided, row, number, seen)
    return seen


def _beside_scores(sided: Sided, row: Row, number: float, seen: _Seen) -> None:
    try:
        better = _by_scores(sided, row)
    except UnreadableValueError:
        return
    if better != 0.5:
        seen.with_scores[number, better > 0.5] += 1


Meaning = tuple[Mapping[float, float] | None, bool, str]


def _meaning(sided: Sided, seen: _Seen) -> Meaning | None:
    """What the numbers mean; None where that is not clear."""
    numbers, name = seen.numbers, plain_name(sided.winner or "")
    if name in _SIGNED:
        whole = all(number == int(number) and abs(number) <= 3 for number in numbers)
        return (None, True, "below 0 the first, above 0 the second") if whole and min(numbers) < 0 else None
    if sided.family == "01" and numbers <= {0.0, 1.0}:
        return {0.0: 1.0, 1.0: 0.0}, False, f"0 is `{sided.first}`, 1 is `{sided.second}`"
    if numbers <= {0.0, 1.0, 2.0} and 0.0 in numbers and 2.0 in numbers:
        ties = {0.0: 0.5, 1.0: 1.0, 2.0: 0.0}
        return (ties, False, "1 is the first, 2 the second, 0 a tie") if sided.family == "12" else None
    if min(numbers) >= 1 and max(numbers) <= 2 and numbers != {1.0} and sided.family != "01":
        return None, False, "1 is the first, 2 the second, 1.5 a tie"
    if numbers <= {0.0, 1.0}:
        return _zero_or_one(sided, seen, name)
    return None


def _zero_or_one(sided: Sided, seen: _Seen, name: str) -> Meaning | None:
    """0 and 1 of two that are not numbered so: places from 0, or whether the first is better; as scores beside say."""
    first = seen.with_scores[1.0, True] + seen.with_scores[0.0, False]
    second = seen.with_scores[1.0, False] + seen.with_scores[0.0, True]
    if first and not second:
        return {1.0: 1.0, 0.0: 0.0}, False, "1 is the first, 0 the second, as the scores beside it say"
    by_place = sided.family != "12" and _INDEX & set(name.split("_")) and 0.0 in seen.numbers
    if (second and not first) or (by_place and not first):
        return {0.0: 1.0, 1.0: 0.0}, False, "0 is the first, 1 the second"
    return None


def _by_scores(sided: Sided, row: Row) -> float:
    one, two = (number_of(_as_number(value)) for value in sided.measured(row))
    if one is None or two is None:
        raise UnreadableValueError("missing")
    if one == two:
        return 0.5
    return float((one < two) if sided.ranks else (one > two))


def _as_number(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


def _by_name(value: Any, row: Row, sided: Sided) -> float:
    """Whom a text names: a side, a column, a model, or the response itself."""
    if not isinstance(value, str):
        raise UnreadableValueError("winner")
    plain = re.sub(r"[^a-z0-9]+", "_", value.strip().lower()).strip("_")
    if plain in _TIES:
        return 0.5
    if (said := _COMPARED.fullmatch(value.strip())) is not None and said[1].lower() != said[3].lower():
        return 0.5 if said[2] == "=" else float((said[1] in "Aa") == (said[2][0] == ">"))
    models = [row.get(name) for name in sided.models or ()]
    for options in ((plain_name(sided.first), plain_name(sided.second)), models, _texts(sided, row)):
        hits = [at for at, option in enumerate(options) if isinstance(option, str) and option in (plain, value)]
        if len(hits) == 1:
            return 1.0 - hits[0]
    found = _NAMED.fullmatch(plain)
    if found is None:
        raise UnreadableValueError("winner")
    side = found["side"]
    if side in _SIDES:
        return 1.0 - _SIDES[side]
    places = {"12": {"1": 1.0, "2": 0.0}, "01": {"0": 1.0, "1": 0.0}}.get(sided.family, {})
    if side not in places:
        raise UnreadableValueError("winner")
    return places[side]


def _texts(sided: Sided, row: Row) -> tuple[Any, Any]:
    try:
        return sided.responses(row)
    except UnreadableValueError:
        return None, None


def _values(cell: Any) -> Iterator[Any]:
    yield from cell if isinstance(cell, list) else (cell,)


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and value != value)


def _both(sided: Sided) -> str:
    return f"`{sided.first}`" if sided.first == sided.second else f"`{sided.first}`, `{sided.second}`"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in dict.fromkeys(names))
