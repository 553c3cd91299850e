"""The slot bias of a run's judges, where its pairs are asked in one order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import JsonValue

from rlaif.comparisons.slots import SlotBias, slot_bias
from rlaif.records import Judgement
from rlaif.run import Run
from rlaif.settings import CompareSettings


def removes_bias(compare: CompareSettings) -> bool:
    """Whether a slot bias is to be estimated and taken off: in both orders it cancels by itself."""
    return compare.orders == "random" and compare.slot_bias == "removed"


def find_slots(run: Run) -> dict[str, SlotBias]:
    """Estimate every judge's bias from its answers on disk to the questions of this run, and let the run's votes be
    corrected by it; nothing where nothing is to be removed, and where grades or rankings decide."""
    found = {}
    if removes_bias(run.settings.compare) and run.settings.compare.method in ("pairwise", "tournament"):
        least = run.settings.pair.min_label_mass
        found = {name: slot_bias(_answers(run, name), min_mass=least) for name, _ in run.judges}
    run.slots = {name: bias.removed for name, bias in found.items()}
    return found


def _answers(run: Run, judge: str) -> Iterator[list[Judgement | None]]:
    for prompt in run.prompts():
        met = run.meetings_of(prompt, run.samples_of(prompt))
        yield [run.judgements.get(question.id) for question in run.compare_questions_of(prompt, met, judge)]


def told_slots(found: Mapping[str, SlotBias]) -> JsonValue:
    """What a manifest says of it."""
    return {name: {**bias._asdict(), "removed": bias.removed} for name, bias in found.items()}
