"""The end of a run on the terminal: its counts and its folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlaif.cli.terminal import decimal, echo, secho
from rlaif.text import visible

if TYPE_CHECKING:
    from rlaif.feedback.dataset import Outcome
    from rlaif.feedback.pipeline import Report


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
        ("policy tokens", _tokens(count["policy_prompt_tokens"], count["policy_completion_tokens"])),
        ("judge tokens", _tokens(count["judge_prompt_tokens"], count["judge_completion_tokens"],
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


def _tokens(prompt: int, completion: int, cached: int = 0) -> str:
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
