"""The plots of a reward model's evaluation, as figures and as PNG and SVG. matplotlib is loaded here only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rlaif.evaluation.plots import length_figure, reliability_figure, write_figures
from rlaif.evaluation.report import Estimate
from rlaif.evaluation.rewards.report import BestOfN, RewardReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by people with any colour vision (Okabe and Ito 2008).
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#6E6E6E"


def write_plots(report: RewardReport, stem: Path) -> list[Path]:
    """Write `STEM-NAME.png` and `.svg` for every plot that there is something to draw in. Returns their paths."""
    return write_figures(figures(report), report.model, stem)


def figures(report: RewardReport) -> Iterator[tuple[str, Figure]]:
    """The plots of a report, each with its name: `reliability`, `length`, `best-of-n`."""
    if report.gold is not None and report.gold.calibration is not None:
        yield "reliability", reliability_figure(report.gold.calibration)
    if report.gold is not None and report.gold.length.bins:
        yield "length", length_figure(report.gold.length, report.gold.accuracy)
    if report.best_of_n is not None:
        yield "best-of-n", best_of_figure(report.best_of_n)


def best_of_figure(found: BestOfN) -> Figure:
    """The reward above and the other measure below, over the distance from the policy; n stands along the top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 6.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    kl = [point.kl for point in found.points]
    _curve(upper, kl, [point.reward for point in found.points], _BLUE)
    upper.set_ylabel("reward, in deviations\nabove the mean answer")
    _curve(lower, kl, [point.gold for point in found.points], _ORANGE)
    lower.set_ylabel(_folded(found.measure))
    lower.axvline(kl[[point.n for point in found.points].index(found.best_n)], color=_GREY, linestyle="--", linewidth=1)
    told = f"best at n = {found.best_n}" + (", over-optimised beyond" if found.overoptimised else "")
    lower.set_title(told, fontsize=10, color=_GREY)
    lower.set_xlabel("KL from the policy, in nats: ln n - (n - 1)/n")
    top = upper.secondary_xaxis("top")
    top.set_xticks(kl, [f"{point.n}" for point in found.points])
    top.set_xlabel(f"best of n; {found.prompts:,} prompts, 95% intervals")
    return figure


def _curve(axes: Axes, kl: list[float], found: list[Estimate], color: str) -> None:
    axes.plot(kl, [each.value for each in found], color=color, marker="o", markersize=5, linewidth=1.4)
    axes.fill_between(kl, [each.low for each in found], [each.high for each in found], color=color, alpha=0.2, lw=0)


def _folded(name: str) -> str:
    """A long name over lines of about thirty characters."""
    import textwrap

    return "\n".join(textwrap.wrap(name, 30)[:4])
