"""Rows of two numbered responses and a column that says which is better, as people and judges annotate them.

Which columns these are is seen from one row: `output_1` and `output_2`, `response_a` and `response_b`, a list of two.
What the values of the winner's column mean is seen from all rows of the file (`rlaif.data.winners`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlaif.data.turns import UnreadableValueError

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
