"""Running the program as a person would: as a process, on files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"


def environment(**more: str) -> dict[str, str]:
    """A clean environment: no settings from outside, no hub, this checkout's package."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RLAIF_")}
    return {**kept, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "200", **more}


def command(*arguments: object) -> list[str]:
    """The command line of `rlaif ARGUMENTS`."""
    return [sys.executable, "-m", "rlaif", *map(str, arguments)]


def rlaif(
    *arguments: object, cwd: Path | None = None, timeout: float = 120, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `rlaif ARGUMENTS` to its end."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, env=environment(**env), cwd=cwd, timeout=timeout
    )


def write_run(folder: Path, url: str, *, prompts: list[str] | None = None, **settings: Any) -> Path:
    """A run file in `folder` for a fake server at `url`, with its prompts; returns its path."""
    texts = prompts or [f"How do I get to station number {number}?" for number in range(10)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    run: dict[str, Any] = {
        "constitution": "harmless",
        "prompts": "prompts.jsonl",
        "policy": {"model": "fake", "base_url": url, "samples": 4, "max_tokens": 32},
        "judge": {"model": "fake", "base_url": url},
        "output": str(folder / "run"),
    }
    for key, value in settings.items():
        run[key] = {**run[key], **value} if isinstance(run.get(key), dict) and isinstance(value, dict) else value
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in run.items() if value is not None}))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
