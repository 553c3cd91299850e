"""The report page as one self-contained HTML file, with its plots as inline SVG.

Texts of models are untrusted. jinja2 escapes everything in the templates; the examples travel as JSON whose `<`, `>`
and `&` are escaped, so that no text ends its element, and the script shows them by `textContent` only. The content
security policy allows the page's one script and one style sheet by their hashes, and nothing else: no image, no
request, no inline style.

Inline styles being forbidden, the `style` attributes of matplotlib's SVG become classes of the style sheet, and its
colors become the page's variables, so plots follow the light and the dark theme. matplotlib is imported here only.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
import io
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif.config.yaml import dump_yaml
from rlaif.evaluation.reports import JudgeReport, RewardReport
from rlaif.report.view import Data, Histogram, Lengths, Page, Policies, Training
from rlaif.stats import Estimate
from rlaif.training.curves import BLUE, GREEN, GREY, ORANGE, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WEB = Path(__file__).parent / "web"
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_LEVELS = {"serious": "Serious", "caution": "Caution", "note": "Note"}
_RULE = "#E6E6E6"
_STATUSES = {"labelled": ("a label", BLUE), "tie": ("a tie", GREY), "flip": ("left out, as it flips", ORANGE)}
_COLUMNS = 3
"""Panels of a training's curves side by side."""
COLORS = {
    "#0072b2": "var(--blue)",
    "#d55e00": "var(--orange)",
    "#009e73": "var(--green)",
    "#cc79a7": "var(--purple)",
    "#e69f00": "var(--amber)",
    "#56b4e9": "var(--sky)",
    "#6e6e6e": "var(--grey)",
    "#e6e6e6": "var(--rule)",
    "#ffffff": "var(--paper)",
    "#000000": "var(--ink)",
}
"""The colors of matplotlib figures as variables of the page; other colors stay as they are."""
_SVG_STYLE: Any = {**STYLE, "svg.fonttype": "none", "path.simplify_threshold": 0.6}
_COLOR = re.compile(r"#[0-9a-f]{6}", re.I)
_FONT = re.compile(r"font:\s*(?:[a-z]+\s+)*([\d.]+)px[^;\"]*", re.I)


def render(page: Page, min_mass: float = 0.5) -> str:
    """The HTML file, which depends on the page alone."""
    import jinja2

    plots = draw(page, min_mass)
    style = f"{(_WEB / 'page.css').read_text(encoding='utf-8')}\n{plots.sheet.css()}\n"
    script = (_WEB / "page.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_WEB), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "number": number, "percent": percent, "estimate": estimate, "signed": signed, "short": short, "figure": figure,
        "coded": coded, "cell": cell,
    }  # fmt: skip
    allowed = f"style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    return environment.get_template("page.html").render(
        page=page,
        part=lambda name: [_markup(svg) for svg in plots.of(name)],
        style=_markup(style),
        script=_markup(script),
        examples=_markup(_examples_json(page)),
        policy=f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'",
        levels=_LEVELS,
        yaml=dump_yaml,
        min_mass=min_mass,
    )


def _markup(text: str) -> Any:
    """A text of ours, which jinja2 does not escape."""
    import markupsafe

    return markupsafe.Markup(text)


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _examples_json(page: Page) -> str:
    """The examples as JSON that holds no HTML, whatever the texts are."""
    examples = page.examples
    if examples is None:
        return "null"
    plain = {"principles": examples.principles, "judges": examples.judges, "items": examples.items}
    text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")  # a lone surrogate is an escape in JSON too
    return text.translate({ord(sign): escape for sign, escape in _ESCAPES.items()})


def number(value: float | None, digits: int | None = None) -> str:
    """Integers with thousands separators, other numbers with `digits` decimals; a dash for None."""
    if value is None:
        return "–"
    if digits is not None:
        return f"{value:,.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share in percent; a dash for None."""
    return "–" if share is None else f"{100 * share:.{digits}f}%"


