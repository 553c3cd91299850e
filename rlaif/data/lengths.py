"""How long the chosen and the rejected replies are: the bias that every reward model learns first."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from rlaif.data.report import Finding, Lengths
from rlaif.data.rules import about_file

LEAST_PAIRS = 30
"""Below it, shares and effect sizes are noise and nothing is said about them."""
_LONGEST = 100_000
"""Longer replies count as this long in the histograms."""
_SMALL_EFFECT, _MEDIUM_EFFECT = 0.2, 0.5
"""Cohen's own marks (Statistical Power Analysis for the Behavioral Sciences, 1988)."""
_LENGTH_SHARE = 0.65


@dataclass
class Moments:
    """Count, mean and spread of numbers that pass by (Welford's method)."""

    count: int = 0
    mean: float = 0.0
    _squares: float = 0.0

    def add(self, value: float) -> None:
        """Take one number in."""
        self.count += 1
        step = value - self.mean
        self.mean += step / self.count
        self._squares += step * (value - self.mean)

    @property
    def variance(self) -> float:
        """Of the sample (n - 1); 0 for fewer than two numbers."""
        return self._squares / (self.count - 1) if self.count > 1 else 0.0


@dataclass
class LengthSums:
    """Lengths of chosen and rejected replies, as histograms and as moments of log(1 + length)."""

    chosen: Counter[int] = field(default_factory=Counter)
    rejected: Counter[int] = field(default_factory=Counter)
    _logs: tuple[Moments, Moments] = field(default_factory=lambda: (Moments(), Moments()))
    _pairs: int = 0
    _longer: int = 0
    _shorter: int = 0

    def add(self, chosen: int | None, rejected: int | None) -> None:
        """Take a pair in, or one reply of unpaired data."""
        for length, counts, moments in zip((chosen, rejected), (self.chosen, self.rejected), self._logs, strict=True):
            if length is not None:
                counts[min(length, _LONGEST)] += 1
                moments.add(math.log1p(length))
        if chosen is not None and rejected is not None:
            self._pairs += 1
            self._longer += chosen > rejected
            self._shorter += chosen < rejected

    def result(self) -> Lengths | None:
        """The figures, or None where one side has no reply."""
        if not self.chosen or not self.rejected:
            return None
        pairs = self._pairs
        return Lengths(
            pairs=pairs,
            chosen_longer=self._longer / pairs if pairs else None,
            rejected_longer=self._shorter / pairs if pairs else None,
            median_chosen=median(self.chosen),
            median_rejected=median(self.rejected),
            effect_size=self._effect(),
            auc=area(self.chosen, self.rejected),
        )

    def _effect(self) -> float | None:
        """Cohen's d: the difference of the means over the pooled deviation of both sides, of pairs and others alike.

        Over the deviation of the pairs' differences it would be another scale, larger where lengths go together.
        """
        one, other = self._logs
        weights = one.count + other.count - 2
        pooled = ((one.count - 1) * one.variance + (other.count - 1) * other.variance) / weights if weights > 0 else 0.0
        return (one.mean - other.mean) / math.sqrt(pooled) if pooled > 0 else None


def median(counts: Counter[int]) -> int:
    """The lower median of a histogram."""
    half, seen = (counts.total() + 1) // 2, 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= half:
            return value
    return 0


def area(chosen: Counter[int], rejected: Counter[int]) -> float:
    """P(chosen > rejected) + P(equal) / 2 over all of either: the area under the ROC curve (Mann-Whitney's U / nm)."""
    below, won = 0, 0.0
    for value in sorted(chosen.keys() | rejected.keys()):
        won += chosen[value] * (below + rejected[value] / 2)
        below += rejected[value]
    return won / (chosen.total() * rejected.total())


def length_finding(lengths: Lengths | None, rows: int) -> Finding | None:
    """What to say about length in `rows` rows, where there is enough of it."""
    if lengths is None or rows < LEAST_PAIRS:
        return None
    effect = abs(lengths.effect_size or 0.0)
    share = max(lengths.chosen_longer or 0.0, lengths.rejected_longer or 0.0)
    if effect < _SMALL_EFFECT and share < _LENGTH_SHARE:
        return None
    return about_file(
        "warning" if effect >= _MEDIUM_EFFECT or share >= _LENGTH_SHARE else "note",
        "length-bias",
        rows,
        f"{_told(lengths)}: length alone is a reward with AUC {lengths.auc:.2f}",
        "compare any reward model with that baseline; balance lengths, or judge with a principle against padding",
    )


def _told(lengths: Lengths) -> str:
    longer = lengths.auc >= 0.5
    often = lengths.chosen_longer if longer else lengths.rejected_longer
    figures = [] if often is None else [f"in {often:.0%} of the pairs"]
    if lengths.effect_size is not None:
        figures.append(f"Cohen's d of log length {lengths.effect_size:+.2f}")
    return f"chosen replies are {'longer' if longer else 'shorter'} ({', '.join(figures)})"
