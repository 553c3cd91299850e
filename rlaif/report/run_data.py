"""The statistics of a run's data, counted in one pass over each of its tables.

Tables have millions of rows and may be incomplete. Memory holds numbers only: ids become 64-bit keys, and the
judgements are joined to the comparisons of the rankings by key, as numpy arrays. The only texts in memory are those of
the prompts on the page (`rlaif.report.examples`).

`count_data` reads samples, rankings and pairs; `read_verdicts` reads the judgements: label mass, position bias, and the
influence of each principle on the labels.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pydantic_core

from rlaif.errors import RecordError
from rlaif.feedback.aggregate import logit_of
from rlaif.feedback.judge import drawn_order
from rlaif.feedback.sampling import GIVEN
from rlaif.report.view import Data, Histogram, Lengths, Side, Slot, Verdicts
from rlaif.text import loads

Rows = Callable[[Path], Iterator[dict[str, Any]]]
"""A reader of tables, such as `rows`."""

SampledBy = Callable[[Mapping[str, Any]], bool]
"""Whether a row of samples.jsonl belongs to the current settings of the run."""

_PROGRESS_ROWS = 5000
_STATUS = ("labelled", "tie", "flip", "unparsed", "failed")
_LENGTHS = (0, 25, 50, 100, 200, 400, 800, 1600, 3200, 6400)
"""Lower edges of the bins of lengths; the last bin is open."""


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a JSONL table as plain data; nothing where the file does not exist.

    A torn last line is skipped: the next writer cuts it off. Raises RecordError on any other broken line.
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


def with_progress(progress: Callable[[int], None] | None) -> Rows:
    """`rows`, with `progress` called now and then on the number of rows read so far in all tables together."""
    if progress is None:
        return rows
    total = 0

    def read(path: Path) -> Iterator[dict[str, Any]]:
        nonlocal total
        for row in rows(path):
            total += 1
            if total % _PROGRESS_ROWS == 0:
                progress(total)
            yield row

    return read


def document(path: Path) -> dict[str, Any]:
    """A JSON file as plain data; empty where it is missing or unreadable."""
    try:
        content = loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def key_of(identity: str) -> int:
    """The first half of an id as a number: 64 bits separate millions of ids, at a tenth of the memory."""
    return int(identity[:16], 16)


def nested(value: Any, *names: str) -> Any:
    """The value at the end of a path of keys; None where the path ends early."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def any_row(_: Mapping[str, Any]) -> bool:
    """True for any row, where the settings are unknown."""
    return True


@dataclass
class Plan:
    """The comparisons of the rankings and the judgements behind each, in flat arrays."""

    left: array[int] = field(default_factory=lambda: array("Q"))
    """[comparisons] The left sample (see `key_of`)."""
    right: array[int] = field(default_factory=lambda: array("Q"))
    """[comparisons] The right sample."""
    probability: array[float] = field(default_factory=lambda: array("d"))
    """[comparisons] That the left sample is better; NaN where unknown."""
    status: array[int] = field(default_factory=lambda: array("b"))
    """[comparisons] See `status_number`."""
    prompt: array[int] = field(default_factory=lambda: array("I"))
    """[comparisons] Index into `prompts`."""
    judgements: array[int] = field(default_factory=lambda: array("Q"))
    """[judgements] The key of each."""
    comparison: array[int] = field(default_factory=lambda: array("I"))
    """[judgements] Index of the comparison."""
    forward: array[int] = field(default_factory=lambda: array("b"))
    """[judgements] Whether it should show the left sample first (see `shows_left_first`)."""
    prompts: list[str] = field(default_factory=list)
    paired: bytearray = field(default_factory=bytearray)
    """[prompts] Whether the prompt yielded a pair."""


def status_number(name: str) -> int:
    """The index of a comparison's status."""
    return _STATUS.index(name)


def shows_left_first(comparison: Mapping[str, Any], *, both: bool) -> list[bool]:
    """For each judgement of a stored comparison, in stored order, whether it shows the left sample first.

    A judgement does not always reveal this: the id of a request depends on its texts alone, so a judgement may name a
    revision with the same text as a sample. With both orders, a principle's two judgements are adjacent, left first;
    with one order, the sampled order counts.
    """
    keys = comparison["judgements"]
    if both:
        return [at % 2 == 0 for at in range(len(keys))]
    pair = (comparison["left"], comparison["right"])
    return [drawn_order(pair)[0] == pair[0]] * len(keys)


