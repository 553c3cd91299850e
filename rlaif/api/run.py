"""Data, the whole loop, and the page about it: `rlaif generate`, `rlaif run`, `rlaif report` as functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif.api.keywords import Screen, given, in_python, one_of, progress_of, reading
from rlaif.config.run_file import Flags, Value, read_run
from rlaif.config.schemas import RunSettings
from rlaif.constitution import Constitution
from rlaif.errors import UserError

if TYPE_CHECKING:
    import datasets

    from rlaif.feedback.pipeline import Report
    from rlaif.workflow.run import Metrics, WorkflowResult


@dataclass(frozen=True)
class Generated:
    """The result of a run."""

    folder: Path
    counts: dict[str, int]
    """Under the current settings: prompts, samples, judgements, ties, flips, pairs, tokens."""
    failures: dict[str, int]
    """Failed requests by stage and reason; the same call repeats them."""
    seconds: float
    """Of this call."""
    report: Report = field(repr=False)
    """The full report of the run."""

    @property
    def problem(self) -> str | None:
        """Why there is no usable label, and what to change; None where there is one."""
        return self.report.problem

    def pairs(self) -> datasets.Dataset:
        """The preference pairs: prompt, chosen, rejected, probability, and where each comes from (see docs/files.md).

        Raises UserError where there are none yet.
        """
        from datasets import Dataset
        from pyarrow import parquet

        path = self._file("pairs.parquet", "run the stages `compare` and `pair`")
        if not parquet.ParquetFile(path).metadata.num_rows:  # `load_dataset` rejects an empty table
            return Dataset(parquet.read_table(path))
        return _rows("parquet", path)

    def sft(self) -> datasets.Dataset:
        """The demonstrations from the revisions: prompt, response, and where each comes from.

        Raises UserError where there are none.
        """
        return _rows("json", self._file("sft.jsonl", 'set `revise={"enabled": True}`'))

    def _file(self, name: str, hint: str) -> Path:
        path = self.folder / name
        if not path.is_file() or not path.stat().st_size:
            raise UserError("there is no such file, or nothing in it", where=path, hint=hint)
        return path


def _rows(kind: str, path: Path) -> datasets.Dataset:
    """The rows of a file, memory-mapped, and converted without a progress bar."""
    from datasets import load_dataset
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        return load_dataset(kind, data_files=str(path), split="train")
    finally:
        if shown:
            enable_progress_bars()


@in_python
def generate(
    file: str | Path | None = None, /, *, stages: Sequence[str] | None = None, quiet: bool = False, **settings: Any
) -> Generated:
    """Prompts in, judged preference pairs out: `rlaif generate`.

    `file` is a run file; keywords are the settings of docs/settings.md, by the names of the flags (`policy_samples=8`)
    or as mappings (`policy={"samples": 8}`), and go before the file's. `policy` and `judge` may be the name of a model,
    `judge` a list of mappings (a panel), `constitution` an object too, which is then kept in the run folder. `stages`
    takes some of `sample`, `revise`, `critique`, `compare`, `pair`. A second call asks only for what is missing.

    Raises UserError for mistakes, ModelError where a model fails; model outputs so far are saved.

        >>> import rlaif
        >>> run = rlaif.generate(
        ...     constitution="demo", prompts="prompts/policy/demo.jsonl", prompts_limit=4,
        ...     policy={"model": "demo-policy", "max_tokens": 96}, policy_samples=4, judge="demo-judge",
        ...     compare_principles="all", pair_select="all", output="runs/notebook", quiet=True,
        ... )
        >>> run.counts["samples"]
        16
        >>> run.pairs().column_names[:5]
        ['id', 'prompt', 'chosen', 'rejected', 'probability']
        >>> strict = rlaif.generate("runs/notebook/run.yaml", pair_margin=0.45, quiet=True)  # calls no model
        >>> strict.counts["pairs"] < run.counts["pairs"]
        True
    """
    from rlaif.config.yaml import find_problems
    from rlaif.feedback import pipeline
    from rlaif.training.config import refuse_all

    selected = [one_of(stage, pipeline.STAGES, "stages") for stage in (pipeline.STAGES if stages is None else stages)]
    flags = _flags(file, settings, "generate()", ("stages", "quiet"))
    source = read_run(None if file is None else Path(file), flags)
    if file is None:
        source = dataclasses.replace(source, where="generate()")
    refuse_all(find_problems(source, RunSettings))
    with progress_of(quiet) as progress:
        report = pipeline.run_pipeline(RunSettings.model_validate(source.data), selected, progress)
        if report.problem is not None:
            progress.note(report.problem)
    outcome = report.outcome
    counts = {} if outcome is None else {name: int(count) for name, count in sorted(outcome.counts.items())}
    failures = {} if outcome is None else dict(outcome.failures)
    return Generated(report.run.folder, counts, failures, round(report.seconds, 2), report)


@in_python
def run_workflow(
    file: str | Path, /, *, metrics: Metrics | None = None, quiet: bool = False, **settings: Any
) -> WorkflowResult:
    """Generate, train, evaluate, report, from one file: `rlaif run`.

    Keywords are those of `generate`; the sections `train` and `evaluate` are set in the file. `metrics` are your own
    metrics of a response, functions of messages and text, by name. A second call resumes where the first one stopped,
    and repeats only what a change affects; where Ctrl-C stopped a training, `.stopped` names it.

        >>> import rlaif
        >>> done = rlaif.run_workflow("loop.yaml", output="runs/notebook-loop", quiet=True)
        >>> {name: folder.name for name, folder in done.trained.items()}
        {'dpo': 'dpo'}
        >>> done.page.name
        'report.html'
        >>> sorted(policy.name for policy in done.policies.policies)
        ['base', 'dpo']
    """
    from rlaif.workflow.plan import load_plan
    from rlaif.workflow.run import run_workflow as run_stages

    flags = _flags(file, settings, "run_workflow()", ("metrics", "quiet"))
    return run_stages(load_plan(Path(file), flags), Screen(quiet), metrics=metrics)


@in_python
def write_report(folder: str | Path, *, quiet: bool = False) -> Path:
    """Write the report page of a run, a training or an evaluation; returns its path: `rlaif report`.

    >>> import rlaif
    >>> str(rlaif.write_report("runs/notebook", quiet=True))
    'runs/notebook/report.html'
    """
    from rlaif.report.page import write_page

    with reading(str(folder), quiet) as progress:
        return write_page(Path(folder), progress)


def _flags(file: str | Path | None, settings: Mapping[str, Any], call: str, reserved: tuple[str, ...]) -> Flags:
    """The keywords by path; writes a constitution that is an object into the run folder first."""
    constitution = settings.get("constitution")
    if not isinstance(constitution, Constitution):
        return given(RunSettings, settings, call, reserved)
    flags: dict[tuple[str, ...], str | Value] = dict(
        given(RunSettings, {**settings, "constitution": constitution.name}, call, reserved)
    )
    data = read_run(None if file is None else Path(file), flags).data
    output = data.get("output") if isinstance(data, dict) else None
    if isinstance(output, str) and output:
        flags["constitution",] = Value(str(_save(constitution, Path(output)).resolve()), "constitution")
    return flags


def _save(constitution: Constitution, folder: Path) -> Path:
    from rlaif.constitution.write import constitution_yaml
    from rlaif.store import write_text

    path = folder / "constitution.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"cannot be made ({error.strerror or error})"
        raise UserError(problem, where=folder, hint="choose another `output`") from error
    write_text(path, constitution_yaml(constitution))
    return path
