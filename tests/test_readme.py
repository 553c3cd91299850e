"""What the README shows is what its commands print."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from rlaif.cli.constitution import constitution
from tests.pages import PAGES
from tests.readme import README, cut, fits, plain, prepare, run, steps, steps_of


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_console_block_prints_what_it_shows(tmp_path: Path) -> None:
    prepare(tmp_path)
    for step in steps():
        printed = run(step.command, tmp_path)
        assert fits(step.shown, printed), "\n".join([f"$ {step.command}", *printed])


def test_every_constitution_command_is_shown() -> None:
    assert isinstance(constitution, click.Group)
    commands = [step.command for page in (README, *PAGES) for step in steps(page)]
    for name in constitution.list_commands(click.Context(constitution)):
        assert any(command.startswith(f"rlaif constitution {name}") for command in commands), name
    assert any(command.startswith("rlaif revise") for command in commands)


def test_lines_fit_by_hand() -> None:
    assert steps_of("$ a\nx\ny\n$ b\n") == [("a", ["x", "y"]), ("b", [])]
    assert fits(["a 1", "..."], ["a 2", "b", "c"])
    assert fits(["...", "c"], ["a", "b", "c"])
    assert fits(["a", "...", "c"], ["a", "c"])
    assert not fits(["a"], ["a", "b"])
    assert not fits(["a", "b"], ["a"])
    assert plain("labels   66 -> 68 ") == plain("labels  6 -> 1,000")
    assert plain("demo-judge@3ecb24db") == plain("demo-judge@00000000")
    assert plain("pass") != plain("fail")
    assert cut(["a", "...", "z"], ["1", "2", "3"]) == ["1", "...", "3"]
    assert cut(["a"], ["1", "2"]) == ["1", "2"]
