"""The built wheel, alone in an environment, finds what it ships."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support import ROOT, environment


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_what_travels(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert wheel.name.startswith("rlaif_kit-")
    wanted = [
        *(f"rlaif/_shipped/constitutions/{path.name}" for path in (ROOT / "constitutions").glob("*.yaml")),
        *(f"rlaif/_shipped/prompts/judge/{path.name}" for path in (ROOT / "prompts/judge").glob("*.txt")),
        *(f"rlaif/_shipped/prompts/policy/{path.name}" for path in (ROOT / "prompts/policy").glob("*.jsonl")),
        "rlaif/demo/models/judge/model.safetensors",
        "rlaif/demo/models/policy/model.safetensors",
        "rlaif/demo/models/MODEL_CARD.md",
    ]
    assert len(wanted) > 10
    assert [name for name in wanted if name not in names] == []
    assert not [name for name in names if name.startswith(("tests/", "examples/")) or name.endswith((".pyc", ".bin"))]
    assert wheel.stat().st_size < 9_000_000


@pytest.mark.slow
def test_an_installed_wheel_runs_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """An environment with this wheel; the libraries come from ours, the package does not."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env/bin/python"
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True)
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    env = {name: value for name, value in environment().items() if name != "PYTHONPATH"}

    def run(*arguments: str) -> str:
        result = subprocess.run(
            [str(python), "-m", "rlaif", *arguments], capture_output=True, text=True, cwd=tmp_path, env=env
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    code = "import rlaif; print(rlaif.__file__)"
    where = subprocess.run([str(python), "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert where.stdout.strip() == str(site / "rlaif/__init__.py")
    run("init", "mine", "--constitution", "harmless")
    assert "16 principles" in run("check", "mine/run.yaml", "--offline")
    assert "No problems" in run("check", "mine/run.yaml")
