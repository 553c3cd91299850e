"""The page in a real browser: it opens from disk, asks for nothing, and no text of a model does anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlaif.report.page import write_page
from tests.page.browser import chromium, complaints, requests, resize
from tests.page.folders import HOSTILE, PROMPT_OF_THE_FLIP, key, lines, write_run, write_training

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("browser") / "run")
    write_training(folder / "dpo")
    write_training(folder / "ppo", method="ppo", alarms=["step 3: <b>bold</b> (bound 1): look"])
    return write_page(folder)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def opened(browser: Any, page: Path) -> Any:
    """The page, opened anew."""
    resize(browser, 1280)
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get(page.as_uri())
    return browser


def text_of(driver: Any, selector: str) -> list[str]:
    return driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((each) => each.textContent.trim())", selector
    )


def shown(driver: Any) -> list[str]:
    """Ids of the examples on the page."""
    return driver.execute_script("return [...document.querySelectorAll('.example')].map((each) => each.id.slice(2))")


def put(driver: Any, name: str, value: object) -> None:
    """Give a field of the form a value, as a hand would."""
    driver.execute_script(
        "const field = document.getElementById(arguments[0]);"
        "if (field.type === 'checkbox') field.checked = arguments[1]; else field.value = arguments[1];"
        "field.dispatchEvent(new Event('input', { bubbles: true }))",
        name, value,
    )  # fmt: skip


def pause(driver: Any) -> None:
    """Let everything that was put off by the page happen."""
    driver.execute_async_script("setTimeout(arguments[0], 50)")


def overflow(driver: Any) -> int:
    return driver.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")


def test_no_requests_and_no_complaints(opened: Any) -> None:
    assert requests(opened) == []
    assert complaints(opened) == []


def test_hostile_texts_are_texts(opened: Any) -> None:
    assert opened.execute_script("return window.hacked") is None
    texts = text_of(opened, ".samples p.text")
    assert [each for each in HOSTILE if each not in texts] == []
    assert HOSTILE[0] in text_of(opened, ".turn p.text")
    assert any("<b>bold</b>" in each for each in text_of(opened, ".warnings p"))
    assert (
        opened.execute_script("return document.querySelectorAll('.example img, .example script, .warnings b').length")
        == 0
    )
    # The pieces of the page that a text would have had to break are whole.
    assert opened.execute_script("return document.querySelectorAll('script').length") == 2
    assert complaints(opened) == []


def test_what_would_run_without_the_policy_is_stopped_by_it(opened: Any) -> None:
    """The second wall: were a text ever put in as markup, nothing of it would run."""
    opened.execute_script("document.body.insertAdjacentHTML('beforeend', arguments[0])", HOSTILE[1])
    opened.execute_script(
        "const found = document.createElement('script'); found.textContent = 'window.hacked = 1';"
        "document.body.append(found)"
    )
    opened.execute_async_script("setTimeout(arguments[0], 200)")
    assert opened.execute_script("return window.hacked") is None
    assert complaints(opened) != []
    assert requests(opened) == []


def test_numbers_are_those_of_the_files(opened: Any) -> None:
    """See `tests.page.folders`: counted by hand."""

    def figure(name: str) -> str:
        return text_of(opened, f"[data-figure={name}]")[0]

    counted = {"prompts": "3", "samples": "5", "pairs": "1", "flips": "1", "judgements": "16"}
    assert {name: figure(name) for name in counted} == counted
    assert text_of(opened, "[data-principle=kind] td.n") == ["2", "1", "1", "0", "1", "1", "3"]
    assert text_of(opened, "[data-principle=short] td.n") == ["1", "1", "0", "1", "0", "0", "3"]
    assert text_of(opened, "[data-status]") == ["1", "1", "1", "1"]
    assert "1,600 in, 25% of them cached; 0 out" in text_of(opened, "#counts dd")
    assert len(text_of(opened, ".warnings li")) >= int(figure("warnings"))
    assert "62.2% (labelled, produced pair " + key("pair")[:8] + ")" in " ".join(text_of(opened, ".example summary"))


def test_search_and_filters(opened: Any) -> None:
    assert sorted(shown(opened)) == sorted([key("p1"), key("p2"), key("p3")])
    put(opened, "q", "LONGER tree")
    assert shown(opened) == [key("p1")]
    put(opened, "q", "<!-- <script>")
    assert shown(opened) == [key("p2")]
    put(opened, "q", "")
    for outcome, names in {"pair": ["p1"], "flip": ["p1"], "silent": ["p2"], "none": ["p2", "p3"]}.items():
        put(opened, "outcome", outcome)
        assert sorted(shown(opened)) == [key(name) for name in names]
    put(opened, "outcome", "")
    principles = {
        option.text: option.get_attribute("value")
        for option in opened.find_elements("css selector", "#principle option")
    }
    put(opened, "flips", True)
    put(opened, "principle", principles["kind"])
    assert shown(opened) == [key("p1")]
    put(opened, "principle", principles["short"])  # never flips
    assert shown(opened) == []
    assert text_of(opened, "#found") == ["0 of 3 examples"]
    opened.find_element("css selector", "#filters [type=reset]").click()
    pause(opened)
    assert len(shown(opened)) == 3
    put(opened, "low", "0.12")
    put(opened, "high", "0.13")
    assert shown(opened) == [key("p1")]
    put(opened, "low", "0.2")
    assert shown(opened) == []


def test_deep_links_lead_to_a_prompt_or_its_pair(opened: Any, page: Path) -> None:
    put(opened, "q", "nothing has this")
    assert shown(opened) == []
    for name in ("p2", "pair"):
        opened.execute_script("location.hash = arguments[0]", f"p-{key(name)}")
        pause(opened)
        wanted = "p1" if name == "pair" else name
        assert opened.execute_script("return document.activeElement.id") == f"p-{key(wanted)}"
    opened.execute_script("location.hash = arguments[0]", f"p-{'0' * 32}")
    pause(opened)
    assert text_of(opened, "#found") == ["That prompt is not among the examples on this page."]
    opened.get("about:blank")
    opened.get(f"{page.as_uri()}#p-{key('p1')}")
    assert opened.execute_script("return document.activeElement.id") == f"p-{key('p1')}"
    top = opened.execute_script("return document.activeElement.getBoundingClientRect().top")
    assert 0 <= top < 900
    assert PROMPT_OF_THE_FLIP in text_of(opened, f"#p-{key('p1')} .turn p.text")


def test_many_examples_are_turned_by_the_page(browser: Any, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for name in ("manifest.json", "rankings.jsonl", "pairs.jsonl"):
        (folder / name).unlink()
    lines(folder / "prompts.jsonl", [
        {"id": key(f"m{at:02}"), "messages": [{"role": "user", "content": f"number {at}"}], "source": "f:1"}
        for at in range(25)
    ])  # fmt: skip
    browser.get(write_page(folder).as_uri())
    assert (len(shown(browser)), text_of(browser, "#at")) == (10, ["page 1 of 3"])
    browser.find_element("css selector", "#after").click()
    browser.find_element("css selector", "#after").click()
    assert (len(shown(browser)), text_of(browser, "#at")) == (5, ["page 3 of 3"])
    assert browser.find_element("css selector", "#after").get_attribute("disabled")
    assert "unfinished" in text_of(browser, ".badge")
    assert complaints(browser) == []


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_runs_over_the_edge(opened: Any, width: int, scheme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    resize(opened, width)
    opened.execute_script("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert overflow(opened) <= 0
    paper = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(22, 23, 24)")
    ink = opened.execute_script("return getComputedStyle(document.querySelector('svg.plot text')).fill")
    assert ink == ("rgb(27, 27, 26)" if scheme == "light" else "rgb(230, 229, 225)")


def test_the_toggle_changes_the_colours_by_keyboard(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    feature = {"name": "prefers-color-scheme", "value": "light"}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    button = opened.find_element("css selector", "#theme")
    WebDriverWait(opened, 10).until(
        lambda _: button.text == "Dark"
    )  # the page hears of the other scheme a little later
    button.send_keys(Keys.ENTER)
    assert opened.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(22, 23, 24)"
    assert button.text == "Light"
    button.send_keys(Keys.ENTER)
    assert opened.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_everything_can_be_reached_by_keyboard(opened: Any) -> None:
    """The first stop leads past the contents, and what scrolls sideways can be focused."""
    from selenium.webdriver.common.keys import Keys

    opened.find_element("css selector", "body").send_keys(Keys.TAB)
    assert opened.execute_script("return document.activeElement.className") == "skip"
    reachable = "return [...document.querySelectorAll('.scroll, .frame')].every((each) => each.tabIndex === 0)"
    assert opened.execute_script(reachable)


def test_on_paper_it_is_light_and_without_controls(opened: Any) -> None:
    opened.execute_script("document.documentElement.dataset.theme = 'dark'")
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    resize(opened, 720)  # what a page of A4 is wide
    assert opened.execute_script("return getComputedStyle(document.body).color") == "rgb(27, 27, 26)"
    hidden = (
        "return ['.toc', '#filters', '#after'].map((each) => getComputedStyle(document.querySelector(each)).display)"
    )
    assert opened.execute_script(hidden) == ["none"] * 3
    assert overflow(opened) <= 0
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
