"""No pattern may take long over what others wrote: each one gets 100,000 characters of every kind and a few seconds.

Where a pattern is quadratic, such a text takes minutes or hours, so that the limit is far from any machine's speed.
"""

from __future__ import annotations

import ast
import importlib
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import pytest

from tests.test_architecture import MODULES, TORCH, dotted

SIZE = 100_000
SENTENCE = 20_000
"""Where a pattern is given single sentences only, of 600 characters at most."""
LIMIT = 8.0
"""Seconds for one text of that size; a linear pattern needs some milliseconds."""

OWN = {"rlaif.report.render"}
"""What reads nothing but figures that this program drew."""
ANYWHERE = {"search", "finditer", "findall", "sub", "subn", "split"}
AT_START = {"match", "fullmatch"}


class Use(NamedTuple):
    """A pattern, and how it is used."""

    where: str
    pattern: re.Pattern[str]
    methods: frozenset[str]


def of_value(value: object) -> list[re.Pattern[str]]:
    if isinstance(value, re.Pattern):
        return [value] if isinstance(value.pattern, str) else []
    if isinstance(value, tuple | list):
        return [pattern for each in value for pattern in of_value(each)]
    return []


def inline(path: Path) -> Iterator[tuple[int, re.Pattern[str], str]]:
    """Calls such as `re.sub(r"...", ...)` with a pattern that stands there."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        of, first = node.func, node.args[0]
        if not (isinstance(of.value, ast.Name) and of.value.id == "re" and of.attr in ANYWHERE | AT_START):
            continue
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            flags = next((ast.unparse(each.value) for each in node.keywords if each.arg == "flags"), "0")
            yield node.lineno, re.compile(first.value, eval(flags, {"re": re})), of.attr


def used_methods(path: Path, name: str) -> frozenset[str]:
    """The methods that a module calls on a pattern by its name; all where it hands it on."""
    found = frozenset(re.findall(rf"\b{name}\.({'|'.join(ANYWHERE | AT_START)})\b", path.read_text()))
    return found or frozenset(("finditer",))


@cache
def patterns() -> tuple[Use, ...]:
    found: dict[tuple[str, int, frozenset[str]], Use] = {}
    for path in MODULES:
        name = dotted(path)
        uses = (
            []
            if name in OWN
            else [Use(f"{name}:{line}", pattern, frozenset((method,))) for line, pattern, method in inline(path)]
        )
        if name in OWN:
            continue
        if "import re" in path.read_text() and path not in TORCH and not name.endswith("__main__"):
            for attribute, value in vars(importlib.import_module(name)).items():
                methods = used_methods(path, attribute)
                uses += [Use(f"{name}.{attribute}", pattern, methods) for pattern in of_value(value)]
        for use in uses:
            found.setdefault((use.pattern.pattern, use.pattern.flags, use.methods), use)
    return tuple(found.values())


ALPHABETS = (
    *" \n\t\"'`*_-=#<>()[]{}|:.,;!?/\\~$aA0B@é日",
    " \n", "\n ", "a ", "a.", "A ", "a b ", "- ", "* ", "> ", "**", "** ", "__", "a*", "*a", "a_", "_a", "[a",
    "[](", "](", "![", "<a", "<a>", "< ", "<!--", "--", "---\n", "```\n", "`a`", "a\n", "a\n\n", "\n\n", "a: ", "a:\n",
    "A, ", "0 ", "1. ", "0.", "a-", "a'", "'s ", '"a" ', '", "', "\\n", "(A) ", "A > ", "[[", "[[A", "]]", "<|", "|>",
    "http://", "user@", "a/", "a.b.", "a,b,", "A\n", "**A** ", "\u200b", "\x1b[", "\r\n", "un", "not ", "is ", "n't ",
    "{a", "{ ", "$ ",
)  # fmt: skip
"""What is repeated to the size."""


def texts(pattern: str) -> Iterator[str]:
    """Texts of every kind, and such as are nearly what the pattern looks for."""
    for each in ALPHABETS:
        yield each * (SIZE // len(each))
    words = list(dict.fromkeys(re.findall(r"(?<!\\)[A-Za-z]{3,}", pattern)))[:4]
    for word in words:
        yield f"{word} " * (SIZE // (len(word) + 1))
    for begun in (*words, "a", "# a", "- a", "1. a", "**a", "> ", "(", "Human:", "5", "<<<ab\n"):
        for filling in (" ", "\n", "*"):
            yield begun + filling * SIZE + "\x00"


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def slow_on(use: Use) -> str | None:
    """The first text over which a pattern takes too long."""
    for text in texts(use.pattern.pattern):
        text = text[:SENTENCE] if use.where.startswith("rlaif.feedback.verdict_reader") else text
        start = time.perf_counter()
        try:
            with at_most(LIMIT):
                if use.methods & ANYWHERE:
                    for _ in use.pattern.finditer(text):
                        pass
                for method in use.methods & AT_START:
                    getattr(use.pattern, method)(text)
        except TimeoutError:
            return f"{text[:40]!r}, {time.perf_counter() - start:.1f} s"
    return None


@pytest.mark.case("sec-08-stuck-ranking")
@pytest.mark.case("sec-34-markdown-that-takes-long")
@pytest.mark.case("sec-09-newlines-in-a-dialogue")
@pytest.mark.parametrize("use", patterns(), ids=lambda use: use.where)
def test_no_pattern_takes_long(use: Use) -> None:
    assert slow_on(use) is None


def test_a_quadratic_pattern_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "LIMIT", 0.5)
    assert slow_on(Use("here", re.compile(r"\W*best"), frozenset(("sub",)))) is not None
    assert slow_on(Use("here", re.compile(r"\s+\Z"), frozenset(("search",)))) is not None
    assert len(patterns()) > 100
