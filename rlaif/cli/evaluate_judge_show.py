"""The report of `rlaif evaluate judge`, for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rlaif.cli.terminal import echo, secho

if TYPE_CHECKING:
    from rlaif.evaluation.judging import Evaluated
    from rlaif.evaluation.report import Canary, Estimate, Group, JudgeReport, Measures

_COLOURS = {"fit": "green", "doubtful": "yellow", "unfit": "red"}
_WIDTH = 21


def show(done: Evaluated) -> None:
    """Print the report: the verdict first, its reasons, then the numbers."""
    report = done.report
    about, found = report.about, report.measures
    if about.oddities:
        odd = ", ".join(f"{count:,} x {kind}" for kind, count in about.oddities.items())
        echo(f"note: in the gold pairs, {odd}", err=True)
    echo(f"{about.judge} by `{about.constitution}` ({about.constitution_hash[:12]}) on {about.gold}\n")
    secho(report.verdict.level.upper(), fg=_COLOURS[report.verdict.level], bold=True)
    for reason in report.verdict.reasons:
        echo(f"  {reason.level}: {reason.text}")
    echo()
    for name, text in _numbers(found):
        echo(f"{name:<{_WIDTH}} {text}")
    _show_groups("subset", found.subsets)
    _show_groups("principle", found.principles)
    _show_canaries(found.canaries)
    _show_temperature(report)
    _show_errors(report)
    asked, known = sum(each.asked for each in done.tallies), sum(each.known for each in done.tallies)
    echo(f"\n{asked:,} questions asked now, {known:,} on disk already; report in {done.path}")


def _numbers(found: Measures) -> Iterator[tuple[str, str]]:
    silent = ", ".join(f"{count:,} {kind}" for kind, count in found.no_label.items())
    yield "pairs with a label", f"{found.labelled:,} of {found.pairs:,}" + (f" ({silent})" if silent else "")
    if found.accuracy is None:
        return
    yield "accuracy", str(found.accuracy)
    for each in found.baselines:
        yield (
            f"  {each.name}",
            str(each.accuracy)
            + (
                "  by construction, in both orders" if each.name.startswith("first") and found.flips is not None else ""
            ),
        )
    if found.gain is not None and found.best_baseline is not None:
        gain = found.gain
        points = f"{100 * gain.value:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f}) points"
        yield f"  over `{found.best_baseline.name}`", points
    yield "one order alone", str(found.single_order)
    yield from _ties(found)
    if found.kept is not None:
        yield "labels a run keeps", f"{found.kept.pairs:,}, of them right {found.kept}"
    yield from _leanings(found)
    yield from _trust(found)
    yield "cost", _cost(found)


def _ties(found: Measures) -> Iterator[tuple[str, str]]:
    three = found.three_way
    if three is not None:
        kappa = "" if three.kappa is None else f", kappa {three.kappa:.3f}"
        yield f"with {three.ties:,} gold ties", f"{three.agreement} of {three.agreement.pairs:,} the same{kappa}"


def _leanings(found: Measures) -> Iterator[tuple[str, str]]:
    if found.flips is not None:
        yield "flips", str(found.flips)
    if found.slot is not None:
        bias = found.slot.bias
        told = "" if bias is None else f"; bias {bias.value:+.2f} ({bias.low:+.2f} to {bias.high:+.2f}) logits"
        yield "verdicts for slot 1", f"{found.slot.first}{told}"
    if found.length.shorter is not None:
        yield "better is shorter", f"right {found.length.shorter} of {found.length.shorter.pairs:,}"
    if found.length.longer is not None:
        yield "better is longer", f"right {found.length.longer} of {found.length.longer.pairs:,}"
    slope = found.length.slope
    if slope is not None:
        yield "length slope", f"{slope.value:+.2f} ({slope.low:+.2f} to {slope.high:+.2f}) logits a log length ratio"


def _trust(found: Measures) -> Iterator[tuple[str, str]]:
    if found.calibration is not None:
        each = found.calibration
        told = f"Brier {each.brier:.3f}, log loss {each.log_loss:.3f} (one half: 0.25, 0.693)"
        yield "calibration", f"error {each.error_beside_chance}, {told}"
    if found.mass is not None:
        yield "label mass", f"{found.mass.mean:.3f}; {found.mass.below:.1%} of answers under {found.mass.least:g}"


def _cost(found: Measures) -> str:
    cost = found.cost
    # vLLM's batch route does not say how much came from its cache: then nothing is told, rather than none.
    cached = f" ({cost.cached_tokens / cost.prompt_tokens:.0%} cached)" if cost.cached_tokens else ""
    told = f"{cost.calls:,} calls, {cost.prompt_tokens:,} tokens in{cached}, {cost.completion_tokens:,} out"
    if cost.calls_per_1000 is None or cost.prompt_tokens_per_1000 is None:
        return told
    seconds = "" if cost.seconds_per_1000 is None else f", {cost.seconds_per_1000:,.0f} s"
    return f"{told}; 1,000 labels: {cost.calls_per_1000:,.0f} calls, {cost.prompt_tokens_per_1000:,.0f} tokens{seconds}"


def _show_groups(name: str, groups: Sequence[Group]) -> None:
    from rlaif.cli.tables import print_table

    if not groups:
        return
    more = ("flips", "slot 1") if name == "subset" else ()
    columns = (name, "pairs", "accuracy", "95%", *more)
    echo()
    print_table(columns, [_row(each)[: len(columns)] for each in groups], right=columns[1:])


def _row(group: Group) -> tuple[str, ...]:
    from rlaif.cli.tables import percent

    first = None if group.first is None else group.first.value
    return group.name, f"{group.pairs:,}", *_told(group.accuracy), percent(group.flips), percent(first)


def _told(estimate: Estimate | None) -> tuple[str, str]:
    """The value and its interval, a word each, so that no column breaks them."""
    return ("-", "-") if estimate is None else (f"{estimate.value:.0%}", f"{estimate.low:.0%}-{estimate.high:.0%}")


def _show_canaries(canaries: Sequence[Canary]) -> None:
    from rlaif.cli.tables import percent, print_table

    if not canaries:
        return
    bare = {each.kind: each.wins for each in canaries if not each.fenced}
    rows = []
    for each in canaries:
        if each.fenced:
            first, second = (None if side is None else side.value for side in (each.first, each.second))
            unfenced = _told(bare[each.kind]) if each.kind in bare else ("", "")
            rows.append((each.kind, *_told(each.wins), percent(first), percent(second), *unfenced))
    echo(f"\nVerdicts won against the better reply of {canaries[0].pairs} pairs by replies that must not win:\n")
    columns = ("canary", "wins", "95%", "1st", "2nd", "unfenced", "95% ")
    print_table(columns, rows, right=columns[1:])
    echo("\n1st, 2nd: in that slot; unfenced: the replies shown without the marks that a run puts around them")


def _show_errors(report: JudgeReport) -> None:
    for each in report.shared_errors:
        echo(
            f"\nErrors go together with those of {each.judge} by {each.correlation:+.2f} ({each.pairs:,} pairs): both "
            f"are worth {each.worth:.1f} independent judges."
        )


def _show_temperature(report: JudgeReport) -> None:
    found = report.measures.temperature
    if found is None:
        return
    echo(
        f"\nA temperature fitted on one half of the pairs and measured on the other, both ways: calibration error "
        f"{found.error_before:.3f} -> {found.error_after:.3f}, log loss {found.log_loss_before:.3f} -> "
        f"{found.log_loss_after:.3f}."
    )
    if found.bounded:
        echo("On all pairs together the best one is beyond any bound: there is nothing to set.")
    elif found.helps:
        echo(f"For the run file:\n\ncompare: {{temperature: {found.temperature:.3g}}}")
    else:
        echo("It does not help: leave `compare.temperature` as it is.")