def count_data(
    folder: Path, *, both: bool = True, is_sampled: SampledBy = any_row, read: Rows = rows
) -> tuple[Data, Plan]:
    """The statistics of a run's data, and its plan, over the tables that exist. Raises RecordError on a broken line.

    `both` says that pairs are judged in both orders, `is_sampled` which samples count.
    """
    plan, prompts, with_given = Plan(), set(), set()
    counts: dict[str, Any] = dict.fromkeys(("prompts", "samples", "blank", "truncated"), 0)
    for row in read(folder / "prompts.jsonl"):
        counts["prompts"] += 1
        prompts.add(row.get("id"))
        given = row.get("responses") or []
        if given:
            with_given.add(row.get("id"))
        counts["samples"] += len(given)
        counts["blank"] += sum(_is_blank(response) for response in given)
    for row in read(folder / "samples.jsonl"):
        prompt = row.get("prompt")
        # A run copies given responses into samples.jsonl, where they do not count again.
        is_copy = row.get("policy") == GIVEN and prompt in with_given
        if is_sampled(row) and (not prompts or prompt in prompts) and not is_copy:
            counts["samples"] += 1
            counts["blank"] += _is_blank(row)
            counts["truncated"] += row.get("finish_reason") == "length"
    if (folder / "rankings.jsonl").is_file():
        counts |= _count_rankings(folder / "rankings.jsonl", plan, both, read)
    if (folder / "pairs.jsonl").is_file():
        counts |= _count_pairs(folder / "pairs.jsonl", plan, read)
        if plan.prompts:
            counts["without_pair"] = plan.paired.count(0)
    revised = document(folder / "revised.json")
    counts |= {
        "revised_pairs": sum(1 for _ in rows(folder / "revised_pairs.jsonl")),
        "demonstrations": sum(1 for _ in rows(folder / "sft.jsonl")),
        "uses": revised.get("uses") or {},
        "revised": revised.get("counts") or {},
    }
    return Data(**counts), plan


def _is_blank(row: Mapping[str, Any]) -> bool:
    return not str(row.get("text", "")).strip()


def _count_rankings(path: Path, plan: Plan, both: bool, read: Rows) -> dict[str, Any]:
    """Fill the plan; returns the counts of samples and comparisons."""
    import numpy as np

    distinct = flipped = 0
    for number, row in enumerate(read(path), start=1):
        try:
            distinct += len(row["samples"])
            for comparison in row["comparisons"]:
                at = len(plan.left)
                plan.left.append(key_of(comparison["left"]))
                plan.right.append(key_of(comparison["right"]))
                probability = comparison["probability"]
                plan.probability.append(float("nan") if probability is None else probability)
                plan.status.append(status_number(comparison["status"]))
                plan.prompt.append(len(plan.prompts))
                flipped += comparison["flip"]
                keys = [key_of(key) for key in comparison["judgements"]]
                plan.judgements.extend(keys)
                plan.comparison.extend([at] * len(keys))
                plan.forward.extend(shows_left_first(comparison, both=both))
            plan.prompts.append(row["id"])
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(path, number, f"not a ranking: {error}") from None
    plan.paired = bytearray(len(plan.prompts))
    status, probabilities = np.array(plan.status, dtype=np.int8), np.array(plan.probability, dtype=np.float64)
    confidence = np.maximum(probabilities, 1 - probabilities)
    edges = np.linspace(0.5, 1, 21)
    by_status = {name: confidence[(status == at) & ~np.isnan(confidence)] for at, name in enumerate(_STATUS[:3])}
    return {
        "ranked": len(plan.prompts),
        "distinct": distinct,
        "flipped": flipped,
        "comparisons": {name: int((status == at).sum()) for at, name in enumerate(_STATUS)},
        "confidence": {name: histogram(values, edges) for name, values in by_status.items() if len(values)},
    }


def histogram(values: Any, edges: Any) -> Histogram:
    """Count values between edges; those that rounding puts just outside belong to the end bins."""
    import numpy as np

    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), bins=edges)
    return Histogram(edges=tuple(round(float(edge), 6) for edge in edges), counts=tuple(int(each) for each in counts))


