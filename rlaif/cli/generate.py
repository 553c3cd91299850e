"""`rlaif generate`, each of its stages, `rlaif preview` and `rlaif revise`, and the end of a run on the terminal."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rlaif.cli.options import COMMON, SettingsCommand, run_options, settings_of
from rlaif.cli.terminal import decimal, echo, secho
from rlaif.cli.transcript import read_story, show_transcript
from rlaif.config.run_file import Flags
from rlaif.config.schemas import RunSettings
from rlaif.feedback.dataset import tokens_of
from rlaif.feedback.pipeline import Report, run_pipeline
from rlaif.progress import show_progress
from rlaif.records import Critique, Judgement, Order, Record, Revision, Sample, Score
from rlaif.store import read_records
from rlaif.text import visible

if TYPE_CHECKING:
    from rlaif.feedback.dataset import Outcome
    from rlaif.feedback.pipeline import Report


@click.command(cls=SettingsCommand, common=COMMON)
@click.option("-n", "count", default=3, show_default=True, type=click.IntRange(1), help="Number of prompts to show.")
@run_options
def preview(run_file: Path, flags: Flags, count: int) -> None:
    """Show full transcripts of the first prompts and estimate the cost of the whole run; nothing is stored."""
    settings = settings_of(run_file, flags)
    with tempfile.TemporaryDirectory(prefix="rlaif-preview-") as folder:
        few = settings.prompts.model_copy(update={"limit": min(count, settings.prompts.limit or count)})
        alone = settings.revise.model_copy(update={"helpful": None})
        small = settings.model_copy(update={"output": folder, "prompts": few, "revise": alone, "max_failed": 1.0})
        with show_progress() as progress:
            report = run_pipeline(small, progress=progress)
        story = read_story(Path(folder))
        for at, prompt in enumerate(story.prompts):
            echo("" if at == 0 else "\n" + "-" * 72)
            show_transcript(story, prompt)
        spent = _tokens(Path(folder))
    _show_cost(report, settings, spent)


_ANSWERS: dict[str, dict[str, type[Record]]] = {
    "policy": {"samples": Sample},
    "judge": {"critiques": Critique, "revisions": Revision, "judgements": Judgement, "scores": Score, "orders": Order},
}
"""The files of a run folder with the outputs of each model."""


def _tokens(folder: Path) -> dict[str, tuple[int, int]]:
    """Prompt and completion tokens of each model, over all outputs in a run folder."""
    tokens = {}
    for model, files in _ANSWERS.items():
        tables = [(folder / f"{name}.jsonl", kind) for name, kind in files.items()]
        spent = tokens_of(model, (each for path, kind in tables if path.exists() for each in read_records(path, kind)))
        tokens[model] = (spent[f"{model}_prompt_tokens"], spent[f"{model}_completion_tokens"])
    return tokens


def _show_cost(report: Report, settings: RunSettings, spent: dict[str, tuple[int, int]]) -> None:
    from rlaif.data.prompts import InputIssues, read_prompts

    wanted = settings.prompts
    prompts = read_prompts(
        wanted.path, column=wanted.column, responses=wanted.responses, limit=wanted.limit, input_issues=InputIssues()
    )
    whole = sum(1 for _ in prompts)
    times = whole / report.run.prompt_count
    assert report.outcome is not None  # generate ran all its stages
    secho(f"\nThe whole run, about {times:.0f} times this ({whole:,} prompts)", bold=True)
    for tally in report.tallies:
        echo(f"  {tally.stage:<10} {tally.asked * times:>12,.0f} calls {tally.seconds * times / 60:>10,.1f} minutes")
    for name, (read, written) in spent.items():
        echo(f"  {name:<10} {read * times:>12,.0f} tokens in {written * times:>12,.0f} out")
    for kind, failed in report.outcome.failures.items():
        echo(f"  failed here: {kind} {failed}")
    echo("A larger run is faster per call: its batches are full and its prefixes are shared.")


_REVISE = {each for each in COMMON if not each.startswith(("compare.", "pair."))} | {
    "revise.rounds", "revise.samples", "revise.max_tokens", "revise.temperature", "revise.helpful.path",
}  # fmt: skip

_PRECEDENCE = "A flag beats the environment (RLAIF_POLICY_SAMPLES for --policy-samples), which beats RUN.yaml."


def _run(run_file: Path, flags: Flags, stages: Sequence[str]) -> None:
    from rlaif.feedback.pipeline import run_pipeline as run_stages

    settings = settings_of(run_file, flags)
    if {"compare", "pair"} <= set(stages):
        warn_of_judges(run_file, settings)
    with show_progress() as progress:
        report = run_stages(settings, stages, progress)
    end_report(report)


def warn_of_judges(run_file: Path, settings: RunSettings) -> None:
    """Notes on standard error about the judges: their evaluations, and judges of the policy's model family."""
    from rlaif.constitution import load_constitution
    from rlaif.evaluation.reports import FOLDER, known_verdict
    from rlaif.inference.models import model_name

    constitution = load_constitution(settings.constitution)
    for judge in settings.judges:
        name = model_name(judge)
        verdict = known_verdict(name, constitution.hash)
        if verdict is None:
            server = f" --base-url {judge.base_url}" if judge.base_url else ""
            how = f"--run {run_file}" if judge is settings.judge else f"--judge {judge.model}{server}"
            hint = f"`rlaif evaluate judge {how} --gold FILE` does one"
            echo(f"note: {FOLDER} has no evaluation of {name} by this constitution; {hint}", err=True)
        elif verdict.level != "fit":
            echo(f"note: by its evaluation in {FOLDER}, the judge {name} is {verdict}", err=True)
    warn_of_same_family(settings)


