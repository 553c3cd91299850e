"""The plots of evaluations, as PNG and SVG: of judges, of reward models, and of policies.

Only this module loads matplotlib, inside functions, and draws without a screen. Each `write_*_plots` takes a report
and writes one file per format for every figure that the report has data for.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif.evaluation.reports import (
    BestOfN,
    Calibration,
    JudgeReport,
    Length,
    Match,
    Measures,
    PolicyReport,
    Rating,
    RewardReport,
)
from rlaif.stats import Estimate
from rlaif.training.curves import BLUE, GREEN, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The rest of the palette of `rlaif.training.curves`.
_COLORS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9")
_MARKS = "osD^vP"

_LONGEST_NAME = 28
_STYLE: Any = {
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "rlaif",
    "text.parse_math": False,  # a `$` in a name is no formula
}


def write_judge_plots(report: JudgeReport, stem: Path) -> list[Path]:
    """Write `STEM-NAME.png` and `.svg` for every plot that there is something to draw in. Returns their paths."""

    def figures() -> Iterator[tuple[str, Figure]]:
        measures = report.measures
        if measures.calibration is not None:
            yield "reliability", reliability_figure(measures.calibration)
        if measures.slot is not None:
            yield "slots", slot_figure(measures)
        if measures.length.bins:
            yield "length", length_figure(measures.length, measures.accuracy)

    return write_figures(figures(), f"{short(report.about.judge, 60)}  ·  {report.about.constitution}", stem)


def write_figures(figures: Iterable[tuple[str, Figure]], title: str, stem: Path) -> list[Path]:
    """Write each named figure as `STEM-NAME.png` and `.svg` under a title. Returns their paths.

    `figures` is consumed in the package's style, so it has to draw each figure lazily.
    """
    import matplotlib as mpl

    written = []
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in another script: boxes, and no more
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        for name, figure in figures:
            figure.suptitle(title, fontsize=11)
            for ending, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                path = stem.with_name(f"{stem.name}-{name}.{ending}")
                figure.savefig(path, dpi=150, metadata=metadata)
                written.append(path)
    return written


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that belongs to no screen."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def reliability_figure(calibration: Calibration) -> Figure:
    """Accuracy against confidence, one point a bin of equal mass, above the number of pairs by confidence."""
    figure = new_figure(5.2, 5.8)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    bins = calibration.bins
    fewest, most = min(part.pairs for part in bins), max(part.pairs for part in bins)
    sizes = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    upper.plot([0.5, 1], [0.5, 1], color=GREY, linestyle="--", linewidth=1, label="as often right as it says")
    _points(
        upper,
        [each.confidence for each in bins],
        [Estimate(value=each.accuracy, low=each.low, high=each.high, pairs=each.pairs) for each in bins],
        label=f"bins of {sizes} pairs, 95% intervals",
    )
    upper.set_ylim(min(0.4, *(each.low for each in bins)) - 0.02, 1.02)
    upper.set_ylabel("accuracy")
    upper.set_title(f"expected calibration error {calibration.error:.3f}", fontsize=10, color=GREY)
    steps = len(calibration.confidences)
    edges = [0.5 + 0.5 * at / steps for at in range(steps)]
    lower.bar(edges, calibration.confidences, width=0.46 / steps, align="edge", color=BLUE)
    for edge, count in zip(edges, calibration.confidences, strict=True):
        lower.annotate(f"{count:,}", (edge + 0.23 / steps, count), ha="center", va="bottom", fontsize=8, color=GREY)
    lower.set_ylim(0, 1.25 * max(calibration.confidences))
    lower.set_xlim(0.49, 1.01)
    lower.set_ylabel("pairs")
    lower.set_xlabel("confidence: probability of the reply that is called better")
    legend_below(figure)
    return figure


def slot_figure(measures: Measures) -> Figure:
    """The share of verdicts for the first slot, overall and in every subset."""
    rows = [("all pairs", measures.slot.first)] if measures.slot is not None else []
    rows += [(short(each.name, _LONGEST_NAME), each.first) for each in measures.subsets if each.first is not None]
    figure = new_figure(6.4, 1.5 + 0.3 * len(rows))
    axes = figure.subplots()
    places = list(range(len(rows)))
    axes.axvline(0.5, color=GREY, linestyle="--", linewidth=1)
    _points(axes, places, [estimate for _, estimate in rows], sideways=True)
    axes.set_yticks(places, [f"{name}  ({estimate.pairs:,})" for name, estimate in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_formatter("{x:.0%}")
    # Below the figure, not the axes, which long names may make narrower than the label.
    figure.supxlabel("verdicts for the first slot, with 95% intervals (pairs)", fontsize=10)
    return figure


def length_figure(length: Length, overall: Estimate | None) -> Figure:
    """Accuracy where the better reply is much shorter, shorter, as long, longer, and much longer than the worse one."""
    figure = new_figure(6.0, 4.2)
    axes = figure.subplots()
    places = list(range(len(length.bins)))
    axes.axhline(0.5, color=GREY, linestyle="--", linewidth=1, label="one half")
    if overall is not None:
        axes.axhline(overall.value, color=ORANGE, linewidth=1.2, label=f"all pairs: {overall.value:.1%}")
    _points(axes, places, [each.accuracy for each in length.bins], label="with 95% intervals")
    names = []
    for part in length.bins:
        ratios = f"over {part.low:g}"
        if part.high is not None:
            ratios = f"{part.low:g} to {part.high:g}" if part.low else f"under {part.high:g}"
        names.append(f"{ratios}\n{part.accuracy.pairs:,} pairs")
    axes.set_xticks(places, names)
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set_ylabel("accuracy")
    axes.set_xlabel("length of the better reply over that of the worse one")
    legend_below(figure)
    return figure


def legend_below(figure: Figure) -> None:
    """A legend below the axes, where it covers no point."""
    figure.legend(frameon=False, loc="outside lower center", ncols=3, fontsize=9)


def short(name: str, most: int = _LONGEST_NAME) -> str:
    """At most `most` characters, cut in the middle: names often differ at their end."""
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def _points(
    axes: Axes,
    places: Sequence[float],
    estimates: Sequence[Estimate],
    *,
    label: str | None = None,
    sideways: bool = False,
    **style: Any,
) -> None:
    """A point and its interval for each estimate."""
    values = [estimate.value for estimate in estimates]
    spread = [
        [max(0.0, estimate.value - estimate.low) for estimate in estimates],
        [max(0.0, estimate.high - estimate.value) for estimate in estimates],
    ]
    style = {"fmt": "o", "color": BLUE, "capsize": 3, "markersize": 5, "linewidth": 1.2, **style}
    if sideways:
        axes.errorbar(values, places, xerr=spread, label=label, **style)
    else:
        axes.errorbar(places, values, yerr=spread, label=label, **style)


def _rows(axes: Axes, rows: Sequence[int], series: Mapping[str, Sequence[Estimate | None]]) -> None:
    """Points with intervals, the series of a row above one another."""
    gap = min(0.26, 0.7 / len(series))
    for number, (label, estimates) in enumerate(series.items()):
        shift = (number - (len(series) - 1) / 2) * gap
        points = [(row + shift, value) for row, value in zip(rows, estimates, strict=True) if value is not None]
        if points:
            places, values = zip(*points, strict=True)
            mark, color = _MARKS[number % len(_MARKS)], _COLORS[number % len(_COLORS)]
            _points(axes, places, values, label=label, sideways=True, fmt=mark, color=color)


def _shares(axes: Axes) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_formatter("{x:.0%}")


def _curve(axes: Axes, kl: list[float], estimates: list[Estimate], color: str) -> None:
    axes.plot(kl, [each.value for each in estimates], color=color, marker="o", markersize=5, linewidth=1.4)
    axes.fill_between(
        kl, [each.low for each in estimates], [each.high for each in estimates], color=color, alpha=0.2, lw=0
    )


def write_policy_plots(report: PolicyReport, stem: Path) -> list[Path]:
    """Write `STEM-NAME.png` and `.svg` for every plot that there is something to draw in. Returns their paths."""
    return write_figures(
        policy_figures(report), f"{short(report.about.judge, 60)}  ·  {report.about.constitution}", stem
    )


def policy_figures(report: PolicyReport) -> Iterator[tuple[str, Figure]]:
    """Every figure with its name: `winrate`, `principles` and `ratings`, as far as there is something to draw."""
    against = [match for match in report.matches if match.baseline == report.baseline and match.win_rate is not None]
    if against:
        yield "winrate", winrate_figure(against, report.baseline)
        if any(part.rate is not None for match in against for part in match.principles):
            yield "principles", principles_figure(against, report.baseline)
    if report.ratings:
        yield "ratings", ratings_figure(report.ratings)


def winrate_figure(matches: Sequence[Match], baseline: str) -> Figure:
    """Win rate and preference against the baseline, that as it is and at equal length, a row a policy."""
    figure = new_figure(6.4, 1.7 + 0.5 * len(matches))
    axes = figure.subplots()
    rows = list(range(len(matches)))
    series = {
        "win rate": [match.win_rate for match in matches],
        "preference": [match.preference for match in matches],
        "preference, length-controlled": [match.length_controlled for match in matches],
    }
    _rows(axes, rows, series)
    axes.axvline(0.5, color=GREY, linestyle="--", linewidth=1)
    axes.set_yticks(rows, [f"{short(match.policy)}  ({match.compared:,})" for match in matches])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    _shares(axes)
    axes.set_xlabel(f"against {short(baseline)} (comparisons), 95% intervals")
    legend_below(figure)
    return figure


def principles_figure(matches: Sequence[Match], baseline: str) -> Figure:
    """Win rate against the baseline by each principle on its own, a row a principle and a colour a policy."""
    names = list(dict.fromkeys(part.name for match in matches for part in match.principles))
    figure = new_figure(6.6, 1.8 + (0.28 + 0.16 * len(matches)) * len(names))
    axes = figure.subplots()
    rows = list(range(len(names)))
    series = {
        short(match.policy): [{part.name: part.rate for part in match.principles}.get(name) for name in names]
        for match in matches
    }
    _rows(axes, rows, series)
    axes.axvline(0.5, color=GREY, linestyle="--", linewidth=1)
    axes.set_yticks(rows, [short(name) for name in names])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    _shares(axes)
    axes.set_xlabel(f"win rate against {short(baseline)} by one principle alone, 95% intervals")
    legend_below(figure)
    return figure


def ratings_figure(ratings: Sequence[Rating]) -> Figure:
    """Bradley-Terry log-strengths, the strongest first."""
    figure = new_figure(6.2, 1.5 + 0.35 * len(ratings))
    axes = figure.subplots()
    rows = list(range(len(ratings)))
    _rows(axes, rows, {"": [rating.strength for rating in ratings]})
    axes.axvline(0.0, color=GREY, linestyle="--", linewidth=1)
    axes.set_yticks(rows, [f"{short(rating.name)}  (Elo {rating.elo:.0f})" for rating in ratings])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("log-strength (Bradley-Terry); 1.1 apart is three wins of four; 95% intervals")
    return figure


def write_reward_plots(report: RewardReport, stem: Path) -> list[Path]:
    """Write `STEM-NAME.png` and `.svg` for every plot that there is something to draw in. Returns their paths."""
    return write_figures(reward_figures(report), report.model, stem)


def reward_figures(report: RewardReport) -> Iterator[tuple[str, Figure]]:
    """The plots of a report, each with its name: `reliability`, `length`, `best-of-n`."""
    if report.gold is not None and report.gold.calibration is not None:
        yield "reliability", reliability_figure(report.gold.calibration)
    if report.gold is not None and report.gold.length.bins:
        yield "length", length_figure(report.gold.length, report.gold.accuracy)
    if report.best_of_n is not None:
        yield "best-of-n", best_of_figure(report.best_of_n)


def best_of_figure(curve: BestOfN) -> Figure:
    """The reward above and the other measure below, over the KL from the policy; n stands along the top."""
    import textwrap

    figure = new_figure(6.0, 6.0)
    upper, lower = figure.subplots(2, 1, sharex=True)
    kl = [point.kl for point in curve.points]
    _curve(upper, kl, [point.reward for point in curve.points], BLUE)
    upper.set_ylabel("reward, in deviations\nabove the mean answer")
    _curve(lower, kl, [point.gold for point in curve.points], ORANGE)
    lower.set_ylabel("\n".join(textwrap.wrap(curve.measure, 30)[:4]))
    lower.axvline(kl[[point.n for point in curve.points].index(curve.best_n)], color=GREY, linestyle="--", linewidth=1)
    title = f"best at n = {curve.best_n}" + (", over-optimised beyond" if curve.overoptimised else "")
    lower.set_title(title, fontsize=10, color=GREY)
    lower.set_xlabel("KL from the policy, in nats: ln n - (n - 1)/n")
    top = upper.secondary_xaxis("top")
    top.set_xticks(kl, [f"{point.n}" for point in curve.points])
    top.set_xlabel(f"best of n; {curve.prompts:,} prompts, 95% intervals")
    return figure
