"""One pass over the judge's answers: label mass, slots, and what each principle did to the labels.

The answers are joined to the comparisons by id, as numbers: millions of them fit, and no text is kept but that of the
prompts that are shown.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.comparisons.fold import logit_of
from rlaif.errors import RecordError
from rlaif.page.counting import Plan, histogram, status_number
from rlaif.page.figures import Slot, Verdicts
from rlaif.page.reading import Rows, key_of, rows


class Reading(NamedTuple):
    """How a run reads its judges' answers."""

    least_mass: float = 0.5
    weights: Mapping[str, float] | None = None
    """Of the principles; None where they are not known any more."""
    temperatures: Mapping[str, float] = {}
    """By judge."""
    shares: Mapping[str, float] = {}
    """Weights of a panel's judges."""
    removed: Mapping[str, float] = {}
    """By judge, what was taken off the first slot."""
    both: bool = True
    """Pairs are asked in both orders."""

    def of(self, judge: str) -> dict[str, float]:
        """How that judge's log-odds are read, where it is not as they are."""
        temperature, slot = self.temperatures.get(judge, 1.0), self.removed.get(judge, 0.0)
        return {} if (temperature, slot) == (1.0, 0.0) else {"temperature": temperature, "slot": slot}


class Tally(NamedTuple):
    """What one principle did."""

    compared: int
    flips: int
    agreed: int | None
    opposed: int | None
    decided: int | None


@dataclass
class _Columns:
    """The answers, a number a thing."""

    key: array[int] = field(default_factory=lambda: array("Q"))
    first: array[int] = field(default_factory=lambda: array("Q"))
    second: array[int] = field(default_factory=lambda: array("Q"))
    principle: array[int] = field(default_factory=lambda: array("H"))
    judge: array[int] = field(default_factory=lambda: array("B"))
    logit: array[float] = field(default_factory=lambda: array("d"))
    """Log-odds of the first slot, as the judge gave them; NaN where there is no label."""
    read: array[float] = field(default_factory=lambda: array("d"))
    """The same as the run reads them: less what is taken off the slot, over the temperature."""
    mass: array[float] = field(default_factory=lambda: array("d"))
    flags: array[int] = field(default_factory=lambda: array("B"))
    """1 unparsed, 2 truncated, 4 hard."""
    principles: dict[str, int] = field(default_factory=dict)
    judges: dict[str, int] = field(default_factory=dict)

    def add(self, row: dict[str, Any], reading: Reading) -> None:
        self.key.append(key_of(row["id"]))
        self.first.append(key_of(row["first"]))
        self.second.append(key_of(row["second"]))
        self.principle.append(self.principles.setdefault(row["principle"], len(self.principles)))
        self.judge.append(self.judges.setdefault(row["judge"], len(self.judges)))
        said, how = told_logit(row, reading.least_mass), reading.of(row["judge"])
        self.logit.append(said)
        self.read.append(told_logit(row, reading.least_mass, **how) if how else said)
        mass = row.get("label_mass")
        self.mass.append(math.nan if mass is None else mass)
        hard = row.get("logprobs") is None
        self.flags.append((row["verdict"] == "unparsed") + 2 * bool(row.get("truncated")) + 4 * hard)


def told_logit(row: Mapping[str, Any], least_mass: float, **how: float) -> float:
    """Log-odds of the first slot in one answer on disk; NaN where it has no label. See `comparisons.fold.logit_of`."""
    both = row.get("logprobs")
    if both is not None:
        first, second = (-math.inf if each is None else each for each in both)  # JSON has no infinity
        both = (first, second)
    found = logit_of(row["verdict"], both, row.get("label_mass"), min_mass=least_mass, **how)
    return math.nan if found is None else found


