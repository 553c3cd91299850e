"""Every figure of a run's data, counted in one pass over its tables.

Reading what others wrote, line by line: fast where there are millions, and patient with what is missing.

One pass over samples, rankings and pairs: every figure of the data. Numbers are kept in memory, texts are not.

One pass over the judge's answers: label mass, slots, and what each principle did to the labels.

The answers are joined to the comparisons by id, as numbers: millions of them fit, and no text is kept but that of the
prompts that are shown.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pydantic_core

from rlaif.errors import RecordError
from rlaif.feedback.aggregate import logit_of
from rlaif.feedback.matchups import drawn_order
from rlaif.feedback.sampling import GIVEN
from rlaif.report.view import Data, Histogram, Lengths, Side, Slot, Verdicts
from rlaif.text import loads

Rows = Callable[[Path], Iterator[dict[str, Any]]]
"""A way to read a table."""

_EVERY = 5000


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a JSONL table as plain data; nothing where there is no such file.

    A torn last line is passed over, as the next writer will cut it off. Raises RecordError on any other broken line.
    """
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = pydantic_core.from_json(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return
                raise RecordError(path, number, str(error)) from None
            if not isinstance(row, dict):
                raise RecordError(path, number, "this line is not a record of this table")
            yield row


def counted(told: Callable[[int], None]) -> Rows:
    """`rows` that tells, now and then, how many rows were read so far in all tables together."""
    total = 0

    def read(path: Path) -> Iterator[dict[str, Any]]:
        nonlocal total
        for row in rows(path):
            total += 1
            if total % _EVERY == 0:
                told(total)
            yield row

    return read


def document(path: Path) -> dict[str, Any]:
    """A JSON file as plain data; empty where there is none, or none that can be read."""
    try:
        found = loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def key_of(identity: str) -> int:
    """The first half of an id as a number: 64 bits tell a million ids apart, at a tenth of the memory."""
    return int(identity[:16], 16)


def within(value: Any, *names: str) -> Any:
    """The value at the end of a path of keys; None where the path breaks off."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


_STATUS = ("labelled", "tie", "flip", "unparsed", "failed")
_LENGTHS = (0, 25, 50, 100, 200, 400, 800, 1600, 3200, 6400)
"""Lower edges of the bins of lengths; the last one is open."""


SampledBy = Callable[[Mapping[str, Any]], bool]
"""Whether a row of samples.jsonl is of the run as it is set up now, and not of earlier settings."""


def every(_: Mapping[str, Any]) -> bool:
    """Any row, where nothing tells."""
    return True


@dataclass
class Plan:
    """The comparisons of the rankings, and which answers each rests on: a number a thing."""

    left: array[int] = field(default_factory=lambda: array("Q"))
    """Of every comparison, the left sample (see `key_of`)."""
    right: array[int] = field(default_factory=lambda: array("Q"))
    probability: array[float] = field(default_factory=lambda: array("d"))
    """That the left one is better; NaN where there is none."""
    status: array[int] = field(default_factory=lambda: array("b"))
    prompt: array[int] = field(default_factory=lambda: array("I"))
    """Number of its prompt among `prompts`."""
    answers: array[int] = field(default_factory=lambda: array("Q"))
    of: array[int] = field(default_factory=lambda: array("I"))
    """Of every answer, the number of its comparison."""
    forward: array[int] = field(default_factory=lambda: array("b"))
    """Of every answer, whether it should show the left sample first (see `shows_left_first`)."""
    prompts: list[str] = field(default_factory=list)
    paired: bytearray = field(default_factory=bytearray)
    """Of every prompt, whether a pair came of it."""


def status_number(name: str) -> int:
    """A status as a number."""
    return _STATUS.index(name)


def shows_left_first(comparison: Mapping[str, Any], *, both: bool) -> list[bool]:
    """For every answer of a stored comparison, whether it shows the left sample first, as the answers are stored.

    An answer cannot always say so itself: a question is known by its texts, so it may have been asked of a revision
    first that came out word for word like a sample, and then it names that revision. In both orders a principle's two
    answers stand side by side, left first; in one order the drawn one is meant. Where an answer failed nothing is told.
    """
    keys = comparison["judgements"]
    if both:
        return [at % 2 == 0 for at in range(len(keys))]
    pair = (comparison["left"], comparison["right"])
    return [drawn_order(pair)[0] == pair[0]] * len(keys)


def count_data(folder: Path, *, both: bool = True, drawn: SampledBy = every, read: Rows = rows) -> tuple[Data, Plan]:
    """The figures of a run's data, and its plan; both of as much as there is. Raises RecordError on a broken line.

    `both` says that pairs are asked in both orders, `drawn` which samples count.
    """
    import numpy as np

    plan, prompts, with_given = Plan(), set(), set()
    found: dict[str, Any] = {"prompts": 0, "samples": 0, "blank": 0}
    for row in read(folder / "prompts.jsonl"):
        found["prompts"] += 1
        prompts.add(row.get("id"))
        given = row.get("responses") or []
        if given:
            with_given.add(row.get("id"))
        found["samples"] += len(given)
        found["blank"] += sum(not str(each.get("text", "")).strip() for each in given)
    own = (
        row
        for row in read(folder / "samples.jsonl")
        if drawn(row) and (not prompts or row.get("prompt") in prompts) and not _is_counted(row, with_given)
    )
    for name, count in _samples(own).items():
        found[name] = found.get(name, 0) + count
    if (folder / "rankings.jsonl").is_file():
        distinct, flipped = _rankings(folder / "rankings.jsonl", plan, both, read)
        status = np.frombuffer(plan.status, dtype=np.int8) if plan.status else np.zeros(0, np.int8)
        found |= {
            "ranked": len(plan.prompts),
            "distinct": distinct,
            "flipped": flipped,
            "comparisons": {name: int((status == at).sum()) for at, name in enumerate(_STATUS)},
            "confidence": _confidence(plan, status),
        }
    if (folder / "pairs.jsonl").is_file():
        found |= _pairs(folder / "pairs.jsonl", plan, read)
        if plan.prompts:
            found["without_pair"] = plan.paired.count(0)
    return Data(**found, **_revisions(folder)), plan


def _is_counted(row: Mapping[str, Any], with_given: set[Any]) -> bool:
    """Whether a sample came with its prompt, where it is counted: the run writes it into samples.jsonl as well."""
    return row.get("policy") == GIVEN and row.get("prompt") in with_given


def _samples(found: Iterable[dict[str, Any]]) -> dict[str, int]:
    count = blank = truncated = 0
    for row in found:
        count += 1
        blank += not str(row.get("text", "")).strip()
        truncated += row.get("finish_reason") == "length"
    return {"samples": count, "blank": blank, "truncated": truncated}


def _rankings(path: Path, plan: Plan, both: bool, read: Rows) -> tuple[int, int]:
    """Fill the plan; returns how many samples are ranked, and how many comparisons flipped."""
    distinct = flipped = 0
    for number, row in enumerate(read(path), start=1):
        try:
            distinct += len(row["samples"])
            for each in row["comparisons"]:
                at = len(plan.left)
                plan.left.append(key_of(each["left"]))
                plan.right.append(key_of(each["right"]))
                said = each["probability"]
                plan.probability.append(float("nan") if said is None else said)
                plan.status.append(status_number(each["status"]))
                plan.prompt.append(len(plan.prompts))
                flipped += each["flip"]
                keys = [key_of(key) for key in each["judgements"]]
                plan.answers.extend(keys)
                plan.of.extend([at] * len(keys))
                plan.forward.extend(shows_left_first(each, both=both))
            plan.prompts.append(row["id"])
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(path, number, f"not a ranking: {error}") from None
    plan.paired = bytearray(len(plan.prompts))
    return distinct, flipped


def _confidence(plan: Plan, status: Any) -> dict[str, Histogram]:
    import numpy as np

    said = np.frombuffer(plan.probability, dtype=np.float64) if plan.probability else np.zeros(0)
    sure = np.maximum(said, 1 - said)
    edges = np.linspace(0.5, 1, 21)
    found = {}
    for at, name in enumerate(_STATUS[:3]):
        chosen = sure[(status == at) & ~np.isnan(sure)]
        if len(chosen):
            found[name] = histogram(chosen, edges)
    return found


def histogram(values: Any, edges: Any) -> Histogram:
    """Count values between edges; what floating point leaves just outside belongs to the end bins."""
    import numpy as np

    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), bins=edges)
    return Histogram(edges=tuple(round(float(edge), 6) for edge in edges), counts=tuple(int(each) for each in counts))


def _pairs(path: Path, plan: Plan, read: Rows) -> dict[str, Any]:
    import numpy as np

    places = {prompt: at for at, prompt in enumerate(plan.prompts)}
    margins, chosen, rejected = array("d"), array("I"), array("I")
    ranks: Counter[str] = Counter()
    flips = hard = 0
    for number, row in enumerate(read(path), start=1):
        try:
            margins.append(row["margin"])
            chosen.append(sum(len(each["content"]) for each in row["chosen"]))
            rejected.append(sum(len(each["content"]) for each in row["rejected"]))
            ranks["{}>{}".format(*row["ranks"])] += 1
            flips += row["flip"]
            hard += row["hard"]
            at = places.get(row["prompt_id"])
        except (KeyError, TypeError) as error:
            raise RecordError(path, number, f"not a pair: {error}") from None
        if at is not None:
            plan.paired[at] = 1
    found = {"pairs": len(margins), "pairs_flipped": flips, "pairs_hard": hard, "ranks": dict(sorted(ranks.items()))}
    if not margins:
        return found
    margin = np.frombuffer(margins, dtype=np.float64)
    return found | {"margins": histogram(margin, np.linspace(0, 0.5, 21)), "lengths": _lengths(chosen, rejected)}


def _lengths(chosen: Sequence[int], rejected: Sequence[int]) -> Lengths:
    import numpy as np

    better, worse = np.array(chosen, dtype=np.int64), np.array(rejected, dtype=np.int64)

    def side(values: Any) -> Side:
        counts = np.bincount(np.searchsorted(_LENGTHS, values, side="right") - 1, minlength=len(_LENGTHS))
        middle, average = float(np.median(values)), float(values.mean())
        return Side(median=middle, mean=average, counts=tuple(int(each) for each in counts))

    longer, shorter = float((better > worse).mean()), float((better < worse).mean())
    return Lengths(edges=_LENGTHS, chosen=side(better), rejected=side(worse), longer=longer, shorter=shorter)


def _revisions(folder: Path) -> dict[str, Any]:
    told = document(folder / "revised.json")
    return {
        "revised_pairs": sum(1 for _ in rows(folder / "revised_pairs.jsonl")),
        "demonstrations": sum(1 for _ in rows(folder / "sft.jsonl")),
        "uses": told.get("uses") or {},
        "revised": told.get("counts") or {},
    }


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


class PrincipleCounts(NamedTuple):
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
) -> tuple[Verdicts | None, dict[str, PrincipleCounts], dict[str, dict[str, Any]]]:
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


def _tallies(columns: _Columns, at: Any, asked: Any, plan: Plan, reading: Reading) -> dict[str, PrincipleCounts]:
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
) -> dict[str, PrincipleCounts]:
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
        found[name] = PrincipleCounts(
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
