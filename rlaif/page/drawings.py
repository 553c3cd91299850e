"""All drawings of a page: which figures there are, what each says in words, and their SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlaif.evaluation.report import JudgeReport
from rlaif.evaluation.rewards.report import RewardReport
from rlaif.page.figures import Page
from rlaif.page.learned import Policies, Training
from rlaif.page.plots import confidence_figure, lengths_figure, margins_figure, mass_figure
from rlaif.page.svg import Sheet, drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ACROSS = 3
"""Panels of a training's curves side by side."""


@dataclass
class Drawings:
    """SVG elements by the part of the page that they belong to, and the style sheet of all of them."""

    sheet: Sheet = field(default_factory=Sheet)
    parts: dict[str, list[str]] = field(default_factory=dict)

    def add(self, part: str, figure: Figure | None, told: str, *, wide: bool = False) -> None:
        """Add a figure, if there is one; `told` are its words for who cannot see it."""
        if figure is not None:
            self.parts.setdefault(part, []).append(self.sheet.inline(figure, told, wide))

    def of(self, part: str) -> list[str]:
        """The drawings of a part."""
        return self.parts.get(part, [])


def draw(page: Page, least_mass: float) -> Drawings:
    """Draw everything that there is to see."""
    found = Drawings()
    with drawing():
        _data(page, found)
        if page.verdicts is not None and page.verdicts.mass is not None:
            mean = page.verdicts.mass_mean or 0.0
            told = f"Histogram of the label mass of {page.verdicts.mass.total:,} answers, mean {mean:.3f}"
            found.add("mass", mass_figure(page.verdicts.mass, least_mass), told)
        for at, training in enumerate(page.trainings):
            _training(f"training-{at}", training, found)
        for at, policies in enumerate(page.policies):
            _policies(f"policies-{at}", policies, found)
        for at, judges in enumerate(page.judges):
            _judge(f"judges-{at}", judges.report, found)
        for at, rewards in enumerate(page.rewards):
            _rewards(f"rewards-{at}", rewards.report, found)
    return found


def _data(page: Page, found: Drawings) -> None:
    data = page.data
    if data is None:
        return
    if data.confidence:
        counts = ", ".join(f"{name} {each.total:,}" for name, each in data.confidence.items())
        found.add("data", confidence_figure(data), f"Histogram of the judge's confidence by outcome: {counts}")
    if data.margins is not None:
        found.add("data", margins_figure(data.margins), f"Histogram of the margins of {data.margins.total:,} pairs")
    if data.lengths is not None:
        medians = f"median {data.lengths.chosen.median:,.0f} and {data.lengths.rejected.median:,.0f} characters"
        found.add("data", lengths_figure(data.lengths), f"Lengths of chosen and rejected replies: {medians}")


def _training(part: str, training: Training, found: Drawings) -> None:
    from rlaif.online.curves import curves_figure as online_figure
    from rlaif.training.curves import curves_figure

    figure = online_figure if training.method == "ppo" else curves_figure
    history: Sequence[Mapping[str, Any]] = training.history
    told = ", ".join(
        f"{name} {value:.4g}" for name, (value, held) in training.figures.items() if value is not None or held
    )
    steps = f"{training.steps:,}" if training.steps is not None else "no"
    words = f"Curves of the training {training.name} over {steps} steps; at the end: {told}"
    found.add(part, figure(history, _ACROSS) if history else None, words, wide=True)


def _policies(part: str, policies: Policies, found: Drawings) -> None:
    from rlaif.evaluation.policies.plots import figures

    report = policies.report
    against = [match for match in report.matches if match.baseline == report.baseline]
    rates = "; ".join(f"{match.policy} {match.win_rate}" for match in against if match.win_rate is not None)
    own = "; ".join(
        f"{match.policy}, {each.name} {each.rate}" for match in against for each in match.principles if each.rate
    )
    words = {
        "winrate": f"Win rates against {report.baseline}: {rates}",
        "principles": f"Win rates against {report.baseline} by each principle alone: {own}",
        "ratings": "Bradley-Terry ratings: " + "; ".join(f"{each.name} Elo {each.elo:.0f}" for each in report.ratings),
    }
    # The low ones side by side, the high one below them.
    for name, figure in sorted(figures(report), key=lambda each: each[0] == "principles"):
        found.add(part, figure, words.get(name, name))


def _judge(part: str, report: JudgeReport, found: Drawings) -> None:
    from rlaif.evaluation.plots import length_figure, reliability_figure, slot_figure

    measures = report.measures
    if measures.calibration is not None:
        words = f"Accuracy of {report.about.judge} against its confidence; error {measures.calibration.error:.3f}"
        found.add(part, reliability_figure(measures.calibration), words)
    if measures.slot is not None:
        words = f"Share of verdicts for the first slot: {measures.slot.first}"
        found.add(part, slot_figure(measures), words)
    if measures.length.bins:
        found.add(part, length_figure(measures.length, measures.accuracy), "Accuracy by the ratio of the lengths")


def _rewards(part: str, report: RewardReport, found: Drawings) -> None:
    from rlaif.evaluation.rewards.plots import figures

    gold, best = report.gold, report.best_of_n
    error = f"; calibration error {gold.calibration.error:.3f}" if gold is not None and gold.calibration else ""
    points = "; ".join(f"n = {each.n}: {each.gold.value:.3f}" for each in best.points) if best is not None else ""
    words = {
        "reliability": f"Accuracy of {report.model} against its confidence{error}",
        "length": f"Accuracy of {report.model} by the ratio of the lengths",
        "best-of-n": f"Reward and the other measure of the best of n answers: {points}",
    }
    for name, figure in figures(report):
        found.add(part, figure, words.get(name, name))
