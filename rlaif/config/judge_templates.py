"""How a judge is asked: templates with declared slots, and the form of a question (fence, begun answer).

Judge templates: text files with declared slots, filled in one pass with fenced, defused material.

The texts that a judge reads are hostile: a response may imitate the template, close its own fence, hold chat special
tokens or tell the judge what to answer. Three things stand against that:

- **One pass.** Slots are replaced together, so `{first}` inside a response stays text.
- **Fences with a nonce.** Material stands between `<<<nonce` and `nonce>>>`, or, for a model that echoes those, between
  `<text_nonce>` and `</text_nonce>`. The nonce is a hash *of the material*: a text cannot contain its own hash by
  chance, and equal material keeps equal tokens, so that the questions about one conversation share their prefix in the
  server's cache. (A random nonce per question would forbid that sharing.)
- **Defusing.** Fence marks and chat special tokens inside material are broken up, and over-long material is cut in the
  middle, before it is fenced.

How a judge is asked: in whose words (judge templates), and in which form (fence, begun answer).

The shipped templates are English, one user turn, and fit most models. Templates of one's own (`judge.templates: DIR`)
take their place file by file: another language, a system message, other wording. They declare the slots of the shipped
ones, and are checked when they are read.

Some models answer a comparison with something else than a label, such as an echo of the fence. Two changes of form
help: the answer is begun for them, so that the label is the next token, or the material stands between tags.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

from rlaif.errors import UserError, nearest
from rlaif.records import Message, Messages, Record
from rlaif.store import resource

Fence = Literal["marks", "tags"]
"""What stands around material: `<<<nonce` and `nonce>>>`, or `<text_nonce>` and `</text_nonce>`."""

_SLOT = re.compile(r"\{(\w+)\}")
_FENCE = re.compile(r"<<<|>>>")
_OUR_TAG = re.compile(r"<(?=\s*/?\s*text_)", re.IGNORECASE)
_TAGS = (
    r"s|bos|eos|role|sep|cls|pad|unk|eot|sop|eop|mask|SYS|think|thinking|tools|tool_calls?|tool_responses?"
    r"|(?:start|end)_of_\w+"
)
_BRACKETS = (
    r"INST|SYSTEM_PROMPT|THINK|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|ARGS|CALL_ID|gMASK|MASK|CLS|SEP"
    r"|PAD|UNK|BOS|EOS|EOT|SOT|start_header_id|end_header_id|IMG\w*|PREFIX|MIDDLE|SUFFIX"
)
_NUMBERED = r"(?:[a-z_]{1,40}_|unused|special|token)\d{1,6}"
# Special tokens of the common chat formats: ChatML and Llama 3 `<|...|>`, DeepSeek's full-width bars, Llama 2's [INST]
# and <<SYS>>, Mistral's and GLM's other brackets, Gemma's turns, sentence marks, the tags of thinking and of tools;
# numbered ones (`<extra_id_1>`, `<reserved_106>`), `<seed:...>`, EXAONE's `[|...|]`, MiniMax's `]~b[`. A list is never
# whole: where the tokenizer is at hand, its own special tokens are broken up as well (`without_special_tokens`).
_SPECIAL = re.compile(
    rf"<(?=[|｜])|(?<=[|｜])>|<(?=/?(?:{_TAGS}|{_NUMBERED}|\w{{1,20}}:\w{{1,20}})>)|\[(?=/?(?:{_BRACKETS})\])"
    r"|\[(?=\|)|(?<=\|)\]|\](?=~)|\[(?=[a-z]~)",
    re.IGNORECASE,
)

_MARKS = re.compile(r"<<<|>>>|<[^\s<>]{1,40}>|\[/?\w{2,20}\]")


def defuse(text: str) -> str:
    """`text` without anything that a chat template or our fences would take for structure."""
    text = _FENCE.sub(lambda mark: "‹‹‹" if mark[0] == "<<<" else "›››", text)
    return _SPECIAL.sub(lambda mark: f" {mark[0]}" if mark[0] in ">" else f"{mark[0]} ", text)


def without_special_tokens(text: str, tokens: Collection[str]) -> str:
    """`text` with a blank in each of these special tokens, the longest first, so that none of them is left whole."""
    for token in sorted(tokens, key=len, reverse=True):
        while len(token) > 1 and token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def restored(text: str, original: str) -> str:
    """`text` with the marks of `original` that `defuse` changes put back: whoever rewrote it saw the changed ones."""
    for mark in set(_MARKS.findall(original)):
        changed = defuse(mark)
        if changed != mark:
            text = text.replace(changed, mark)
    return text


def shortened(text: str, *, max_chars: int = 12_000) -> str:
    """`text`, cut in the middle to `max_chars` characters where it is longer."""
    if len(text) <= max_chars:
        return text
    half = max_chars // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"


@lru_cache(maxsize=256)  # the questions of a prompt fence the same few texts again and again
def fence(text: str, *, max_chars: int = 12_000, kind: Fence = "marks") -> str:
    """`text` defused, cut in the middle to `max_chars` characters, between fences that carry its own hash."""
    text = defuse(shortened(text, max_chars=max_chars))
    if kind == "tags":
        text = _OUR_TAG.sub("< ", text)
    nonce = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    if kind == "tags":
        return f"<text_{nonce}>\n{text}\n</text_{nonce}>"
    return f"<<<{nonce}\n{text}\n{nonce}>>>"


def conversation(messages: Iterable[Message]) -> str:
    """A conversation as the judge reads it: one `Role: text` paragraph a turn."""
    names = {"system": "System", "user": "Human", "assistant": "Assistant"}
    return "\n\n".join(f"{names[message.role]}: {message.content}" for message in messages)


@dataclass(frozen=True)
class Template:
    """A text with named slots, every one declared on the file's first line (`slots: a b c`) and used below it.

    Under that line may stand `prefill: TEXT`, how the answer begins, and a system message: the lines between `[system]`
    and `[user]`. The words `<<<` and `>>>` in it are written as the fence of the question.
    """

    name: str
    slots: frozenset[str]
    parts: tuple[str, ...]
    """Literal text and slot names in turn, literal first and last: of the user's turn."""
    system: tuple[str, ...] = ()
    """The same of the system message; empty where there is none."""
    prefill: str = ""
    """How the answer begins, where the template says it."""

    def fill(self, **values: str) -> str:
        """The user's turn with every slot replaced, in one pass. Raises KeyError on a missing or an unknown slot."""
        if values.keys() != self.slots:
            raise KeyError(f"template {self.name} takes {sorted(self.slots)}, got {sorted(values)}")
        return _filled(self.parts, values, "marks")

    def ask(self, fence: Fence = "marks", /, **values: str) -> Messages:
        """The filled template as one user turn (some chat templates know no system role), after the system message
        where the template has one. `fence` is the one that the values' material stands in."""
        if values.keys() != self.slots:
            raise KeyError(f"template {self.name} takes {sorted(self.slots)}, got {sorted(values)}")
        turn = Message(role="user", content=_filled(self.parts, values, fence))
        if not self.system:
            return (turn,)
        return (Message(role="system", content=_filled(self.system, values, fence)), turn)


