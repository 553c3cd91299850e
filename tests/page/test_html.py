"""The file: nothing in it can run but its own script, nothing is fetched, and the same folder gives the same bytes."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rlaif.report.page import build_page, write_page
from rlaif.report.render import Sheet, coded, estimate, number, percent, plot_style, render, signed
from tests.page.folders import HOSTILE, key, write_run, write_training
from tests.support import rlaif


class Elements(HTMLParser):
    """Every element with its attributes, and what stands in scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open in self.inside:
            self.inside[self._open].append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("page") / "run")
    write_training(run / "dpo")
    write_training(run / "ppo", method="ppo", alarms=["step 3: <b>bold</b> (bound 1): look"])
    return run


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return write_page(folder).read_text(encoding="utf-8")


def test_only_the_pages_own_script_is_allowed(text: str) -> None:
    page = Elements(text)
    (policy,) = (each["content"] for tag, each in page.found if tag == "meta" and "http-equiv" in each)
    assert policy is not None
    assert "unsafe" not in policy and policy.startswith("default-src 'none'; ")
    data, script = page.inside["script"]
    (style,) = page.inside["style"]
    for part in (script, style):
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert not re.search(r"[<>&]", data)


def test_the_examples_come_through_as_they_are(text: str) -> None:
    data = json.loads(Elements(text).inside["script"][0])
    story = next(item for item in data["items"] if item["id"] == key("p2"))
    assert [each["text"] for each in story["samples"]] == HOSTILE
    assert story["messages"] == [["user", HOSTILE[0]]]


def test_nothing_is_fetched_and_nothing_is_styled_in_place(text: str) -> None:
    for tag, attributes in Elements(text).found:
        assert tag not in ("img", "link", "iframe", "object", "embed", "base")
        assert not {"style", "src", "srcset"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in re.sub(r'url\(#f\d+-|"url\(#', "", Elements(text).inside["style"][0])


def test_every_id_is_there_once_and_every_link_leads_somewhere(text: str) -> None:
    found = [each for _, each in Elements(text).found]
    ids = [each["id"] for each in found if each.get("id")]
    assert len(ids) == len(set(ids))
    aims = {(each.get("href") or "")[1:] for each in found if (each.get("href") or "").startswith("#")}
    aims |= {aim for each in found for aim in re.findall(r"url\(#([^)]*)\)", each.get("clip-path") or "")}
    assert aims
    assert aims - set(ids) == set()


def test_drawings_say_what_they_show_and_follow_the_page(text: str) -> None:
    drawings = [each for tag, each in Elements(text).found if tag == "svg" and each.get("role") == "img"]
    assert len(drawings) >= 5
    assert all(each["aria-label"] for each in drawings)
    assert not re.search(r"<(?:path|text|use|rect|g)\b[^>]*#[0-9a-f]{6}", text, re.I)


def test_the_same_folder_gives_the_same_bytes(folder: Path, text: str) -> None:
    assert write_page(folder).read_text(encoding="utf-8") == text


def test_a_label_of_a_drawing_cannot_end_its_attribute() -> None:
    from matplotlib.figure import Figure

    with plot_style():
        figure = Figure()
        figure.subplots().set_title("<script>&</script>")
        text = Sheet().inline(figure, 'a "quoted" <b> \\1')
    assert 'aria-label="a &quot;quoted&quot; &lt;b&gt; \\1"' in text
    assert "<script" not in text


def test_a_label_of_a_drawing_is_no_style() -> None:
    from matplotlib.figure import Figure

    sheet, label = Sheet(), 'a style="</style><h1>X</h1>" id="figure_1" url(#x)'
    with plot_style():
        figure = Figure()
        figure.subplots().set_title(label)
        text = sheet.inline(figure, "told")
    assert html.escape(label, quote=False) in text
    assert "<" not in sheet.css() and "X" not in sheet.css() and sheet.css().count("{") == sheet.css().count("}")


def test_numbers_for_people() -> None:
    from rlaif.stats import Estimate

    assert [number(12345), number(None), number(1234.5678), number(2.0, 1)] == ["12,345", "–", "1235", "2.0"]
    assert [percent(0.1234), percent(None), percent(1, 0)] == ["12.3%", "–", "100%"]
    assert estimate(Estimate(value=0.5, low=0.4, high=0.61, pairs=9)) == "50.0% (40.0 to 61.0)"
    assert estimate(Estimate(value=1.5, low=1.0, high=2.0, pairs=9), 2) == "1.50 (1.00 to 2.00)"
    assert signed(0.5) == "+0.50"
    assert str(coded("run `a <b>` now")) == "run <code>a &lt;b&gt;</code> now"
    assert str(coded("one ` <alone>")) == "one ` &lt;alone&gt;"


def test_a_page_of_little(tmp_path: Path) -> None:
    write_training(tmp_path / "sft", method="sft", finished=False)
    (tmp_path / "sft" / "log.jsonl").write_text("")
    text = render(build_page(tmp_path / "sft"))
    assert "The training has logged nothing yet" in text
    assert 'id="examples"' not in text


def test_the_command(folder: Path, tmp_path: Path) -> None:
    done = rlaif("report", folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Report in {folder}/report.html (")
    wrong = rlaif("report", tmp_path / "no-such-run")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.count("\n") == 1
    assert "there is no such folder" in wrong.stderr
    assert list(folder.glob(".report*")) == []