def estimate(value: Estimate | None, digits: int | None = None) -> str:
    """A value with its interval: a share in percent, or, with `digits`, a number."""
    if value is None:
        return "–"
    if digits is None:
        return f"{100 * value.value:.1f}% ({100 * value.low:.1f} to {100 * value.high:.1f})"
    return f"{value.value:,.{digits}f} ({value.low:,.{digits}f} to {value.high:,.{digits}f})"


def cell(value: Estimate | None, digits: int | None = None) -> Any:
    """The same for a table cell, the interval below the value."""
    mean, _, interval = estimate(value, digits).partition(" (")
    return _markup(f"{mean} <small>{interval.rstrip(')')}</small>" if interval else mean)


def signed(value: float | None, digits: int = 2) -> str:
    """A number with its sign; a dash for None."""
    return "–" if value is None else f"{value:+.{digits}f}"


def figure(value: float | None) -> str:
    """A metric of a training, with four significant digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def coded(text: str) -> Any:
    """An escaped sentence whose backquoted parts become code."""
    import markupsafe

    parts = [markupsafe.escape(part) for part in text.split("`")]
    if len(parts) % 2 == 0:  # an unpaired backquote is part of the text
        return markupsafe.escape(text)
    return _markup("").join(part if at % 2 == 0 else _markup(f"<code>{part}</code>") for at, part in enumerate(parts))


def short(text: str, most: int = 12) -> str:
    """The first characters of a hash."""
    return text if len(text) <= most else f"{text[:most]}…"


@contextlib.contextmanager
def plot_style() -> Iterator[None]:
    """The style in which figures are drawn and written."""
    import matplotlib as mpl

    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has the glyphs
        mpl.rcdefaults()
        mpl.rcParams.update(_SVG_STYLE)
        yield


class Sheet:
    """The styles of all plots of a page, each under a short class name."""

    def __init__(self) -> None:
        self._classes: dict[str, str] = {}
        self._figures = 0

    def css(self) -> str:
        """The rules, for the page's style sheet."""
        return "\n".join(f".{name}{{{rules}}}" for rules, name in self._classes.items())

    def inline(self, figure: Figure, description: str, wide: bool = False) -> str:
        """A figure as an SVG element; `description` is its accessible name."""
        import matplotlib as mpl

        self._figures += 1
        prefix = f"f{self._figures}-"

        def tag(match: re.Match[str]) -> str:
            text = re.sub(r' id="(?:figure|axes|patch|text|line2d|matplotlib|xtick|ytick|legend)[\w.]*"', "", match[0])
            text = re.sub(r'( id="|xlink:href="#|url\(#)', rf"\g<1>{prefix}", text).replace("xlink:href", "href")
            return re.sub(r' style="([^"]*)"', self._class, text)

        file = io.StringIO()
        # Ids derive from their content and this salt, so equal pages have equal bytes.
        with mpl.rc_context({"svg.hashsalt": f"page-{self._figures}"}):
            metadata: Any = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            figure.savefig(file, format="svg", metadata=metadata, transparent=True)
        text = file.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", text, flags=re.S)
        # Tags only: a label may hold any text. matplotlib writes no bare > into an attribute.
        text = re.sub(r"<[^>]*>", tag, text)
        text = re.sub(r"\s*\n\s*", "\n", text)
        label, size = html.escape(description, quote=True), "wide" if wide else "small"
        opening = rf'<svg class="plot {size}" viewBox="\1" role="img" aria-label="'
        return re.sub(
            r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', lambda match: f'{match.expand(opening)}{label}">', text, count=1
        )

    def _class(self, match: re.Match[str]) -> str:
        rules = _FONT.sub(r"font-size:\1px", html.unescape(match[1]))
        rules = _COLOR.sub(lambda color: COLORS.get(color[0].lower(), color[0]), rules)
        rules = re.sub(r"\s*([;:])\s*", r"\1", rules).strip("; ")
        if not rules or {"<", "}"} & set(rules):  # either sign would end the style sheet, or the rule
            return ""
        return f' class="{self._classes.setdefault(rules, f"s{len(self._classes)}")}"'


