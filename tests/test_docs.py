"""What the pages in docs/ show is what happens; their commands exist, and their links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from rlaif.cli.main import cli
from tests.pages import PAGES, differences
from tests.support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
_COMMAND = re.compile(r"^(?:\$ )?(rlaif [a-z].*)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
COMMANDS = sorted({line for page in PAGES for line in _COMMAND.findall(page.read_text(encoding="utf-8"))})


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_what_happens(page: Path) -> None:
    assert differences(page) == []


def test_there_is_a_page_for_every_task() -> None:
    assert len(PAGES) == 10
    assert [page.name for page in PAGES if f"(docs/{page.name})" not in README] == []


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_of_the_pages_parse(line: str) -> None:
    words = shlex.split(re.split(r" (?:2>|>|\|) ?", line)[0], comments=True)[1:]
    group: click.Command = cli
    while isinstance(group, click.Group):
        name = words.pop(0)
        found = group.get_command(click.Context(group), name)
        assert found is not None, name
        group = found
    group.make_context(group.name, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_short_and_its_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("\n") <= 120
    links = _LINK.findall(text)
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_no_paragraph_stands_in_two_places() -> None:
    """Of the prose, 60 characters in a row of one page stand in no other, nor in the README."""
    seen: dict[str, str] = {}
    for name, text in [("README.md", README), *((page.name, page.read_text(encoding="utf-8")) for page in PAGES)]:
        prose = " ".join(re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE).split())
        pieces = {prose[at : at + 60] for at in range(max(0, len(prose) - 60))}
        assert [piece for piece in pieces if seen.get(piece, name) != name] == [], name
        seen |= dict.fromkeys(pieces, name)
