"""The house rules that can be checked: layers, light start, small functions, no work at import."""

from __future__ import annotations

import ast
import functools
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import rlaif
from rlaif.cli.main import LazyGroup
from tests.support import ROOT, command, environment

LAYERS = [
    ("text", "errors", "records", "stats", "progress"),
    ("store", "config"),
    ("constitution", "inference"),
    ("data", "demo"),
    ("feedback",),
    ("analysis", "training"),
    ("evaluation",),
    ("rl",),
    ("report",),
    ("workflow",),
    ("api",),
    ("cli", "__main__"),
]
"""Lowest first; a module imports from its own layer and those below."""


HEAVY = ("rlaif.training.", "rlaif.rl.")
"""Where modules may start with torch."""


def dotted(path: Path) -> str:
    """The name under which a file is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@functools.cache
def top_level(path: Path) -> set[str]:
    """Packages that a file imports when it is imported itself; of ours, what starts with torch counts as torch."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            other = ROOT / f"{node.module.replace('.', '/')}.py"
            if node.module.startswith(HEAVY) and other.exists():
                names += top_level(other)
        found |= {name.split(".")[0] for name in names}
    return found


MODULES = sorted(path for path in (ROOT / "rlaif").rglob("*.py"))

TORCH = [path for path in MODULES if dotted(path).startswith(HEAVY) and "torch" in top_level(path)]
"""Modules of the trainers that start with torch, themselves or by one of the others."""


def layer(name: str) -> int:
    (at,) = (at for at, names in enumerate(LAYERS) if name in names)
    return at


def imported(path: Path) -> set[str]:
    """First names below `rlaif` that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "rlaif" else [f"rlaif.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("rlaif.")}
    return found - {"__version__"}


def test_imports_point_downwards() -> None:
    above = []
    for path in MODULES:
        parts = path.relative_to(ROOT / "rlaif").with_suffix("").parts
        if parts != ("__init__",):
            above += [f"{path}: {name}" for name in imported(path) if layer(name) > layer(parts[0])]
    assert above == []


def test_every_module_imports_offline_and_lightly() -> None:
    """Importing them all, what starts with torch apart, loads no torch, no transformers and no datasets."""
    names = [each.name for each in pkgutil.walk_packages(rlaif.__path__, "rlaif.")]
    assert len(names) > 40
    heavy = {*map(dotted, TORCH), "rlaif.__main__"}
    light = [name for name in names if name not in heavy]
    wanted = ("training.config", "training.dataset", "rl.config")
    assert {f"rlaif.{name}" for name in wanted} <= set(light)
    code = f"import importlib, sys\nfor name in {light!r}: importlib.import_module(name)\n"
    code += "print([name for name in ('torch', 'transformers', 'datasets', 'vllm') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert result.stdout.strip() == "[]", result.stderr


def test_help_is_light() -> None:
    """`rlaif --help` loads neither the heavy libraries nor pydantic."""
    code = "import sys; sys.argv = ['rlaif', '--help']\nfrom rlaif.cli.main import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "heavy = ('torch', 'transformers', 'datasets', 'pydantic', 'rich', 'httpx', 'aiohttp', 'yaml')\n"
    code += "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert result.stderr.strip() == "[]"


def test_every_command_of_the_overview_exists_with_help() -> None:
    from rlaif.cli.constitution import constitution
    from rlaif.cli.main import cli

    for group, words in ((cli, ()), (constitution, ("constitution",))):
        assert isinstance(group, LazyGroup)
        for name, entry in group.entries.items():
            assert getattr(importlib.import_module(entry.module), entry.name).name == name
        listed = subprocess.run(command(*words, "--help"), capture_output=True, text=True, env=environment()).stdout
        assert all(f"\n  {name} " in listed for name in group.entries)


def test_files_and_functions_stay_small() -> None:
    """Files of at most 700 lines and functions under 60."""
    long = []
    for path in MODULES:
        text = path.read_text()
        if text.count("\n") > 700:
            long.append(str(path))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60:  # type: ignore[operator]
                long.append(f"{path}:{node.lineno} {node.name}")
    assert long == []
