"""The page's own figures. matplotlib is loaded here only; colours are those that `rlaif.page.svg` knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlaif.page.figures import Data, Histogram, Lengths
from rlaif.training.curves import BLUE, GREEN, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RULE = "#E6E6E6"
_NAMES = {"labelled": ("a label", BLUE), "tie": ("a tie", GREY), "flip": ("left out, as it flips", ORANGE)}


def confidence_figure(data: Data) -> Figure:
    """How sure the judge is, over all comparisons, stacked by what became of them."""
    figure, axes = _panel()
    below = [0] * 20
    for status, found in data.confidence.items():
        name, colour = _NAMES[status]
        _bars(axes, found, colour, name, below)
        below = [low + count for low, count in zip(below, found.counts, strict=True)]
    axes.set_xlabel("probability of the better reply")
    axes.set_ylabel("comparisons")
    if len(data.confidence) > 1:
        axes.legend(frameon=False, fontsize=8, loc="best")
    return figure


def margins_figure(margins: Histogram) -> Figure:
    """The margins of the pairs: the probability of the chosen reply minus one half."""
    figure, axes = _panel()
    _bars(axes, margins, BLUE)
    axes.set_xlabel("margin of the pair")
    axes.set_ylabel("pairs")
    return figure


def mass_figure(mass: Histogram, least: float) -> Figure:
    """How much probability the judge puts on its two labels; left of the line an answer has no label."""
    figure, axes = _panel()
    _bars(axes, mass, BLUE)
    axes.axvline(least, color=ORANGE, linewidth=1.2, linestyle="--")
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("probability of both labels together")
    axes.set_ylabel("answers")
    return figure


def lengths_figure(lengths: Lengths) -> Figure:
    """How long the chosen and the rejected replies are."""
    figure, axes = _panel()
    last = max(at for side in (lengths.chosen, lengths.rejected) for at, count in enumerate(side.counts) if count)
    places = range(last + 1)
    for side, colour, name, shift in (
        (lengths.chosen, GREEN, "chosen", -0.2),
        (lengths.rejected, ORANGE, "rejected", 0.2),
    ):
        axes.bar([at + shift for at in places], side.counts[: last + 1], width=0.4, color=colour, label=name)
    axes.set_xticks([at - 0.5 for at in places], [f"{edge:,}" for edge in lengths.edges[: last + 1]], fontsize=8)
    axes.set_xlabel("characters of the reply, from")
    axes.set_ylabel("pairs")
    axes.legend(frameon=False, fontsize=8, loc="best")
    return figure


def _panel() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 2.5), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis="y", color=_RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="y", integer=True)
    return figure, axes


def _bars(
    axes: Axes, found: Histogram, colour: str, name: str | None = None, below: Sequence[int] | None = None
) -> None:
    widths = [right - left for left, right in zip(found.edges, found.edges[1:], strict=False)]
    more: dict[str, Any] = {"bottom": below} if below is not None else {}
    places = [left + 0.04 * width for left, width in zip(found.edges, widths, strict=False)]
    width = [0.92 * each for each in widths]
    axes.bar(places, found.counts, width=width, align="edge", color=colour, label=name, **more)
