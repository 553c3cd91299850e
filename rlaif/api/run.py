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
    """What a run has come to."""

    folder: Path
    counts: dict[str, int]
    """Of everything that belongs to the present settings: prompts, samples, judgements, ties, flips, pairs, tokens."""
    failures: dict[str, int]
    """Questions without an answer, by stage and reason; the same call asks them again."""
    seconds: float
    """Of this call."""
    report: Report = field(repr=False)
    """All that the run says of itself."""

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
        if not parquet.ParquetFile(path).metadata.num_rows:  # `load_dataset` takes no rows for a mistake
            return Dataset(parquet.read_table(path))
        return _rows("parquet", path)

    def sft(self) -> datasets.Dataset:
        """The demonstrations that revising made: prompt, response, and where each comes from.

        Raises UserError where there are none.
        """
        return _rows("json", self._file("sft.jsonl", 'set `revise={"enabled": True}`'))

    def _file(self, name: str, hint: str) -> Path:
        path = self.folder / name
        if not path.is_file() or not path.stat().st_size:
            raise UserError("there is no such file, or nothing in it", where=path, hint=hint)
        return path


def _rows(kind: str, path: Path) -> datasets.Dataset:
    """The rows of a file; they stay on disk, and no bar is drawn while they are converted."""
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

    Raises UserError for mistakes, ModelError where a model cannot go on; what was answered is kept.

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
        >>> strict = rlaif.generate("runs/notebook/run.yaml", pair_margin=0.45, quiet=True)  # asks no model
        >>> strict.counts["pairs"] < run.counts["pairs"]
        True
    """
    from rlaif.config.yaml import find_problems
    from rlaif.feedback import pipeline
    from rlaif.training.config import refuse_all

    wanted = [one_of(stage, pipeline.STAGES, "stages") for stage in (pipeline.STAGES if stages is None else stages)]
    flags = _flags(file, settings, "generate()", ("stages", "quiet"))
    source = read_run(None if file is None else Path(file), flags)
    if file is None:
        source = dataclasses.replace(source, where="generate()")
    refuse_all(find_problems(source, RunSettings))
    with progress_of(quiet) as progress:
        report = pipeline.run_pipeline(RunSettings.model_validate(source.data), wanted, progress)
        if report.problem is not None:
            progress.note(report.problem)
    found = report.outcome
    counts = {} if found is None else {name: int(count) for name, count in sorted(found.counts.items())}
    failures = {} if found is None else dict(found.failures)
    return Generated(report.run.folder, counts, failures, round(report.seconds, 2), report)


@in_python
def run_workflow(
    file: str | Path, /, *, metrics: Metrics | None = None, quiet: bool = False, **settings: Any
) -> WorkflowResult:
    """Generate, train, evaluate, report, from one file: `rlaif run`.

    Keywords are those of `generate`; the sections `train` and `evaluate` are set in the file. `metrics` are your own
    measures of an answer, functions of messages and text, by name. A second call goes on where the first one stopped,
    and does anew only what a change touches; where Ctrl-C stopped a training, `.stopped` names it.

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
    from rlaif.workflow.run import run_workflow as take_stages

    flags = _flags(file, settings, "run_workflow()", ("metrics", "quiet"))
    return take_stages(load_plan(Path(file), flags), Screen(quiet), metrics=metrics)


@in_python
def write_report(folder: str | Path, *, quiet: bool = False) -> Path:
    """Write the page about a folder of a run, a training or an evaluation, and tell where it is: `rlaif report`.

    >>> import rlaif
    >>> str(rlaif.write_report("runs/notebook", quiet=True))
    'runs/notebook/report.html'
    """
    from rlaif.report.page import write_page

    with reading(str(folder), quiet) as progress:
        return write_page(Path(folder), progress)


def _flags(file: str | Path | None, settings: Mapping[str, Any], call: str, others: tuple[str, ...]) -> Flags:
    """The keywords by path; a constitution that is an object is written into the run folder first."""
    own = settings.get("constitution")
    if not isinstance(own, Constitution):
        return given(RunSettings, settings, call, others)
    flags: dict[tuple[str, ...], str | Value] = dict(
        given(RunSettings, {**settings, "constitution": own.name}, call, others)
    )
    data = read_run(None if file is None else Path(file), flags).data
    output = data.get("output") if isinstance(data, dict) else None
    if isinstance(output, str) and output:
        flags["constitution",] = Value(str(_kept(own, Path(output)).resolve()), "constitution")
    return flags


def _kept(constitution: Constitution, folder: Path) -> Path:
    from rlaif.constitution.write import constitution_yaml
    from rlaif.store import write_text

    path = folder / "constitution.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot be made ({error.strerror or error})", where=folder, hint="choose another `output`"
        ) from error
    write_text(path, constitution_yaml(constitution))
    return path
