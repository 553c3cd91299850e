"""The plots of an evaluation of policies, as PNG and SVG. matplotlib is loaded here only, and needs no screen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlaif.evaluation.plots import GREY, legend_below, new_figure, short, write_figures
from rlaif.evaluation.policies.report import Match, PolicyReport, Rating
from rlaif.evaluation.report import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by people with any colour vision (Okabe and Ito 2008).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKS = "osD^vP"


def write_plots(report: PolicyReport, stem: Path) -> list[Path]:
    """Write `STEM-NAME.png` and `.svg` for every plot that there is something to draw in. Returns their paths."""
    return write_figures(figures(report), f"{short(report.about.judge, 60)}  ·  {report.about.constitution}", stem)


def figures(report: PolicyReport) -> Iterator[tuple[str, Figure]]:
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
        "preference at equal length": [match.controlled for match in matches],
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


def _rows(axes: Axes, rows: Sequence[int], series: Mapping[str, Sequence[Estimate | None]]) -> None:
    """Points with intervals, the series of a row above one another."""
    gap = min(0.26, 0.7 / len(series))
    for number, (label, found) in enumerate(series.items()):
        shift = (number - (len(series) - 1) / 2) * gap
        known = [(row + shift, each) for row, each in zip(rows, found, strict=True) if each is not None]
        if not known:
            continue
        values = [each.value for _, each in known]
        spread = [
            [max(0.0, each.value - each.low) for _, each in known],
            [max(0.0, each.high - each.value) for _, each in known],
        ]
        axes.errorbar(
            values, [place for place, _ in known], xerr=spread, label=label, fmt=_MARKS[number % len(_MARKS)],
            color=_COLOURS[number % len(_COLOURS)], capsize=3, markersize=5, linewidth=1.2,
        )  # fmt: skip


def _shares(axes: Axes) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_formatter("{x:.0%}")