@click.command(cls=SettingsCommand, common=COMMON, epilog=_PRECEDENCE)
@run_options
def generate(run_file: Path, flags: Flags) -> None:
    """Generate preference pairs from prompts: sample, critique, compare, pair.

    Every response is on disk as soon as it arrives. The same command resumes an interrupted run, and after a change of
    settings it makes only the calls that are missing.
    """
    from rlaif.feedback.pipeline import STAGES

    _run(run_file, flags, STAGES)


@click.command(cls=SettingsCommand, common=COMMON, epilog=_PRECEDENCE)
@run_options
def sample(run_file: Path, flags: Flags) -> None:
    """Generate the missing responses of the policy into samples.jsonl."""
    _run(run_file, flags, ["sample"])


@click.command(cls=SettingsCommand, common=COMMON, epilog=_PRECEDENCE)
@run_options
def critique(run_file: Path, flags: Flags) -> None:
    """Write the judge's missing critiques of the samples into critiques.jsonl."""
    _run(run_file, flags, ["critique"])


@click.command(cls=SettingsCommand, common=COMMON, epilog=_PRECEDENCE)
@run_options
def compare(run_file: Path, flags: Flags) -> None:
    """Run the judge's missing comparisons into judgements.jsonl."""
    _run(run_file, flags, ["compare"])


@click.command(cls=SettingsCommand, common=COMMON, epilog=_PRECEDENCE)
@run_options
def pair(run_file: Path, flags: Flags) -> None:
    """Derive pairs.jsonl from the judgements on disk, for instance with another --pair-margin; no model is called."""
    _run(run_file, flags, ["pair"])


@click.command(cls=SettingsCommand, common=_REVISE)
@click.option("--skip-critique", is_flag=True, help="Revise without a critique; short for --revise-skip-critique true.")
@run_options
def revise(run_file: Path, flags: Flags, skip_critique: bool) -> None:
    """Critique and revise the samples in rounds, and compare each final revision with its original.

    Each round samples a principle deterministically. The output is sft.jsonl (prompt, response) and
    revised_pairs.jsonl, where `chosen` is the judge's preference, revision or original. Missing samples are generated
    first. The same command resumes an interrupted run and makes only the calls that are missing.
    """
    from rlaif.feedback.pipeline import run_pipeline

    if skip_critique:
        flags = {**flags, ("revise", "skip_critique"): "true"}
    settings = settings_of(run_file, flags)
    with show_progress() as progress:
        report = run_pipeline(settings, ["revise"], progress)
    end_report(report)


def show_report(report: Report) -> None:
    """The table of counts at the end of a run, and where the files are."""
    if report.run.input_issues.counts:
        echo(f"note: in the prompts, {report.run.input_issues}", err=True)
    healed = sum(table.healed for table in report.run.tables)
    if report.revised and report.revised.input_issues.counts:
        echo(f"note: in the helpful responses, {report.revised.input_issues}", err=True)
    if healed:
        echo(f"note: {healed} torn last line(s) cut off; what they held was asked again", err=True)
    rows = _counts(report)
    if rows:
        _table(rows)
    echo(f"Files in {report.run.folder}")
    for warning in report.run.warnings:
        secho(f"WARNING: {warning}", err=True, bold=True)


def end_report(report: Report) -> None:
    """`show_report`, and the end with exit code 1 where there is no usable label."""
    show_report(report)
    if report.problem is not None:
        echo(report.problem, err=True)
        raise SystemExit(1)


