"""The prompts to browse on the page, and everything that happened to each.

`choose` picks the prompts, the same ones every time: those with the widest and narrowest margins, with flips, without
labels, and a pseudo-random rest. `gather` collects their rows in one pass over each table, and `build_examples` turns
the rows into the JSON of the page, truncating long texts, up to a total size.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlaif.errors import RecordError
from rlaif.feedback.revision_checks import spoken
from rlaif.feedback.sampling import given_samples
from rlaif.records import Prompt
from rlaif.report.run_data import LabelSettings, Plan, Rows, judgement_logit, rows, shows_left_first, status_number
from rlaif.report.view import Examples
from rlaif.stats import sigmoid

MAX_PROMPTS = 240
REASONS = {
    "widest margin": "the judge is surest",
    "narrowest margin": "a label hangs by a thread",
    "flip": "the two orders disagree",
    "no label": "a comparison is unreadable or failed",
    "random": "by the order of their ids, which are hashes",
}
MAX_CHARS = 1500
"""Characters of a text on the page."""
MAX_BYTES = 2_400_000
"""Bytes of all examples together."""
_MAX_TURNS = 8
"""Turns of a conversation on the page: the last ones."""

_NUMBER = (int, float)
_PAIR = {"id": str, "chosen_id": str, "rejected_id": str, "probability": _NUMBER, "flip": bool}
_COLUMNS: Mapping[str, Mapping[str, Any]] = {
    "prompts.jsonl": {"id": str},
    "rankings.jsonl": {"samples": {"sample": str, "rank": int, "strength": _NUMBER}},  # `count_data` checks the rest
    "samples.jsonl": {"id": str, "index": int, "text": str, "policy": str},
    "pairs.jsonl": _PAIR,
    "critiques.jsonl": {"sample": str, "principle": str, "text": str},
    "revisions.jsonl": {"id": str, "sample": str, "round": int, "principle": str, "text": str},
    "chains.jsonl": {"rounds": {"revision": str, "use": str}},
    "revised_pairs.jsonl": {name: _PAIR[name] for name in ("chosen_id", "rejected_id", "probability")},
}
"""The columns that the page reads, with their types."""


def choose(plan: Plan, folder: Path, limit: int = MAX_PROMPTS) -> dict[str, list[str]]:
    """Ids of the prompts to show, with the reasons for each; all of them where there are few."""
    ids = plan.prompts or [row["id"] for row in rows(folder / "prompts.jsonl") if "id" in row]
    lists = {name: prompts for name, prompts in _lists(plan).items() if prompts} if plan.prompts else {}
    lists["random"] = sorted(ids)
    chosen: dict[str, list[str]] = {}
    count = min(limit, len(set(ids)))
    places = dict.fromkeys(lists, 0)
    while len(chosen) < count:
        for name, candidates in lists.items():
            at = places[name]
            while at < len(candidates) and candidates[at] in chosen:
                at += 1
            if at < len(candidates) and len(chosen) < count:
                chosen[candidates[at]] = [name]
            places[name] = at + 1
    return chosen


def _lists(plan: Plan) -> dict[str, list[str]]:
    """The prompts by reason, the most interesting ones first; ties by id."""
    import numpy as np

    prompt, status = np.array(plan.prompt, dtype=np.int64), np.array(plan.status, dtype=np.int8)
    margin = np.abs(np.array(plan.probability) - 0.5)
    rank = np.empty(len(plan.prompts), dtype=np.int64)
    rank[sorted(range(len(plan.prompts)), key=plan.prompts.__getitem__)] = np.arange(len(plan.prompts))
    labelled = (status == status_number("labelled")) & ~np.isnan(margin)
    unlabelled = (status == status_number("unparsed")) | (status == status_number("failed"))

    def ids(mask: Any, value: Any = None) -> list[str]:
        places, keys = prompt[mask], rank[prompt[mask]]
        order = np.lexsort((keys,) if value is None else (keys, value[mask]))
        distinct = dict.fromkeys(places[order].tolist())
        return [plan.prompts[at] for at in itertools.islice(distinct, MAX_PROMPTS)]

    return {
        "widest margin": ids(labelled, -margin),
        "narrowest margin": ids(labelled, margin),
        "flip": ids(status == status_number("flip")),
        "no label": ids(unlabelled),
    }


@dataclass
class PromptRows:
    """The rows of the chosen prompts, by prompt; judgements by their own id."""

    prompts: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    rankings: dict[str, dict[str, Any]] = field(default_factory=dict)
    pairs: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    critiques: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    revisions: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    uses: dict[str, str] = field(default_factory=dict)
    """The use of a revision, by its id."""
    confirmed: dict[tuple[str, str], float] = field(default_factory=dict)
    """By (revision, sample): the probability that the revision is better."""
    judgements: dict[str, dict[str, Any]] = field(default_factory=dict)


def gather(
    folder: Path, prompt_ids: Iterable[str], judgements: dict[str, dict[str, Any]], read: Rows = rows
) -> PromptRows:
    """Read the rows of some prompts from all tables. Raises RecordError on a row without a needed column."""
    chosen, tables = frozenset(prompt_ids), PromptRows(judgements=judgements)
    given_ids: set[str] = set()

    def rows_of(name: str, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
        path = folder / name
        for number, row in enumerate(read(path), start=1):
            if row.get(key) in chosen:
                _require(row, _COLUMNS[name], path, number)
                yield number, row

    for number, row in rows_of("prompts.jsonl", "id"):
        tables.prompts[row["id"]] = row
        prompt = _prompt(row, folder / "prompts.jsonl", number)
        given = given_samples(prompt)
        tables.samples[row["id"]] += [sample.model_dump(mode="json") for sample in given]
        given_ids |= {sample.id for sample in given}
    tables.rankings |= {row["id"]: row for _, row in rows_of("rankings.jsonl", "id")}
    for name, table, key in (
        ("samples.jsonl", tables.samples, "prompt"),
        ("pairs.jsonl", tables.pairs, "prompt_id"),
        ("critiques.jsonl", tables.critiques, "prompt"),
        ("revisions.jsonl", tables.revisions, "prompt"),
    ):
        for _, row in rows_of(name, key):
            if row.get("id") not in given_ids:  # samples.jsonl repeats the given responses
                table[row[key]].append(row)
    for _, row in rows_of("chains.jsonl", "prompt"):
        tables.uses |= {revision["revision"]: revision["use"] for revision in row["rounds"]}
    for _, row in rows_of("revised_pairs.jsonl", "prompt_id"):
        tables.confirmed[row["chosen_id"], row["rejected_id"]] = row["probability"]
        tables.confirmed[row["rejected_id"], row["chosen_id"]] = 1 - row["probability"]
    return tables


def _prompt(row: dict[str, Any], path: Path, number: int) -> Prompt:
    try:
        return Prompt.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecordError(path, number, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _require(row: Mapping[str, Any], columns: Mapping[str, Any], path: Path, number: int) -> None:
    """Raise RecordError where a column is missing or of another type, also in the records of a list."""
    for name, kind in columns.items():
        value = row.get(name)
        if isinstance(kind, dict):
            if not isinstance(value, list) or not all(isinstance(record, dict) for record in value):
                raise RecordError(path, number, f"`{name}` is no list of records")
            for record in value:
                _require(record, kind, path, number)
        elif not isinstance(value, kind):
            raise RecordError(path, number, f"`{name}` is missing" if value is None else f"`{name}` is {value!r}")


def build_examples(
    tables: PromptRows, chosen: Mapping[str, list[str]], total: int, settings: LabelSettings
) -> Examples:
    """The examples in the order in which they were chosen, as many as `MAX_BYTES` allows."""
    builder = _ExampleBuilder(tables, settings)
    items: list[dict[str, Any]] = []
    room = MAX_BYTES
    counts: dict[str, int] = {}
    for identity, reasons in chosen.items():
        if identity not in tables.prompts:
            continue
        item = builder.example(identity) | {"why": reasons}
        room -= len(json.dumps(item, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        if room < 0 and items:
            break
        items.append(item)
        for reason in reasons:
            counts[reason] = counts.get(reason, 0) + 1
    return Examples(
        total=total,
        shown=len(items),
        chosen=counts,
        cut=builder.truncated,
        longest=MAX_CHARS,
        items=tuple(items),
        principles=tuple(builder.principles),
        judges=tuple(builder.judges),
    )


class _ExampleBuilder:
    """Turns the rows of a prompt into JSON for the page, with principles and judges as indices."""

    def __init__(self, tables: PromptRows, settings: LabelSettings) -> None:
        self._tables, self._settings = tables, settings
        self.principles: dict[str, int] = {}
        self.judges: dict[str, int] = {}
        self.truncated = 0

    def example(self, identity: str) -> dict[str, Any]:
        messages = self._tables.prompts[identity]["messages"]
        ranking = self._tables.rankings.get(identity, {})
        ranked = {sample["sample"]: sample for sample in ranking.get("samples", [])}

        def rank(row: dict[str, Any]) -> tuple[float, int]:
            """Ranked samples first, then the others by their number."""
            return (ranked[row["id"]]["rank"] if row["id"] in ranked else math.inf, row["index"])

        samples = sorted(self._tables.samples[identity], key=rank)
        numbers = {sample["id"]: at for at, sample in enumerate(samples)}
        turns = [[turn["role"], self._text(turn["content"])] for turn in messages[-_MAX_TURNS:]]
        pairs = [
            {
                "id": row["id"],
                "of": [numbers.get(row["chosen_id"], -1), numbers.get(row["rejected_id"], -1)],
                "p": _round(row["probability"]),
                "flip": row["flip"],
            }
            for row in self._tables.pairs[identity]
        ]
        pair_ids = {frozenset(pair["of"]): pair["id"] for pair in pairs}
        return {
            "id": identity,
            "earlier": max(0, len(messages) - _MAX_TURNS),
            "messages": turns,
            "samples": [self._sample(sample, ranked.get(sample["id"]), identity) for sample in samples],
            "comparisons": [self._comparison(row, numbers, pair_ids) for row in ranking.get("comparisons", [])],
            "pairs": pairs,
        }

    def _text(self, text: str) -> str:
        self.truncated += len(text) > MAX_CHARS
        return truncated(text, MAX_CHARS)

    def _sample(self, row: dict[str, Any], ranked: dict[str, Any] | None, prompt: str) -> dict[str, Any]:
        revisions = [revision for revision in self._tables.revisions[prompt] if revision["sample"] == row["id"]]
        rounds = {row["id"]: 0} | {revision["id"]: revision["round"] for revision in reversed(revisions)}
        return {
            "rank": None if ranked is None else ranked["rank"],
            "strength": None if ranked is None else _round(ranked["strength"], 2),
            "text": self._text(row["text"]),
            "by": row["policy"],
            "cutoff": row.get("finish_reason") == "length",
            "critiques": [  # principle, text, and the round after which it was written: 0 is on the sample itself
                [self._principle(critique["principle"]), self._text(critique["text"]), rounds[critique["sample"]]]
                for critique in self._tables.critiques[prompt]
                if critique["sample"] in rounds
            ],
            "revisions": [
                self._revision(revision) for revision in sorted(revisions, key=lambda revision: revision["round"])
            ],
        }

    def _revision(self, row: dict[str, Any]) -> dict[str, Any]:
        probability = self._tables.confirmed.get((row["id"], row["sample"]))
        return {
            "round": row["round"],
            "principle": self._principle(row["principle"]),
            "text": self._text(spoken(row["text"])),
            "use": self._tables.uses.get(row["id"], ""),
            "p": None if probability is None else _round(probability),
        }

    def _comparison(
        self, row: dict[str, Any], numbers: Mapping[str, int], pair_ids: Mapping[frozenset[int], str]
    ) -> dict[str, Any]:
        sides = [numbers.get(row["left"], -1), numbers.get(row["right"], -1)]
        votes: dict[tuple[int, int], list[Any]] = {}
        planned = shows_left_first(row, both=self._settings.both)
        for key, expected in zip(row["judgements"], planned, strict=True):
            judgement = self._tables.judgements.get(key)
            if judgement is None:
                continue
            judge = self.judges.setdefault(judgement["judge"], len(self.judges))
            vote = votes.setdefault((self._principle(judgement["principle"]), judge), [None, None])
            if judgement["first"] == row["left"] or judgement["second"] == row["right"]:
                forward = True
            else:
                forward = expected and judgement["first"] != row["right"] and judgement["second"] != row["left"]
            vote[0 if forward else 1] = self._probability(judgement, forward=forward)
        return {
            "of": sides,
            "status": row["status"],
            "p": None if row["probability"] is None else _round(row["probability"]),
            "flip": row["flip"],
            "votes": [[principle, judge, *vote] for (principle, judge), vote in votes.items()],
            "pair": pair_ids.get(frozenset(sides)),
        }

    def _probability(self, judgement: dict[str, Any], *, forward: bool) -> float | str:
        """The probability that the left sample is better, or the reason why there is no label."""
        logit = judgement_logit(judgement, self._settings.min_mass, **self._settings.of(judgement["judge"]))
        if math.isnan(logit):
            return "unparsed" if judgement["verdict"] == "unparsed" else "low mass"
        return _round(sigmoid(logit if forward else -logit))

    def _principle(self, principle: str) -> int:
        return self.principles.setdefault(principle, len(self.principles))


def truncated(text: str, limit: int) -> str:
    """The first `limit` characters, with a note where there are more."""
    return text if len(text) <= limit else f"{text[:limit].rstrip()} … [cut: {len(text):,} characters]"


def _round(value: float, digits: int = 3) -> float:
    return round(float(value), digits)
