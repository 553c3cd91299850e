"""What is wrong with a constitution file, and what is weak in it: errors and warnings with their lines.

What is wrong with the wording of a text that a judge reads. Each function quotes the words it objects to.

All of it is pattern matching on English: what it finds is nearly always a weak spot, what it misses may be one too.

What is wrong with a constitution file, and what is weak in it: errors and warnings with their lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import ValidationError

from rlaif.config import yaml
from rlaif.config.yaml import Where
from rlaif.constitution.model import Example, Principle, constitution_problems, find_constitution
from rlaif.errors import UserError
from rlaif.records import Record

_REPLY = r"(?:reply|response|answer|option|candidate|choice|completion|output|assistant)"
_COUNTED = r"(?:questions|parts|steps|times|points|things|to|or|and|of|in|per)\b"
_SLOTS = (
    re.compile(rf"\b(?i:{_REPLY})s?\s*[(\[\"'“‘]?[AB][)\]\"'”’]?(?![\w’'-])"),
    re.compile(r"(?<![Vv]itamin )(?<![Vv]itamins )(?<![Hh]epatitis )\b[AB] (?:or|and|vs\.?|versus|over|than) [AB]\b"),
    re.compile(r"[(\[][AB][)\]]"),
    re.compile(
        rf"\b(?:the|this|that|your) (?:very )?(?:first|second|former|latter|1st|2nd|left-hand|right-hand) {_REPLY}\b",
        re.IGNORECASE,
    ),
    re.compile(
        rf"\b{_REPLY} (?:(?:no\.|number|#) ?(?:[12]|one|two)|#?[12])\b(?![.,]?\d| ?%|[ –-]+{_COUNTED})", re.IGNORECASE
    ),
    re.compile(r"\b(?:prefer|choose|pick|select|is|than) the (?:first|second|former|latter) one\b", re.IGNORECASE),
)
_LISTED = re.compile(r"[(\[]C[)\]]")
"""A third letter: (A), (B), (C) number the points of a list."""


def names_a_slot(text: str) -> str | None:
    """Words that point to one of the two places in the judge's prompt, such as `response A` or `the first reply`."""
    for pattern in _SLOTS[:2] if _LISTED.search(text) else _SLOTS:
        found = pattern.search(text)
        if found:
            return found[0].strip()
    return None


def left_slot(text: str) -> str | None:
    """A slot of some other template that nothing fills here: `{first}`, `{{question}}`."""
    found = re.search(r"\{\{?\s*[A-Za-z_]\w*\s*\}?\}", text)
    return found[0] if found else None


_CLAUSE = re.compile(
    r"[.;:?!,()\[\]—–\n]|\b(?:and|or|but|nor|that|which|who|whom|whose|where|when|while|because|if|whether|although|though"
    r"|unless|until|so|than|as|what|why|how|before|after|since)\b",
    re.IGNORECASE,
)
_IDIOM = re.compile(
    r"\b(?:not (?:only|just|merely|simply|necessarily|least)|no (?:longer|matter|doubt|more|less|fewer)|says? no"
    r"|whether or not|(?:why|if|or) not)\b|[\"“'‘`]no[\"”'’`]",
    re.IGNORECASE,
)
_NOT = r"(?:not|cannot|\w+n['’]t|never)"
_NEGATION = r"(?:not|cannot|\w+n['’]t|never|no|none|nobody|nothing|without|no one)"
_FAILING = r"(?:fail(?:s|ed|ing)?|neglect(?:s|ed|ing)?|refrain(?:s|ed|ing)?|lack(?:s|ed|ing)?|avoid(?:s|ed|ing)?)"
_MILD = r"(?:be|been|being|is|are|seem|sound|feel|appear|look|so|too|very|at all|entirely|completely|in any way)"
_WORDS = r"(?:\s+[\w'’-]+)"
_DOUBLE = (
    re.compile(rf"\b{_NEGATION}{_WORDS}{{0,3}}\s+(?!without\b){_NEGATION}\b", re.IGNORECASE),
    re.compile(rf"\b{_NEGATION}(?:\s+{_MILD}){{0,3}}\s+without\b", re.IGNORECASE),
    re.compile(rf"\b{_NEGATION}{_WORDS}{{0,1}}\s+{_FAILING}\b", re.IGNORECASE),
    re.compile(rf"\b(?:fail|neglect)(?:s|ed|ing)? to{_WORDS}{{0,1}}\s+(?:not|{_FAILING})\b", re.IGNORECASE),
    re.compile(rf"\bavoid(?:s|ed|ing)?{_WORDS}{{0,1}}\s+(?:not|never|no|{_FAILING})\b", re.IGNORECASE),
)
_LITOTES = re.compile(
    rf"\b{_NOT}(?:\s+{_MILD}){{0,3}}\s+(un[a-z]{{3,}}|dis(?:honest|respectful|courteous|loyal|obedient)"
    r"|im(?:polite|moral|patient|proper)|in(?:accurate|correct|appropriate|considerate|complete|sensitive|tolerant|sincere)"
    r"|irr(?:esponsible|elevant|ational))\b",
    re.IGNORECASE,
)
_NOT_NEGATIVE = re.compile(
    r"un(?:der|less|til|ion|it|iq|iv|ify|cle|iform|anim|load|do\b|leash|pack|wind)", re.IGNORECASE
)
"""Words with `un` in front that negate nothing, or are acts."""