def _counts(report: Report) -> list[tuple[str, str]]:
    rows = [
        (tally.stage, f"{tally.asked:,} calls, {tally.known:,} cached ({tally.seconds:.1f} s)")
        for tally in report.tallies
    ]
    rows += _revised(report)
    outcome = report.outcome
    if outcome is None:
        return rows + [(f"{t.stage}: failed", f"{kind} {n:,}") for t in report.tallies for kind, n in t.failed.items()]
    count = outcome.counts
    rows += [
        ("prompts", f"{count['prompts']:,}"),
        ("samples", _with(count["samples"], blank=count["samples_blank"], repeated=count["samples_repeated"],
                          truncated=count["samples_truncated"])),
        ("judgements", _with(count["judgements"], unparsed=count["judgements_unparsed"],
                             truncated=count["judgements_truncated"],
                             low_label_mass=count["judgements_low_mass"])),
        ("comparisons labelled", f"{count['comparisons_labelled']:,}"),
        ("ties", f"{count['comparisons_tie']:,}"),
        ("flips", _with(count["comparisons_flipped"], left_out=count["comparisons_flip"])),
        ("without a label", _with(count["comparisons_unparsed"] + count["comparisons_failed"],
                                  unparsed=count["comparisons_unparsed"], failed=count["comparisons_failed"])),
        ("failures", _with(outcome.failures.total(), **outcome.failures)),
        ("pairs", _with(count["pairs"], prompts_without_a_pair=count["prompts_without_pair"])),
        *_panel(outcome),
        *_slots(outcome),
        ("policy tokens", _spent_tokens(count["policy_prompt_tokens"], count["policy_completion_tokens"])),
        ("judge tokens", _spent_tokens(count["judge_prompt_tokens"], count["judge_completion_tokens"],
                                 count["judge_cached_tokens"])),
        ("seconds", f"{report.seconds:.1f}"),
    ]  # fmt: skip
    return rows


def _panel(outcome: Outcome) -> list[tuple[str, str]]:
    if outcome.panel is None:
        return []
    panel = outcome.panel.result()
    name, value = ("kappa", panel.kappa) if len(panel.judges) == 2 else ("alpha", panel.alpha)
    statistics = (
        f"{name} {decimal(value)} over {panel.comparisons:,} comparisons, correlation {decimal(panel.correlation)}"
    )
    least = panel.effective_at_least
    worth = "" if least is None else f": worth at least {least:.1f} independent judges of {len(panel.judges)}"
    rows = [("judge agreement", statistics + worth)]
    for part, accuracy in zip(panel.judges, panel.accuracies or [None for _ in panel.judges], strict=True):
        labels = f"agrees with {part.agrees:,} labels, opposes {part.opposes:,}, abstains {part.abstains:,}"
        rows.append((f"  {part.judge}", f"{labels}; its own orders disagree {part.flips:,} times{_right(accuracy)}"))
    return rows


def _right(accuracy: float | None) -> str:
    return "" if accuracy is None else f"; right in {accuracy:.0%} if all err independently (Dawid-Skene)"


def _slots(outcome: Outcome) -> list[tuple[str, str]]:
    """The position bias that was removed, if pairs were judged in one order."""
    rows = []
    for judge, bias in outcome.slots.items():
        error = "?" if bias.standard_error is None else f"{bias.standard_error:.2f}"
        text = f"{bias.estimate:+.2f} ± {error} logits for the first slot, {bias.removed:+.2f} removed from the labels"
        rows.append(("position bias" if len(outcome.slots) == 1 else f"position bias of {judge}", text))
    return rows


def _revised(report: Report) -> list[tuple[str, str]]:
    made = report.revised
    if made is None:
        return []
    count = made.counts
    seen = count["changed"] - count["judged_unparsed"] - count["judged_failed"]
    confirmed = count["confirmed"] / seen if seen else 0.0
    rest = {
        "original_preferred": count["refuted"],
        "ties": count["judged_tie"],
        "flips_left_out": count["judged_flip"],
        "without_a_label": count["judged_unparsed"] + count["judged_failed"],
    }
    return [
        ("revisions", _with(made.uses.total(), **made.uses)),
        ("responses changed", f"{count['changed']:,} of {count['chains']:,}" + _left_out(count["too_long"])),
        ("revision preferred", f"{_with(count['confirmed'], **rest)}: the judge confirms {confirmed:.0%}"),
        ("SFT rows", _with(count["sft_rows"] + count["helpful_rows"], helpful=count["helpful_rows"])),
        ("revised pairs", f"{count['pairs']:,}"),
        ("revise failures", _with(made.failures.total(), **made.failures)),
    ]


def _left_out(too_long: int) -> str:
    return f" ({too_long:,} more are too long to be shown whole)" if too_long else ""


def _with(total: int, **parts: int) -> str:
    details = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in parts.items() if count)
    return f"{total:,} ({details})" if details else f"{total:,}"


def _spent_tokens(prompt: int, completion: int, cached: int = 0) -> str:
    from_cache = f", {cached:,} of them cached ({cached / prompt:.0%})" if cached and prompt else ""
    return f"{prompt:,} in{from_cache}, {completion:,} out"


def _table(rows: list[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()
    for row in rows:
        table.add_row(*map(visible, row))
    Console(soft_wrap=True, markup=False, emoji=False).print(table)


def warn_of_same_family(settings: RunSettings) -> None:
    """A note on standard error if a judge is of the policy's model family."""
    from rlaif.inference.models import same_family

    note = same_family(settings.policy.model if settings.policy else None, [each.model for each in settings.judges])
    if note is not None:
        echo(f"note: {note}", err=True)