def _count_pairs(path: Path, plan: Plan, read: Rows) -> dict[str, Any]:
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
    counts = {"pairs": len(margins), "pairs_flipped": flips, "pairs_hard": hard, "ranks": dict(sorted(ranks.items()))}
    if not margins:
        return counts
    margin = np.frombuffer(margins, dtype=np.float64)
    return counts | {"margins": histogram(margin, np.linspace(0, 0.5, 21)), "lengths": _lengths(chosen, rejected)}


def _lengths(chosen: Sequence[int], rejected: Sequence[int]) -> Lengths:
    import numpy as np

    better, worse = np.array(chosen, dtype=np.int64), np.array(rejected, dtype=np.int64)

    def side(values: Any) -> Side:
        counts = np.bincount(np.searchsorted(_LENGTHS, values, side="right") - 1, minlength=len(_LENGTHS))
        middle, average = float(np.median(values)), float(values.mean())
        return Side(median=middle, mean=average, counts=tuple(int(each) for each in counts))

    longer, shorter = float((better > worse).mean()), float((better < worse).mean())
    return Lengths(edges=_LENGTHS, chosen=side(better), rejected=side(worse), longer=longer, shorter=shorter)


class LabelSettings(NamedTuple):
    """How a run turns judgements into labels."""

    min_mass: float = 0.5
    weights: Mapping[str, float] | None = None
    """By principle; None where the constitution is unknown."""
    temperatures: Mapping[str, float] = {}
    """By judge."""
    shares: Mapping[str, float] = {}
    """Weights of the judges of a panel."""
    removed: Mapping[str, float] = {}
    """By judge, the log-odds subtracted from the first slot."""
    both: bool = True
    """Whether pairs are judged in both orders."""

    def of(self, judge: str) -> dict[str, float]:
        """The corrections of that judge's log-odds, as keywords of `logit_of`; empty where there are none."""
        temperature, slot = self.temperatures.get(judge, 1.0), self.removed.get(judge, 0.0)
        return {} if (temperature, slot) == (1.0, 0.0) else {"temperature": temperature, "slot": slot}


class PrincipleCounts(NamedTuple):
    """The influence of one principle on the labels (see `view.Principle`)."""

    compared: int
    flips: int
    agreed: int | None
    opposed: int | None
    decided: int | None


@dataclass
class _Columns:
    """The judgements, one array per column."""

    key: array[int] = field(default_factory=lambda: array("Q"))
    first: array[int] = field(default_factory=lambda: array("Q"))
    second: array[int] = field(default_factory=lambda: array("Q"))
    principle: array[int] = field(default_factory=lambda: array("H"))
    judge: array[int] = field(default_factory=lambda: array("B"))
    raw_logit: array[float] = field(default_factory=lambda: array("d"))
    """Log-odds of the first slot from the judge; NaN without a label."""
    logit: array[float] = field(default_factory=lambda: array("d"))
    """The same after correction: less the position bias, over the temperature."""
    mass: array[float] = field(default_factory=lambda: array("d"))
    flags: array[int] = field(default_factory=lambda: array("B"))
    """1 unparsed, 2 truncated, 4 hard."""
    principles: dict[str, int] = field(default_factory=dict)
    judges: dict[str, int] = field(default_factory=dict)

    def add(self, row: dict[str, Any], settings: LabelSettings) -> None:
        self.key.append(key_of(row["id"]))
        self.first.append(key_of(row["first"]))
        self.second.append(key_of(row["second"]))
        self.principle.append(self.principles.setdefault(row["principle"], len(self.principles)))
        self.judge.append(self.judges.setdefault(row["judge"], len(self.judges)))
        logit, options = judgement_logit(row, settings.min_mass), settings.of(row["judge"])
        self.raw_logit.append(logit)
        self.logit.append(judgement_logit(row, settings.min_mass, **options) if options else logit)
        mass = row.get("label_mass")
        self.mass.append(math.nan if mass is None else mass)
        hard = row.get("logprobs") is None
        self.flags.append((row["verdict"] == "unparsed") + 2 * bool(row.get("truncated")) + 4 * hard)


