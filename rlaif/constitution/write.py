"""Constitutions into YAML, and the one to start from.

Constitutions into YAML that people like to edit and that loads again to the same constitution.

The constitution to start from: two principles, and a comment on every key.
"""

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


STARTER = """\
# A constitution: the principles by which a judge model compares, critiques and rewrites replies.
# Check it with `rlaif constitution check FILE`, and use it with `constitution: FILE` in a run file.
# Texts may span lines below a `>-`; one with `: ` or ` #` in it needs that, or quotes.

name: my-constitution             # written into every pair, with a hash of ids, texts and weights
description: What I want of a good reply.   # optional; for people, no judge sees it

principles:                       # at least one; by default each pair of replies is judged by one, drawn at random
  - id: to-the-point              # lower-case letters, digits and hyphens; written into every critique and pair

    # The question that decides between two replies. It stands below both of them, and every pair is shown in both
    # orders: ask which reply is better in one respect, then say what to look at. Never name a place such as “A”.
    compare: >-
      Which reply comes to the point sooner? Greetings, repetition and praise of the question count against a reply;
      whatever the reader needs never does.

    # Optional: the request to a reviewer of one reply. Without it, the principle only compares. Where one principle
    # has `critique` and `revise`, let all have them: runs that revise draw only from those.
    critique: >-
      Point out every sentence of this reply that could go with nothing lost, and quote it.

    # Optional: the request to whoever rewrites that reply with the review at hand.
    revise: >-
      Rewrite the reply so that it keeps everything the reader needs and drops the rest.

    weight: 1                     # optional, 1 if not given: its share against the others'
    tags: [style]                 # optional: words to find and group principles by

    # Optional: cases with a known answer. No judge sees them; `rlaif constitution test` puts them to one.
    examples:
      - prompt: How many minutes does a soft-boiled egg take?
        better: Six, from boiling water.
        worse: What a great question! Eggs are a wonderful food. Many people wonder about this. It takes six minutes.
        why: Both say six minutes; the worse one hides it behind three empty sentences.   # optional

  - id: says-what-is-sure
    compare: >-
      Which reply can be relied on more? The better one claims only what it has grounds for, and says openly where it
      is guessing.
    critique: >-
      Check this reply claim by claim: what is false or made up, and where does it sound surer than it has grounds to
      be?
    revise: >-
      Rewrite the reply so that each claim is true or marked as a guess.
    weight: 2                     # counts twice as much as the principle above
    tags: [truth]
    examples:
      - prompt: Who won the cake contest in our street last summer?
        better: I can't know that. A neighbour who was there could tell you.
        worse: It was Maria Lopez, with a lemon cake.
"""
