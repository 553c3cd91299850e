"""The curves of an online training as one picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif.training.curves import BLUE, GREEN, GREY, ORANGE, Curve, Panel, draw, figure_of, points_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ONE = (
    ("kl", "divergence from the start, nats an answer", 0.0),
    ("entropy", "entropy, nats a token", None),
    ("distinct_2", "distinct pairs of words", None),
    ("clip_share", "clipped share", 0.0),
    ("value/explained", "variance explained by the values", 0.0),
    ("grad_norm", "gradient norm", None),
)


def draw_curves(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the log into a PNG; nothing where nothing was logged."""
    draw(list(_panels(history)), path, "step")


def curves_figure(history: Sequence[Mapping[str, Any]], most: int = 4) -> Figure | None:
    """The same as a figure, `most` panels wide, to be drawn elsewhere; None where nothing was logged."""
    panels = list(_panels(history))
    return figure_of(panels, "step", most) if panels else None


def _panels(history: Sequence[Mapping[str, Any]]) -> Iterator[Panel]:
    yield from _several(history, "reward", {"reward": BLUE})
    held = {"held_out/win_rate": ORANGE, "held_out/controlled": GREEN}
    yield from _several(history, "wins against the start, by the held-out judge", held, line=0.5, share=True)
    yield from _several(history, "tokens of an answer", {"length": BLUE, "length_p95": GREY})
    for name, title, line in _ONE:
        yield from _several(history, title, {name: BLUE}, line=line)


def _several(
    history: Sequence[Mapping[str, Any]], title: str, names: Mapping[str, str], **more: Any
) -> Iterator[Panel]:
    found = [
        Curve(name.rpartition("/")[2].replace("_", " "), colour, points, held=name.startswith("held_out"))
        for name, colour in names.items()
        if (points := points_of(history, name))
    ]
    if found:
        yield Panel(title, found, **more)
