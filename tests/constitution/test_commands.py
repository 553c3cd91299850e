"""`rlaif constitution list, show, new, schema, check and import`, run as a person would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlaif.constitution import load_constitution, shipped_constitutions
from rlaif.constitution.importers import SHAPES
from rlaif.constitution.model import SCHEMA_FILE, Constitution, Example, Principle, schema_text
from rlaif.constitution.write import STARTER
from tests.support import environment, rlaif

WEAK = """\
name: weak
principles:
  - id: kind
    compare: Is the reply kind?
"""


def test_list_tells_what_ships() -> None:
    shown = rlaif("constitution", "list")
    assert shown.returncode == 0, shown.stderr
    rows = json.loads(rlaif("constitution", "list", "--json").stdout)
    assert [row["name"] for row in rows] == list(shipped_constitutions())
    assert all(row["name"] in shown.stdout for row in rows)
    (rubric,) = (row for row in rows if row["name"] == "helpful-honest-harmless-concise")
    assert (rubric["principles"], rubric["critiques_and_revises"], rubric["examples"]) == (4, 4, 5)
    assert rubric["description"].startswith("A rubric of four")
    assert Path(rubric["file"]).is_file()


def test_show_is_a_table_a_whole_text_or_json() -> None:
    loaded = load_constitution("customer-care")
    table = rlaif("constitution", "show", "customer-care")
    assert table.returncode == 0, table.stderr
    assert all(one.id in table.stdout for one in loaded.principles)
    assert loaded.hash in table.stdout
    assert "Where is my parcel?" not in table.stdout
    full = rlaif("constitution", "show", "customer-care", "--full").stdout
    assert "prompt    Where is my parcel?" in full
    assert all(f"{one.id}  (weight {one.weight:g}; " in full for one in loaded.principles)
    data = json.loads(rlaif("constitution", "show", "customer-care", "--json").stdout)
    assert data.pop("hash") == loaded.hash
    assert Constitution.model_validate(data) == loaded


def test_show_takes_brackets_for_text(tmp_path: Path) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text("name: odd\nprinciples:\n- {id: a, compare: 'Which reply has [bold] in it?', tags: ['[red]']}\n")
    shown = rlaif("constitution", "show", file)
    assert "[bold]" in shown.stdout
    assert "[red]" in shown.stdout
    assert rlaif("constitution", "show", "none").returncode == 2


def test_new_makes_a_file_that_passes(tmp_path: Path) -> None:
    assert rlaif("constitution", "new").stdout == STARTER
    made = rlaif("constitution", "new", "-o", "mine.yaml", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / SCHEMA_FILE).read_text() == schema_text()
    assert (tmp_path / "mine.yaml").read_text() == f"# yaml-language-server: $schema={SCHEMA_FILE}\n{STARTER}"
    checked = rlaif("constitution", "check", "mine.yaml", cwd=tmp_path)
    assert (checked.returncode, checked.stdout) == (0, "1 file: no errors, no warnings\n")


def test_new_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / SCHEMA_FILE).write_text("mine")
    assert rlaif("constitution", "new", "-o", "mine.yaml", cwd=tmp_path).returncode == 0
    assert (tmp_path / SCHEMA_FILE).read_text() == "mine"
    (tmp_path / "mine.yaml").write_text("mine too")
    again = rlaif("constitution", "new", "-o", "mine.yaml", cwd=tmp_path)
    assert (again.returncode, (tmp_path / "mine.yaml").read_text()) == (2, "mine too")
    assert again.stderr == "Error: mine.yaml: already there; choose another name, or move it away\n"
    assert rlaif("constitution", "new", "-o", "no/folder/x.yaml", cwd=tmp_path).returncode == 2


def test_the_starter_explains_every_key() -> None:
    for model in (Constitution, Principle, Example):
        assert [name for name in model.model_fields if f"{name}:" not in STARTER] == []


def test_schema_is_json() -> None:
    printed = rlaif("constitution", "schema")
    assert (printed.returncode, printed.stdout) == (0, schema_text())


def test_check_exits_by_the_worst_finding(tmp_path: Path) -> None:
    (tmp_path / "weak.yaml").write_text(WEAK)
    (tmp_path / "wrong.yaml").write_text(WEAK.replace("id: kind", "id: Kind"))
    weak = rlaif("constitution", "check", "weak.yaml", "harmless", cwd=tmp_path)
    assert weak.returncode == 1
    first, last = weak.stdout.splitlines()
    assert first.startswith("weak.yaml:4: warning: `compare` of `kind` asks about one reply")
    assert last == "2 files: 0 errors, 1 warning"
    wrong = rlaif("constitution", "check", "weak.yaml", "wrong.yaml", "gone.yaml", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "wrong.yaml:3: error: `principles[Kind].id` must be lower-case letters" in wrong.stdout
    assert "; did you mean `kind`?" in wrong.stdout
    assert "gone.yaml: error: no such file" in wrong.stdout
    assert wrong.stdout.splitlines()[-1] == "3 files: 2 errors, 1 warning"


def test_check_as_json(tmp_path: Path) -> None:
    (tmp_path / "weak.yaml").write_text(WEAK)
    weak = rlaif("constitution", "check", "weak.yaml", "--format", "json", cwd=tmp_path)
    (finding,) = json.loads(weak.stdout)
    assert weak.returncode == 1
    assert set(finding) == {"file", "line", "level", "rule", "principle", "message", "hint"}
    told = [finding[key] for key in ("file", "line", "level", "rule", "principle")]
    assert told == ["weak.yaml", 4, "warning", "one-reply", "kind"]
    assert rlaif("constitution", "check", "demo", "--format", "json").stdout == "[]\n"
    assert rlaif("constitution", "check").returncode == 2


def test_import_writes_yaml_and_says_what_it_derived(tmp_path: Path) -> None:
    (tmp_path / "rules.md").write_text("- **Calm**: Stay calm.\n- Which reply is shorter?\n")
    printed = rlaif("constitution", "import", "rules.md", "--name", "ours", cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    assert "2 principles from rules.md (format `text`)" in printed.stderr
    assert "note: Derived: 1 of 2" in printed.stderr
    written = rlaif("constitution", "import", "rules.md", "--name", "ours", "-o", "out.yaml", cwd=tmp_path)
    assert (written.returncode, written.stdout) == (0, "")
    assert (tmp_path / "out.yaml").read_text() == printed.stdout
    assert "# Derived: 1 of 2" in printed.stdout
    loaded = load_constitution(tmp_path / "out.yaml")
    assert (loaded.name, [one.id for one in loaded.principles]) == ("ours", ["calm", "shorter"])


def test_import_overwrites_only_when_forced(tmp_path: Path) -> None:
    (tmp_path / "rules.md").write_text("- Stay calm.\n")
    (tmp_path / "out.yaml").write_text("mine")
    refused = rlaif("constitution", "import", "rules.md", "-o", "out.yaml", cwd=tmp_path)
    assert (refused.returncode, (tmp_path / "out.yaml").read_text()) == (2, "mine")
    assert "out.yaml: already there" in refused.stderr
    assert rlaif("constitution", "import", "rules.md", "-o", "out.yaml", "--force", cwd=tmp_path).returncode == 0
    assert load_constitution(tmp_path / "out.yaml").name == "rules"


def test_import_of_broken_input_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('["one",\n "two"')
    broken = rlaif("constitution", "import", "broken.json", "-o", "out.yaml", cwd=tmp_path)
    assert broken.returncode == 2
    assert broken.stderr.startswith("Error: broken.json:2: not JSON")
    assert broken.stderr.count("\n") == 1
    assert not (tmp_path / "out.yaml").exists()


def test_import_knows_every_format() -> None:
    from rlaif.cli.constitution import import_

    (option,) = (one for one in import_.params if one.name == "shape")
    assert option.type.choices == ("auto", *SHAPES)  # type: ignore[attr-defined]


def test_init_brings_the_schema(tmp_path: Path) -> None:
    assert rlaif("init", "mine", cwd=tmp_path).returncode == 0
    assert (tmp_path / "mine" / SCHEMA_FILE).read_text() == schema_text()
    assert SCHEMA_FILE in (tmp_path / "mine/constitution.yaml").read_text().splitlines()[0]


@pytest.mark.parametrize("words", [[], ["list"], ["show"], ["new"], ["schema"], ["check"], ["import"]])
def test_help_is_light(words: list[str]) -> None:
    code = f"import sys; sys.argv = ['rlaif', 'constitution', *{words!r}, '--help']\nfrom rlaif.cli.main import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "print([name for name in ('torch', 'pydantic', 'rich', 'yaml') if name in sys.modules], file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert result.stderr.strip() == "[]"
    assert "Usage:" in result.stdout
