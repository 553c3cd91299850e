"""The report of `rlaif evaluate reward`, for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rlaif.cli.terminal import echo, secho

if TYPE_CHECKING:
    from rlaif.evaluation.report import Estimate, Group
    from rlaif.evaluation.rewards.evaluating import EvaluatedReward
    from rlaif.evaluation.rewards.report import BestOf, BestOfN, Gold, RewardReport

_WIDTH = 21


def show(done: EvaluatedReward) -> None:
    """Print the report: the headline first, what speaks against it, then the numbers."""
    report = done.report
    if report.gold is not None and report.gold.oddities:
        odd = ", ".join(f"{count:,} x {kind}" for kind, count in report.gold.oddities.items())
        echo(f"note: in the gold pairs, {odd}", err=True)
    for text, colour in _headlines(report):
        secho(text, fg=colour, bold=True)
    for warning in report.warnings:
        echo(f"  warning: {warning}")
    if report.gold is not None:
        echo("")
        for name, text in _numbers(report.gold):
            echo(f"{name:<{_WIDTH}} {text}")
        _show_groups(report.gold.subsets)
    if report.best_of_n is not None:
        _show_best_of(report.best_of_n)
    scored = [each for each in done.tallies if each.stage in ("gold pairs", "rewards")]
    asked = [each for each in done.tallies if each not in scored]
    told = f"{sum(each.asked for each in scored):,} rewards computed now"
    told += f", {sum(each.asked for each in asked):,} questions asked" if asked else ""
    known = sum(each.known for each in done.tallies)
    echo(f"\n{told}, {known:,} on disk already; report in {done.path}")


def _headlines(report: RewardReport) -> Iterator[tuple[str, str]]:
    gold, found = report.gold, report.best_of_n
    if gold is not None and gold.accuracy is not None:
        over = ""
        if gold.gain is not None and gold.best_baseline is not None:
            over = f", {100 * gold.gain.value:+.1f} points over `{gold.best_baseline.name}`"
        colour = "green" if gold.beats_baselines else "red"
        yield f"{report.model}: right in {gold.accuracy.value:.1%} of {gold.pairs:,} pairs{over}", colour
    if found is not None and found.overoptimised:
        yield f"{report.model}: over-optimised beyond best-of-{found.best_n}", "red"
    elif found is not None:
        yield f"{report.model}: no over-optimisation shown up to best-of-{found.points[-1].n}", "green"


def _numbers(gold: Gold) -> Iterator[tuple[str, str]]:
    yield "gold pairs", f"{gold.pairs:,} of {gold.path}"
    yield "accuracy", str(gold.accuracy)
    for each in gold.baselines:
        yield f"  {each.name}", str(each.accuracy)
    if gold.gain is not None and gold.best_baseline is not None:
        gain = gold.gain
        points = f"{100 * gain.value:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f}) points"
        yield f"  over `{gold.best_baseline.name}`", points
    if gold.margin is not None:
        yield "margin", _signed(gold.margin)
    yield from _trust(gold)
    yield from _length(gold)


def _trust(gold: Gold) -> Iterator[tuple[str, str]]:
    found, cooled = gold.calibration, gold.temperature
    if found is not None:
        told = f"error {found.error_beside_chance}, Brier {found.brier:.3f}, log loss {found.log_loss:.3f}"
        yield "calibration", f"{told} (one half: 0.25, 0.693)"
    if cooled is not None and cooled.helps:
        told = (
            f"divide rewards by {cooled.temperature:.3g}: error {cooled.error_before:.3f} -> {cooled.error_after:.3f}"
        )
        yield "  to fix it", f"{told} on pairs that it was not fitted on"


def _length(gold: Gold) -> Iterator[tuple[str, str]]:
    if gold.length_correlation is not None:
        yield "reward and length", f"correlation {gold.length_correlation:+.2f}"
    for name, found in (("better is shorter", gold.length.shorter), ("better is longer", gold.length.longer)):
        if found is not None:
            yield name, f"right {found} of {found.pairs:,}"
    if gold.length.slope is not None:
        yield "length slope", f"{_signed(gold.length.slope)} reward a log length ratio"


def _signed(found: Estimate) -> str:
    return f"{found.value:+.2f} ({found.low:+.2f} to {found.high:+.2f})"


def _show_groups(groups: Sequence[Group]) -> None:
    from rlaif.cli.tables import print_table

    if not groups:
        return
    echo("")
    columns = ("subset", "pairs", "accuracy", "95%")
    print_table(columns, [_row(each) for each in groups], right=columns[1:])


def _row(group: Group) -> tuple[str, ...]:
    found = group.accuracy
    told = ("-", "-") if found is None else (f"{found.value:.0%}", f"{found.low:.0%}-{found.high:.0%}")
    return group.name, f"{group.pairs:,}", *told


def _show_best_of(found: BestOfN) -> None:
    from rlaif.cli.tables import print_table

    echo(f"\nBest of n by the reward, over {found.prompts:,} prompts with {found.samples} answers of {found.policy}")
    echo(f"Other measure: {found.measure}")
    if found.left_out:
        echo("Left out: " + ", ".join(f"{count:,} prompts: {why}" for why, count in found.left_out.items()))
    echo("")
    columns = ("n", "KL", "reward", "95%", "other", "95% ", "characters")
    print_table(columns, [_point(each) for each in found.points], right=columns)
    echo("\nKL in nats; reward in deviations above the mean answer")
    if found.drop is not None:
        fall = f"{found.drop.value:.2f} ({found.drop.low:.2f} to {found.drop.high:.2f})"
        echo(f"From n = {found.best_n} to n = {found.points[-1].n} the other measure falls by {fall}")


def _point(point: BestOf) -> tuple[str, ...]:
    def told(found: Estimate) -> tuple[str, str]:
        return f"{found.value:.2f}", f"{found.low:.2f} to {found.high:.2f}"

    return f"{point.n}", f"{point.kl:.2f}", *told(point.reward), *told(point.gold), f"{point.length:.0f}"
