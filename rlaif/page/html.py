"""The page as HTML: one file without a request, in which no text of a model can become markup or a script.

Texts go through jinja2's escaping; what the browser lists goes as JSON whose `<`, `>` and `&` are written as escapes,
so that nothing in it can end its element, and is shown by `textContent` only. The content security policy allows the
one script and the one style sheet of the page by their hashes, and nothing else: no image, no request, no inline style.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from rlaif.evaluation.report import Estimate
from rlaif.page.drawings import Drawings, draw
from rlaif.page.figures import Page
from rlaif.yamlcore import dump_yaml

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
