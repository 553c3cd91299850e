"""The README's console blocks: run them in order, compare what they show, or rewrite it.

    python -m tests.readme          # prints where the README shows something else
    python -m tests.readme --write  # puts in what the commands say now

A block is a fenced `console`: lines with `$ ` are commands for bash, the others what they print on standard output
(and on standard error where they fail). A line `...` stands for any lines. Numbers and spacing may differ.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support import ROOT, environment, zygote

README = ROOT / "README.md"
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_WIDTH = "100"


class Step(NamedTuple):
    """A command and the lines that are shown below it."""

    command: str
    shown: list[str]


def steps_of(block: str) -> list[Step]:
    """The commands of one block."""
    steps: list[Step] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            steps.append(Step(line[2:], []))
        else:
            steps[-1].shown.append(line)
    return steps


def steps(page: Path = README) -> list[Step]:
    """All commands of the README, or another page, in order."""
    return [step for block in _BLOCK.findall(page.read_text(encoding="utf-8")) for step in steps_of(block)]


def prepare(folder: Path) -> None:
    """A folder that looks like a checkout, with an `rlaif` on its path."""
    for name in ("examples", "prompts", "constitutions"):
        (folder / name).symlink_to(ROOT / name)
    shim = folder / ".bin" / "rlaif"
    shim.parent.mkdir()
    words = f'"{sys.executable}" -I -S "{ROOT}/tests/zygote.py" call "{zygote()}"'
    shim.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    shim.chmod(0o755)


def run(command: str, folder: Path) -> list[str]:
    """What a command prints, line by line."""
    path = f"{folder / '.bin'}:{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=900,
                          env=environment(COLUMNS=_WIDTH, PATH=path))  # fmt: skip
    text = done.stdout + (done.stderr if done.returncode else "")
    return [line.rstrip() for line in text.rstrip().splitlines()]


def fits(shown: Sequence[str], printed: Sequence[str]) -> bool:
    """Whether the README shows what was printed, `...` aside."""
    if not shown:
        return not printed
    if shown[0].strip() == "...":
        return any(fits(shown[1:], printed[at:]) for at in range(len(printed) + 1))
    return bool(printed) and plain(shown[0]) == plain(printed[0]) and fits(shown[1:], printed[1:])


def plain(line: str) -> str:
    """A line without what differs from one machine to the next: numbers, ids, and the spacing that they cause."""
    line = re.sub(r"@[0-9a-f]{8,}|\b[0-9a-f]{32}\b", "@", line)
    line = re.sub(r" \([^()]*\d[^()]*\)", "", line)  # counts by kind: a kind may be missing elsewhere
    return " ".join(re.sub(r"[-+]?\d[\d,.]*", "#", re.sub(r"[─━]+", "-", line)).split())


def cut(shown: Sequence[str], printed: Sequence[str]) -> list[str]:
    """What to show of `printed`: all, or where `...` stood in the README, as many lines before and after it."""
    at = next((at for at, line in enumerate(shown) if line.strip() == "..."), None)
    if at is None:
        return list(printed)
    after = len(shown) - at - 1
    if len(printed) <= at + after:
        return list(printed)
    return [*printed[:at], "...", *(printed[-after:] if after else [])]


def rewrite(folder: Path) -> str:
    """The README with what its commands print now."""

    def fresh(found: re.Match[str]) -> str:
        lines = []
        for step in steps_of(found[1]):
            lines += [f"$ {step.command}", *cut(step.shown, run(step.command, folder))]
        return "```console\n" + "\n".join(lines) + "\n```"

    return _BLOCK.sub(fresh, README.read_text(encoding="utf-8"))


def main() -> None:
    """Compare, or with `--write` rewrite, the README."""
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        if "--write" in sys.argv:
            README.write_text(rewrite(Path(folder)), encoding="utf-8")
            return
        for step in steps():
            printed = run(step.command, Path(folder))
            if not fits(step.shown, printed):
                print(f"$ {step.command}\nshown:", *step.shown, "printed:", *printed, sep="\n")


if __name__ == "__main__":
    main()
