"""From a prompt's comparisons to its ranking and its preference pairs, as JSON lines and as Parquet.

From a prompt's folded comparisons to its ranking and its preference pairs. Pure: no model, no files.

Every pair was itself judged: `best_worst` takes, among the comparisons that have a label, the one with the widest gap
in strength, so its soft label rests on direct evidence. Where the best and the worst sample tied, flipped or never met,
this falls to the next widest gap instead of inventing a label for them.

`pairs.jsonl` as Parquet, with types that do not depend on what the rows happen to hold.
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


class PromptRanking(NamedTuple):
    """One prompt with its samples, the comparisons between them, and what they come to."""

    prompt: Prompt
    samples: Mapping[str, Sample]
    comparisons: Sequence[Comparison]
    strength: Mapping[str, float]
    """Bradley-Terry log-strength of every sample that met another."""
    rank: Mapping[str, int]
    """1 is best; equal strengths share a rank."""


class Provenance(NamedTuple):
    """What all pairs of a run share."""

    judge: str
    constitution: str


def rank_samples(prompt: Prompt, samples: Sequence[Sample], comparisons: Sequence[Comparison]) -> PromptRanking:
    """Rank the samples of a prompt by their soft wins. Comparisons without a label say nothing."""
    said = [each for each in comparisons if each.status not in (Status.UNPARSED, Status.FAILED)]
    met = {name for each in comparisons for name in (each.left, each.right)}
    known = {sample.id: sample for sample in samples if sample.id in met}
    wins: dict[tuple[str, str], float] = {}
    for each in said:
        wins[each.left, each.right] = each.probability
        wins[each.right, each.left] = 1 - each.probability
    strength = strengths(list(known), wins)
    rank = {name: 1 + sum(other > own + 1e-6 for other in strength.values()) for name, own in strength.items()}
    return PromptRanking(prompt, known, comparisons, strength, rank)


def ranking(standing: PromptRanking) -> Ranking:
    """The record of a prompt's ranking, with every comparison behind it."""
    return Ranking(
        id=standing.prompt.id,
        samples=tuple(
            Ranked(sample=name, rank=standing.rank[name], strength=standing.strength[name])
            for name in sorted(standing.strength, key=lambda name: (standing.rank[name], standing.samples[name].index))
        ),
        comparisons=tuple(
            Settled(
                left=each.left,
                right=each.right,
                status=each.status.value,
                probability=None if each.status in (Status.UNPARSED, Status.FAILED) else each.probability,
                flip=each.flip,
                principles=each.principles,
                judgements=each.judgements,
            )
            for each in standing.comparisons
        ),
    )


def pairs(
    standing: PromptRanking, settings: PairSettings, compare: CompareSettings, provenance: Provenance
) -> list[PreferencePair]:
    """The preference pairs of one prompt: of labelled comparisons only, the judge's winner as `chosen`."""
    labelled = [each for each in standing.comparisons if each.status is Status.LABELLED]
    if settings.truncated == "rejected":
        labelled = [each for each in labelled if not _cut_off_wins(standing, each)]
    return [_pair(standing, each, compare, provenance) for each in _selected(standing, labelled, settings)]


def _selected(standing: PromptRanking, labelled: list[Comparison], settings: PairSettings) -> list[Comparison]:
    if settings.select == "best_worst":
        # A verdict against the whole ranking (a cycle) has a negative gap and is no best-against-worst.
        agreeing = [each for each in labelled if _gap(standing, each) > 0]
        return sorted(agreeing, key=lambda each: -_gap(standing, each))[:1]
    if settings.select == "revised":
        labelled = [each for each in labelled if _is_revision(standing, each)]
    return sorted(labelled, key=lambda each: -abs(each.logit))[: settings.per_prompt]


def _cut_off_wins(standing: PromptRanking, comparison: Comparison) -> bool:
    """Whether a response that was cut off would be chosen over a whole one."""
    winner, loser = (standing.samples[name] for name in _winner_first(comparison))
    return winner.truncated and not loser.truncated


def _winner_first(comparison: Comparison) -> tuple[str, str]:
    return (comparison.left, comparison.right) if comparison.logit > 0 else (comparison.right, comparison.left)


def _gap(standing: PromptRanking, comparison: Comparison) -> float:
    winner, loser = _winner_first(comparison)
    return standing.strength[winner] - standing.strength[loser]


def _is_revision(standing: PromptRanking, comparison: Comparison) -> bool:
    left, right = standing.samples[comparison.left], standing.samples[comparison.right]
    return right.revision_of == left.id or left.revision_of == right.id


def _pair(
    standing: PromptRanking, comparison: Comparison, compare: CompareSettings, provenance: Provenance
) -> PreferencePair:
    chosen_id, rejected_id = _winner_first(comparison)
    chosen, rejected = standing.samples[chosen_id], standing.samples[rejected_id]
    raw = max(comparison.probability, 1 - comparison.probability)
    low, high = compare.clamp if compare.critique else (0.0, 1.0)
    return PreferencePair(
        id=content_id("pair", chosen_id, rejected_id, comparison.judgements),
        prompt=standing.prompt.messages,
        chosen=(Message(role="assistant", content=chosen.text),),
        rejected=(Message(role="assistant", content=rejected.text),),
        probability=min(high, max(low, raw)),
        raw_probability=raw,
        margin=raw - 0.5,
        flip=comparison.flip,
        hard=comparison.hard,
        strengths=(standing.strength[chosen_id], standing.strength[rejected_id]),
        ranks=(standing.rank[chosen_id], standing.rank[rejected_id]),
        principles=comparison.principles,
        prompt_id=standing.prompt.id,
        chosen_id=chosen_id,
        rejected_id=rejected_id,
        judgements=comparison.judgements,
        policies=(chosen.policy, rejected.policy),
        judge=provenance.judge,
        constitution=provenance.constitution,
        chosen_truncated=chosen.truncated,
        rejected_truncated=rejected.truncated,
    )


_ROWS = 5_000
"""Rows held in memory at once, and the size of a row group."""


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
