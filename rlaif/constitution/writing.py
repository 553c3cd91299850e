"""Constitutions into YAML that people like to edit and that loads again to the same constitution."""

from __future__ import annotations

import json
import re
import textwrap

from rlaif.constitution.model import Constitution, Example, Principle

_WIDTH = 118
_PLAIN = re.compile(r"[A-Za-z](?:[\w ,.()'’/;?!-]*[\w.)'’;?!])?", re.ASCII)
"""What may stand without quotes; deliberately narrow: no `: `, no ` #`, no brackets, nothing beyond ASCII but ’."""
_WORDS_OF_YAML = frozenset(["null", "true", "false", "yes", "no", "on", "off", "y", "n"])
"""Texts that YAML, or an older YAML, would take for something else."""
_PRINTABLE = re.compile(r"[\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]+")
"""What may stand in a block; line breaks of any kind and byte order marks may not."""


def constitution_yaml(constitution: Constitution, comment: str = "") -> str:
    """The constitution as YAML, `comment` above it; `load_constitution` reads an equal one from it."""
    lines = [f"# {line}".rstrip() for line in _comment(comment)]
    lines += [""] if lines else []
    lines += _entry("name", constitution.name, 0)
    if constitution.description is not None:
        lines += _entry("description", constitution.description, 0)
    lines += ["", "principles:"]
    for at, principle in enumerate(constitution.principles):
        lines += ([""] if at else []) + _item(_principle(principle), 2)
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    """The comment in lines; what could end a line of it or is not printable is left out."""
    lines = []
    for line in text.splitlines():
        clean = "".join(_PRINTABLE.findall(line))
        lines += textwrap.wrap(clean, _WIDTH, break_long_words=False, break_on_hyphens=False) or [""]
    return lines


def _principle(principle: Principle) -> list[str]:
    lines = _entry("id", principle.id, 0)
    if principle.weight != 1:
        lines.append(f"weight: {principle.weight:g}" if _short(principle.weight) else f"weight: {principle.weight!r}")
    if principle.tags:
        lines.append(f"tags: [{', '.join(_in_list(tag) for tag in principle.tags)}]")
    for key in ("compare", "critique", "revise"):
        text = getattr(principle, key)
        lines += [] if text is None else _entry(key, text, 4)
    if principle.examples:
        lines.append("examples:")
        for example in principle.examples:
            lines += _item(_example(example), 2)
    return lines


def _short(number: float) -> bool:
    return float(f"{number:g}") == number


def _example(example: Example) -> list[str]:
    texts = [(key, getattr(example, key)) for key in ("prompt", "better", "worse", "why")]
    return [line for key, text in texts if text is not None for line in _entry(key, text, 8)]


def _item(lines: list[str], indent: int) -> list[str]:
    """The lines of a mapping as an item of a list."""
    space = " " * indent
    return [f"{space}{'- ' if at == 0 else '  '}{line}" if line else "" for at, line in enumerate(lines)]


def _entry(key: str, text: str, indent: int) -> list[str]:
    """`key: text` in the most readable form that keeps the text; `indent` is how far in the lines will be moved."""
    width = _WIDTH - indent
    if _is_plain(text) and len(key) + 2 + len(text) <= width:
        return [f"{key}: {text}"]
    if "\n" in text and _fits_a_literal(text):
        return [f"{key}: |-", *(f"  {line}" if line else "" for line in text.split("\n"))]
    if len(key) + 4 + len(text) > width and _fits_a_fold(text):
        wrapped = textwrap.wrap(text, width - 2, break_long_words=False, break_on_hyphens=False)
        return [f"{key}: >-", *(f"  {line}" for line in wrapped)]
    return [f"{key}: {_quoted(text)}"]


def _is_plain(text: str) -> bool:
    return bool(_PLAIN.fullmatch(text)) and text.lower() not in _WORDS_OF_YAML


def _in_list(text: str) -> str:
    """As an item between brackets, where commas and question marks mean something."""
    return text if re.fullmatch(r"[A-Za-z0-9 -]+", text) and _is_plain(text) else _quoted(text)


def _fits_a_literal(text: str) -> bool:
    """Lines of printable text, none with white space at its end, which editors like to take away."""
    return all(not line or (_PRINTABLE.fullmatch(line) and line == line.rstrip()) for line in text.split("\n"))


def _fits_a_fold(text: str) -> bool:
    """One line of printable words with single spaces between them: every line break stands for one of those."""
    return bool(_PRINTABLE.fullmatch(text)) and text.split() == text.split(" ")


def _quoted(text: str) -> str:
    """In double quotes, JSON's escapes, and escapes too for all that YAML would refuse, fold or take for a break."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(part if _PRINTABLE.fullmatch(part) else f"\\u{ord(part):04x}" for part in quoted)
