"""Judge templates: text files with declared slots, filled in one pass with fenced, defused material.

The texts that a judge reads are hostile: a response may imitate the template, close its own fence, hold chat special
tokens or tell the judge what to answer. Three things stand against that:

- **One pass.** Slots are replaced together, so `{first}` inside a response stays text.
- **Fences with a nonce.** Material stands between `<<<nonce` and `nonce>>>`, or, for a model that echoes those, between
  `<text_nonce>` and `</text_nonce>`. The nonce is a hash *of the material*: a text cannot contain its own hash by
  chance, and equal material keeps equal tokens, so that the questions about one conversation share their prefix in the
  server's cache. (A random nonce per question would forbid that sharing.)
- **Defusing.** Fence marks and chat special tokens inside material are broken up, and over-long material is cut in the
  middle, before it is fenced.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

from rlaif.errors import UserError, nearest
from rlaif.records import Message, Messages
from rlaif.resources import resource

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
            "the first line must declare the slots", where=where, line=1, mend="write `slots: first second ...`"
        )
    declared = lines[0].removeprefix("slots:").split()
    begun = len(lines) > 1 and lines[1].startswith("prefill:")
    system, user = _sections(lines, 2 if begun else 1, where)
    found = {part: _parts(lines, part, declared, where) for part in (system, user) if part}
    used = {slot for parts in found.values() for slot in parts[1::2]}
    for slot in declared:
        if slot not in used:
            raise UserError(
                f"slot `{slot}` is declared and never used", where=where, line=1, mend="use it or remove it"
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
    mend = "write `[system]` above the system message and `[user]` above the question, each once, and nothing before"
    raise UserError("the system message is not set apart", where=where, line=heads[0][1] + 1, mend=mend)


def _parts(lines: list[str], part: range, declared: list[str], where: str | Path) -> tuple[str, ...]:
    """Literal text and slot names in turn. Raises UserError at a slot that is not declared."""
    for at in part:
        for used in _SLOT.findall(lines[at]):
            if used not in declared:
                raise UserError(f"unknown slot {{{used}}}", where=where, line=at + 1, mend=nearest(used, declared))
    return tuple(_SLOT.split("\n".join(lines[at] for at in part).strip("\n")))


@cache
def load_template(name: str) -> Template:
    """A shipped judge template by name (`compare`, `critique`, ...): the files of `prompts/judge`."""
    path = resource("prompts") / "judge" / f"{name}.txt"
    return parse_template(path.read_text(encoding="utf-8"), name=name, where=path)
