"""The group `rlaif data`: light, listed, and telling how far it is."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from rlaif import progress
from rlaif.cli.data import data
from rlaif.cli.main import LazyGroup
from tests.support import environment, rlaif


def test_the_overview_lists_every_command() -> None:
    assert isinstance(data, LazyGroup)
    told = rlaif("data", "--help").stdout
    for name, entry in data.entries.items():
        assert f"\n  {name} " in told
        assert getattr(importlib.import_module(entry.module), entry.name).name == name


@pytest.mark.parametrize("words", [("data", "--help"), ("data", "check", "--help"), ("data", "export", "--help")])
def test_help_is_light(words: tuple[str, ...]) -> None:
    code = f"import sys; sys.argv = ['rlaif', *{words!r}]\nfrom rlaif.cli.main import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "heavy = ('torch', 'transformers', 'datasets', 'pydantic', 'rich', 'numpy', 'pyarrow', 'huggingface_hub')\n"
    code += "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert result.stderr.strip() == "[]"


def test_a_check_loads_no_models() -> None:
    """Without --tokenizer, reading rows needs neither torch nor transformers nor datasets."""
    code = "import sys\nfrom rlaif.data.doctor import examine\n"
    code += "import tempfile, pathlib\npath = pathlib.Path(tempfile.mkdtemp()) / 'a.jsonl'\n"
    code += 'path.write_text(\'{"prompt": "a", "chosen": "b", "rejected": "c"}\\n\')\nexamine(path)\n'
    code += "print([name for name in ('torch', 'transformers', 'datasets', 'pyarrow') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert result.stdout.strip() == "[]", result.stderr


def test_a_long_reading_tells_lines_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every fifteen seconds, where standard error is no terminal."""
    clock = iter([0.0, 1.0, 15.0, 16.0, 31.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.show_rows("a.jsonl") as told:
        for rows in (1000, 20_000, 21_000, 40_000):
            told(rows)
    assert capsys.readouterr().err == "a.jsonl: 20,000 rows, 15 s\na.jsonl: 40,000 rows, 31 s\n"