def _filled(parts: tuple[str, ...], values: Mapping[str, str], fence: Fence) -> str:
    return "".join([values[part] if at % 2 else _naming(part, fence) for at, part in enumerate(parts)])


def _naming(literal: str, fence: Fence) -> str:
    """A template's own words, in which `<<<` and `>>>` mean the fence."""
    return literal if fence == "marks" else literal.replace("<<<", "<text_...>").replace(">>>", "</text_...>")


def parse_template(text: str, *, name: str, where: str | Path) -> Template:
    """Read a template. Raises UserError where its slots are not the declared ones."""
    lines = text.split("\n")
    if not lines[0].startswith("slots:"):
        raise UserError(
            "the first line must declare the slots", where=where, line=1, hint="write `slots: first second ...`"
        )
    declared = lines[0].removeprefix("slots:").split()
    begun = len(lines) > 1 and lines[1].startswith("prefill:")
    system, user = _sections(lines, 2 if begun else 1, where)
    found = {part: _parts(lines, part, declared, where) for part in (system, user) if part}
    used = {slot for parts in found.values() for slot in parts[1::2]}
    for slot in declared:
        if slot not in used:
            raise UserError(
                f"slot `{slot}` is declared and never used", where=where, line=1, hint="use it or remove it"
            )
    return Template(
        name=name,
        slots=frozenset(declared),
        parts=found.get(user, ("",)),
        system=found.get(system, ()),
        prefill=lines[1].removeprefix("prefill:").strip() if begun else "",
    )


