"""The page as HTML: drawings as inline SVG, and no text of a model becomes markup or a script.

The page's own figures. matplotlib is loaded here only; colours are those that `rlaif.report.render` knows.

matplotlib's figures as inline SVG that follows the page: its colours become variables, its styles become classes.

A page that allows no inline styles (see `rlaif.report.render`) cannot have `style` attributes either, so every
different one becomes a class of one style sheet, which also makes the drawings much smaller.

All drawings of a page: which figures there are, what each says in words, and their SVG.

The page as HTML: one file without a request, in which no text of a model can become markup or a script.

Texts go through jinja2's escaping; what the browser lists goes as JSON whose `<`, `>` and `&` are written as escapes,
so that nothing in it can end its element, and is shown by `textContent` only. The content security policy allows the
one script and the one style sheet of the page by their hashes, and nothing else: no image, no request, no inline style.
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


COLOURS = {
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
"""The colours that figures are drawn in, and what they are on the page; any other colour stays as it is."""
_STYLE: Any = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "lines.linewidth": 1.4,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "path.simplify_threshold": 0.6,
}
_COLOUR = re.compile(r"#[0-9a-f]{6}", re.I)
_FONT = re.compile(r"font:\s*(?:[a-z]+\s+)*([\d.]+)px[^;\"]*", re.I)


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """The style in which the page's figures are made, and written."""
    import matplotlib as mpl

    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has the glyphs
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


class Sheet:
    """The styles of all drawings of a page, each under a short class name."""

    def __init__(self) -> None:
        self._classes: dict[str, str] = {}
        self._figures = 0

    def css(self) -> str:
        """The rules, for the page's style sheet."""
        return "\n".join(f".{name}{{{rules}}}" for rules, name in self._classes.items())

    def inline(self, figure: Figure, told: str, wide: bool = False) -> str:
        """A figure as an SVG element; `told` says in words what there is to see."""
        self._figures += 1
        file = io.StringIO()
        import matplotlib as mpl

        # Ids are made of their content and this salt, so that the same page has the same bytes.
        with mpl.rc_context({"svg.hashsalt": f"page-{self._figures}"}):
            metadata: Any = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            figure.savefig(file, format="svg", metadata=metadata, transparent=True)
        text = file.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", text, flags=re.S)
        # In tags alone: a label may say whatever it likes. matplotlib writes no bare > into an attribute.
        text = re.sub(r"<[^>]*>", lambda found: self._tag(found[0]), text)
        text = re.sub(r"\s*\n\s*", "\n", text)
        label, size = html.escape(told, quote=True), "wide" if wide else "small"
        return re.sub(
            r'<svg[^>]*?viewBox="([^"]*)"[^>]*>',
            rf'<svg class="plot {size}" viewBox="\1" role="img" aria-label="{_plain(label)}">',
            text,
            count=1,
        )

    def _tag(self, tag: str) -> str:
        tag = re.sub(r' id="(?:figure|axes|patch|text|line2d|matplotlib|xtick|ytick|legend)[\w.]*"', "", tag)
        mark = f"f{self._figures}-"
        tag = re.sub(r'( id="|xlink:href="#|url\(#)', rf"\g<1>{mark}", tag).replace("xlink:href", "href")
        return re.sub(r' style="([^"]*)"', self._class, tag)

    def _class(self, found: re.Match[str]) -> str:
        rules = _FONT.sub(r"font-size:\1px", html.unescape(found[1]))
        rules = _COLOUR.sub(lambda colour: COLOURS.get(colour[0].lower(), colour[0]), rules)
        rules = re.sub(r"\s*([;:])\s*", r"\1", rules).strip("; ")
        if not rules or {"<", "}"} & set(rules):  # the second kind would end the rule, or the style sheet
            return ""
        return f' class="{self._classes.setdefault(rules, f"s{len(self._classes)}")}"'


