"""One pass over samples, rankings and pairs: every figure of the data. Numbers are kept in memory, texts are not."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlaif.errors import RecordError
from rlaif.page.figures import Data, Histogram, Lengths, Side
from rlaif.page.reading import Rows, document, key_of, rows
from rlaif.samples.meetings import drawn_order
from rlaif.samples.plan import GIVEN

_STATUS = ("labelled", "tie", "flip", "unparsed", "failed")
_LENGTHS = (0, 25, 50, 100, 200, 400, 800, 1600, 3200, 6400)
"""Lower edges of the bins of lengths; the last one is open."""


Drawn = Callable[[Mapping[str, Any]], bool]
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


def count_data(folder: Path, *, both: bool = True, drawn: Drawn = every, read: Rows = rows) -> tuple[Data, Plan]:
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
