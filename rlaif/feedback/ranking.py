"""Ranking: from a prompt's comparisons to the ranking of its samples and to preference pairs.

Every pair was itself judged: `best_worst` takes, among the comparisons that have a label, the one with the widest gap
in strength, so its soft label rests on direct evidence. Where the best and the worst sample tied, flipped or never met,
this falls to the next widest gap instead of inventing a label for them.

Ranking and pairing are pure, without a model or files. `write_parquet` gives `pairs.jsonl` as Parquet, with types that
do not depend on the values of the rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.config.schemas import CompareSettings, PairSettings
from rlaif.feedback.aggregate import Comparison, Status
from rlaif.records import Message, PreferencePair, Prompt, Ranked, Ranking, Sample, Settled, content_id
from rlaif.stats import strengths
from rlaif.store import draft_of, read_records

_ROWS = 5_000
"""Rows held in memory at once, and the size of a row group."""


class PromptRanking(NamedTuple):
    """One prompt with its samples, the comparisons between them, and the strengths and ranks that follow."""

    prompt: Prompt
    samples: Mapping[str, Sample]
    comparisons: Sequence[Comparison]
    strength: Mapping[str, float]
    """Bradley-Terry log-strength of every sample that met another."""
    rank: Mapping[str, int]
    """1 is best; equal strengths share a rank."""

    def winner_first(self, comparison: Comparison) -> tuple[Sample, Sample]:
        """The preferred sample of a comparison, and the other one."""
        left, right = self.samples[comparison.left], self.samples[comparison.right]
        return (left, right) if comparison.logit > 0 else (right, left)

    def gap(self, comparison: Comparison) -> float:
        """The winner's strength minus the loser's; negative for a verdict against the whole ranking (a cycle)."""
        winner, loser = self.winner_first(comparison)
        return self.strength[winner.id] - self.strength[loser.id]


class Provenance(NamedTuple):
    """The judge and the constitution of a run, which all its pairs share."""

    judge: str
    constitution: str


def rank_samples(prompt: Prompt, samples: Sequence[Sample], comparisons: Sequence[Comparison]) -> PromptRanking:
    """Rank the samples of a prompt by their soft wins. Comparisons without a label count nothing."""
    compared = {name for row in comparisons for name in (row.left, row.right)}
    by_id = {sample.id: sample for sample in samples if sample.id in compared}
    wins: dict[tuple[str, str], float] = {}
    for row in comparisons:
        if row.readable:
            wins[row.left, row.right] = row.probability
            wins[row.right, row.left] = 1 - row.probability
    strength = strengths(list(by_id), wins)
    rank = {name: 1 + sum(rival > value + 1e-6 for rival in strength.values()) for name, value in strength.items()}
    return PromptRanking(prompt, by_id, comparisons, strength, rank)


def ranking_record(ranked: PromptRanking) -> Ranking:
    """The record of a prompt's ranking, with every comparison behind it."""
    return Ranking(
        id=ranked.prompt.id,
        samples=tuple(
            Ranked(sample=name, rank=ranked.rank[name], strength=ranked.strength[name])
            for name in sorted(ranked.strength, key=lambda name: (ranked.rank[name], ranked.samples[name].index))
        ),
        comparisons=tuple(
            Settled(
                left=row.left,
                right=row.right,
                status=row.status.value,
                probability=row.probability if row.readable else None,
                flip=row.flip,
                principles=row.principles,
                judgements=row.judgements,
            )
            for row in ranked.comparisons
        ),
    )


def pairs(
    ranked: PromptRanking, settings: PairSettings, compare: CompareSettings, provenance: Provenance
) -> list[PreferencePair]:
    """The preference pairs of one prompt: of labelled comparisons only, the judge's winner as `chosen`."""
    rows = [(row, *ranked.winner_first(row)) for row in ranked.comparisons if row.status is Status.LABELLED]
    if settings.truncated == "rejected":  # a response that was cut off is not chosen over a whole one
        rows = [(row, winner, loser) for row, winner, loser in rows if loser.truncated or not winner.truncated]
    if settings.select == "revised":
        rows = [
            (row, winner, loser)
            for row, winner, loser in rows
            if winner.revision_of == loser.id or loser.revision_of == winner.id
        ]
    labelled = [row for row, _, _ in rows]
    if settings.select == "best_worst":
        agreeing = [row for row in labelled if ranked.gap(row) > 0]
        selected = sorted(agreeing, key=lambda row: -ranked.gap(row))[:1]
    else:
        selected = sorted(labelled, key=lambda row: -abs(row.logit))[: settings.per_prompt]
    return [_pair(ranked, row, compare, provenance) for row in selected]


def _pair(
    ranked: PromptRanking, comparison: Comparison, compare: CompareSettings, provenance: Provenance
) -> PreferencePair:
    chosen, rejected = ranked.winner_first(comparison)
    raw = max(comparison.probability, 1 - comparison.probability)
    low, high = compare.clamp if compare.critique else (0.0, 1.0)
    return PreferencePair(
        id=content_id("pair", chosen.id, rejected.id, comparison.judgements),
        prompt=ranked.prompt.messages,
        chosen=(Message(role="assistant", content=chosen.text),),
        rejected=(Message(role="assistant", content=rejected.text),),
        probability=min(high, max(low, raw)),
        raw_probability=raw,
        margin=raw - 0.5,
        flip=comparison.flip,
        hard=comparison.hard,
        strengths=(ranked.strength[chosen.id], ranked.strength[rejected.id]),
        ranks=(ranked.rank[chosen.id], ranked.rank[rejected.id]),
        principles=comparison.principles,
        prompt_id=ranked.prompt.id,
        chosen_id=chosen.id,
        rejected_id=rejected.id,
        judgements=comparison.judgements,
        policies=(chosen.policy, rejected.policy),
        judge=provenance.judge,
        constitution=provenance.constitution,
        chosen_truncated=chosen.truncated,
        rejected_truncated=rejected.truncated,
    )


def write_parquet(source: Path, target: Path) -> None:
    """Write the pairs in the JSONL file `source` to the Parquet file `target`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    rows = read_records(source, PreferencePair)
    with draft_of(target) as draft, pq.ParquetWriter(draft, schema) as writer:
        while chunk := list(itertools.islice(rows, _ROWS)):
            data = [row.model_dump() for row in chunk]
            writer.write_table(pa.Table.from_pylist(data, schema=schema))


def _schema() -> Any:
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    messages = pa.list_(pa.struct([("role", text), ("content", text)]))
    types = {
        "prompt": messages,
        "chosen": messages,
        "rejected": messages,
        "probability": number,
        "raw_probability": number,
        "margin": number,
        "flip": pa.bool_(),
        "hard": pa.bool_(),
        "chosen_truncated": pa.bool_(),
        "rejected_truncated": pa.bool_(),
        "strengths": pa.list_(number),
        "ranks": pa.list_(pa.int64()),
        "principles": pa.list_(text),
        "judgements": pa.list_(text),
        "policies": pa.list_(text),
    }
    return pa.schema([(name, types.get(name, text)) for name in PreferencePair.model_fields])
