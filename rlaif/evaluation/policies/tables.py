"""What evaluations of policies have asked so far, in one folder, and the time that it took."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlaif.evaluation.policies.distance import Likelihood
from rlaif.inference.ask import Tally
from rlaif.jsontext import loads
from rlaif.records import Failure, Judgement, Prompt, Sample, Score
from rlaif.store import Table, lock_folder, write_json

_SECONDS = "seconds.json"


@dataclass
class Tables:
    """What has been asked so far, in one folder."""

    prompts: Table[Prompt]
    samples: Table[Sample]
    judgements: Table[Judgement]
    scores: Table[Score]
    likelihoods: Table[Likelihood]
    failures: Table[Failure]


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Tables]:
    """The tables of a folder, which is made if need be and held by this process alone."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock_folder(folder))
        yield Tables(
            stack.enter_context(contextlib.closing(Table(folder / "prompts.jsonl", Prompt))),
            stack.enter_context(contextlib.closing(Table(folder / "samples.jsonl", Sample))),
            stack.enter_context(contextlib.closing(Table(folder / "judgements.jsonl", Judgement))),
            stack.enter_context(contextlib.closing(Table(folder / "scores.jsonl", Score, create=False))),
            stack.enter_context(contextlib.closing(Table(folder / "likelihoods.jsonl", Likelihood, create=False))),
            stack.enter_context(contextlib.closing(Table(folder / "failures.jsonl", Failure))),
        )


@contextlib.contextmanager
def timed(folder: Path, stem: str, tallies: Sequence[Tally]) -> Iterator[None]:
    """Keep the time that the stages in the block took, also where they are stopped between two of them."""
    try:
        yield
    finally:
        more = sum(tally.seconds for tally in tallies)
        if more:
            known = seconds_of(folder)
            write_json(folder / _SECONDS, {**known, stem: known.get(stem, 0.0) + more})


def seconds_of(folder: Path) -> dict[str, float]:
    """Time with models by evaluation, as far as it is known."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        found = loads((folder / _SECONDS).read_text(encoding="utf-8"))
        return {name: float(value) for name, value in found.items()}
    return {}
