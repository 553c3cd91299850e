"""The curves of a training as one picture. matplotlib is loaded here only, and draws without a screen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rlaif.store import draft_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# People with any color vision can tell these apart (Okabe and Ito 2008).
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6E6E6E"
_FEW = 40
"""Points of a curve that needs no running mean."""
_MARKED = 30
"""Points that are marked one by one."""
_COLUMNS = {1: 1, 2: 2, 4: 2, 7: 4, 8: 4}
"""By the number of panels, so that few places stay empty; otherwise 3."""
STYLE: Any = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "lines.linewidth": 1.4,
    "text.parse_math": False,
}
"""Of the figures of trainings, and of the report page."""

Points = Sequence[tuple[float, float]]
"""Step and value."""


class Curve(NamedTuple):
    """One line of a panel."""

    name: str
    colour: str
    points: Points
    held: bool = False
    """On held-out rows: few points, each of many rows."""
    smooth: Literal["mean", "logs", "no"] = "mean"
    """What runs through many points: their mean, the mean of their logarithms (one wild value hardly moves it)."""


class Panel(NamedTuple):
    """One of the pictures in the picture."""

    title: str
    curves: list[Curve]
    line: float | None = None
    """What chance, or a model that has learned nothing, gets."""
    share: bool = False


def draw_curves(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the log of a training (transformers' `state.log_history`) into a PNG; nothing where nothing was logged."""
    draw(list(_panels(history)), path, "optimizer step")


def curves_figure(history: Sequence[Mapping[str, Any]], most: int = 4) -> Figure | None:
    """The same as a figure, `most` panels wide, to be drawn elsewhere; None where nothing was logged."""
    panels = list(_panels(history))
    return figure_of(panels, "optimizer step", most) if panels else None


def draw(panels: Sequence[Panel], path: Path, step: str) -> None:
    """Draw panels side by side into a PNG, over what is called `step`; nothing where there are none."""
    if not panels:
        return
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        figure = figure_of(panels, step)
        with draft_of(path) as draft:
            figure.savefig(draft, format="png", dpi=130, metadata={"Software": None})


def figure_of(panels: Sequence[Panel], step: str, most: int = 4) -> Figure:
    """Panels (one at least), at most `most` side by side, over what is called `step`, in the style of the moment."""
    from matplotlib.figure import Figure

    columns = min(most, _COLUMNS.get(len(panels), 3))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.5 * columns, 0.4 + 2.4 * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    for axes, panel in zip(places, panels, strict=False):
        _draw(axes, panel)
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    for axes in places[max(0, len(panels) - columns) : len(panels)]:
        axes.set_xlabel(step)
        axes.tick_params(labelbottom=True)  # of a shared axis only the last row has numbers, and it may be short
    return figure


def _panels(history: Sequence[Mapping[str, Any]]) -> Iterator[Panel]:
    """What there is something to draw of."""
    yield from _training_and_held(history, "loss", "loss")
    yield from _training_and_held(history, "accuracy", "accuracy: chosen above rejected", line=0.5, share=True)
    yield from _training_and_held(history, "margin", "margin: chosen minus rejected", line=0.0)
    yield from _both_sides(history, "rewards", "rewards")
    yield from _both_sides(history, "logps", "log-probability of a reply")
    yield from _training_and_held(history, "kl", "distance from the reference, times beta", line=0.0)
    if points := points_of(history, "grad_norm"):
        yield Panel("gradient norm", [Curve("", BLUE, points, smooth="logs")])
    if points := points_of(history, "learning_rate"):
        yield Panel("learning rate", [Curve("", GREY, points, smooth="no")])


def _training_and_held(history: Sequence[Mapping[str, Any]], name: str, title: str, **more: Any) -> Iterator[Panel]:
    candidates = [
        Curve("training", BLUE, points_of(history, name)),
        Curve("held out", ORANGE, points_of(history, f"eval_{name}"), held=True),
    ]
    if curves := [curve for curve in candidates if curve.points]:
        yield Panel(title, curves, **more)


def _both_sides(history: Sequence[Mapping[str, Any]], name: str, title: str) -> Iterator[Panel]:
    """Chosen and rejected, or good and bad; the held-out ones in the same colours."""
    candidates = [
        Curve(
            f"{side}{', held out' if prefix else ''}", colour, points_of(history, f"{prefix}{name}/{side}"), held=held
        )
        for prefix, held in (("", False), ("eval_", True))
        for side, colour in (("chosen", GREEN), ("rejected", ORANGE), ("good", GREEN), ("bad", ORANGE))
    ]
    if curves := [curve for curve in candidates if curve.points]:
        yield Panel(title, curves)


def points_of(history: Sequence[Mapping[str, Any]], name: str) -> Points:
    """The numbers by this name; where a step was logged twice, as by a training that went on, the later one."""
    points = {
        float(line["step"]): float(line[name])
        for line in history
        if "step" in line and isinstance(line.get(name), (int, float)) and math.isfinite(line[name])
    }
    return sorted(points.items())


def _draw(axes: Axes, panel: Panel) -> None:
    if panel.line is not None:
        axes.axhline(panel.line, color=GREY, linestyle=":", linewidth=1, zorder=0)
    for curve in panel.curves:
        _draw_curve(axes, curve)
    axes.set_title(panel.title)
    axes.margins(x=0.02)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=6, integer=True)
    axes.yaxis.set_major_formatter("{x:.0%}" if panel.share else _number)
    if len(panel.curves) > 1:
        axes.legend(frameon=False, fontsize=8, ncols=2 if len(panel.curves) > 2 else 1, handlelength=1.6)


def _draw_curve(axes: Axes, curve: Curve) -> None:
    """The points, pale where there are many, and then their running mean; held-out points are all marked."""
    steps, values = zip(*curve.points, strict=True)
    marks: dict[str, Any] = {"marker": "o" if curve.held else ".", "markersize": 5} if len(values) <= _MARKED else {}
    if curve.held:
        marks |= {"linestyle": "--", "markeredgecolor": "white"}
    if curve.held or len(values) <= _FEW or curve.smooth == "no":
        axes.plot(steps, values, color=curve.colour, label=curve.name, **marks)
        return
    axes.plot(steps, values, color=curve.colour, linewidth=0.7, alpha=0.25)
    width = max(5, len(values) // 20)
    if curve.smooth == "logs" and min(values) > 0:
        smoothed = [math.exp(log) for log in running_mean([math.log(value) for value in values], width)]
    else:
        smoothed = running_mean(values, width)
    axes.plot(steps, smoothed, color=curve.colour, label=curve.name)
    _clip_outliers(axes, values)


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """The mean of the values up to `width // 2` places from each one; at either end there are fewer."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    spans = ((max(0, at - width // 2), min(len(values), at + width // 2 + 1)) for at in range(len(values)))
    return [(sums[end] - sums[start]) / (end - start) for start, end in spans]


def _clip_outliers(axes: Axes, values: Sequence[float]) -> None:
    """Of many points, a few wild ones may leave the picture rather than flatten the rest."""
    ordered = sorted(values)
    last = len(ordered) - 1
    low, high = ordered[round(0.005 * last)], ordered[round(0.995 * last)]
    room = 0.5 * (high - low)
    if room and (ordered[0] < low - room or ordered[-1] > high + room):
        bottom, top = axes.get_ylim()
        axes.set_ylim(max(bottom, low - room), min(top, high + room))


def _number(value: float, place: object) -> str:  # noqa: ARG001 - matplotlib's signature
    """Numbers without a factor above the axis, which would push its title up."""
    return "0" if abs(value) < 1e-12 else f"{value:g}"
