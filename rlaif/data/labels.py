"""What the labels of a file carry, and whether refusing is what they teach."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlaif.data.lengths import LEAST_PAIRS
from rlaif.data.ratings import number_of
from rlaif.data.report import Finding, Labels, Refusals
from rlaif.data.rules import about_file
from rlaif.data.shapes import Reading
from rlaif.data.texts import refuses
from rlaif.data.turns import Odd

_REFUSAL_GAP = 0.1
_MINORITY = 0.2
_FLAT = 0.98
"""Bits; labels of 0.58 have as many."""


@dataclass
class LabelSums:
    """Soft labels, or classes."""

    soft: int = 0
    half: int = 0
    certain: int = 0
    good: int = 0
    bad: int = 0
    _entropy: float = 0.0

    def add(self, reading: Reading, odd: Odd) -> None:
        """Take one row's label in; `odd` is told the rules that it breaks."""
        if reading.rejected is None or reading.chosen is None:
            self.good += reading.chosen is not None
            self.bad += reading.chosen is None
        if reading.scores is not None and reading.scores[0] < reading.scores[1]:
            odd("score-side")
        if reading.probability is not None:
            self._add_soft(reading.probability, odd)

    def _add_soft(self, value: object, odd: Odd) -> None:
        probability = number_of(value)
        if probability is None or not 0 <= probability <= 1:
            odd("probability-range")
            return
        self.soft += 1
        self.half += probability == 0.5
        self.certain += probability in (0.0, 1.0)
        self._entropy += entropy(probability)
        if probability == 0.5:
            odd("label-half")
        elif probability < 0.5:
            odd("probability-side")

    def result(self) -> Labels | None:
        """The figures, or None where there are no labels but the order itself."""
        if self.good + self.bad:
            return Labels(rows=self.good + self.bad, desirable=self.good / (self.good + self.bad))
        if not self.soft:
            return None
        half, certain = self.half / self.soft, self.certain / self.soft
        return Labels(rows=self.soft, half=half, certain=certain, entropy=self._entropy / self.soft)


def entropy(probability: float) -> float:
    """Of one soft label, in bits."""
    return -sum(p * math.log2(p) for p in (probability, 1 - probability) if p > 0)


def label_finding(labels: Labels | None) -> Finding | None:
    """What to say about the labels as a whole."""
    if labels is None:
        return None
    if labels.desirable is not None:
        return _class_finding(labels.rows, labels.desirable)
    if labels.certain == 1.0:
        what, mend = "all soft labels are exactly 0 or 1: they are hard labels", "nothing, if that is meant"
        return about_file("note", "hard-labels", labels.rows, what, mend)
    if labels.rows >= LEAST_PAIRS and labels.entropy is not None and labels.entropy > _FLAT:
        what = f"soft labels are all near 0.5 (mean entropy {labels.entropy:.3f} bits): they say next to nothing"
        return about_file("warning", "flat-labels", labels.rows, what, "ask a better judge, or for other replies")
    return None


def _class_finding(rows: int, desirable: float) -> Finding | None:
    if desirable in (0.0, 1.0):
        what = f"all replies are {'desirable' if desirable else 'undesirable'}: nothing to tell apart"
        return about_file("error", "one-class", rows, what, "add the others")
    if min(desirable, 1 - desirable) >= _MINORITY:
        return None
    mend = "weigh the classes (TRL: desirable_weight, undesirable_weight), or balance them"
    return about_file("warning", "class-balance", rows, f"{desirable:.0%} of the replies are desirable", mend)


@dataclass
class RefusalSums:
    """Replies that open like a refusal, on both sides."""

    chosen: int = 0
    rejected: int = 0

    def add(self, reading: Reading) -> None:
        """Take one row in."""
        self.chosen += reading.chosen is not None and refuses(reading.chosen)
        self.rejected += reading.rejected is not None and refuses(reading.rejected)

    def result(self, chosen: int, rejected: int) -> Refusals:
        """The shares of so many chosen and rejected replies."""
        return Refusals(chosen=self.chosen / max(chosen, 1), rejected=self.rejected / max(rejected, 1))


def refusal_finding(refusals: Refusals, rows: int) -> Finding | None:
    """What to say about refusals: a gap between the sides is what a model learns."""
    gap = refusals.chosen - refusals.rejected
    if rows < LEAST_PAIRS or abs(gap) < _REFUSAL_GAP:
        return None
    what = f"{refusals.chosen:.0%} of the chosen and {refusals.rejected:.0%} of the rejected replies open as refusals"
    mend = "if the model should not " + ("refuse more" if gap > 0 else "refuse less") + ", balance the two sides"
    return about_file("warning", "refusal-gap", rows, what, mend)