def read_verdicts(
    folder: Path, plan: Plan, reading: Reading, wanted: frozenset[str], read: Rows = rows
) -> tuple[Verdicts | None, dict[str, Tally], dict[str, dict[str, Any]]]:
    """The figures, what each principle did, and the answers about the `wanted` prompts by id.

    None, and nothing, where there are no answers. Raises RecordError on a broken line.
    """
    columns, kept = _Columns(), {}
    path = folder / "judgements.jsonl"
    for number, row in enumerate(read(path), start=1):
        try:
            columns.add(row, reading)
            if row["prompt"] in wanted:
                kept[row["id"]] = row
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise RecordError(path, number, f"not a judgement: {error}") from None
    if not columns.key:
        return None, {}, {}
    at, asked = _joined(columns, plan)
    found = _verdicts(columns, at, reading)
    return found, (_tallies(columns, at, asked, plan, reading) if plan.left else {}), kept


def _joined(columns: _Columns, plan: Plan) -> tuple[Any, Any]:
    """The places of the answers that are in the plan, and their places there. Without a plan, all of them."""
    import numpy as np

    if not plan.left:
        return np.arange(len(columns.key)), None
    keys, asked = np.array(columns.key, dtype=np.uint64), np.array(plan.answers, dtype=np.uint64)
    # Of an id that is there twice, the later line counts, as in a table.
    _, last = np.unique(keys[::-1], return_index=True)
    places = np.sort(len(keys) - 1 - last)
    order = np.argsort(asked)
    ordered = asked[order]
    spots = np.minimum(np.searchsorted(ordered, keys[places]), max(len(ordered) - 1, 0))
    known = ordered[spots] == keys[places] if len(ordered) else np.zeros(len(places), bool)
    return places[known], order[spots[known]] if len(ordered) else places[:0]


def _verdicts(columns: _Columns, at: Any, reading: Reading) -> Verdicts:
    import numpy as np

    flags, masses = np.array(columns.flags)[at], np.array(columns.mass)[at]
    logits, judges = np.array(columns.logit)[at], np.array(columns.judge)[at]
    masses = masses[~np.isnan(masses)]
    slots = []
    for name, number in columns.judges.items():
        own = logits[(judges == number) & ~np.isnan(logits)]
        sided = own[own != 0]
        if len(own):
            first = float((sided > 0).mean()) if len(sided) else None
            bias, removed = float(own.mean()), reading.removed.get(name)
            slots.append(Slot(judge=name, verdicts=len(sided), first=first, bias=bias, removed=removed))
    return Verdicts(
        judgements=len(at),
        unused=len(columns.key) - len(at),
        unparsed=int((flags & 1 > 0).sum()),
        truncated=int((flags & 2 > 0).sum()),
        low_mass=int((masses < reading.least_mass).sum()),
        hard=int((flags & 4 > 0).sum()),
        mass=histogram(masses, np.linspace(0, 1, 21)) if len(masses) else None,
        mass_mean=float(masses.mean()) if len(masses) else None,
        slots=tuple(slots),
    )


def _forward(columns: _Columns, at: Any, asked: Any, of: Any, plan: Plan) -> Any:
    """Whether each answer shows the left sample first: as it says itself, or where it names others, as planned."""
    import numpy as np

    first, second = (np.array(each, dtype=np.uint64)[at] for each in (columns.first, columns.second))
    left, right = (np.array(each, dtype=np.uint64)[of] for each in (plan.left, plan.right))
    planned = np.array(plan.forward, dtype=bool)[asked]
    return np.where(
        (first == left) | (second == right), True, np.where((first == right) | (second == left), False, planned)
    )


