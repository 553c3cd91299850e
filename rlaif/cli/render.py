"""What the commands show: tables, progress, counts. What people and models wrote is never read as markup.

The way to the terminal: nothing that people, models or servers wrote is obeyed there.

Every command writes through these functions, and hands rich only texts that went through `visible`.

Tables and shortened texts for the terminal. What people and models wrote is never read as markup.

How far a long reading is: a bar after two seconds where standard error is a terminal, a line now and then if not.

Progress: what a training shows while it goes, bars on a terminal and a line now and then elsewhere.

What a run shows: progress while it goes (bars on a terminal, plain lines elsewhere), and its counts at the end.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import click

from rlaif.text import visible

if TYPE_CHECKING:
    from rich.text import Text

    from rlaif.feedback.dataset import Outcome
    from rlaif.feedback.pipeline import Report


class Styled(NamedTuple):
    """A part of a line in a style of its own."""

    text: str
    fg: str | None = None
    bold: bool = False


def echo(*parts: object, err: bool = False, nl: bool = True) -> None:
    """Write a line of these parts, control characters shown as marks."""
    click.echo("".join(map(_shown, parts)), err=err, nl=nl)


def _shown(part: object) -> str:
    if isinstance(part, Styled):
        return click.style(visible(part.text), fg=part.fg, bold=part.bold or None)
    return visible(str(part))


def secho(text: str, *, err: bool = False, bold: bool = False, fg: str | None = None) -> None:
    """A whole line in one style."""
    echo(Styled(text, fg, bold), err=err)


def emit(document: str) -> None:
    """A document that is meant for a file or another program: as it is, unless a terminal would read it."""
    click.echo(visible(document) if sys.stdout.isatty() else document, nl=False)


_WIDEST = 10_000
"""Characters of a line that any table fits in."""


def short(text: str, most: int = 60) -> str:
    """One line of at most `most` characters."""
    line = visible(" ".join(text.split()))
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def percent(share: float | None) -> str:
    """A share for people; a dash where there is none."""
    return "-" if share is None else f"{share:.0%}"


def decimal(value: float | None) -> str:
    """A probability for people; a dash where there is none."""
    return "-" if value is None else f"{value:.2f}"


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    right: Sequence[str] = (),
    cut: Sequence[str] = (),
    folded: Sequence[str] = (),
) -> None:
    """Print a table to standard output, as wide as the terminal, or wider where it cannot be narrower.

    The columns `right` are set to the right. Where the room is short, the columns `cut` lose the ends of their texts
    and the columns `folded` break them over lines; with any of the latter there is a line between two rows.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    listed = [[visible(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), show_lines=bool(folded))
    for at, name in enumerate(columns):
        rigid = name not in (*cut, *folded)
        # Of a column without line breaks, rich would still take the longest word for the least that it needs.
        least = _widest([name, *(str(row[at]) for row in listed)]) if rigid else None
        justify: Literal["left", "right"] = "right" if name in right else "left"
        table.add_column(name, justify=justify, no_wrap=rigid, min_width=least, overflow="fold")
    for row in listed:
        table.add_row(*(_cut(cell) if name in cut else cell for name, cell in zip(columns, row, strict=True)))
    console = Console(markup=False, highlight=False, emoji=False)
    width = console.measure(table, options=console.options.update(max_width=_WIDEST)).minimum
    console.width = max(console.width, width)
    console.print(table)


def _widest(cells: Sequence[str]) -> int:
    """Of all lines in them."""
    from rich.cells import cell_len

    return max((cell_len(line) for cell in cells for line in cell.splitlines()), default=0)


def _cut(cell: str | Text) -> Text:
    from rich.text import Text

    cut = Text(cell) if isinstance(cell, str) else cell
    cut.no_wrap, cut.overflow = True, "ellipsis"
    return cut


def show_report(report: Report) -> None:
    """The table of counts at the end of a run, and where the files are."""
    if report.run.oddities.counts:
        echo(f"note: in the prompts, {report.run.oddities}", err=True)
    healed = sum(table.healed for table in report.run.tables)
    if report.revised and report.revised.oddities.counts:
        echo(f"note: in the helpful answers, {report.revised.oddities}", err=True)
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
    rows = [(f"{tally.stage}: asked now", f"{tally.asked:,} ({tally.seconds:.1f} s)") for tally in report.tallies]
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
        ("pairs", _with(count["pairs"], prompts_without=count["prompts_without_pair"])),
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
    found = outcome.panel.result()
    name, value = ("kappa", found.kappa) if len(found.judges) == 2 else ("alpha", found.alpha)
    told = f"{name} {decimal(value)} over {found.comparisons:,} comparisons, correlation {decimal(found.correlation)}"
    least = found.effective_at_least
    worth = "" if least is None else f": worth at least {least:.1f} independent judges of {len(found.judges)}"
    rows = [("the judges agree", told + worth)]
    for part, accuracy in zip(found.judges, found.accuracies or [None for _ in found.judges], strict=True):
        labels = f"agrees with {part.agrees:,} labels, opposes {part.opposes:,}, abstains {part.abstains:,}"
        rows.append((f"  {part.judge}", f"{labels}; its own orders disagree {part.flips:,} times{_right(accuracy)}"))
    return rows


def _right(accuracy: float | None) -> str:
    return "" if accuracy is None else f"; right in {accuracy:.0%} if all err independently (Dawid-Skene)"


def _slots(outcome: Outcome) -> list[tuple[str, str]]:
    """What was taken off, where pairs were asked in one order."""
    rows = []
    for judge, bias in outcome.slots.items():
        doubt = "?" if bias.standard_error is None else f"{bias.standard_error:.2f}"
        told = f"{bias.estimate:+.2f} ± {doubt} logits for the first slot, {bias.removed:+.2f} taken off the labels"
        rows.append(("slot bias" if len(outcome.slots) == 1 else f"slot bias of {judge}", told))
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
        ("replies changed", f"{count['changed']:,} of {count['chains']:,}" + _left_out(count["too_long"])),
        ("revision preferred", f"{_with(count['confirmed'], **rest)}: the judge confirms {confirmed:.0%}"),
        ("SFT rows", _with(count["sft_rows"] + count["helpful_rows"], helpful=count["helpful_rows"])),
        ("revised pairs", f"{count['pairs']:,}"),
        ("revise failures", _with(made.failures.total(), **made.failures)),
    ]


def _left_out(too_long: int) -> str:
    return f" ({too_long:,} more are too long to be shown whole)" if too_long else ""


def _with(total: int, **parts: int) -> str:
    told = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in parts.items() if count)
    return f"{total:,} ({told})" if told else f"{total:,}"


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