@dataclass
class Plots:
    """SVG elements by part of the page, and their style sheet."""

    sheet: Sheet = field(default_factory=Sheet)
    parts: dict[str, list[str]] = field(default_factory=dict)

    def add(self, part: str, figure: Figure | None, description: str, *, wide: bool = False) -> None:
        """Add a figure, if there is one; `description` is its accessible name."""
        if figure is not None:
            self.parts.setdefault(part, []).append(self.sheet.inline(figure, description, wide))

    def of(self, part: str) -> list[str]:
        """The plots of a part of the page."""
        return self.parts.get(part, [])


def draw(page: Page, min_mass: float) -> Plots:
    """Draw all plots of the page."""
    plots = Plots()
    with plot_style():
        _add_data(page, plots)
        if page.verdicts is not None and page.verdicts.mass is not None:
            mean = page.verdicts.mass_mean or 0.0
            description = f"Histogram of the label mass of {page.verdicts.mass.total:,} judgements, mean {mean:.3f}"
            plots.add("mass", mass_figure(page.verdicts.mass, min_mass), description)
        for at, training in enumerate(page.trainings):
            _add_training(f"training-{at}", training, plots)
        for at, policies in enumerate(page.policies):
            _add_policies(f"policies-{at}", policies, plots)
        for at, judges in enumerate(page.judges):
            _add_judge(f"judges-{at}", judges.report, plots)
        for at, rewards in enumerate(page.rewards):
            _add_rewards(f"rewards-{at}", rewards.report, plots)
    return plots


def _add_data(page: Page, plots: Plots) -> None:
    data = page.data
    if data is None:
        return
    if data.confidence:
        counts = ", ".join(f"{name} {each.total:,}" for name, each in data.confidence.items())
        plots.add("data", confidence_figure(data), f"Histogram of the judge's confidence by outcome: {counts}")
    if data.margins is not None:
        plots.add("data", margins_figure(data.margins), f"Histogram of the margins of {data.margins.total:,} pairs")
    if data.lengths is not None:
        medians = f"median {data.lengths.chosen.median:,.0f} and {data.lengths.rejected.median:,.0f} characters"
        plots.add("data", lengths_figure(data.lengths), f"Lengths of chosen and rejected responses: {medians}")


def _add_training(part: str, training: Training, plots: Plots) -> None:
    from rlaif.rl.run import curves_figure as online_figure
    from rlaif.training.curves import curves_figure

    figure = online_figure if training.method == "ppo" else curves_figure
    history: Sequence[Mapping[str, Any]] = training.history
    metrics = ", ".join(
        f"{name} {value:.4g}" for name, (value, held) in training.metrics.items() if value is not None or held
    )
    steps = f"{training.steps:,}" if training.steps is not None else "no"
    description = f"Curves of the training {training.name} over {steps} steps; at the end: {metrics}"
    plots.add(part, figure(history, _COLUMNS) if history else None, description, wide=True)


def _add_policies(part: str, policies: Policies, plots: Plots) -> None:
    from rlaif.evaluation.plots import policy_figures

    report = policies.report
    against = [match for match in report.matches if match.baseline == report.baseline]
    rates = "; ".join(f"{match.policy} {match.win_rate}" for match in against if match.win_rate is not None)
    by_principle = "; ".join(
        f"{match.policy}, {each.name} {each.rate}" for match in against for each in match.principles if each.rate
    )
    descriptions = {
        "winrate": f"Win rates against {report.baseline}: {rates}",
        "principles": f"Win rates against {report.baseline} by each principle alone: {by_principle}",
        "ratings": "Bradley-Terry ratings: " + "; ".join(f"{each.name} Elo {each.elo:.0f}" for each in report.ratings),
    }
    # The low figures side by side, then the high one.
    for name, figure in sorted(policy_figures(report), key=lambda each: each[0] == "principles"):
        plots.add(part, figure, descriptions.get(name, name))


