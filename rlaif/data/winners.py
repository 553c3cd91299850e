"""Rows of numbered or rated responses, and what their winner's column means.

Rows of two numbered responses and a column that says which is better, as people and judges annotate them.

Which columns these are is seen from one row: `output_1` and `output_2`, `response_a` and `response_b`, a list of two.
What the values of the winner's column mean is seen from all rows of the file (`rlaif.data.winners`).

What the values of a winner's column mean: found out over all rows of a file, and refused where they are ambiguous.

1 may be the first of two or, counted from 0, the second; 0 may be the first or a tie. The columns' own names decide
(`output_1` and `output_2`, `response_0` and `response_1`), the values that occur, or scores beside them; where none of
these does, no label is made.

Several rated completions of one prompt as a pair: the best against the worst.

All completions of a row are measured by one measure, the one that most of them have. Ratings of single aspects go
before an overall score: a known fault of UltraFeedback wrote some overall scores of 1 as 10, the aspects are right.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from rlaif.data.conversations import UnreadableValueError, turns_of
from rlaif.errors import UserError

Row = Mapping[str, Any]
Family = Literal["12", "01", "ab", "words", "list"]
"""How the two are told apart; `list`: by their places in a list."""

_FAMILIES: tuple[tuple[Family, str, str], ...] = (
    ("12", "1", "2"), ("01", "0", "1"), ("ab", "a", "b"), ("ab", "i", "ii"), ("words", "left", "right"),
    ("words", "first", "second"), ("words", "one", "two"),
)  # fmt: skip
_SIDE = re.compile(r"(?<![a-z])(?:a|b|c|i|ii|left|right|first|second|one|two)(?![a-z0-9])|(?<!\d)[0-9](?!\d)")
_WORDS = re.compile(r"[a-z0-9]+")
_RESPONSES = frozenset({"response", "responses", "output", "answer", "completion", "reply", "generation", "candidate",
                        "summary", "conversation", "text", "message", "messages", "result", "continuation", "ref",
                        "option", "chat"})  # fmt: skip
_BESIDE = frozenset({"model", "body", "human", "generated", "assistant", "llm", "full", "text", "content"})
_SCORES = ("score", "rating", "reward", "winner", "win", "preferred", "upvotes", "votes", "likes", "rank", "ranking")
"""Words of columns that measure either response; the higher is better but for ranks."""
_NOT_SCORES = frozenset({"ratio", "id", "ids", "name", "length", "len", "max", "min", "confidence", "explanation",
                         "reason", "rationale", "text"})  # fmt: skip
_LISTS = ("responses", "completions", "answers", "outputs", "summaries", "candidates", "generations", "replies")
_TEXTS = ("text", "content", "response", "completion", "answer", "output", "summary")

_LONGEST = 100
"""Characters of a column's name that count."""
_NOT_WINNERS = frozenset({"score", "scores", "rating", "ratings", "reward", "rewards", "logp", "logps", "length", "avg",
                          "tokens", "reason", "rationale", "explanation", "confidence", "prompt"})  # fmt: skip
_FIRST_NAMES = ("preference", "winner", "choice", "better_response_id", "overall_preference", "preference_strength")
_WINNER = re.compile(
    r"(?:.*_)?(?:preference|preferences|winner|choice|choices|verdict|preferred|preferrable|better|best|chosen|choose"
    r"|selected|vote|votes|judgement|judgment)"
    r"(?:_(?:response|answer|output|completion|summary|reply|model|side|option|index|idx|id|label|value|strength|is))*"
)
_LATER_NAMES = re.compile(r"label|labels|gold_label|human_label|(?:.*_)?safer(?:_response)?(?:_id|_index)?")
_ANNOTATOR = re.compile(r"(?:annotator|rater|labell?er|worker|voter|vote|human|person)_?\d+(?:_[a-z]+)?")


@dataclass(frozen=True)
class Sided:
    """Where the two responses of a row stand, and what ranks them."""

    family: Family
    first: str
    second: str
    """Columns of the responses; both the same where they stand in one list."""
    winner: str | None = None
    """Column that names the better one."""
    voters: tuple[str, ...] = ()
    """Columns in which several people name the better one."""
    scores: tuple[str, str] | None = None
    """Columns that measure either; both the same where a list holds two numbers."""
    ranks: bool = False
    """The scores are ranks: the lower is better."""
    models: tuple[str, str] | None = None
    """Columns that name who wrote either."""
    others: tuple[str, ...] = ()
    """Columns that may name a winner as well, and are not read."""

    @property
    def columns(self) -> frozenset[str]:
        """Everything that is read."""
        pairs = (self.scores or ()) + (self.models or ())
        return frozenset({self.first, self.second, *self.voters, *pairs, *({self.winner} if self.winner else ())})

    def responses(self, row: Row) -> tuple[Any, Any]:
        """The two responses of a row. Raises UnreadableValueError where there are not two."""
        if self.family != "list":
            if self.first not in row or self.second not in row:
                raise UnreadableValueError("missing")
            return row[self.first], row[self.second]
        items = row.get(self.first)
        if not isinstance(items, list) or len(items) != 2:
            raise UnreadableValueError("winner")
        one, two = (_text(item) for item in items)
        return one, two

    def measured(self, row: Row) -> tuple[Any, Any]:
        """What measures the two, as it stands in the row."""
        if self.scores is None:
            return None, None
        if self.scores[0] != self.scores[1]:
            return row.get(self.scores[0]), row.get(self.scores[1])
        values = row.get(self.scores[0])
        return (values[0], values[1]) if isinstance(values, list) and len(values) == 2 else (None, None)


