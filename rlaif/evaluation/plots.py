"""The plots of a judge's evaluation, as PNG and SVG. matplotlib is loaded here only, and draws without a screen."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif.evaluation.report import Calibration, Estimate, JudgeReport, Length, Measures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by people with any colour vision (Okabe and Ito 2008).
_BLUE, _ORANGE, GREY = "#0072B2", "#D55E00", "#6E6E6E"

_LONGEST_NAME = 28
_STYLE: Any = {
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "rlaif",
    "text.parse_math": False,  # a `$` in a name is no formula
}


def write_plots(report: JudgeReport, stem: Path) -> list[Path]:
    """Write `STEM-NAME.png` and `.svg` for every plot that there is something to draw in. Returns their paths."""
    return write_figures(_figures(report), f"{short(report.about.judge, 60)}  ·  {report.about.constitution}", stem)


def write_figures(figures: Iterable[tuple[str, Figure]], title: str, stem: Path) -> list[Path]:
    """Write each named figure as `STEM-NAME.png` and `.svg` under a title, in the package's style if it is drawn only
    when its turn comes. Returns their paths."""
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


def _figures(report: JudgeReport) -> Iterator[tuple[str, Figure]]:
    found = report.measures
    if found.calibration is not None:
        yield "reliability", reliability_figure(found.calibration)
    if found.slot is not None:
        yield "slots", slot_figure(found)
    if found.length.bins:
        yield "length", length_figure(found.length, found.accuracy)


def new_figure(width: float, height: float) -> Figure:
    """An empty one, in inches, that belongs to no screen."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def reliability_figure(calibration: Calibration) -> Figure:
    """Accuracy against confidence, one point a bin of equal mass, above the number of pairs by confidence."""
    figure = new_figure(5.2, 5.8)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    bins = calibration.bins
    upper.plot([0.5, 1], [0.5, 1], color=GREY, linestyle="--", linewidth=1, label="as often right as it says")
    _points(
        upper,
        [each.confidence for each in bins],
        [Estimate(value=each.accuracy, low=each.low, high=each.high, pairs=each.pairs) for each in bins],
        label=f"bins of {_range([each.pairs for each in bins])} pairs, 95% intervals",
    )
    upper.set_ylim(min(0.4, *(each.low for each in bins)) - 0.02, 1.02)
    upper.set_ylabel("accuracy")
    upper.set_title(f"expected calibration error {calibration.error:.3f}", fontsize=10, color=GREY)
    steps = len(calibration.confidences)
    edges = [0.5 + 0.5 * at / steps for at in range(steps)]
    lower.bar(edges, calibration.confidences, width=0.46 / steps, align="edge", color=_BLUE)
    for edge, count in zip(edges, calibration.confidences, strict=True):
        lower.annotate(f"{count:,}", (edge + 0.23 / steps, count), ha="center", va="bottom", fontsize=8, color=GREY)
    lower.set_ylim(0, 1.25 * max(calibration.confidences))
    lower.set_xlim(0.49, 1.01)
    lower.set_ylabel("pairs")
    lower.set_xlabel("confidence: probability of the reply that is called better")
    legend_below(figure)
    return figure


def slot_figure(found: Measures) -> Figure:
    """The share of verdicts for the first slot, overall and in every subset."""
    rows = [("all pairs", found.slot.first)] if found.slot is not None else []
    rows += [(short(each.name, _LONGEST_NAME), each.first) for each in found.subsets if each.first is not None]
    figure = new_figure(6.4, 1.5 + 0.3 * len(rows))
    axes = figure.subplots()
    places = list(range(len(rows)))
    axes.axvline(0.5, color=GREY, linestyle="--", linewidth=1)
    _points(axes, places, [estimate for _, estimate in rows], sideways=True)
    axes.set_yticks(places, [f"{name}  ({estimate.pairs:,})" for name, estimate in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_formatter("{x:.0%}")
    # Below the figure, not the axes: names may leave these less room than the words take.
    figure.supxlabel("verdicts for the first slot, with 95% intervals (pairs)", fontsize=10)
    return figure


def length_figure(length: Length, overall: Estimate | None) -> Figure:
    """Accuracy where the better reply is much shorter, shorter, as long, longer, and much longer than the worse one."""
    figure = new_figure(6.0, 4.2)
    axes = figure.subplots()
    places = list(range(len(length.bins)))
    axes.axhline(0.5, color=GREY, linestyle="--", linewidth=1, label="one half")
    if overall is not None:
        axes.axhline(overall.value, color=_ORANGE, linewidth=1.2, label=f"all pairs: {overall.value:.1%}")
    _points(axes, places, [each.accuracy for each in length.bins], label="with 95% intervals")
    names = [f"{_ratio(each.low, each.high)}\n{each.accuracy.pairs:,} pairs" for each in length.bins]
    axes.set_xticks(places, names)
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set_ylabel("accuracy")
    axes.set_xlabel("length of the better reply over that of the worse one")
    legend_below(figure)
    return figure


def legend_below(figure: Figure) -> None:
    """Below the axes: wherever it stood inside, some judge would have a point there."""
    figure.legend(frameon=False, loc="outside lower center", ncols=3, fontsize=9)


def _points(
    axes: Axes, places: Sequence[float], found: Sequence[Estimate], *, label: str | None = None, sideways: bool = False
) -> None:
    """A point and its interval for each estimate."""
    values = [each.value for each in found]
    spread = [[max(0.0, each.value - each.low) for each in found], [max(0.0, each.high - each.value) for each in found]]
    style = {"fmt": "o", "color": _BLUE, "capsize": 3, "markersize": 5, "linewidth": 1.2}
    if sideways:
        axes.errorbar(values, places, xerr=spread, label=label, **style)  # type: ignore[arg-type]
    else:
        axes.errorbar(places, values, yerr=spread, label=label, **style)  # type: ignore[arg-type]


def _ratio(low: float, high: float | None) -> str:
    if high is None:
        return f"over {low:g}"
    return f"{low:g} to {high:g}" if low else f"under {high:g}"


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def short(name: str, most: int = _LONGEST_NAME) -> str:
    """At most `most` characters, cut in the middle: names often differ at their end."""
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"