def _tallies(columns: _Columns, at: Any, asked: Any, plan: Plan, reading: Reading) -> dict[str, Tally]:
    import numpy as np

    principles, judges = len(columns.principles), len(columns.judges)
    # In a comparison with a failed answer, or that most of a panel cannot read, no principle counts.
    status = np.array(plan.status)[np.array(plan.of, dtype=np.int64)[asked]]
    whole = (status != status_number("failed")) & (status != status_number("unparsed"))
    at, asked = at[whole], asked[whole]
    of = np.array(plan.of, dtype=np.int64)[asked]
    forward = _forward(columns, at, asked, of, plan)
    judge = np.array(columns.judge, dtype=np.int64)[at]
    logit = np.array(columns.read)[at]
    logit = np.where(forward, logit, -logit)
    # One row a comparison, principle and judge: the mean of its orders, NaN where an order has no label.
    cell = (of * principles + np.array(columns.principle, dtype=np.int64)[at]) * judges + judge
    cells, inverse = np.unique(cell, return_inverse=True)
    orders = np.bincount(inverse)
    mean = np.bincount(inverse, weights=logit) / orders
    lowest, highest = np.full(len(cells), np.inf), np.full(len(cells), -np.inf)
    with np.errstate(invalid="ignore"):  # those without a label have no mean either, and are left out by it
        np.minimum.at(lowest, inverse, logit)
        np.maximum.at(highest, inverse, logit)
    flip = (lowest < 0) & (highest > 0)
    return _by_principle(columns, cells, mean, flip, plan, reading)


def _by_principle(
    columns: _Columns, cells: Any, mean: Any, flip: Any, plan: Plan, reading: Reading
) -> dict[str, Tally]:
    import numpy as np

    readable = ~np.isnan(mean)
    cells, mean, flip = cells[readable], mean[readable], flip[readable]
    principles, judges = len(columns.principles), len(columns.judges)
    comparison, principle = cells // judges // principles, cells // judges % principles
    status = np.array(plan.status, dtype=np.int8)
    said = np.array(plan.probability)
    side = np.where(status == 0, np.sign(said - 0.5), 0)
    part = _parts(columns, cells, mean, reading)
    found = {}
    for name, number in columns.principles.items():
        own = principle == number
        # A panel's judges may differ: the principle's word is the sum of its parts, its flips those of most judges.
        seen, inverse = np.unique(comparison[own], return_inverse=True)
        many = np.bincount(inverse, minlength=len(seen))
        flips = np.bincount(inverse, weights=flip[own], minlength=len(seen))
        weights = part[own] if part is not None else mean[own]
        word = np.bincount(inverse, weights=weights, minlength=len(seen))
        label = side[seen]
        decided = None
        if part is not None:
            whole = np.bincount(comparison, weights=part, minlength=len(said))[seen]
            decided = int(((label != 0) & (np.sign(whole - word) != label) & (np.sign(whole) == label)).sum())
        found[name] = Tally(
            compared=len(seen),
            flips=int((2 * flips > many).sum()),
            agreed=int(((label != 0) & (np.sign(word) == label)).sum()),
            opposed=int(((label != 0) & (np.sign(word) == -label)).sum()),
            decided=decided,
        )
    return found


def _parts(columns: _Columns, cells: Any, mean: Any, reading: Reading) -> Any:
    """What every cell adds to the log-odds of its comparison; None where the weights are not known."""
    import numpy as np

    names = list(columns.principles)
    known = reading.weights
    if known is None or not all(name in known or name == "*" for name in names):
        return None
    principles, judges = len(columns.principles), len(columns.judges)
    weight = np.array([known.get(name, 1.0) for name in names])[cells // judges % principles]
    panel = np.array([reading.shares.get(name, 1.0) for name in columns.judges])[cells % judges]
    ballot = cells // judges // principles * judges + cells % judges
    ballots, inverse = np.unique(ballot, return_inverse=True)
    within = np.bincount(inverse, weights=weight)[inverse]
    # Each judge that has a readable word on the comparison counts once in the sum of the panel's weights.
    shares = np.array([reading.shares.get(name, 1.0) for name in columns.judges])[ballots % judges]
    total = np.bincount(ballots // judges, weights=shares)[cells // judges // principles]
    return mean * weight / within * panel / total
