"""Judge templates: text files with declared slots, filled in one pass with fenced, defused material.

The texts that a judge reads are hostile: a response may imitate the template, close its own fence, hold chat special
tokens or tell the judge what to answer. Three things stand against that:

- **One pass.** Slots are replaced together, so `{first}` inside a response stays text.
- **Fences with a nonce.** Material stands between `<<<nonce` and `nonce>>>`. The nonce is a hash *of the material*: a
  text cannot contain its own hash by chance, and equal material keeps equal tokens, so that the questions about one
  conversation share their prefix in the server's cache. (A random nonce per question would forbid that sharing.)
- **Defusing.** Fence marks and chat special tokens inside material are broken up, and over-long material is cut in the
  middle, before it is fenced.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from rlaif.errors import UserError, nearest
from rlaif.records import Message, Messages
from rlaif.resources import resource

_SLOT = re.compile(r"\{(\w+)\}")
_FENCE = re.compile(r"<<<|>>>")
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
def fence(text: str, *, max_chars: int = 12_000) -> str:
    """`text` defused, cut in the middle to `max_chars` characters, between fences that carry its own hash."""
    text = defuse(shortened(text, max_chars=max_chars))
    nonce = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    return f"<<<{nonce}\n{text}\n{nonce}>>>"


def conversation(messages: Iterable[Message]) -> str:
    """A conversation as the judge reads it: one `Role: text` paragraph a turn."""
    names = {"system": "System", "user": "Human", "assistant": "Assistant"}
    return "\n\n".join(f"{names[message.role]}: {message.content}" for message in messages)


@dataclass(frozen=True)
class Template:
    """A text with named slots, every one declared on the file's first line (`slots: a b c`) and used below it."""

    name: str
    slots: frozenset[str]
    parts: tuple[str, ...]
    """Literal text and slot names in turn, literal first and last."""

    def fill(self, **values: str) -> str:
        """The text with every slot replaced, in one pass. Raises KeyError on a missing or an unknown slot."""
        if values.keys() != self.slots:
            raise KeyError(f"template {self.name} takes {sorted(self.slots)}, got {sorted(values)}")
        return "".join([values[part] if at % 2 else part for at, part in enumerate(self.parts)])

    def ask(self, **values: str) -> Messages:
        """The filled template as one user turn: some chat templates know no system role."""
        return (Message(role="user", content=self.fill(**values)),)


def parse_template(text: str, *, name: str, where: str | Path) -> Template:
    """Read a template. Raises UserError where its slots are not the declared ones."""
    head, _, body = text.partition("\n")
    if not head.startswith("slots:"):
        raise UserError(
            "the first line must declare the slots", where=where, line=1, mend="write `slots: first second ...`"
        )
    declared = head.removeprefix("slots:").split()
    parts = tuple(_SLOT.split(body.strip("\n")))
    for used in parts[1::2]:
        if used not in declared:
            line = 2 + body[: body.index(f"{{{used}}}")].count("\n")
            raise UserError(f"unknown slot {{{used}}}", where=where, line=line, mend=nearest(used, declared))
    for slot in declared:
        if slot not in parts[1::2]:
            raise UserError(
                f"slot `{slot}` is declared and never used", where=where, line=1, mend="use it or remove it"
            )
    return Template(name=name, slots=frozenset(declared), parts=parts)


@cache
def load_template(name: str) -> Template:
    """A shipped judge template by name (`compare`, `critique`, ...): the files of `prompts/judge`."""
    path = resource("prompts") / "judge" / f"{name}.txt"
    return parse_template(path.read_text(encoding="utf-8"), name=name, where=path)
