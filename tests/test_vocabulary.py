"""The words of the field: what a user reads, and what names hold, keeps to the glossary in CONTRIBUTING.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.support import ROOT

PHRASES = {
    r"\bmend(?:s|ed|ing)?\b": "fix, hint",
    r"\btold\b": "reports, shows",
    r"\banew\b": "again",
    r"nats an answer": "nats per response",
    r"nats a token": "nats per token",
    r"price of KL": "KL coefficient",
    r"equal length": "length-controlled",
    r"\bliking\b": "bias, preference",
    r"break(?:s|ing)? a principle": "violation rate",
}
"""What no user should read, and what to write instead."""
READS = {"rlaif/feedback/verdict_reader.py"}
"""Its strings are patterns of what judges write."""
NAMES = {"found", "told", "said", "kept", "own", "what"}
"""They say nothing of what a result holds."""
OLD = {
    "inference",
    "data",
    "rl",
    "constitution",
    "config",
    "stats.py",
    "errors.py",
    "progress.py",
    "store.py",
    "text.py",
}
"""Parts whose names are still the old ones: this set only shrinks."""
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "rlaif/report/web").glob("*.html")),
]
MODULES = sorted((ROOT / "rlaif").rglob("*.py"))


def shown(path: Path) -> Iterator[tuple[int, str]]:
    """The texts of a module that somebody may read: strings in code, and the docstrings that are help."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        is_help = bool(getattr(node, "decorator_list", ())) and "cli" in path.parts
        for at, each in enumerate(body):
            if isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant) and not (at == 0 and is_help):
                silent.add(id(each.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
            yield node.lineno, node.value


def against(text: str) -> list[str]:
    """The phrases that a text should not have, each with what to write."""
    return [f"`{hit[0]}`: {use}" for phrase, use in PHRASES.items() if (hit := re.search(phrase, text))]


def test_what_a_user_reads_keeps_to_the_glossary() -> None:
    modules = [path for path in MODULES if str(path.relative_to(ROOT)) not in READS]
    wrong = [f"{path}:{line}: {hit}" for path in modules for line, text in shown(path) for hit in against(text)]
    for page in PAGES:
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
            wrong += [f"{page}:{number}: {hit}" for hit in against(line)]
    assert wrong == [], "\n".join(wrong)


def results(path: Path) -> Iterator[tuple[int, str]]:
    """Names that something is assigned to; the fields of a class may be keys on disk."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    fields = {id(each.target) for node in classes for each in node.body if isinstance(each, ast.AnnAssign)}
    for node in ast.walk(tree):
        if id(node) in fields:
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg


def test_names_say_what_they_hold() -> None:
    modules = [path for path in MODULES if path.relative_to(ROOT / "rlaif").parts[0] not in OLD]
    wrong = [f"{path}:{line} {name}" for path in modules for line, name in results(path) if name in NAMES]
    assert wrong == [], "\n".join(wrong)


def test_the_lint_sees_what_it_should(tmp_path: Path) -> None:
    module = tmp_path / "cli" / "one.py"
    module.parent.mkdir()
    module.write_text(
        '"""Not told to anybody."""\n\n\n'
        '@command\ndef run(told):\n    """Told are wins."""\n    found = f"mend {told}"\n'
    )
    assert against("5 nats an answer at equal length") == [
        "`nats an answer`: nats per response", "`equal length`: length-controlled",
    ]  # fmt: skip
    assert against("a mention of the moment") == []
    assert [(line, hit) for line, text in shown(module) for hit in against(text)] == [(7, "`mend`: fix, hint")]
    assert sorted(results(module)) == [(5, "told"), (7, "found")]
