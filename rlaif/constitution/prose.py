"""Principles out of Markdown or plain text: one a bullet point, or one a paragraph where there are no bullets."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

_HEADING = re.compile(r" {0,3}(#{1,6})\s+(.*)\Z")
_BULLET = re.compile(r"(\s*)(?:[-*+•–]|\d{1,3}[.)])\s+(\S.*)\Z")
_RULE = re.compile(r"\s*(?:[-*_=]\s*){3,}\Z")
_BOLD_NAME = re.compile(r"(\*\*|__)(?P<name>.+?)\1(?P<mark>\s*[:.—–-]+)?\s*(?P<rest>.*)\Z", re.DOTALL)
_NAME = re.compile(r"(?P<name>[^\W\d_][\w'’/&-]*(?: [\w'’/&-]+){0,3}):\s+(?P<rest>\S.*)\Z", re.DOTALL)
_ASIDE = re.compile(
    r"\A---[ \t]*\n.*?\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)"
    r"|<!--.*?(?:-->|\Z)"
    r"|^ {0,3}(?P<fence>`{3,20}|~{3,20})[^\n]*\n.*?(?:^ {0,3}(?P=fence)[`~]*[ \t]*$|\Z)",
    re.DOTALL | re.MULTILINE,
)
"""What is no prose: front matter, comments, code blocks."""
_QUOTE = re.compile(r"^ {0,3}(?:> ?)+", re.MULTILINE)
_CHECKBOX = re.compile(r"^([ \t]*[-*+][ \t]+)\[[ xX]\][ \t]+", re.MULTILINE)
_UNDERLINED = re.compile(
    r"(?:\A|(?<=\n\n))(?![-*+#|]|\d+[.)])(?P<words>[^\n]+[^\n.!?])\n {0,3}(?P<rule>=+|-{2,})[ \t]*$", re.MULTILINE
)
_LINK = re.compile(r"!?\[([^\[\]]*)\]\((?:[^()]|\([^()]*\))*\)")
_EMPHASIS = re.compile(r"(\*\*|__|(?<![\w*])\*(?=\S)|(?<![\w_])_(?=\S))(.{1,400}?)(?<=\S)\1(?![\w*])")


@dataclass(frozen=True)
class Statement:
    """One principle as the text has it."""

    name: str
    """The bold phrase or the `Name:` that it begins with, or empty."""
    text: str
    """All of it, but for a name that is a mere label (`Honesty:`, not `Never lie:`)."""
    headings: tuple[str, ...]
    """The headings above it, outermost first, without the title of the whole."""


@dataclass
class _Block:
    """A bullet point or a paragraph while it is read."""

    headings: tuple[str, ...]
    indent: int | None
    """Columns in front of the bullet; None for a paragraph."""
    lines: list[str] = field(default_factory=list)

    @property
    def joined(self) -> str:
        return " ".join(" ".join(self.lines).split())


def statements(text: str) -> tuple[list[Statement], int]:
    """The principles in the text, in order, and the number of paragraphs that were left out beside bullet points.

    Lines that go on are joined. A bullet below another belongs to it, unless the upper one only introduces (it ends in
    a colon or is only a bold phrase): then it becomes a heading.
    """
    text = _unmarked(text)
    blocks = _blocks(text)
    bullets = [block for block in blocks if block.indent is not None]
    chosen = _unnested(bullets) if bullets else blocks
    left_out = len(blocks) - len(bullets) if bullets else 0
    title = _title(text)
    return [_statement(block, title) for block in chosen if block.joined], left_out


def _unmarked(text: str) -> str:
    """The text without what is no prose, marks of quotations and boxes to tick; underlined headings with `#`."""
    text = _CHECKBOX.sub(r"\1", _QUOTE.sub("", _ASIDE.sub("", text)))
    return _UNDERLINED.sub(lambda found: f"{'#' if '=' in found['rule'] else '##'} {found['words']}", text.lstrip("\n"))


def _blocks(text: str) -> list[_Block]:
    blocks: list[_Block] = []
    headings: list[tuple[int, str]] = []
    open_block: _Block | None = None
    for line in text.expandtabs(4).splitlines():
        heading, bullet = _heading(line), _BULLET.match(line)
        path = tuple(_plain(words) for _, words in headings)
        if heading:
            headings = [*((level, words) for level, words in headings if level < heading[0]), heading]
            open_block = None
        elif _RULE.match(line):
            open_block = None
        elif bullet:
            open_block = _Block(path, len(bullet[1]), [bullet[2]])
            blocks.append(open_block)
        elif not line.strip():
            open_block = _after_blank(open_block)
        elif open_block is not None and (open_block.indent is None or open_block.lines[-1] or line.startswith("  ")):
            open_block.lines.append(line.strip())
        else:
            open_block = _Block(path, None, [line.strip()])
            blocks.append(open_block)
    return blocks


def _heading(line: str) -> tuple[int, str] | None:
    """The level and the words of a heading, without the `#` that may close it."""
    found = _HEADING.match(line)
    return (len(found[1]), found[2].rstrip().rstrip("#").rstrip()) if found else None


def _after_blank(block: _Block | None) -> _Block | None:
    """A paragraph ends at a blank line; a bullet goes on with lines that are indented."""
    if block is None or block.indent is None:
        return None
    block.lines.append("")
    return block


def _unnested(bullets: list[_Block]) -> list[_Block]:
    """Deeper bullets joined to the one above, or set below it where that one only introduces them."""
    found: list[_Block] = []
    parents: list[_Parent] = []
    for at, block in enumerate(bullets):
        indent = block.indent or 0
        parents = [one for one in parents if one.indent < indent - 1 and one.headings == block.headings]
        if parents and not parents[-1].introduces:
            parents[-1].block.lines.append(block.joined)
            continue
        above = tuple(_plain(one.block.joined).rstrip(":") for one in parents)
        nested = at + 1 < len(bullets) and (bullets[at + 1].indent or 0) > indent + 1
        own = _Block((*block.headings, *above), indent, block.lines)
        parents.append(_Parent(indent, block.headings, own, nested and _introduces(block.joined)))
        if not parents[-1].introduces:
            found.append(own)
    return found


class _Parent(NamedTuple):
    """A bullet that deeper ones may belong to."""

    indent: int
    headings: tuple[str, ...]
    block: _Block
    introduces: bool
    """It is no principle but the heading of those below it."""


def _introduces(text: str) -> bool:
    bold = _BOLD_NAME.fullmatch(text)
    return text.endswith(":") or bool(bold and not bold["rest"])


def _title(text: str) -> str | None:
    """The one heading of the first level with others below it: the title of the whole, no tag."""
    levels = [found for line in text.splitlines() if (found := _heading(line))]
    top = [words for level, words in levels if level == 1]
    return _plain(top[0]) if len(top) == 1 and len(levels) > 1 and levels[0][0] == 1 else None


def _statement(block: _Block, title: str | None) -> Statement:
    text = block.joined
    headings = tuple(words for words in block.headings if words != title)
    bold = _BOLD_NAME.match(text)
    found = bold or _NAME.match(_plain(text))
    if not found:
        return Statement("", _plain(text), headings)
    name, rest = _plain(found["name"]).rstrip(":.!—- "), _plain(found["rest"])
    apart = not bold or bool(bold["mark"]) or bold["name"].rstrip().endswith((":", ".", "!", "—", "-"))
    label = apart and bool(rest) and name.split() == [word.capitalize() for word in name.lower().split()]
    return Statement(name, rest if label else _plain(text), headings)


def _plain(text: str) -> str:
    """Without Markdown's links and emphasis."""
    text = _LINK.sub(r"\1", text)
    for _ in range(3):  # bold within italics and the like
        text = _EMPHASIS.sub(r"\2", text)
    return text.strip()
