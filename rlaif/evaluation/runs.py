"""The answers that a run has drawn, as its settings plan them: the one reader for all evaluations."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from rlaif.errors import RecordError, UserError
from rlaif.records import Sample
from rlaif.runfile import load_run
from rlaif.samples.plan import is_planned
from rlaif.samples.rows import Rows, read_rows
from rlaif.settings import PolicySettings

TABLE = "samples.jsonl"


def run_samples(path: Path, rows: Rows | None = None) -> dict[str, dict[int, Sample]]:
    """The answers of a run's samples.jsonl, by prompt and index; revisions are none.

    A table keeps what was drawn under earlier settings: those of the run's own (`run.yaml` beside it) count. Raises
    RecordError on a broken line, UserError where answers of several policies or settings are left: they are no sample
    of one thing.
    """
    samples = [sample for sample in _read(path, rows) if sample.revision_of is None]
    policy = _policy_of(path)
    planned = [each for each in samples if policy is not None and _is_planned(policy, each)]
    found: dict[str, dict[int, Sample]] = {}
    for sample in _alike(planned or samples, path):
        if found.setdefault(sample.prompt, {}).setdefault(sample.index, sample) is not sample:
            raise _mixed("several answers to one prompt with one number", path)
    return found


def _is_planned(policy: PolicySettings, sample: Sample) -> bool:
    how = sample.sampling
    return how is not None and is_planned(policy, sample.prompt, sample.index, how.model_dump())


def _read(path: Path, rows: Rows | None) -> Iterable[Sample]:
    for line, row in rows if rows is not None else read_rows(path):
        try:
            yield Sample.model_validate(row)
        except ValidationError as error:
            raise RecordError(path, line, error.errors()[0]["msg"]) from None


def _policy_of(path: Path) -> PolicySettings | None:
    """How the run beside a table draws its answers; None where nothing says it."""
    try:
        return load_run(path.with_name("run.yaml")).policy if path.name == TABLE else None
    except UserError:
        return None


def _alike(samples: list[Sample], path: Path) -> list[Sample]:
    policies = sorted({each.policy for each in samples})
    if len(policies) > 1:
        raise _mixed(f"answers of {len(policies)} policies ({', '.join(policies[:5])})", path)
    ways = {each.sampling and each.sampling.model_copy(update={"seed": None}) for each in samples}
    if len(ways) > 1:
        warm = sorted({each.temperature for each in ways if each is not None})
        told = f" (temperatures {', '.join(f'{each:g}' for each in warm)})" if len(warm) > 1 else ""
        raise _mixed(f"answers drawn with {len(ways)} settings{told}", path)
    return samples


def _mixed(what: str, path: Path) -> UserError:
    return UserError(f"holds {what}", where=path, mend="give each its own file")