def _plain(text: str) -> str:
    """A text as a replacement of `re.sub` that says itself."""
    return text.replace("\\", r"\\")


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
    from rlaif.rl.run import curves_figure as online_figure
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
    from rlaif.evaluation.plots import policy_figures

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
    for name, figure in sorted(policy_figures(report), key=lambda each: each[0] == "principles"):
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
    from rlaif.evaluation.plots import reward_figures

    gold, best = report.gold, report.best_of_n
    error = f"; calibration error {gold.calibration.error:.3f}" if gold is not None and gold.calibration else ""
    points = "; ".join(f"n = {each.n}: {each.gold.value:.3f}" for each in best.points) if best is not None else ""
    words = {
        "reliability": f"Accuracy of {report.model} against its confidence{error}",
        "length": f"Accuracy of {report.model} by the ratio of the lengths",
        "best-of-n": f"Reward and the other measure of the best of n answers: {points}",
    }
    for name, figure in reward_figures(report):
        found.add(part, figure, words.get(name, name))


_WEB = Path(__file__).parent / "web"
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_LEVELS = {"serious": "Serious", "caution": "Caution", "note": "Note"}


def render(page: Page, least_mass: float = 0.5) -> str:
    """The whole file, whose text depends on the page alone."""
    import jinja2

    drawings = draw(page, least_mass)
    style = f"{_asset('page.css')}\n{drawings.sheet.css()}\n"
    script = _asset("page.js")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_WEB), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "number": number, "percent": percent, "estimate": estimate, "signed": signed, "short": short, "figure": figure,
        "coded": coded,
        "cell": cell,
    }  # fmt: skip
    return environment.get_template("page.html").render(
        page=page,
        part=_marked(drawings),
        style=_markup(style),
        script=_markup(script),
        examples=_markup(_json(page)),
        policy=_policy(style, script),
        levels=_LEVELS,
        yaml=dump_yaml,
        least_mass=least_mass,
    )


def _asset(name: str) -> str:
    return (_WEB / name).read_text(encoding="utf-8")


def _markup(text: str) -> Any:
    """Our own text, which is markup as it stands."""
    import markupsafe

    return markupsafe.Markup(text)


def _marked(drawings: Drawings) -> Any:
    return lambda name: [_markup(each) for each in drawings.of(name)]


def _policy(style: str, script: str) -> str:
    allowed = f"style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _json(page: Page) -> str:
    """The examples for the browser; JSON still, and no HTML whatever the texts are."""
    found = page.examples
    if found is None:
        return "null"
    plain = {"principles": found.principles, "judges": found.judges, "items": found.items}
    text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")  # half a surrogate pair is an escape in JSON too
    return text.translate({ord(sign): escape for sign, escape in _ESCAPES.items()})


def number(value: float | None, digits: int | None = None) -> str:
    """A number for people: whole ones with commas, others with so many digits; a dash where there is none."""
    if value is None:
        return "–"
    if digits is not None:
        return f"{value:,.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share for people; a dash where there is none."""
    return "–" if share is None else f"{100 * share:.{digits}f}%"


def estimate(found: Estimate | None, digits: int | None = None) -> str:
    """A value with its interval: a share, or, with `digits`, a number."""
    if found is None:
        return "–"
    if digits is None:
        return f"{100 * found.value:.1f}% ({100 * found.low:.1f} to {100 * found.high:.1f})"
    return f"{found.value:,.{digits}f} ({found.low:,.{digits}f} to {found.high:,.{digits}f})"


def cell(found: Estimate | None, digits: int | None = None) -> Any:
    """The same for a table, the interval below the value."""
    value, _, interval = estimate(found, digits).partition(" (")
    return _markup(f"{value} <small>{interval.rstrip(')')}</small>" if interval else value)


def signed(value: float | None, digits: int = 2) -> str:
    """A number with its sign; a dash where there is none."""
    return "–" if value is None else f"{value:+.{digits}f}"


def figure(value: float | None) -> str:
    """A figure of a training, with four digits that matter."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def coded(text: str) -> Any:
    """A sentence with what stands between backquotes set as code, everything escaped."""
    import markupsafe

    parts = [markupsafe.escape(part) for part in text.split("`")]
    if len(parts) % 2 == 0:  # a backquote without its partner is a text's own
        return markupsafe.escape(text)
    return _markup("").join(part if at % 2 == 0 else _markup(f"<code>{part}</code>") for at, part in enumerate(parts))


def short(text: str, most: int = 12) -> str:
    """The beginning of a hash."""
    return text if len(text) <= most else f"{text[:most]}…"
