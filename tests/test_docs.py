"""What the pages in docs/ show is what happens; their commands exist, and their links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from rlaif.cli.main import cli
from tests.pages import INDEX, PAGES, RUNNABLE, differences
from tests.support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
_COMMAND = re.compile(r"^(?:\$ )?(rlaif [a-z].*)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)]*))?\)")
_OLD_WORDS = re.compile(
    r"\b(told|mends?|anew|nats an answer|at equal length|slot bias|takes? up to|liking for)\b", re.IGNORECASE
)
_BLOCK = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return _BLOCK.sub("", text)


def commands(page: Path) -> list[str]:
    """The `rlaif ...` lines of a page's fenced blocks."""
    return _COMMAND.findall("\n".join(_BLOCK.findall(page.read_text(encoding="utf-8"))))


COMMANDS = sorted({line for page in PAGES for line in commands(page)})


def section(name: str) -> list[str]:
    """The pages that the index lists under a heading."""
    found = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", INDEX.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert found is not None, name
    return re.findall(r"\]\(([^)#]+)\)", found[1])


GUIDES = [*section("Tutorials"), *section("How-to guides")]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.stem)
def test_a_page_shows_what_happens(page: Path) -> None:
    assert differences(page) == []


def test_the_pages_with_commands_are_run() -> None:
    assert len(RUNNABLE) >= 10


def test_the_index_lists_every_page_once() -> None:
    sections = ("Tutorials", "How-to guides", "Reference", "Explanation")
    listed = [name for heading in sections for name in section(heading)]
    assert sorted(listed) == sorted(page.name for page in PAGES if page != INDEX)
    assert "(docs/index.md)" in README


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


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_a_page_is_short_and_its_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("\n") <= 250
    for link, anchor in _LINK.findall(text):
        if "://" in link:
            continue
        target = page.parent / link if link else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), f"{link}#{anchor}"


def test_the_readme_is_small() -> None:
    assert len(README.encode("utf-8")) <= 9 * 1024


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_says_what_it_needs_and_what_comes_next(name: str) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert "**Needs:**" in text and "**Time:**" in text
    assert re.findall(r"^## (.+)$", prose(text), re.MULTILINE)[-1] == "Next"


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_the_prose_uses_the_words_of_the_glossary(page: Path) -> None:
    assert _OLD_WORDS.findall(prose(page.read_text(encoding="utf-8"))) == []


def test_no_paragraph_stands_in_two_places() -> None:
    """Of the prose, 60 characters in a row of one page stand in no other, nor in the README."""
    seen: dict[str, str] = {}
    for name, text in [("README.md", README), *((page.name, page.read_text(encoding="utf-8")) for page in PAGES)]:
        text = re.sub(r"^\*\*Needs:\*\*.*?\n\n", "", prose(text), flags=re.DOTALL | re.MULTILINE)  # one form for all
        words = " ".join(re.sub(r"\]\([^)]*\)", "]", text).split())  # a link's address is no prose
        pieces = {words[at : at + 60] for at in range(max(0, len(words) - 60))}
        assert [piece for piece in pieces if seen.get(piece, name) != name] == [], name
        seen |= dict.fromkeys(pieces, name)