def judgement_logit(row: Mapping[str, Any], min_mass: float, **options: float) -> float:
    """Log-odds of the first slot in a stored judgement; NaN without a label. See `feedback.aggregate.logit_of`."""
    logprobs = row.get("logprobs")
    if logprobs is not None:
        first, second = (-math.inf if each is None else each for each in logprobs)  # JSON has no infinity
        logprobs = (first, second)
    logit = logit_of(row["verdict"], logprobs, row.get("label_mass"), min_mass=min_mass, **options)
    return math.nan if logit is None else logit


def read_verdicts(
    folder: Path, plan: Plan, settings: LabelSettings, prompt_ids: frozenset[str], read: Rows = rows
) -> tuple[Verdicts | None, dict[str, PrincipleCounts], dict[str, dict[str, Any]]]:
    """The statistics of the judgements, the influence of each principle, and those of `prompt_ids`, by id.

    The statistics are None without judgements. Raises RecordError on a broken line.
    """
    columns, judgements = _Columns(), {}
    path = folder / "judgements.jsonl"
    for number, row in enumerate(read(path), start=1):
        try:
            columns.add(row, settings)
            if row["prompt"] in prompt_ids:
                judgements[row["id"]] = row
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise RecordError(path, number, f"not a judgement: {error}") from None
    if not columns.key:
        return None, {}, {}
    at, planned_at = _join(columns, plan)
    counts = _count_principles(columns, at, planned_at, plan, settings) if plan.left else {}
    return _count_verdicts(columns, at, settings), counts, judgements


def _join(columns: _Columns, plan: Plan) -> tuple[Any, Any]:
    """Join judgements and plan by key: row numbers in `columns`, and those in `plan.judgements`, both [joined].

    Without a plan, every judgement counts, and the second is None.
    """
    import numpy as np

    if not plan.left:
        return np.arange(len(columns.key)), None
    keys, planned = np.array(columns.key, dtype=np.uint64), np.array(plan.judgements, dtype=np.uint64)
    # Of a repeated id, the later line counts, as in any table of a run.
    _, last = np.unique(keys[::-1], return_index=True)
    at = np.sort(len(keys) - 1 - last)
    if not len(planned):
        return at[:0], at[:0]
    order = np.argsort(planned)
    candidates = order[np.minimum(np.searchsorted(planned[order], keys[at]), len(planned) - 1)]
    matches = planned[candidates] == keys[at]
    return at[matches], candidates[matches]


def _count_verdicts(columns: _Columns, at: Any, settings: LabelSettings) -> Verdicts:
    import numpy as np

    flags, masses = np.array(columns.flags)[at], np.array(columns.mass)[at]
    logits, judges = np.array(columns.raw_logit)[at], np.array(columns.judge)[at]
    masses = masses[~np.isnan(masses)]
    slots = []
    for name, number in columns.judges.items():
        labelled = logits[(judges == number) & ~np.isnan(logits)]
        decided = labelled[labelled != 0]
        if len(labelled):
            first = float((decided > 0).mean()) if len(decided) else None
            bias, removed = float(labelled.mean()), settings.removed.get(name)
            slots.append(Slot(judge=name, verdicts=len(decided), first=first, bias=bias, removed=removed))
    return Verdicts(
        judgements=len(at),
        unused=len(columns.key) - len(at),
        unparsed=int((flags & 1 > 0).sum()),
        truncated=int((flags & 2 > 0).sum()),
        low_mass=int((masses < settings.min_mass).sum()),
        hard=int((flags & 4 > 0).sum()),
        mass=histogram(masses, np.linspace(0, 1, 21)) if len(masses) else None,
        mass_mean=float(masses.mean()) if len(masses) else None,
        slots=tuple(slots),
    )


def _forward(columns: _Columns, at: Any, planned_at: Any, comparison: Any, plan: Plan) -> Any:
    """[joined] Whether each judgement shows the left sample first: by the samples that it names, else as planned."""
    import numpy as np

    first, second = (np.array(keys, dtype=np.uint64)[at] for keys in (columns.first, columns.second))
    left, right = (np.array(keys, dtype=np.uint64)[comparison] for keys in (plan.left, plan.right))
    planned = np.array(plan.forward, dtype=bool)[planned_at]
    return np.where(
        (first == left) | (second == right), True, np.where((first == right) | (second == left), False, planned)
    )


