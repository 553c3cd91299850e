"""Which samples meet, and under which criteria: everything is drawn by hash, so nothing moves when a run grows.

- **Opponents.** The k-th sample meets at most `opponents` of those before it, a revision its original above all. Up to
  `opponents` + 1 samples this is the round robin; beyond it the cost grows by `opponents` comparisons a sample instead
  of by all of them, the graph stays connected, and raising the number of samples keeps every comparison made before.
- **Criteria.** `one` draws a principle a pair, as in arXiv:2212.08073, by weighted rendezvous hashing: rewording a
  principle moves no pair, adding one takes over only its share of them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeVar

from rlaif.config.schemas import CompareSettings
from rlaif.constitution import Constitution
from rlaif.feedback.prompts import joint_question
from rlaif.records import Sample

_MASK = 2**64 - 1

WHOLE = "*"
"""Criterion id of `principles: all`: the whole constitution in one question."""


class Criterion(NamedTuple):
    """What a pair is judged by: one principle, or the whole constitution."""

    id: str
    weight: float
    compare: str
    critique: str | None
    """Request to the reviewer; None where the principle has none."""


class Matchup(NamedTuple):
    """Two samples of one prompt (`left` was drawn earlier) and the criteria that they are judged by."""

    left: Sample
    right: Sample
    criteria: tuple[Criterion, ...]


def criteria_of(constitution: Constitution, principles: str) -> tuple[Criterion, ...]:
    """The criteria that `compare.principles` makes of a constitution."""
    each = tuple(Criterion(p.id, p.weight, p.compare, p.critique) for p in constitution.principles)
    if principles != "all":
        return each
    requests = [criterion.critique for criterion in each if criterion.critique]
    joint = joint_question([criterion.compare for criterion in each])
    return (Criterion(WHOLE, 1.0, joint, "\n".join(requests) or None),)


def matchups(samples: Sequence[Sample], criteria: Sequence[Criterion], settings: CompareSettings) -> list[Matchup]:
    """The matchups of one prompt's samples, given in the order of their index.

    Blank answers and repeated texts meet nobody: a pair needs two different answers.
    """
    met: list[Matchup] = []
    distinct = distinct_samples(samples)
    for at, later in enumerate(distinct):
        for earlier in _opponents(distinct[:at], later, settings.opponents):
            pair = (earlier.id, later.id)
            chosen = (draw(criteria, pair),) if settings.principles == "one" else tuple(criteria)
            met.append(Matchup(earlier, later, chosen))
    return met


def _opponents(before: list[Sample], later: Sample, most: int) -> list[Sample]:
    """At most `most` of the samples before a later one, drawn by hash, in their own order; a revision's original is
    always one of them."""
    if len(before) <= most:
        return before

    def place(earlier: Sample) -> tuple[bool, int]:
        return earlier.id != later.revision_of, _hash(earlier.id, later.id)

    drawn = {sample.id for sample in sorted(before, key=place)[:most]}
    return [sample for sample in before if sample.id in drawn]


def distinct_samples(samples: Sequence[Sample]) -> list[Sample]:
    """The samples without blank ones and without repetitions of an earlier text (white space at the ends apart)."""
    first: dict[str, Sample] = {}
    for sample in samples:
        text = sample.text.strip()
        if text:
            first.setdefault(text, sample)
    return list(first.values())


class Weighted(Protocol):
    """Something to draw: a criterion or a principle."""

    @property
    def id(self) -> str:
        """Its name, from which its bids are hashed."""
        ...

    @property
    def weight(self) -> float:
        """Its share in the draw."""
        ...


W = TypeVar("W", bound=Weighted)


def draw(criteria: Sequence[W], key: tuple[str, ...]) -> W:
    """One of the criteria for a pair of sample ids, or another key, with probability proportional to its weight.

    The order of the key's parts does not matter.
    Each bids an exponential waiting time with its weight as the rate, from the hash of the pair and its own id.
    """
    own = _hash(*sorted(key))
    best, lowest = 0, math.inf
    for at, (name, mean) in enumerate(_bidders(tuple((c.id, c.weight) for c in criteria))):
        # The finalizer of SplitMix64 (Steele et al. 2014) scrambles the two hashes in a tenth of the time of a third.
        x = own ^ name
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
        bid = -math.log(((x ^ (x >> 31)) + 0.5) / 2**64) * mean
        if bid < lowest:
            best, lowest = at, bid
    return criteria[best]


@lru_cache(maxsize=8)
def _bidders(named: tuple[tuple[str, float], ...]) -> list[tuple[int, float]]:
    """Hash of the name, and mean waiting time, of each criterion."""
    return [(_hash("criterion", name), 1 / weight) for name, weight in named]


def drawn_order(pair: tuple[str, str]) -> tuple[str, str]:
    """The one order that `orders: random` shows this pair in."""
    return pair if _hash("order", *pair) < 2**63 else pair[::-1]


def _hash(*parts: str) -> int:
    """A uniform 64-bit number, a function of `parts` alone."""
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