def find_sided(row: Row) -> Sided | None:
    """Where two numbered responses stand in a row, or None where it holds none."""
    pairs = list(_pairs(row))
    found = next((pair for pair in pairs if _is_response(pair[0]) and _are_texts(row, pair)), None)
    winners = _winners(row)
    if found is None:
        return _listed(row, winners)
    family, first, second = found[1:]
    taken = {first, second}
    models = next((pair for pair in pairs if _tokens(pair[0]) in (["model"], ["model", "name"])), None)
    scores, ranks = _scores(pairs, row, taken)
    voters = tuple(name for name in row if _ANNOTATOR.fullmatch(plain_name(name)))
    if winners or len(voters) < 2:
        voters = ()
    winners = [name for name in winners if name not in taken and name not in voters and name not in (scores or ())]
    return Sided(
        family, first, second, winners[0] if winners else None, voters, scores, ranks,
        None if models is None else (models[2], models[3]), tuple(winners[1:]),
    )  # fmt: skip


def _listed(row: Row, winners: Sequence[str]) -> Sided | None:
    """Two responses in one list; with scores in a list beside it, or a winner's column."""
    names = {plain_name(name): name for name in row}
    name = next((names[each] for each in _LISTS if each in names and _are_two(row[names[each]])), None)
    if name is None:
        return None
    winners = [each for each in winners if each != name]
    return Sided("list", name, name, winners[0], others=tuple(winners[1:])) if winners else None


def _are_two(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(_text(each), str) for each in value)


def _text(item: Any) -> Any:
    if isinstance(item, dict):
        return next((item[name] for name in _TEXTS if isinstance(item.get(name), str)), None)
    return item


def plain_name(name: str) -> str:
    """A column's name in small letters, its words joined by underscores."""
    return re.sub(r"[\s.\-]+", "_", str(name)[:_LONGEST].strip().lower())


def _tokens(name: str) -> list[str]:
    return _WORDS.findall(name)


Pair = tuple[str, Family, str, str]
"""What two columns are called but for their sides, how they are told apart, and their names."""


def _pairs(row: Row) -> Iterator[Pair]:
    """Columns that are called the same but for the sides, of which there are two."""
    by_rest: dict[str, dict[str, str]] = {}
    for name in row:
        plain = plain_name(name)
        for found in _SIDE.finditer(plain.replace("_", " ")):
            rest = f"{plain[: found.start()]}\0{plain[found.end() :]}"
            by_rest.setdefault(rest, {})[found.group()] = name
    for rest, sides in by_rest.items():
        if "c" in sides or sum(side.isdigit() for side in sides) > 2:
            continue  # more than two responses: which one is the worse is not said
        for family, one, two in _FAMILIES:
            if one in sides and two in sides:
                yield rest.replace("\0", " ").replace("_", " "), family, sides[one], sides[two]
                break


def _is_response(rest: str) -> bool:
    """Whether columns that are called so hold responses, and nothing about them."""
    words = _tokens(rest)
    return not words or (bool(_RESPONSES & set(words)) and set(words) <= _RESPONSES | _BESIDE)


def _are_texts(row: Row, pair: Pair) -> bool:
    words, values = _tokens(pair[0]), (row[pair[2]], row[pair[3]])
    if not words and not any(_winners(row)):
        return False  # columns that are called a and b, and nothing ranks them
    return all(isinstance(value, (str, list, dict)) or value is None for value in values) and any(
        value is not None for value in values
    )


def _scores(pairs: Iterable[Pair], row: Row, taken: set[str]) -> tuple[tuple[str, str] | None, bool]:
    """Columns that measure the two, the most telling first, and whether they are ranks."""
    found: list[tuple[int, tuple[str, str]]] = []
    for rest, _, one, two in pairs:
        words = _tokens(rest)
        place = next((at for at, word in enumerate(_SCORES) if word in words), None)
        if place is not None and not _NOT_SCORES & set(words) and not {one, two} & taken:
            found.append((place, (one, two)))
    for name, value in row.items():
        place = next((at for at, word in enumerate(_SCORES) if plain_name(name) in (word, f"{word}s")), None)
        if place is not None and isinstance(value, list) and len(value) == 2 and not isinstance(value[0], (str, dict)):
            found.append((place, (name, name)))
    if not found:
        return None, False
    place, columns = min(found)
    return columns, _SCORES[place].startswith("rank")


