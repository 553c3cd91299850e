"""The pages in docs/: their blocks in order, run in a folder of their own.

    python -m tests.pages                   # prints where a page shows something else
    python -m tests.pages --write docs/x.md # inserts what its commands print now

Blocks are fenced `console` (as in the README, see tests/readme.py), `pycon` (a session, all of a page are one), or a
kind with a file's name after it, which becomes that file before anything is run. Others are for readers alone.
"""

from __future__ import annotations

import contextlib
import doctest
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import FakeServer, Trouble
from tests.readme import Step, cut, fits, prepare, run, steps_of
from tests.support import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))
INDEX = ROOT / "docs/index.md"
HOSTED = "use-a-hosted-judge.md"
_BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
RUNNABLE = [
    page
    for page in PAGES
    if any(kind in ("console", "pycon") for kind, _, _ in _BLOCK.findall(page.read_text(encoding="utf-8")))
]
"""Those with something to run; the others are tables and prose."""
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@contextlib.contextmanager
def ready(page: Path) -> Iterator[Path]:
    """A folder for a page, and what it needs around it: for the hosted judge, a server that takes a key."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name).resolve()
        prepare(folder)
        shim = folder / ".bin/python"
        shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        shim.chmod(0o755)
        if page.name == HOSTED:
            busy = Trouble("429", chance=0.2, retry_after="0")
            server = FakeServer(model="large-judge", api_key="secret", batch=False, logprobs="top", troubles=[busy])
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setenv("JUDGE_URL", stack.enter_context(server).url)
            patch.setenv("JUDGE_KEY", "secret")
        yield folder


def differences(page: Path) -> list[str]:
    """Where a page shows something else than what its commands say; empty where it is right."""
    with ready(page) as folder:
        session: dict[str, Any] = {}
        found = []
        for kind, _, text in _written(page, folder):
            if kind == "console":
                found += [told for step in steps_of(text) if (told := _difference(step, folder))]
            elif kind == "pycon":
                found += _session(text, session, folder)
    return found


def _written(page: Path, folder: Path) -> list[tuple[str, str, str]]:
    """All blocks of a page, those that are files written down."""
    blocks = _BLOCK.findall(page.read_text(encoding="utf-8"))
    for _, name, text in blocks:
        if name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
    return blocks


def _difference(step: Step, folder: Path) -> str:
    printed = run(step.command, folder)
    return "" if fits(step.shown, printed) else "\n".join([f"$ {step.command}", *printed])


def _session(text: str, session: dict[str, Any], folder: Path) -> list[str]:
    told: list[str] = []
    test = doctest.DocTestParser().get_doctest(text, session, "page", None, 0)
    with contextlib.chdir(folder):
        doctest.DocTestRunner(optionflags=_FLAGS).run(test, out=told.append, clear_globs=False)
    session.update(test.globs)
    return told


def rewritten(page: Path) -> str:
    """The page with what its console commands print now; a page without them as it is."""
    with ready(page) as folder:
        _written(page, folder)

        def fresh(found: re.Match[str]) -> str:
            kind, _, text = found.groups()
            if kind != "console":
                return found[0]
            lines: list[str] = []
            for step in steps_of(text):
                lines += [f"$ {step.command}", *cut(step.shown, run(step.command, folder))]
            return "```console\n" + "\n".join(lines) + "\n```"

        return _BLOCK.sub(fresh, page.read_text(encoding="utf-8"))


def main() -> None:
    """Compare, or with `--write` rewrite, the pages that are named, or all."""
    named = [Path(each).resolve() for each in sys.argv[1:] if each != "--write"]
    for page in named or RUNNABLE:
        if "--write" in sys.argv:
            page.write_text(rewritten(page), encoding="utf-8")
            continue
        for told in differences(page):
            print(f"{page.name}\n{told}\n")


if __name__ == "__main__":
    main()