def _count_principles(
    columns: _Columns, at: Any, planned_at: Any, plan: Plan, settings: LabelSettings
) -> dict[str, PrincipleCounts]:
    """Average each principle's orders: one cell per comparison, principle and judge."""
    import numpy as np

    # A comparison with a failed judgement, or one that most of a panel cannot read, counts for no principle.
    status = np.array(plan.status)[np.array(plan.comparison, dtype=np.int64)[planned_at]]
    readable = (status != status_number("failed")) & (status != status_number("unparsed"))
    at, planned_at = at[readable], planned_at[readable]
    comparison = np.array(plan.comparison, dtype=np.int64)[planned_at]
    forward = _forward(columns, at, planned_at, comparison, plan)
    logit = np.array(columns.logit)[at]
    logit = np.where(forward, logit, -logit)
    principle, judge = (np.array(each, dtype=np.int64)[at] for each in (columns.principle, columns.judge))
    cell = (comparison * len(columns.principles) + principle) * len(columns.judges) + judge
    cells, inverse = np.unique(cell, return_inverse=True)
    # The mean over the orders is NaN where one of them has no label; such cells are dropped below.
    mean = np.bincount(inverse, weights=logit) / np.bincount(inverse)
    lowest, highest = np.full(len(cells), np.inf), np.full(len(cells), -np.inf)
    with np.errstate(invalid="ignore"):
        np.minimum.at(lowest, inverse, logit)
        np.maximum.at(highest, inverse, logit)
    flip = (lowest < 0) & (highest > 0)
    labelled = ~np.isnan(mean)
    return _by_principle(columns, cells[labelled], mean[labelled], flip[labelled], plan, settings)


def _by_principle(
    columns: _Columns, cells: Any, mean: Any, flip: Any, plan: Plan, settings: LabelSettings
) -> dict[str, PrincipleCounts]:
    """Compare each principle alone with the labels; `mean` and `flip` are [cells]."""
    import numpy as np

    principles, judges = len(columns.principles), len(columns.judges)
    comparison, principle = cells // judges // principles, cells // judges % principles
    status, probability = np.array(plan.status, dtype=np.int8), np.array(plan.probability)
    labels = np.where(status == status_number("labelled"), np.sign(probability - 0.5), 0)
    parts = _parts(columns, cells, mean, settings)
    counts = {}
    for name, number in columns.principles.items():
        mask = principle == number
        # On a panel, the verdict of a principle is the sum over the judges, and it flips where most of them flip.
        compared, inverse = np.unique(comparison[mask], return_inverse=True)
        panel_size = np.bincount(inverse, minlength=len(compared))
        flips = np.bincount(inverse, weights=flip[mask], minlength=len(compared))
        weights = parts[mask] if parts is not None else mean[mask]
        verdict = np.bincount(inverse, weights=weights, minlength=len(compared))
        label = labels[compared]
        decided = None
        if parts is not None:
            total = np.bincount(comparison, weights=parts, minlength=len(probability))[compared]
            decided = int(((label != 0) & (np.sign(total - verdict) != label) & (np.sign(total) == label)).sum())
        counts[name] = PrincipleCounts(
            compared=len(compared),
            flips=int((2 * flips > panel_size).sum()),
            agreed=int(((label != 0) & (np.sign(verdict) == label)).sum()),
            opposed=int(((label != 0) & (np.sign(verdict) == -label)).sum()),
            decided=decided,
        )
    return counts


def _parts(columns: _Columns, cells: Any, mean: Any, settings: LabelSettings) -> Any:
    """[cells] The share of each cell in the log-odds of its comparison; None where the weights are unknown."""
    import numpy as np

    names, weights = list(columns.principles), settings.weights
    if weights is None or not all(name in weights or name == "*" for name in names):
        return None
    principles, judges = len(columns.principles), len(columns.judges)
    share_of = np.array([settings.shares.get(name, 1.0) for name in columns.judges])
    weight = np.array([weights.get(name, 1.0) for name in names])[cells // judges % principles]
    vote = cells // judges // principles * judges + cells % judges
    votes, inverse = np.unique(vote, return_inverse=True)
    vote_weight = np.bincount(inverse, weights=weight)[inverse]
    # A judge with a readable verdict on the comparison counts once in the sum of the panel's weights.
    panel_weight = np.bincount(votes // judges, weights=share_of[votes % judges])[cells // judges // principles]
    return mean * weight / vote_weight * share_of[cells % judges] / panel_weight
