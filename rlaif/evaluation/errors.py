"""How far the errors of several judges go together, which only known answers tell.

The log-odds of two good judges correlate because both see the truth. What is left of a judge's log-odds of the better
reply when their mean is taken off is its error; judges whose errors correlate by rho are worth `effective_judges` of
that rho. Judges meet here where they were evaluated on the same gold pairs, in one folder.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from rlaif.comparisons.agreement import effective_judges
from rlaif.evaluation.judged import JudgedPair
from rlaif.evaluation.report import About, JudgeReport, SharedErrors

LEAST_SHARED = 30
"""With fewer pairs a correlation of 0.36 is nothing but chance."""


def shared_errors(about: About, judged: Sequence[JudgedPair], folder: Path) -> tuple[SharedErrors, ...]:
    """The errors of this judge beside those of every other one that was evaluated on the same pairs in the folder."""
    own = _logits(judged)
    found = []
    for judge, path in sorted(_others(about, folder).items()):
        other = _logits(_pairs(path))
        rho = error_correlation(own, other)
        if rho is not None:
            worth = effective_judges(2, rho)
            found.append(SharedErrors(judge=judge, pairs=len(own.keys() & other.keys()), correlation=rho, worth=worth))
    return tuple(found)


def error_correlation(one: Mapping[str, float], other: Mapping[str, float]) -> float | None:
    """Pearson's correlation of two judges' log-odds of the better replies, by pair; None of too few or equal ones."""
    shared = sorted(one.keys() & other.keys())
    if len(shared) < LEAST_SHARED:
        return None
    xs, ys = [one[key] for key in shared], [other[key] for key in shared]
    return None if min(xs) == max(xs) or min(ys) == max(ys) else statistics.correlation(xs, ys)


def _logits(judged: Sequence[JudgedPair]) -> dict[str, float]:
    return {each.id: each.logit for each in judged if each.logit is not None and not each.tie}


def _others(about: About, folder: Path) -> dict[str, Path]:
    """By judge, the pairs of its latest evaluation on the same data."""
    reports = sorted(folder.glob("*.pairs.jsonl"), key=lambda path: path.stat().st_mtime)
    found = {}
    for pairs in reports:
        with contextlib.suppress(OSError, ValidationError):
            path = pairs.with_name(pairs.name.removesuffix(".pairs.jsonl") + ".json")
            told = JudgeReport.model_validate_json(path.read_bytes()).about
            same = (told.gold, told.gold_sha256, told.constitution_hash)
            if told.judge != about.judge and same == (about.gold, about.gold_sha256, about.constitution_hash):
                found[told.judge] = pairs
    return found


def _pairs(path: Path) -> list[JudgedPair]:
    try:
        with path.open(encoding="utf-8") as file:
            return [JudgedPair.model_validate_json(line) for line in file]
    except (OSError, ValueError):
        return []
