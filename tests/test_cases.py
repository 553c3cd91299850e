"""Situations that once went wrong outside of this project's own small world: each has a test, and so have relatives.

A test says with a mark which one it stands for: `case` for those in the list below, `sibling` for one that was looked
for because it resembled a case, `finding` for a quantity beside an independent value.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from tests.support import ROOT

CASES = [
    "01-preference-column",
    "02-instruction-with-input",
    "03-messages-with-false-label",
    "04-messages-as-python-text",
    "05-reply-is-a-tool-call",
    "06-overall-score-of-ten",
    "07-ranks-instead-of-ratings",
    "08-end-token-in-a-reply",
    "09-system-with-the-last-turn",
    "10-template-drops-thinking",
    "11-template-without-system",
    "12-tokenizer-that-ends-texts",
    "13-system-role-refused",
    "14-several-chat-templates",
    "15-earlier-turns-not-learned",
    "16-adapter-on-a-tied-head",
    "17-adapter-with-other-names",
    "18-adapter-with-more-tokens",
    "19-certain-at-temperature-zero",
    "20-one-log-probability",
    "21-thinking-in-a-revision",
    "22-cut-off-answer-wins",
    "23-models-as-a-list",
    "24-key-that-may-not-list-models",
    "25-max-completion-tokens",
    "26-seed-refused",
    "27-rate-limit-inside-a-200",
    "28-first-token-is-never-a-label",
    "29-socks-proxy",
    "30-reward-model-of-raw-text",
    "31-thinking-cannot-be-switched-off",
    "sec-01-model-without-weights",
    "sec-02-key-in-a-reply",
    "sec-03-one-prompt-stops-the-run",
    "sec-04-copied-run-folder",
    "sec-05-draft-symlink",
    "sec-07-endless-reply",
    "sec-08-stuck-ranking",
    "sec-09-newlines-in-a-dialogue",
    "sec-10-escape-sequences",
    "sec-11-secrets-in-a-url",
    "sec-13-small-file-large-memory",
    "sec-15-deep-json-reply",
    "sec-16-flipped-digit",
    "sec-17-rollout-weights-folder",
    "sec-19-special-tokens-of-other-families",
    "sec-23-bad-utf8-in-parquet",
    "sec-26-slow-on-everything",
    "sec-27-odd-tokenize-reply",
    "sec-28-custom-code-of-a-model",
    "sec-30-table-changed-under-a-run",
    "sec-31-ctrl-c-while-a-model-loads",
    "sec-33-odd-manifest",
    "sec-34-markdown-that-takes-long",
]
FINDINGS = range(1, 16)


class Mark(NamedTuple):
    """One mark of a test."""

    kind: str
    value: object


def marks() -> Iterator[Mark]:
    """Every `pytest.mark.case(...)` and the like in the tests, with its first argument."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                kind, value = node.func.attr, node.args[0]
                if kind in ("case", "sibling", "finding") and ast.unparse(node.func).startswith("pytest.mark."):
                    assert isinstance(value, ast.Constant), f"{path}:{node.lineno}: a mark needs a plain value"
                    yield Mark(kind, value.value)


FOUND = Counter(marks())


def values(kind: str) -> set[object]:
    return {mark.value for mark in FOUND if mark.kind == kind}


def test_every_case_has_a_test() -> None:
    assert values("case") == set(CASES)


def test_relatives_were_looked_for() -> None:
    assert len(values("sibling")) >= 40


def test_every_quantity_was_compared_with_an_independent_value() -> None:
    assert values("finding") == set(FINDINGS)
