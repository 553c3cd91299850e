"""Constitutions out of other projects' files, and out of Markdown.

Principles out of Markdown or plain text: one a bullet point, or one a paragraph where there are no bullets.

Constitutions out of other projects' files: lists of choices, of requests to critique and revise, or plain prose.

What a file holds is recognised by its content. Texts are taken as they stand, without the markers around them; a
`compare` that the source does not have is derived by one of two fixed sentences, and the result says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, get_args

from pydantic import ValidationError

from rlaif.config import yaml
from rlaif.config.yaml import Where
from rlaif.constitution.lint import content_words
from rlaif.constitution.model import Constitution, Principle
from rlaif.errors import UserError
from rlaif.text import loads

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


Shape = Literal["choices", "requests", "critic-revision", "text"]
"""JSON: a list of texts, a mapping of ids to requests, or a list of critic and revision; or Markdown and plain text."""
SHAPES: tuple[Shape, ...] = get_args(Shape)

_MAX_BYTES = 5_000_000
_FROM_CRITIQUE = "Which reply gives less ground for this reviewer's request?"
_FROM_STATEMENT = "Which reply keeps better to this principle?"
_ASKS_FOR_A_CHOICE = re.compile(
    r"(?:^|[.!?:]\s+|,\s+|\band\s+)(?:please\s+)?(?:choose|select|pick|prefer)\b[^.!?]{0,300}\b(?:reply|response|answer|option|one)\b"
    r"|\bwhich\b[^.?!]{0,300}\b(?:reply|replies|responses?|answers?|options?|one|of the two)\b[^.!]{0,300}\?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Imported:
    """A constitution read from another format, and what was done to it on the way."""

    constitution: Constitution
    shape: Shape
    notes: tuple[str, ...]
    """What was derived or left out, in sentences for people."""


@dataclass(frozen=True)
class _Part:
    """What the source says of one principle."""

    id: str
    """As the source has it, or empty."""
    choice: str | None = None
    """A text that decides between two replies, or states what is wanted of one."""
    critique: str | None = None
    revise: str | None = None
    tags: tuple[str, ...] = ()


def import_constitution(path: str | Path, *, name: str | None = None, shape: Shape | None = None) -> Imported:
    """Read a file of another format. Raises UserError, with a line where there is one, where it is none of them."""
    text = _read(Path(path))
    found = shape or _shape(text, path)
    parts, notes = _statements(text, path) if found == "text" else (_parts(found, text, path), [])
    if not parts:
        raise UserError("no principles found", where=path, hint="write one a line, each after `- `")
    derived: list[str] = []
    principles = [_principle(part, id, derived) for part, id in zip(parts, _ids(parts), strict=True)]
    try:
        constitution = Constitution(
            name=(name or "").strip() or Path(path).stem,
            description=f"Imported from {Path(path).name}.",
            principles=tuple(principles),
        )
    except ValidationError:  # a name that is not Unicode
        raise UserError("has a name that no text can hold", where=repr(str(path)), hint="rename it") from None
    return Imported(constitution, found, (*notes, *_derivations(derived, len(parts))))


def _read(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=path) from None
    if len(raw) > _MAX_BYTES:
        raise UserError(f"is too large for a constitution ({len(raw) / 1e6:.0f} MB)", where=path)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError("is not UTF-8", where=path, line=line, hint="save it as UTF-8") from None
    if "\0" in text:
        raise UserError("is not a text file", where=path)
    return text.replace("\r\n", "\n")


def _shape(text: str, path: str | Path) -> Shape:
    """What the content looks like. Raises UserError where it is JSON of another kind."""
    if not re.match(r"\s*(?:\{|\[\s*[\[\]{\"0-9-])", text):
        return "text"
    data = _json(text, path)
    items = data.get("constitutions", data) if isinstance(data, dict) else data
    if isinstance(items, list) and items:
        if isinstance(items[0], str):
            return "choices"
        if isinstance(items[0], dict) and {"critic", "revision"} & items[0].keys():
            return "critic-revision"
    if isinstance(items, dict) and any(isinstance(one, dict) and "prompt" in one for one in items.values()):
        return "requests"
    forms = "a list of texts, a list of `critic` and `revision`, or ids with `prompt` and `edit_request`"
    raise UserError("is JSON, but no list of principles that is known here", where=path, hint=f"known: {forms}")


def _json(text: str, path: str | Path) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        data = dict(pairs)
        if len(data) < len(pairs):
            twice = next(key for at, (key, _) in enumerate(pairs) if key in [known for known, _ in pairs[:at]])
            raise UserError(f"the key `{twice}` is given twice", where=path)
        return data

    try:
        data = loads(text, object_pairs_hook=unique)
        json.dumps(data, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON: {error.msg} (column {error.colno})", where=path, line=error.lineno) from None
    except UnicodeEncodeError:
        raise UserError("half of a surrogate pair stands alone (\\ud800 to \\udfff)", where=path) from None
    except ValueError as error:  # too deep, or a number of thousands of digits
        raise UserError(f"not usable JSON: {error}", where=path) from None
    return data


def _parts(shape: Shape, text: str, path: str | Path) -> list[_Part]:
    reader = _Reader(text, path)
    data = _json(text, path)
    if shape == "choices":
        listed = reader.list(data, ())
        return [_Part("", choice=reader.text(item, (at,))) for at, item in enumerate(listed)]
    if shape == "requests":
        mapping = reader.dict(data, ())
        return [part for key, item in mapping.items() for part in _requests(reader, key, item)]
    where: Where = ("constitutions",) if isinstance(data, dict) else ()
    listed = reader.list(reader.key(data, (), "constitutions") if where else data, where)
    return [_critic_and_revision(reader, item, (*where, at)) for at, item in enumerate(listed)]


def _requests(reader: _Reader, key: str, item: object) -> list[_Part]:
    """One principle, or several (key-1, key-2) where there are several requests to critique."""
    path: Where = (key,)
    asked = reader.key(item, path, "prompt")
    revise = reader.text(reader.key(item, path, "edit_request"), (*path, "edit_request"))
    if isinstance(asked, str):
        asked = [asked]
    texts = [reader.text(one, (*path, "prompt", at)) for at, one in enumerate(reader.list(asked, (*path, "prompt")))]
    ids = [key] if len(texts) == 1 else [f"{key}-{at}" for at in range(1, len(texts) + 1)]
    return [_Part(id, critique=text, revise=revise) for id, text in zip(ids, texts, strict=True)]


def _critic_and_revision(reader: _Reader, item: object, path: Where) -> _Part:
    critique = reader.text(reader.key(item, path, "critic"), (*path, "critic"))
    return _Part("", critique=critique, revise=reader.text(reader.key(item, path, "revision"), (*path, "revision")))


@dataclass(frozen=True)
class _Reader:
    """Takes JSON apart; what is not as it should be is told with its line."""

    text_read: str
    where: str | Path

    def list(self, value: object, path: Where) -> list[Any]:
        return value if isinstance(value, list) else self._wrong("must be a list", path)

    def dict(self, value: object, path: Where) -> dict[str, Any]:
        return value if isinstance(value, dict) else self._wrong("must be a mapping", path)

    def key(self, value: object, path: Where, key: str) -> object:
        mapping = self.dict(value, path)
        return mapping[key] if key in mapping else self._wrong(f"has no `{key}`", path)

    def text(self, value: object, path: Where) -> str:
        """The text without the markers that put it into its old prompt."""
        if not isinstance(value, str):
            self._wrong("must be a text", path)
        bare = _unwrapped(value)
        return bare if bare else self._wrong("is empty", path)

    def _wrong(self, what: str, path: Where) -> NoReturn:
        try:  # nearly all JSON is YAML too, and that reader knows the lines
            line = yaml.parse_yaml(self.text_read, str(self.where)).place(path).line
        except UserError:
            line = None
        name = "".join(f"[{step + 1}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
        raise UserError(f"`{name}` {what}" if name else f"the whole {what}", where=self.where, line=line)


_BEFORE = re.compile(r"\A\s*(?:Critique|Revision) ?Request:", re.IGNORECASE)
_AFTER = re.compile(r"\s(?:Critique|Revision|Options):\s*\Z", re.IGNORECASE)


def _unwrapped(text: str) -> str:
    return _AFTER.sub("", _BEFORE.sub("", text)).strip()


def _statements(text: str, path: str | Path) -> tuple[list[_Part], list[str]]:
    if re.search(r"^principles:", text, re.MULTILINE) and re.search(r"^\s*- +id:", text, re.MULTILINE):
        raise UserError("is a constitution already", where=path, hint="use it as it is: `rlaif constitution check` it")
    found, left_out = statements(text)
    notes = [f"Left out: {left_out} paragraph(s) outside of the bullet points."] if left_out else []
    return [_of_statement(one) for one in found], notes


def _of_statement(one: Statement) -> _Part:
    return _Part(one.name, choice=one.text, tags=tuple(dict.fromkeys(filter(None, map(slug, one.headings)))))


def slug(text: str) -> str:
    """Lower-case ASCII letters, digits and hyphens with a letter first, or nothing."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-").lstrip("-0123456789")[:48].rstrip("-")


