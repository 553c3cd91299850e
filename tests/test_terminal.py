"""What reaches a terminal: nothing that people, models and servers wrote is obeyed there."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from rlaif.errors import ModelError, RecordError, UserError
from rlaif.text import one_line, visible
from tests.support import ROOT, rlaif

_DIRECT = ("click.echo", "click.secho", "click.style", "print", "sys.stdout.write")
EVIL = "\x1b[2J\x1b]0;title\x07\x1b]52;c;aGk=\x07\x9b5n\u202egnirts\u2066\x7f\r"
MARKS = "\\x1b[2J\\x1b]0;title\\x07\\x1b]52;c;aGk=\\x07\\u009b5n\\u202egnirts\\u2066\\u007f\\x0d"


def obeyed(text: str) -> set[str]:
    """The characters in a text that a terminal would obey."""
    known = {chr(code) for code in (*range(32), 127, *range(128, 160))} - {"\n", "\t"}
    return {each for each in text if each in known or each in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"}


@pytest.mark.case("sec-10-escape-sequences")
def test_control_characters_become_marks() -> None:
    assert visible(EVIL) == MARKS
    assert visible("tabs\tand\nlines, naïve 日本語 🙂") == "tabs\tand\nlines, naïve 日本語 🙂"
    assert one_line("a\nError: b") == "a\\nError: b"


def test_a_json_document_remains_one() -> None:
    text = json.dumps({"said": EVIL}, ensure_ascii=False)
    assert json.loads(visible(text)) == {"said": EVIL}


@pytest.mark.sibling("forged-second-line-in-an-error")
@pytest.mark.parametrize(
    "error",
    [
        UserError(f"no key {EVIL}\nError: all is well", where="a\nb", hint="c\nd"),
        RecordError("a\x1b.jsonl", 3, "odd\nthing"),
        ModelError(f"server: {EVIL}\nNo problems."),
    ],
)
def test_an_error_is_one_line(error: Exception) -> None:
    assert len(str(error).splitlines()) == 1
    assert not obeyed(str(error))


def test_the_log_of_a_server_keeps_its_lines() -> None:
    assert str(ModelError("vLLM ended", log="\none\x1b[1m\ntwo")) == "vLLM ended\none\\x1b[1m\ntwo"


@pytest.mark.case("sec-10-escape-sequences")
@pytest.mark.parametrize("words", [("show",), ("show", "--full"), ("show", "--json"), ("check",)])
def test_a_constitution_of_others(words: tuple[str, ...], tmp_path: Path) -> None:
    principle = {"id": "kind", "compare": f"Which reply is kinder? {EVIL}"}
    text = {"name": "evil", "description": EVIL, "principles": [principle]}
    (tmp_path / "evil.yaml").write_text(json.dumps(text))
    shown = rlaif("constitution", words[0], tmp_path / "evil.yaml", *words[1:])
    assert not obeyed(shown.stdout + shown.stderr)
    if words[0] == "show":
        assert "\\x1b" in shown.stdout or "\\u001b" in shown.stdout


@pytest.mark.sibling("escape-sequences-in-data-check")
def test_data_of_others(tmp_path: Path) -> None:
    rows = [{"prompt": f"p {EVIL}", "chosen": f"good {EVIL} {at}", "rejected": EVIL, EVIL: 1} for at in range(3)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for words in (("check", file), ("check", file, "--examples", "2"), ("export", file, "--format", "trl")):
        shown = rlaif("data", *words, cwd=tmp_path)
        assert not obeyed(shown.stdout + shown.stderr)


@pytest.mark.sibling("escape-sequences-in-a-file-name")
def test_names_of_files(tmp_path: Path) -> None:
    shown = rlaif("check", tmp_path / "\x1b[2Jrun.yaml")
    assert shown.returncode == 2 and not obeyed(shown.stderr)


def test_every_command_writes_through_the_terminal_module() -> None:
    """Neither `click.echo` nor `print` is called anywhere else in the command line."""
    for path in (ROOT / "rlaif" / "cli").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and path.name != "terminal.py":
                called = ast.unparse(node.func)
                assert called not in ("click.echo", "click.secho", "click.style", "print", "sys.stdout.write"), (
                    f"{path}:{node.lineno}"
                )