def double_negative(text: str) -> str | None:
    """Two negatives within one clause, such as `not unhelpful` or `does not fail to avoid`."""
    for clause in _CLAUSE.split(_IDIOM.sub(",", text)):
        for pattern in _DOUBLE:
            found = pattern.search(clause)
            if found:
                return " ".join(found[0].split())
        for litotes in _LITOTES.finditer(clause):
            if not _NOT_NEGATIVE.match(litotes[1]):
                return " ".join(litotes[0].split())
    return None


_CHOICE = re.compile(
    r"\b(?:which|whichever|choose|pick|select|prefer|compare|rank|better|best|worse|worst|other"
    r"|(?:both|either|two|the|these) (?:replies|responses|answers)|between)\b",
    re.IGNORECASE,
)
_DEGREE = re.compile(r"\b(?:more|most|less|least|fewer|fewest|than)\b", re.IGNORECASE)
_COMPARATIVE = re.compile(r"\b(?!answer|whether|user|offer|never|after|ever|customer)\w{3,}er\b", re.IGNORECASE)
_ABOUT_ONE = re.compile(
    r"(?:^|(?<=[.?!] ))(?:(?:if|when|where|in)\b[^.?!]*?, )?"
    r"(?:does|do|did|is|are|was|has|have|had|can|could|will|would|should|must|might|how|rate|score|grade)\b[^.?!]*",
    re.IGNORECASE,
)


def asks_about_one(text: str) -> str | None:
    """The question about a single reply (`Is the reply polite?`) in a text that offers no choice between two."""
    if _CHOICE.search(text):
        return None
    found = _ABOUT_ONE.search(" ".join(text.split()))
    return found[0] if found else None


def offers_a_choice(text: str) -> bool:
    """Whether the text holds any word of choosing or comparing; `kinder` and its like count."""
    return any(pattern.search(text) for pattern in (_CHOICE, _DEGREE, _COMPARATIVE))


_COMMON = """
which reply replies response responses answer assistant the a an is are be more most better one of to in on and or it
that this with as for its does do than please choose from person user by at who what
"""
_LITTLE = frozenset(_COMMON.split())


def content_words(text: str) -> frozenset[str]:
    """The words that set a question apart, cut to their first six letters so that `politer` meets `polite`."""
    words = re.findall(r"[^\W_]+", text.lower())
    return frozenset(_stem(word) for word in words if word not in _LITTLE)


def _stem(word: str) -> str:
    for ending in ("ing", "est", "er", "ed", "es", "ly", "e", "s", "r"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    return word[:6]


_LONGEST = 800
"""Characters of a text that stands in every question of its principle; the longest shipped one has 278."""
_LONGEST_REPLY = 12_000
"""Where judge templates cut a reply in the middle."""
_ALIKE = 0.75
"""Shared part of the words of two questions from which on they count as the same."""
_SILENT = 0.01
"""Share of all weights below which a principle hardly ever decides."""


class Finding(Record):
    """One thing that is wrong (`error`: the file does not load) or weak (`warning`)."""

    file: str
    line: int | None
    level: Literal["error", "warning"]
    rule: str
    """Short name of what was looked for."""
    principle: str | None
    """Id of the principle it is about."""
    message: str
    hint: str = ""
    """What to do about it."""

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.level}: {self.message}{f'; {self.hint}' if self.hint else ''}"


def lint_constitution(name_or_path: str | Path) -> list[Finding]:
    """Everything wrong or weak in a shipped constitution or a file, in the order of its lines; nothing raised.

    Where there are errors, the principles that are right in themselves are still looked at for weak spots.
    """
    errors = constitution_problems(name_or_path)
    try:
        source = yaml.read_yaml(find_constitution(name_or_path))
    except UserError:
        return [_error(error, str(name_or_path), None) for error in errors]
    found = [_error(error, source.where, _around(source, error.line)) for error in errors]
    return sorted([*found, *weak_spots(source)], key=lambda finding: (finding.line or 0, finding.level))