def _winners(row: Row) -> list[str]:
    """Columns that may name a winner, the plainest names first."""
    plain = {name: plain_name(name) for name in row}
    named = [name for first in _FIRST_NAMES for name in row if plain[name] == first]
    named += [name for name in row if name not in named and _WINNER.fullmatch(plain[name])]
    named += [name for name in row if name not in named and _LATER_NAMES.fullmatch(plain[name])]
    return [name for name in named if _may_name(row[name]) and not _NOT_WINNERS & set(_tokens(plain[name]))]


def _may_name(value: object) -> bool:
    """Whether a cell may name one of two: a number, a short word, a text, votes; not an object."""
    return (
        value is None
        or isinstance(value, (str, int, float))
        or (isinstance(value, list) and all(isinstance(each, (str, int, float)) for each in value))
    )


def winner_columns(row: Row) -> list[str]:
    """Columns that may say which of two responses is better."""
    return _winners(row)


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
            raise UserError(what, where=where, hint="add one that is called `preference`: 1 the first, 2 the second")
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
        hint = "write `preference` as 1 (the first), 2 (the second), or between; 1.5 is a tie"
        raise UserError(what, where=where, hint=hint)
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


_RATED_TEXTS = (
    "response",
    "text",
    "content",
    "completion",
    "output",
    "generated_text",
    "answer",
    "response_text",
    "summary",
)
_RATED_SCORES = ("fine-grained_score", "fine_grained_score", "overall_score", "rating", "score", "reward")
_RANKS = ("rank", "ranking")
"""1 is the best."""


class BestAndWorst(NamedTuple):
    """A pair out of several completions."""

    best: str
    worst: str
    scores: tuple[float, float]
    """Of the best and of the worst; a rank counts negative, as the higher score is the better one."""
    disputed: bool
    """Another measure of the same completions has another best one."""


Measure = Callable[[Mapping[str, object]], float | None]


def best_and_worst(completions: object) -> BestAndWorst:
    """The highest and the lowest rated completion, the first of equals.

    Raises UnreadableValueError where there are not two rated ones, or where all are rated the same.
    """
    if not isinstance(completions, list):
        raise UnreadableValueError("missing" if completions is None else "type")
    items = [(text, item) for item in completions if isinstance(item, dict) and (text := _rated_text(item)) is not None]
    measured = {name: [measure(item) for _, item in items] for name, measure in _MEASURES.items()}
    name = max(measured, key=lambda each: sum(value is not None for value in measured[each]))  # the first of equals
    rated = [(value, text) for value, (text, _) in zip(measured[name], items, strict=True) if value is not None]
    if len(rated) < 2:
        raise UnreadableValueError("unrated")
    best = max(rated, key=lambda each: each[0])
    worst = min(rated, key=lambda each: each[0])
    if best[0] == worst[0]:
        raise UnreadableValueError("tied-ratings")
    disputed = any(_disputes(values, measured[name]) for values in measured.values())
    return BestAndWorst(best[1], worst[1], (best[0], worst[0]), disputed)


def _disputes(other: list[float | None], measure: list[float | None]) -> bool:
    """Whether a second measure puts none of the best completions of the first one at its top."""
    both = [(one, two) for one, two in zip(measure, other, strict=True) if one is not None and two is not None]
    if len(both) < 2:
        return False
    best, top = max(one for one, _ in both), max(two for _, two in both)
    return not any(one == best and two == top for one, two in both)


def _rated_text(item: Mapping[str, object]) -> str | None:
    """The completion: plain, or the reply at the end of messages."""
    for name in _RATED_TEXTS:
        value = item.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, list) and value:
            turns = turns_of(value, "assistant", lambda _: None)
            return turns[-1].content if turns[-1].role == "assistant" else None
    return None


def _aspects(item: Mapping[str, object]) -> float | None:
    """The mean of the ratings of single aspects."""
    aspects = item.get("annotations")
    found = []
    for each in aspects.values() if isinstance(aspects, dict) else ():
        value = each.get("Rating", each.get("rating")) if isinstance(each, dict) else each
        number = number_of(value)
        if number is not None:
            found.append(number)
    return sum(found) / len(found) if found else None


def _score(name: str) -> Measure:
    return lambda item: number_of(item.get(name))


def _rank(name: str) -> Measure:
    def measure(item: Mapping[str, object]) -> float | None:
        number = number_of(item.get(name))
        return None if number is None else -number

    return measure


_MEASURES: dict[str, Measure] = {
    "annotations": _aspects,
    **{name: _score(name) for name in _RATED_SCORES},
    **{name: _rank(name) for name in _RANKS},
}
"""Nearest to what people meant first."""


def number_of(value: object) -> float | None:
    """A number; some files hold numbers as texts, `8/10`, and `N/A` where there is none.

    None too of what no float can hold.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        if isinstance(value, str) and value.count("/") == 1:
            part, whole = value.split("/")
            value = float(part) / float(whole)
        number = float(value)
    except (ValueError, OverflowError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) else None
