"""The prompts to browse: which are shown, and everything that happened to each.

Which prompts are shown: of everything that is of interest some, the same ones every time.

The prompts to browse: everything that happened to each, gathered by id in one pass over each table.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlaif.errors import RecordError
from rlaif.feedback.revision_checks import spoken
from rlaif.feedback.sampling import given_samples
from rlaif.records import Prompt
from rlaif.report.run_data import Plan, Reading, Rows, rows, shows_left_first, status_number, told_logit
from rlaif.report.view import Examples
from rlaif.stats import sigmoid

MOST = 240
"""Prompts that are shown at most."""
REASONS = {
    "widest margin": "the judge is surest",
    "narrowest margin": "a label hangs by a thread",
    "flip": "the two orders disagree",
    "no label": "a comparison is unreadable or failed",
    "random": "by the order of their ids, which are hashes",
}


def choose(plan: Plan, folder: Path, most: int = MOST) -> dict[str, list[str]]:
    """Ids of the prompts to show, with the reasons for each; all of them where there are few."""
    ids = plan.prompts or [row["id"] for row in rows(folder / "prompts.jsonl") if "id" in row]
    lists = {name: found for name, found in _lists(plan).items() if found} if plan.prompts else {}
    lists["random"] = sorted(ids)
    chosen: dict[str, list[str]] = {}
    wanted = min(most, len(set(ids)))
    places = dict.fromkeys(lists, 0)
    while len(chosen) < wanted:
        for name, candidates in lists.items():
            at = places[name]
            while at < len(candidates) and candidates[at] in chosen:
                at += 1
            if at < len(candidates) and len(chosen) < wanted:
                chosen[candidates[at]] = [name]
            places[name] = at + 1
    return chosen


def _lists(plan: Plan) -> dict[str, list[str]]:
    """The prompts by what makes them of interest, the most interesting ones first; equal ones by id."""
    import numpy as np

    prompt, status = np.array(plan.prompt, dtype=np.int64), np.array(plan.status, dtype=np.int8)
    margin = np.abs(np.array(plan.probability) - 0.5)
    rank = np.empty(len(plan.prompts), dtype=np.int64)
    rank[sorted(range(len(plan.prompts)), key=plan.prompts.__getitem__)] = np.arange(len(plan.prompts))
    labelled = (status == status_number("labelled")) & ~np.isnan(margin)
    silent = (status == status_number("unparsed")) | (status == status_number("failed"))
    most = MOST  # no list is read further

    def ids(which: Any, value: Any = None) -> list[str]:
        found, keys = prompt[which], rank[prompt[which]]
        order = np.lexsort((keys,) if value is None else (keys, value[which]))
        return [plan.prompts[at] for at in _first(found[order].tolist(), most)]

    return {
        "widest margin": ids(labelled, -margin),
        "narrowest margin": ids(labelled, margin),
        "flip": ids(status == status_number("flip")),
        "no label": ids(silent),
    }


def _first(found: Iterable[int], most: int) -> list[int]:
    """The first different ones."""
    kept: dict[int, None] = {}
    for each in found:
        kept[each] = None
        if len(kept) == most:
            break
    return list(kept)


LONGEST = 1500
"""Characters of a text that are shown."""
LARGEST = 2_400_000
"""Bytes of all examples together."""
_MESSAGES = 8
"""Turns of a conversation that are shown: the last ones."""


_NUMBER = (int, float)
_PAIR = {"id": str, "chosen_id": str, "rejected_id": str, "probability": _NUMBER, "flip": bool}
_COLUMNS: Mapping[str, Mapping[str, Any]] = {
    "prompts.jsonl": {"id": str},
    "rankings.jsonl": {"samples": {"sample": str, "rank": int, "strength": _NUMBER}},  # the rest was counted before
    "samples.jsonl": {"id": str, "index": int, "text": str, "policy": str},
    "pairs.jsonl": _PAIR,
    "critiques.jsonl": {"sample": str, "principle": str, "text": str},
    "revisions.jsonl": {"id": str, "sample": str, "round": int, "principle": str, "text": str},
    "chains.jsonl": {"rounds": {"revision": str, "use": str}},
    "revised_pairs.jsonl": {name: _PAIR[name] for name in ("chosen_id", "rejected_id", "probability")},
}
"""What is needed of every table."""


@dataclass
class Gathered:
    """The rows about the chosen prompts, by prompt; verdicts by their own id."""

    prompts: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    rankings: dict[str, dict[str, Any]] = field(default_factory=dict)
    pairs: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    critiques: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    revisions: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    uses: dict[str, str] = field(default_factory=dict)
    """What came of a revision, by its id."""
    confirmed: dict[tuple[str, str], float] = field(default_factory=dict)
    """By revision and sample: the probability that the revision is better."""
    verdicts: dict[str, dict[str, Any]] = field(default_factory=dict)


def gather(folder: Path, wanted: Iterable[str], verdicts: dict[str, dict[str, Any]], read: Rows = rows) -> Gathered:
    """Read what the tables have about the `wanted` prompts. Raises RecordError on a line that does not say it."""
    chosen, found = frozenset(wanted), Gathered(verdicts=verdicts)
    told: set[str] = set()

    def about(name: str, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
        path = folder / name
        for number, row in enumerate(read(path), start=1):
            if row.get(key) in chosen:
                _require(row, _COLUMNS[name], path, number)
                yield number, row

    for number, row in about("prompts.jsonl", "id"):
        found.prompts[row["id"]] = row
        given = given_samples(_prompt(row, folder / "prompts.jsonl", number))
        found.samples[row["id"]] += [each.model_dump(mode="json") for each in given]
        told |= {each.id for each in given}
    found.rankings |= {row["id"]: row for _, row in about("rankings.jsonl", "id")}
    for name, table, key in (
        ("samples.jsonl", found.samples, "prompt"),
        ("pairs.jsonl", found.pairs, "prompt_id"),
        ("critiques.jsonl", found.critiques, "prompt"),
        ("revisions.jsonl", found.revisions, "prompt"),
    ):
        for _, row in about(name, key):
            if row.get("id") not in told:  # samples.jsonl holds the answers that came with the prompts as well
                table[row[key]].append(row)
    for _, row in about("chains.jsonl", "prompt"):
        found.uses |= {each["revision"]: each["use"] for each in row["rounds"]}
    for _, row in about("revised_pairs.jsonl", "prompt_id"):
        found.confirmed[row["chosen_id"], row["rejected_id"]] = row["probability"]
        found.confirmed[row["rejected_id"], row["chosen_id"]] = 1 - row["probability"]
    return found


def _require(row: Mapping[str, Any], columns: Mapping[str, Any], path: Path, number: int) -> None:
    """Raise RecordError where a column is missing or holds something else; lists are looked into."""
    for name, kind in columns.items():
        value = row.get(name)
        if isinstance(kind, dict):
            if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
                raise RecordError(path, number, f"`{name}` is no list of records")
            for each in value:
                _require(each, kind, path, number)
        elif not isinstance(value, kind):
            raise RecordError(path, number, f"`{name}` is missing" if value is None else f"`{name}` is {value!r}")


def _prompt(row: dict[str, Any], path: Path, number: int) -> Prompt:
    try:
        return Prompt.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecordError(path, number, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def tell(found: Gathered, chosen: Mapping[str, list[str]], total: int, reading: Reading) -> Examples:
    """The examples as they go into the page, in the order in which they were chosen, as many as there is room for."""
    teller = _Teller(found, reading)
    items: list[dict[str, Any]] = []
    room = LARGEST
    reasons: dict[str, int] = {}
    for identity, why in chosen.items():
        if identity not in found.prompts:
            continue
        item = teller.story(identity) | {"why": why}
        room -= len(json.dumps(item, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        if room < 0 and items:
            break
        items.append(item)
        for each in why:
            reasons[each] = reasons.get(each, 0) + 1
    return Examples(
        total=total,
        shown=len(items),
        chosen=reasons,
        cut=teller.cut,
        longest=LONGEST,
        items=tuple(items),
        principles=tuple(teller.principles),
        judges=tuple(teller.judges),
    )


class _Teller:
    """Turns rows into what the page shows; names of principles and judges are numbers in it."""

    def __init__(self, found: Gathered, reading: Reading) -> None:
        self._found, self._reading = found, reading
        self.principles: dict[str, int] = {}
        self.judges: dict[str, int] = {}
        self.cut = 0

    def story(self, identity: str) -> dict[str, Any]:
        prompt = self._found.prompts[identity]
        ranking = self._found.rankings.get(identity, {})
        places = {each["sample"]: each for each in ranking.get("samples", [])}
        samples = sorted(self._found.samples[identity], key=_place(places))
        numbers = {each["id"]: at for at, each in enumerate(samples)}
        messages = prompt["messages"]
        said = [[each["role"], self._text(each["content"])] for each in messages[-_MESSAGES:]]
        pairs = [self._pair(row, numbers) for row in self._found.pairs[identity]]
        made = {frozenset(pair["of"]): pair["id"] for pair in pairs}
        return {
            "id": identity,
            "earlier": max(0, len(messages) - _MESSAGES),
            "messages": said,
            "samples": [self._sample(each, places.get(each["id"]), identity) for each in samples],
            "comparisons": [self._comparison(each, numbers, made) for each in ranking.get("comparisons", [])],
            "pairs": pairs,
        }

    def _text(self, text: str) -> str:
        if len(text) <= LONGEST:
            return text
        self.cut += 1
        return f"{text[:LONGEST].rstrip()} … [cut: {len(text):,} characters]"

    def _pair(self, row: dict[str, Any], numbers: Mapping[str, int]) -> dict[str, Any]:
        sides = [numbers.get(row["chosen_id"], -1), numbers.get(row["rejected_id"], -1)]
        return {"id": row["id"], "of": sides, "p": _round(row["probability"]), "flip": row["flip"]}

    def _sample(self, row: dict[str, Any], place: dict[str, Any] | None, prompt: str) -> dict[str, Any]:
        chain = [each for each in self._found.revisions[prompt] if each["sample"] == row["id"]]
        about = {row["id"], *(each["id"] for each in chain)}
        critiques = [each for each in self._found.critiques[prompt] if each["sample"] in about]
        return {
            "rank": None if place is None else place["rank"],
            "strength": None if place is None else _round(place["strength"], 2),
            "text": self._text(row["text"]),
            "by": row["policy"],
            "cutoff": row.get("finish_reason") == "length",
            "critiques": [self._critique(each, chain) for each in critiques],
            "revisions": [self._revision(each) for each in sorted(chain, key=lambda each: each["round"])],
        }

    def _critique(self, row: dict[str, Any], chain: Iterable[dict[str, Any]]) -> list[Any]:
        """Principle, text, and after which round the critique was written: 0 is on the sample as drawn."""
        after = next((each["round"] for each in chain if each["id"] == row["sample"]), 0)
        return [self._number(row["principle"]), self._text(row["text"]), after]

    def _revision(self, row: dict[str, Any]) -> dict[str, Any]:
        better = self._found.confirmed.get((row["id"], row["sample"]))
        return {
            "round": row["round"],
            "principle": self._number(row["principle"]),
            "text": self._text(spoken(row["text"])),
            "use": self._found.uses.get(row["id"], ""),
            "p": None if better is None else _round(better),
        }

    def _comparison(
        self, row: dict[str, Any], numbers: Mapping[str, int], made: Mapping[frozenset[int], str]
    ) -> dict[str, Any]:
        sides = [numbers.get(row["left"], -1), numbers.get(row["right"], -1)]
        votes: dict[tuple[int, int], list[Any]] = {}
        planned = shows_left_first(row, both=self._reading.both)
        for key, expected in zip(row["judgements"], planned, strict=True):
            verdict = self._found.verdicts.get(key)
            if verdict is None:
                continue
            judge = self.judges.setdefault(verdict["judge"], len(self.judges))
            cell = votes.setdefault((self._number(verdict["principle"]), judge), [None, None])
            if verdict["first"] == row["left"] or verdict["second"] == row["right"]:
                forward = True
            else:
                forward = expected and verdict["first"] != row["right"] and verdict["second"] != row["left"]
            cell[0 if forward else 1] = self._chance(verdict, forward=forward)
        return {
            "of": sides,
            "status": row["status"],
            "p": None if row["probability"] is None else _round(row["probability"]),
            "flip": row["flip"],
            "votes": [[principle, judge, *cell] for (principle, judge), cell in votes.items()],
            "pair": made.get(frozenset(sides)),
        }

    def _chance(self, verdict: dict[str, Any], *, forward: bool) -> float | str:
        """What one answer makes of the left sample: its probability, or, where it has no label, why."""
        logit = told_logit(verdict, self._reading.least_mass, **self._reading.of(verdict["judge"]))
        if math.isnan(logit):
            return "unparsed" if verdict["verdict"] == "unparsed" else "low mass"
        return _round(sigmoid(logit if forward else -logit))

    def _number(self, principle: str) -> int:
        return self.principles.setdefault(principle, len(self.principles))


def _place(places: Mapping[str, dict[str, Any]]) -> Callable[[dict[str, Any]], tuple[float, int]]:
    """Ranked samples first, the best one at the top; the others by their number."""

    def key(row: dict[str, Any]) -> tuple[float, int]:
        place = places.get(row["id"])
        return (math.inf if place is None else place["rank"], row["index"])

    return key


def _round(value: float, digits: int = 3) -> float:
    return round(float(value), digits)