def _ids(parts: Iterable[_Part]) -> list[str]:
    """An id for each, unique: the source's own, or the first telling words of its text."""
    ids: list[str] = []
    for part in parts:
        base = slug(part.id) or _telling(part.choice or part.critique or "") or "principle"
        number, id = 2, base
        while id in ids:
            number, id = number + 1, f"{base}-{number}"
        ids.append(id)
    return ids


_IDLE = frozenset(
    ("not", "all", "any", "these", "compare", "consider", "possible", "less", "identify", "specific", "ways")
)
"""Words that begin many texts and tell none from another."""


def _telling(text: str) -> str:
    words = [word for word in re.findall(r"[a-z]+", text.lower()) if len(word) > 2 and word not in _IDLE]
    return slug("-".join([word for word in words if content_words(word)][:4]))


def _principle(part: _Part, id: str, derived: list[str]) -> Principle:
    compare = part.choice
    if compare is None:
        derived.append("critique")
        compare = f"{_FROM_CRITIQUE} {part.critique}"
    elif not _ASKS_FOR_A_CHOICE.search(compare):
        derived.append("statement")
        compare = f"{_FROM_STATEMENT} {compare}"
    return Principle(id=id, compare=compare, critique=part.critique, revise=part.revise, tags=part.tags)


def _derivations(derived: list[str], whole: int) -> list[str]:
    made = {"critique": (_FROM_CRITIQUE, "request to critique"), "statement": (_FROM_STATEMENT, "statement")}
    return [
        f"Derived: {derived.count(kind)} of {whole} `compare` texts are “{frame}” and the {what}; write better ones."
        for kind, (frame, what) in made.items()
        if kind in derived
    ]
