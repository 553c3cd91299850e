"""Running the program as a person would: as a process, on files."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tests.zygote import call

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"


def environment(**more: str) -> dict[str, str]:
    """A clean environment: no settings from outside, no hub, this checkout's package."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RLAIF_")}
    return {**kept, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "200", **more}


def command(*arguments: object) -> list[str]:
    """The command line of `rlaif ARGUMENTS`, for tests that are about the process: its start, its end, its signals."""
    return [sys.executable, "-m", "rlaif", *map(str, arguments)]


def rlaif(
    *arguments: object, cwd: Path | None = None, timeout: float = 400, module: str = "rlaif", **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `rlaif ARGUMENTS` to its end, in a process of its own that has its modules already; or another module."""
    words = [str(each) for each in arguments]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, Path(os.devnull).open() as nothing:
        streams = (nothing.fileno(), out.fileno(), err.fileno())
        try:
            code = call(
                zygote(), words, environment(**env), str(cwd or Path.cwd()), streams, module=module, timeout=timeout
            )
        except TimeoutError:
            raise subprocess.TimeoutExpired(["rlaif", *words], timeout, _text(out), _text(err)) from None
        return subprocess.CompletedProcess(["rlaif", *words], code, _text(out), _text(err))


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode())


@functools.cache
def zygote() -> str:
    """The address of the process that forks (see `tests.zygote`); it ends with this one."""
    folder = tempfile.mkdtemp(prefix="rlaif-")
    address = f"{folder}/socket"
    process = subprocess.Popen(
        [sys.executable, ROOT / "tests/zygote.py", "serve", address],
        env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    if process.stdout.readline() != b"ready\n":
        raise RuntimeError("the process that forks did not start")

    def end() -> None:
        process.communicate()
        shutil.rmtree(folder)

    atexit.register(end)
    return address


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