def weak_spots(source: yaml.Source) -> list[Finding]:
    """The warnings about a constitution's YAML, in the order of its lines."""
    stands = [_Stand(source, at, principle) for at, principle in _sound(source.data)]
    found = [finding for rule in _RULES for finding in rule(stands)]
    return sorted(found, key=lambda finding: finding.line or 0)


def _error(error: UserError, file: str, principle: str | None) -> Finding:
    where = file if error.where is None else str(error.where)
    rule = "unreadable" if error.what.startswith("not YAML") or error.line is None else "format"
    return Finding(
        file=where, line=error.line, level="error", rule=rule, principle=principle, message=error.what, hint=error.hint
    )


def _items(data: object) -> list[object]:
    listed = data.get("principles") if isinstance(data, dict) else None
    return listed if isinstance(listed, list) else []


def _around(source: yaml.Source, line: int | None) -> str | None:
    """Id of the principle that the line belongs to."""
    found = None
    for at, item in enumerate(_items(source.data)):
        first = source.place(("principles", at)).line
        if line is not None and first is not None and first <= line and isinstance(item, dict):
            found = item.get("id")
    return found if isinstance(found, str) else None


def _sound(data: object) -> Iterator[tuple[int, Principle]]:
    """The principles that are right in themselves, with their index."""
    for at, item in enumerate(_items(data)):
        try:
            yield at, Principle.model_validate(item)
        except ValidationError:
            continue


@dataclass(frozen=True)
class _Stand:
    """A principle and where it stands."""

    source: yaml.Source
    at: int
    principle: Principle

    @property
    def id(self) -> str:
        return self.principle.id

    @cached_property
    def texts(self) -> list[tuple[str, str]]:
        """Key and text of what a model reads."""
        parts = (("compare", self.principle.compare), ("critique", self.principle.critique))
        return [(key, text) for key, text in (*parts, ("revise", self.principle.revise)) if text is not None]

    def line(self, *path: str | int) -> int | None:
        return self.source.place(("principles", self.at, *path)).line

    def warning(self, rule: str, path: Where, message: str, hint: str) -> Finding:
        """A warning about what stands at `path` below the principle."""
        return Finding(
            file=self.source.where, line=self.line(*path), level="warning", rule=rule, principle=self.id,
            message=message, hint=hint,
        )  # fmt: skip


_Rule = Callable[[list[_Stand]], Iterator[Finding]]


def _slots(stands: list[_Stand]) -> Iterator[Finding]:
    for stand in stands:
        for key, text in stand.texts:
            words = names_a_slot(text)
            if words:
                message = f"`{key}` of `{stand.id}` says “{words}”, but every pair is shown in both orders"
                if key != "compare":
                    message = f"`{key}` of `{stand.id}` says “{words}”, but it is asked about one reply alone"
                hint = "say `which reply` or `the better one`" if key == "compare" else "say `the reply`"
                yield stand.warning("slot", (key,), message, hint)


def _left_slots(stands: list[_Stand]) -> Iterator[Finding]:
    for stand in stands:
        for key, text in stand.texts:
            slot = left_slot(text)
            if slot:
                message = f"`{key}` of `{stand.id}` holds {slot}, which nothing fills: the model reads it as it stands"
                yield stand.warning("template-slot", (key,), message, "delete it; conversation and replies stand above")


def _double_negatives(stands: list[_Stand]) -> Iterator[Finding]:
    for stand in stands:
        for key, text in stand.texts:
            words = double_negative(text)
            if words:
                message = f"`{key}` of `{stand.id}` has a double negative, “{words}”"
                yield stand.warning("double-negative", (key,), message, "say it in the positive")


def _one_reply(stands: list[_Stand]) -> Iterator[Finding]:
    hint = "begin with `Which reply ...`"
    for stand in stands:
        compare = stand.principle.compare
        words = asks_about_one(compare)
        if words:
            short = words if len(words) <= 50 else f"{words[:47]}..."
            message = f"`compare` of `{stand.id}` asks about one reply (“{short}”), not which of two is better"
            yield stand.warning("one-reply", ("compare",), message, hint)
        elif not offers_a_choice(compare):
            message = f"`compare` of `{stand.id}` does not ask which of two replies is better"
            yield stand.warning("one-reply", ("compare",), message, hint)


