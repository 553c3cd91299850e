"""How a judge is asked: in whose words (judge templates), and in which form (fence, begun answer).

The shipped templates are English, one user turn, and fit most models. Templates of one's own (`judge.templates: DIR`)
take their place file by file: another language, a system message, other wording. They declare the slots of the shipped
ones, and are checked when they are read.

Some models answer a comparison with something else than a label, such as an echo of the fence. Two changes of form
help: the answer is begun for them, so that the label is the next token, or the material stands between tags.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rlaif.errors import UserError, nearest
from rlaif.records import Message, Messages, Record
from rlaif.resources import resource
from rlaif.templates import Fence, Template, conversation, fence, load_template, parse_template

BEGUN = "The better reply is Reply"
"""How an answer is begun where neither the settings nor a template of one's own say it."""

_PREFILLED = frozenset({"compare", "compare_critiqued", "score"})
"""Templates whose answer is one token, so that it can be begun."""
_BESIDE_MATERIAL = frozenset({"question", "request"})
"""Slots that hold the constitution's words; all others hold what somebody wrote, and have no place in a system
message."""
_FIRST, _SECOND = re.compile(r"\bA\b"), re.compile(r"\bB\b")


ENOUGH = 0.9 - 1e-9
"""Probability of the labels together from which on no other form is tried: nine tenths, but for rounding."""

_TRIAL_PROMPT = "How do I get a red wine stain out of a wool carpet?"
TRIAL_REPLIES = (
    "Blot it at once with a clean cloth, then dab on cold water with a little dish soap, and blot again. Do not rub, "
    "and test any cleaner on a hidden corner first.",
    "Stains are a part of life. Carpets come in many colours, and wool has been used for them for centuries.",
)
_TRIAL_QUESTION = "Which reply is more helpful to the person who asked: correct, complete and to the point?"
"""Of the comparison by which forms are measured: fixed, so that the same model always comes to the same form."""


class Form(Record):
    """The form in which comparisons are put to a judge."""

    fence: Fence = "marks"
    prefill: str = ""
    """How its answer is begun; nothing where the label is its first word."""

    def __str__(self) -> str:
        parts = [f"answer begun with `{self.prefill}`"] if self.prefill else []
        parts += ["material between tags"] if self.fence == "tags" else []
        return ", ".join(parts) or "plain"


PLAIN = Form()


@dataclass(frozen=True)
class Templates:
    """Judge templates by name: one's own, and the shipped ones where there is no own one of that name."""

    own: Mapping[str, Template] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of every own one's file."""

    def __getitem__(self, name: str) -> Template:
        """The template of that name. Raises FileNotFoundError for a name that no shipped template has."""
        return self.own.get(name) or load_template(name)

    @property
    def shipped(self) -> tuple[str, ...]:
        """Names of the templates that are the shipped ones."""
        return tuple(name for name in template_names() if name not in self.own)

    @property
    def compared_by(self) -> str:
        """What tells the words of these comparisons from others; empty where they are the shipped ones."""
        return " ".join(f"{name}:{digest[:12]}" for name, digest in self.hashes.items() if name.startswith("compare"))


SHIPPED = Templates()


@dataclass(frozen=True)
class Judge:
    """A judge as its questions name it, and how they are put to it."""

    name: str
    """Its identity, part of every question's id."""
    templates: Templates = SHIPPED
    form: Form = PLAIN


def template_names() -> list[str]:
    """The names of all judge templates."""
    return sorted(path.stem for path in (resource("prompts") / "judge").glob("*.txt"))


def load_templates(folder: str | None) -> Templates:
    """The templates of a folder; the shipped ones where there is none. Raises UserError on the first mistake."""
    if folder is None:
        return SHIPPED
    problems = template_problems(folder)
    if problems:
        raise problems[0]
    paths = _files(Path(folder))
    return Templates(
        {path.stem: _read(path) for path in paths},
        {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths},
    )


def template_problems(folder: str) -> list[UserError]:
    """Every mistake in a folder of templates, each with its file and line."""
    where = Path(folder)
    if not where.is_dir():
        return [UserError("there is no such folder", where=folder, mend="set `judge.templates` to one with templates")]
    paths = _files(where)
    if not paths:
        mend = f"put one or more of {', '.join(f'{name}.txt' for name in template_names())} there"
        return [UserError("there is no template in this folder", where=folder, mend=mend)]
    return [problem for path in paths for problem in _problems(path)]


def template_notes(templates: Templates) -> Iterator[str]:
    """What is to be known about one's own templates, and is no mistake."""
    if templates.own and templates.shipped:
        yield f"the shipped judge templates are used for {', '.join(templates.shipped)}"
    for name, template in templates.own.items():
        if not ("<<<" in _words(template) and ">>>" in _words(template)):
            yield f"{name}.txt does not say that what stands between <<< and >>> is material, and never an instruction"


def _words(template: Template) -> str:
    """A template's own words."""
    return "\n".join((*template.system[::2], *template.parts[::2]))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.txt") if path.is_file())


def _read(path: Path) -> Template:
    """Raises UserError where it is not text, or no template."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else f"cannot be read: {error.strerror}"
        raise UserError(why, where=path, mend="save it again as UTF-8") from None
    return parse_template(text, name=path.stem, where=path)


def _problems(path: Path) -> Iterator[UserError]:
    names = template_names()
    if path.stem not in names:
        yield UserError("no judge template has this name", where=path, mend=nearest(path.stem, names))
        return
    try:
        template = _read(path)
    except UserError as error:
        yield error
        return
    wanted = load_template(path.stem).slots
    for slot in sorted(wanted - template.slots):
        yield UserError(f"slot `{slot}` is missing", where=path, line=1, mend=f"declare it, and write {{{slot}}} below")
    for slot in sorted(template.slots - wanted):
        yield UserError(f"`{path.stem}` has no slot `{slot}`", where=path, line=1, mend=nearest(slot, wanted))
    for slot in sorted(set(template.system[1::2]) - _BESIDE_MATERIAL):
        mend = "put it below `[user]`: what a conversation or a reply says is never a system message"
        yield UserError(f"slot `{slot}` stands in the system message", where=path, line=_line_of(path, slot), mend=mend)
    if template.prefill and path.stem not in _PREFILLED:
        mend = f"remove the line; only {', '.join(sorted(_PREFILLED))} can have it"
        yield UserError("the answer to this template is a text, and is not begun", where=path, line=2, mend=mend)
    if path.stem.startswith("compare") and not _names_both(_words(template)):
        yield UserError("does not ask for A or B", where=path, mend="end it with a line such as `Answer A or B.`")


def _names_both(words: str) -> bool:
    """Whether a template names A, and B behind it."""
    first = _FIRST.search(words)
    return first is not None and _SECOND.search(words, first.end()) is not None


def _line_of(path: Path, slot: str) -> int:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return next(at for at, line in enumerate(lines, start=1) if f"{{{slot}}}" in line)


def trial_comparison(templates: Templates = SHIPPED, kind: Fence = "marks", *, swapped: bool = False) -> Messages:
    """The fixed comparison as a run would ask it, its replies in either order."""
    first, second = TRIAL_REPLIES[::-1] if swapped else TRIAL_REPLIES
    shown = conversation((Message(role="user", content=_TRIAL_PROMPT),))
    return templates["compare"].ask(
        kind,
        conversation=fence(shown, kind=kind),
        first=fence(first, kind=kind),
        second=fence(second, kind=kind),
        question=_TRIAL_QUESTION,
    )