def _add_judge(part: str, report: JudgeReport, plots: Plots) -> None:
    from rlaif.evaluation.plots import length_figure, reliability_figure, slot_figure

    measures = report.measures
    if measures.calibration is not None:
        description = f"Accuracy of {report.about.judge} against its confidence; error {measures.calibration.error:.3f}"
        plots.add(part, reliability_figure(measures.calibration), description)
    if measures.slot is not None:
        description = f"Share of verdicts for the first slot: {measures.slot.first}"
        plots.add(part, slot_figure(measures), description)
    if measures.length.bins:
        plots.add(part, length_figure(measures.length, measures.accuracy), "Accuracy by the ratio of the lengths")


def _add_rewards(part: str, report: RewardReport, plots: Plots) -> None:
    from rlaif.evaluation.plots import reward_figures

    gold, best = report.gold, report.best_of_n
    error = f"; calibration error {gold.calibration.error:.3f}" if gold is not None and gold.calibration else ""
    points = "; ".join(f"n = {each.n}: {each.gold.value:.3f}" for each in best.points) if best is not None else ""
    descriptions = {
        "reliability": f"Accuracy of {report.model} against its confidence{error}",
        "length": f"Accuracy of {report.model} by the ratio of the lengths",
        "best-of-n": f"Reward and the other measure of the best of n responses: {points}",
    }
    for name, figure in reward_figures(report):
        plots.add(part, figure, descriptions.get(name, name))


def confidence_figure(data: Data) -> Figure:
    """Histogram of the judge's confidence over all comparisons, stacked by status."""
    figure, axes = _panel("probability of the better response", "comparisons")
    below = [0] * 20
    for status, histogram in data.confidence.items():
        name, color = _STATUSES[status]
        _bars(axes, histogram, color, name, below)
        below = [low + count for low, count in zip(below, histogram.counts, strict=True)]
    if len(data.confidence) > 1:
        axes.legend(frameon=False, fontsize=8, loc="best")
    return figure


def margins_figure(margins: Histogram) -> Figure:
    """Histogram of the margins of the pairs: the probability of the chosen response minus one half."""
    figure, axes = _panel("margin of the pair", "pairs")
    _bars(axes, margins, BLUE)
    return figure


def mass_figure(mass: Histogram, least: float) -> Figure:
    """Histogram of the probability on the two labels; judgements left of the line have no label."""
    figure, axes = _panel("probability of both labels together", "judgements")
    _bars(axes, mass, BLUE)
    axes.axvline(least, color=ORANGE, linewidth=1.2, linestyle="--")
    axes.set_xlim(-0.02, 1.02)
    return figure


def lengths_figure(lengths: Lengths) -> Figure:
    """Histogram of the lengths of the chosen and the rejected responses."""
    figure, axes = _panel("characters of the response, from", "pairs")
    last = max(at for side in (lengths.chosen, lengths.rejected) for at, count in enumerate(side.counts) if count)
    places = range(last + 1)
    for side, color, name, shift in (
        (lengths.chosen, GREEN, "chosen", -0.2),
        (lengths.rejected, ORANGE, "rejected", 0.2),
    ):
        axes.bar([at + shift for at in places], side.counts[: last + 1], width=0.4, color=color, label=name)
    axes.set_xticks([at - 0.5 for at in places], [f"{edge:,}" for edge in lengths.edges[: last + 1]], fontsize=8)
    axes.legend(frameon=False, fontsize=8, loc="best")
    return figure


def _panel(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 2.5), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis="y", color=_RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="y", integer=True)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def _bars(
    axes: Axes, histogram: Histogram, color: str, name: str | None = None, below: Sequence[int] | None = None
) -> None:
    widths = [right - left for left, right in zip(histogram.edges, histogram.edges[1:], strict=False)]
    options: dict[str, Any] = {"bottom": below} if below is not None else {}
    left = [edge + 0.04 * width for edge, width in zip(histogram.edges, widths, strict=False)]
    bar_widths = [0.92 * width for width in widths]
    axes.bar(left, histogram.counts, width=bar_widths, align="edge", color=color, label=name, **options)