def _too_long(stands: list[_Stand]) -> Iterator[Finding]:
    for stand in stands:
        for key, text in stand.texts:
            if len(text) > _LONGEST:
                message = f"`{key}` of `{stand.id}` has {len(text):,} characters, and every question repeats them"
                yield stand.warning("long", (key,), message, f"say it in {_LONGEST}, or split the principle")
        for at, example in enumerate(stand.principle.examples):
            for key in ("better", "worse"):
                if len(getattr(example, key)) > _LONGEST_REPLY:
                    message = f"`{key}` of `{stand.id}`'s example {at + 1} is so long that the judge sees it cut"
                    yield stand.warning("long", ("examples", at, key), message, f"keep it under {_LONGEST_REPLY:,}")


def _silent(stands: list[_Stand]) -> Iterator[Finding]:
    whole = sum(stand.principle.weight for stand in stands)
    for stand in stands:
        weight, share = stand.principle.weight, stand.principle.weight / whole
        if share < _SILENT:
            message = f"`{stand.id}` hardly ever counts: its weight {weight:g} is {share:.2%} of the whole ({whole:g})"
            yield stand.warning("weight", ("weight",), message, "raise it, or delete the principle")


def _missing_parts(stands: list[_Stand]) -> Iterator[Finding]:
    has = {key: sum(getattr(stand.principle, key) is not None for stand in stands) for key in ("critique", "revise")}
    costs = {"critique": "a run that writes critiques refuses the file", "revise": "a run that revises never draws it"}
    for stand in stands:
        lacking = [key for key in has if has[key] and getattr(stand.principle, key) is None]
        if lacking:
            others = "others have" if max(has[key] for key in lacking) > 1 else "another has"
            named = " and no ".join(f"`{key}`" for key in lacking)
            message = f"`{stand.id}` has no {named} where {others}: " + ", and ".join(costs[key] for key in lacking)
            yield stand.warning("missing-part", ("id",), message, "write " + ("both" if lacking[1:] else "one"))


def _near_duplicates(stands: list[_Stand]) -> Iterator[Finding]:
    words = [content_words(stand.principle.compare) for stand in stands]
    if len(words) > 3:  # what nearly all have in common, such as a frame around each, says nothing
        frame = {word for word in frozenset().union(*words) if sum(word in one for one in words) >= 0.8 * len(words)}
        words = [one - frame or one for one in words]
    for late, stand in enumerate(stands):
        for early, other in enumerate(stands[:late]):
            union = words[late] | words[early]
            alike = len(words[late] & words[early]) / len(union) if union else 1.0
            same = stand.principle.compare == other.principle.compare
            if same or alike >= _ALIKE:
                other_one = f"`{other.id}` (line {other.line('compare')})"
                message = f"`compare` of `{stand.id}` asks {'the' if same else 'nearly the'} same as {other_one}"
                yield stand.warning("near-duplicate", ("compare",), message, "merge the two, or set them apart")
                break


class _Case(NamedTuple):
    """An example, where it stands, and what it says whatever the spelling of its spaces and capitals."""

    stand: _Stand
    at: int
    prompt: str
    better: str
    worse: str

    @property
    def line(self) -> int | None:
        return self.stand.line("examples", self.at)


def _cases(stands: list[_Stand]) -> list[_Case]:
    def plain(text: str) -> str:
        return " ".join(text.lower().split())

    def case(stand: _Stand, at: int, example: Example) -> _Case:
        return _Case(stand, at, plain(example.prompt), plain(example.better), plain(example.worse))

    return [case(stand, at, example) for stand in stands for at, example in enumerate(stand.principle.examples)]


def _examples(stands: list[_Stand]) -> Iterator[Finding]:
    seen: dict[tuple[str, str, str], _Case] = {}
    for case in _cases(stands):
        turned = seen.get((case.prompt, case.worse, case.better))
        if turned:
            place = f"example {turned.at + 1} of `{turned.stand.id}` (line {turned.line})"
            message = f"example {case.at + 1} of `{case.stand.id}` contradicts {place}: better and worse are swapped"
            hint = "decide which reply is better"
            yield case.stand.warning("contradiction", ("examples", case.at), message, hint)
        same = seen.setdefault((case.prompt, case.better, case.worse), case)
        if same is not case and same.stand is case.stand:  # two principles may share a case
            message = f"example {case.at + 1} of `{case.stand.id}` repeats example {same.at + 1} (line {same.line})"
            yield case.stand.warning("duplicate-example", ("examples", case.at), message, "delete one")


_RULES: tuple[_Rule, ...] = (
    _slots, _left_slots, _double_negatives, _one_reply, _too_long, _silent, _missing_parts, _near_duplicates, _examples,
)  # fmt: skip