def _sections(lines: list[str], start: int, where: str | Path) -> tuple[range, range]:
    """The lines of the system message (an empty range where there is none) and of the user's turn."""
    heads = [(lines[at].strip(), at) for at in range(start, len(lines)) if lines[at].strip() in ("[system]", "[user]")]
    match heads:
        case []:
            return range(0), range(start, len(lines))
        case [("[user]", at)] if at == start:
            return range(0), range(at + 1, len(lines))
        case [("[system]", at), ("[user]", middle)] if at == start:
            return range(at + 1, middle), range(middle + 1, len(lines))
    hint = "write `[system]` above the system message and `[user]` above the question, each once, and nothing before"
    raise UserError("the system message is not set apart", where=where, line=heads[0][1] + 1, hint=hint)


def _parts(lines: list[str], part: range, declared: list[str], where: str | Path) -> tuple[str, ...]:
    """Literal text and slot names in turn. Raises UserError at a slot that is not declared."""
    for at in part:
        for used in _SLOT.findall(lines[at]):
            if used not in declared:
                raise UserError(f"unknown slot {{{used}}}", where=where, line=at + 1, hint=nearest(used, declared))
    return tuple(_SLOT.split("\n".join(lines[at] for at in part).strip("\n")))


@cache
def load_template(name: str) -> Template:
    """A shipped judge template by name (`compare`, `critique`, ...): the files of `prompts/judge`."""
    path = resource("prompts") / "judge" / f"{name}.txt"
    return parse_template(path.read_text(encoding="utf-8"), name=name, where=path)


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
        return [UserError("there is no such folder", where=folder, hint="set `judge.templates` to one with templates")]
    paths = _files(where)
    if not paths:
        hint = f"put one or more of {', '.join(f'{name}.txt' for name in template_names())} there"
        return [UserError("there is no template in this folder", where=folder, hint=hint)]
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
        raise UserError(why, where=path, hint="save it again as UTF-8") from None
    return parse_template(text, name=path.stem, where=path)


def _problems(path: Path) -> Iterator[UserError]:
    names = template_names()
    if path.stem not in names:
        yield UserError("no judge template has this name", where=path, hint=nearest(path.stem, names))
        return
    try:
        template = _read(path)
    except UserError as error:
        yield error
        return
    wanted = load_template(path.stem).slots
    for slot in sorted(wanted - template.slots):
        yield UserError(f"slot `{slot}` is missing", where=path, line=1, hint=f"declare it, and write {{{slot}}} below")
    for slot in sorted(template.slots - wanted):
        yield UserError(f"`{path.stem}` has no slot `{slot}`", where=path, line=1, hint=nearest(slot, wanted))
    for slot in sorted(set(template.system[1::2]) - _BESIDE_MATERIAL):
        hint = "put it below `[user]`: what a conversation or a reply says is never a system message"
        yield UserError(f"slot `{slot}` stands in the system message", where=path, line=_line_of(path, slot), hint=hint)
    if template.prefill and path.stem not in _PREFILLED:
        hint = f"remove the line; only {', '.join(sorted(_PREFILLED))} can have it"
        yield UserError("the answer to this template is a text, and is not begun", where=path, line=2, hint=hint)
    if path.stem.startswith("compare") and not _names_both(_words(template)):
        yield UserError("does not ask for A or B", where=path, hint="end it with a line such as `Answer A or B.`")


def _names_both(words: str) -> bool:
    """Whether a template names A, and B behind it."""
    first = _FIRST.search(words)
    return first is not None and _SECOND.search(words, first.end()) is not None


def _line_of(path: Path, slot: str) -> int:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return next(at for at, line in enumerate(lines, start=1) if f"{{{slot}}}" in line)


def example_comparison(templates: Templates = SHIPPED, kind: Fence = "marks", *, swapped: bool = False) -> Messages:
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
