"""Matchups: the pairs of samples that are compared, and the criteria that they are compared under.

Everything is sampled by hash, so nothing moves when a run grows.

- **Opponents.** The k-th sample is compared with at most `opponents` of those before it, a revision with its original
  above all. Up to `opponents` + 1 samples this is the round robin. Beyond it the cost grows by `opponents` comparisons
  a sample instead of by all of them, the graph stays connected, and raising the number of samples keeps every
  comparison made before.
- **Criteria.** `one` draws a principle a pair, as in arXiv:2212.08073, by weighted rendezvous hashing: rewording a
  principle moves no pair, and adding one takes over only its share of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeVar

from rlaif.config.schemas import CompareSettings
from rlaif.constitution import Constitution
from rlaif.feedback.prompts import joint_question
from rlaif.feedback.sampling import hash64
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
    """Two samples of one prompt (`left` has the lower index) and the criteria that they are judged by."""

    left: Sample
    right: Sample
    criteria: tuple[Criterion, ...]


def criteria_of(constitution: Constitution, principles: str) -> tuple[Criterion, ...]:
    """The criteria that `compare.principles` makes of a constitution."""
    criteria = tuple(Criterion(p.id, p.weight, p.compare, p.critique) for p in constitution.principles)
    if principles != "all":
        return criteria
    requests = [criterion.critique for criterion in criteria if criterion.critique]
    joint = joint_question([criterion.compare for criterion in criteria])
    return (Criterion(WHOLE, 1.0, joint, "\n".join(requests) or None),)


def matchups(samples: Sequence[Sample], criteria: Sequence[Criterion], settings: CompareSettings) -> list[Matchup]:
    """The matchups of one prompt's samples, given in the order of their index.

    Blank and repeated responses are left out: a pair needs two different responses.
    """
    rows: list[Matchup] = []
    distinct = distinct_samples(samples)
    for at, later in enumerate(distinct):
        for earlier in _opponents(distinct[:at], later, settings.opponents):
            pair = (earlier.id, later.id)
            chosen = (draw(criteria, pair),) if settings.principles == "one" else tuple(criteria)
            rows.append(Matchup(earlier, later, chosen))
    return rows


def _opponents(before: list[Sample], later: Sample, limit: int) -> list[Sample]:
    """At most `limit` of the samples before a later one, drawn by hash, in their own order; a revision's original is
    always one of them."""
    if len(before) <= limit:
        return before

    def priority(earlier: Sample) -> tuple[bool, int]:
        return earlier.id != later.revision_of, hash64(earlier.id, later.id)

    selected = {sample.id for sample in sorted(before, key=priority)[:limit]}
    return [sample for sample in before if sample.id in selected]


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

    The order of the key's parts does not matter. Each criterion bids an exponential waiting time with its weight as
    the rate, from the hash of the pair and its own id.
    """
    pair_hash = hash64(*sorted(key))
    best, lowest = 0, math.inf
    for at, (criterion_hash, mean) in enumerate(_bidders(tuple((c.id, c.weight) for c in criteria))):
        # The finalizer of SplitMix64 (Steele et al. 2014) scrambles the two hashes in a tenth of the time of a third.
        x = pair_hash ^ criterion_hash
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
        bid = -math.log(((x ^ (x >> 31)) + 0.5) / 2**64) * mean
        if bid < lowest:
            best, lowest = at, bid
    return criteria[best]


@lru_cache(maxsize=8)
def _bidders(named: tuple[tuple[str, float], ...]) -> list[tuple[int, float]]:
    """Hash of the name, and mean waiting time, of each criterion."""
    return [(hash64("criterion", name), 1 / weight) for name, weight in named]


def drawn_order(pair: tuple[str, str]) -> tuple[str, str]:
    """The one order that `orders: random` shows this pair in."""
    return pair if hash64("order", *pair) < 2**63 else pair[::-1]
