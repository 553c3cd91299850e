"""matplotlib's figures as inline SVG that follows the page: its colours become variables, its styles become classes.

A page that allows no inline styles (see `rlaif.page.html`) cannot have `style` attributes either, so every different
one becomes a class of one style sheet, which also makes the drawings much smaller.
"""

from __future__ import annotations

import contextlib
import html
import io
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
