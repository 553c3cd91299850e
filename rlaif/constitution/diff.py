"""What changed between two constitutions, principle by principle. Pure: no files, no model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from rlaif.constitution.model import Constitution, Principle

_TEXTS = ("compare", "critique", "revise")

_WORD = re.compile(r"\w+\s*|[^\w\s]\s*|\s+")
"""A word or a mark, with the white space after it."""


class Kind(StrEnum):
    """What happened to a principle; several things may have."""

    ADDED = "added"
    REMOVED = "removed"
    RENAMED = "renamed"
    """The same texts under another id."""
    REWORDED = "reworded"
    REWEIGHTED = "reweighted"
    MOVED = "moved"
    """Another place among the principles that both constitutions have."""
    TAGS = "tags"
    EXAMPLES = "examples"


QUIET = frozenset({Kind.MOVED, Kind.TAGS, Kind.EXAMPLES})
"""What moves no label, save that `principles: all` shows the principles in their order."""


class Wording(NamedTuple):
    """A text before and after."""

    part: str
    """`compare`, `critique` or `revise`."""
    old: str | None
    new: str | None


class Words(NamedTuple):
    """A piece of two texts, as it stands in each; what is the same may differ in white space."""

    old: str
    new: str
    same: bool


@dataclass(frozen=True, slots=True)
class Change:
    """Everything that happened to one principle."""

    id: str
    """Its id in the new constitution; in the old one, where it was removed."""
    kinds: tuple[Kind, ...]
    was: str | None = None
    """Its id in the old constitution, where it was renamed."""
    wordings: tuple[Wording, ...] = ()
    """The texts that differ; of an added or removed principle, all that it has."""
    weights: tuple[float, float] | None = None
    """Before and after, where they differ."""
    tags: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    """Before and after, where they differ."""
    examples: tuple[int, int] | None = None
    """How many are new and how many are gone, where any are."""

    @property
    def quiet(self) -> bool:
        """Whether no judge notices it."""
        return QUIET.issuperset(self.kinds)


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed, in the order of the new constitution; what was removed comes last."""

    principles: tuple[Change, ...]
    same: int
    """Principles that did not change at all."""

    @property
    def loud(self) -> frozenset[str]:
        """Ids of the principles whose change can move a label."""
        return frozenset(each.id for each in self.principles if not each.quiet)

    @property
    def renamed(self) -> dict[str, str]:
        """Old id -> new id."""
        return {each.was: each.id for each in self.principles if each.was is not None}


def changes(old: Constitution, new: Constitution) -> Changes:
    """Compare two constitutions. Principles are the same by id; after that, by their three texts (renamed)."""
    before, after = ({p.id: p for p in each.principles} for each in (old, new))
    joined = {name: name for name in after if name in before} | _renamed(before, after)
    moved = _moved([name for name in before if name in joined.values()], [joined[n] for n in after if n in joined])
    found: list[Change] = []
    for name, principle in after.items():
        was = joined.get(name)
        change = _added(principle) if was is None else _changed(before[was], principle, was in moved)
        if change.kinds:
            found.append(change)
    removed = [_removed(principle) for name, principle in before.items() if name not in joined.values()]
    return Changes((*found, *removed), same=len(after) - len(found))


def words(old: str, new: str) -> Iterator[Words]:
    """Both texts piece by piece, cut between words where they part and where they meet again."""
    left, right = _WORD.findall(old), _WORD.findall(new)
    # White space after a word tells no two words apart: the last word of a text has none.
    matcher = difflib.SequenceMatcher(None, [w.strip() for w in left], [w.strip() for w in right], autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        yield Words("".join(left[a:b]), "".join(right[c:d]), tag == "equal")


def _renamed(before: dict[str, Principle], after: dict[str, Principle]) -> dict[str, str]:
    """New id -> old id of the principles whose id is new and whose texts are those of one that is gone."""
    gone = {name: _texts(principle) for name, principle in before.items() if name not in after}
    found: dict[str, str] = {}
    for name, principle in after.items():
        if name in before:
            continue
        was = next((old for old, texts in gone.items() if texts == _texts(principle)), None)
        if was is not None:
            found[name] = was
            del gone[was]
    return found


def _moved(before: Sequence[str], after: Sequence[str]) -> set[str]:
    """Ids out of the common order of two lists of the same ids."""
    blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
    kept = {name for block in blocks for name in before[block.a : block.a + block.size]}
    return set(before) - kept


def _texts(principle: Principle) -> tuple[str | None, ...]:
    return tuple(getattr(principle, part) for part in _TEXTS)


def _wordings(old: Principle | None, new: Principle | None) -> tuple[Wording, ...]:
    pairs = ((part, getattr(old, part, None), getattr(new, part, None)) for part in _TEXTS)
    return tuple(Wording(part, before, after) for part, before, after in pairs if before != after)


def _added(principle: Principle) -> Change:
    return Change(principle.id, (Kind.ADDED,), wordings=_wordings(None, principle))


def _removed(principle: Principle) -> Change:
    return Change(principle.id, (Kind.REMOVED,), wordings=_wordings(principle, None))


def _changed(old: Principle, new: Principle, moved: bool) -> Change:
    wordings = _wordings(old, new)
    fresh = sum(example not in old.examples for example in new.examples)
    gone = sum(example not in new.examples for example in old.examples)
    told = {
        Kind.RENAMED: old.id != new.id,
        Kind.REWORDED: bool(wordings),
        Kind.REWEIGHTED: old.weight != new.weight,
        Kind.MOVED: moved,
        Kind.TAGS: old.tags != new.tags,
        Kind.EXAMPLES: old.examples != new.examples,
    }
    return Change(
        new.id,
        tuple(kind for kind, is_so in told.items() if is_so),
        was=old.id if told[Kind.RENAMED] else None,
        wordings=wordings,
        weights=(old.weight, new.weight) if told[Kind.REWEIGHTED] else None,
        tags=(old.tags, new.tags) if told[Kind.TAGS] else None,
        examples=(fresh, gone) if told[Kind.EXAMPLES] else None,
    )
