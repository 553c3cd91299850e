"""YAML into models: every mistake has its words, its line and its mend."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator

from rlaif.config import yaml as yaml_file
from rlaif.config.yaml import NAME_PATTERN, dump_yaml, located
from rlaif.errors import UserError
from rlaif.records import Record


class Server(Record):
    url: str
    retries: int = 3


class Item(Record):
    id: str = Field("x", pattern=NAME_PATTERN)
    weight: float = Field(1.0, gt=0)


class Run(Record):
    samples: int = 4
    rate: float = Field(0.1, ge=0, allow_inf_nan=False)
    verbose: bool = False
    flips: Literal["drop", "soft"] = "drop"
    note: str = Field("-", min_length=1)
    server: str | Server = "local"
    items: tuple[Item, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Run:
        if self.samples == 13:
            raise ValueError("thirteen is unlucky")
        if self.samples == 14:
            raise located("Run", [(("server", "url"), "no server for fourteen"), (("rate",), "nor a rate")])
        return self


def told(text: str) -> list[tuple[int | None, str]]:
    """Line and text of every problem."""
    found = yaml_file.find_problems(yaml_file.parse_yaml(text, "run.yaml"), Run)
    return [(error.line, str(error).partition(": ")[2]) for error in found]


@pytest.mark.parametrize(
    ("text", "line", "fragment"),
    [
        ("a: 1\nsamplse: 4", 2, "unknown key `samplse`; did you mean `samples`?"),
        ("rate: 4\nserver:\n  url: x\n  retreis: 1", 4, "unknown key `retreis` in `server`; did you mean `retries`?"),
        ("items:\n- id: ok\n  wieght: 1", 3, "unknown key `wieght` in `items[ok]`; did you mean `weight`?"),
        ("rate: high", 1, "`rate` must be a number, got 'high'"),
        ("rate: true", 1, "`rate` must be a number, got true"),
        ("rate: -1", 1, "`rate` must be at least 0, got -1"),
        ("rate: .inf", 1, "`rate` must be a finite number"),
        ("samples: 2.5", 1, "`samples` must be a whole number, got 2.5"),
        ("samples: true", 1, "`samples` must be a whole number, got true"),
        ("\n\nsamples:\n  a: 1", 3, "`samples` must be a whole number, got a mapping"),
        ("samples:", 1, "`samples` is empty; it must be a whole number"),
        ("verbose: perhaps", 1, "`verbose` must be true or false, got 'perhaps'"),
        ("flips: dorp", 1, "`flips` must be one of `drop`, `soft`, got 'dorp'; did you mean `drop`?"),
        ("note: ''", 1, "`note` is empty"),
        ("note: 12", 1, "`note` must be text, got 12; put it in quotes: \"12\""),
        ("note: true", 1, "put it in quotes: \"true\""),
        ("note: [a]", 1, "`note` must be text, got a list of 1"),
        ("server: 3", 1, "`server` must be text or a mapping (`key: value` lines), got 3"),
        ("server:\n  retries: 3", 1, "`server.url` is missing"),
        ("server:\n  url: x\n  retries: x", 3, "`server.retries` must be a whole number, got 'x'"),
        ("items:\n- id: a\n\n- id: b\n  weight: 0", 5, "`items[b].weight` must be greater than 0, got 0"),
        ("items:\n- weight: 2\n- weight: x", 3, "`items[2].weight` must be a number"),
        ("items:\n- id: Big One!", 2, "a letter first, got 'Big One!'; did you mean `big-one`?"),
        ("items: one", 1, "`items` must be a list, got 'one'; write `- ` before every item"),
        ("items:\n- one", 2, "`items[1]` must be a mapping"),
        ("rate: 1\nsamples: 2\nrate: 2", 3, "the key `rate` is given twice; the first is on line 1"),
        ("server:\n  url: a\n  url: b", 3, "the key `url` is given twice; the first is on line 2"),
        ("samples: !!python/object/apply:os.system ['x']", 1, "object/apply:os.system` is not supported"),
        ("note: !!python/name:os.system x", 1, "python/name:os.system` is not supported"),
        ("? [note]\n: x", 1, "a key must be a plain text"),
        ("- samples", 1, "the whole must be a mapping"),
        ("samples: 13", 1, "thirteen is unlucky"),
        ("samples: 14\nserver: {url: x}", 2, "no server for fourteen"),
        ("samples: 14\nserver: {url: x}\nrate: 2", 3, "nor a rate"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line(text: str, line: int, fragment: str) -> None:
    assert [(at, what) for at, what in told(text) if fragment in what and at == line], told(text)


def test_one_mistake_makes_one_problem() -> None:
    assert len(told("server: {url: 3}")) == 1
    assert len(told("items:\n- {id: 3, weight: x}")) == 2


def test_all_mistakes_are_listed_in_the_order_of_their_lines() -> None:
    lines = [line for line, _ in told("rate: x\nsamplse: 1\nrate: 2\nflips: no\nnote:\n")]
    assert lines == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("text", "line", "fragment"),
    [
        ("a:\n\t- b", 2, "a tab where spaces are wanted (column 1); use spaces"),
        ("note: what: this", 1, "a text with `: ` in it must stand in quotes"),
        ("rate: 1\nnote: 'x\nsamples: 1", 3, "is a quote not closed?"),
        ("note: [a, b", 1, "is a bracket not closed"),
        ("note: *x", 1, "a text that starts with * must stand in quotes"),
        ("note: @x", 1, "(column 7); a text that starts with @ must stand in quotes"),
        ("rate: 1\n samples: 2", 2, "not YAML"),
        ("note: a\0b", 1, "U+0000 is not allowed"),
        ("rate: 1\n---\nrate: 2", 2, "a second document starts here"),
        ("note: &a [*a]", 1, "inside its own anchor"),
        ("", None, "the file is empty"),
        ("# nothing yet\n", None, "the file is empty"),
        ("[" * 3000, None, "nested too deeply"),
    ],
)
def test_what_is_not_yaml_is_told_with_its_line(text: str, line: int | None, fragment: str) -> None:
    with pytest.raises(UserError) as caught:
        yaml_file.parse_yaml(text, "run.yaml")
    assert fragment in str(caught.value)
    assert caught.value.line == line


def test_aliases_may_repeat_but_not_without_end() -> None:
    assert yaml_file.parse_yaml("a: &x [1, 2]\nb: *x", "f").data == {"a": [1, 2], "b": [1, 2]}
    laughs = ["a0: &a0 [lol, lol]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    with pytest.raises(UserError, match="repeat too much"):
        yaml_file.parse_yaml("\n".join(laughs), "f")


def test_scalars_are_those_of_yaml_1_2() -> None:
    text = "[no, On, 12:30, 1e-5, 007, 0x1F, ~, TRUE, '3', 2020-01-01, 1_000, .5, -.inf, =]"
    expected = ["no", "On", "12:30", 1e-5, 7, 31, None, True, "3", "2020-01-01", "1_000", 0.5, float("-inf"), "="]
    assert yaml_file.parse_yaml(text, "f").data == expected


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
nested = st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), nested, min_size=1))
def test_what_is_written_is_read_back(data: dict[str, object]) -> None:
    text = dump_yaml(data)
    assert yaml_file.parse_yaml(text, "f").data == data
    assert yaml.safe_load(text) == data


@pytest.mark.parametrize("text", ["08", "1e5", "0o7", "no", "12:30", "~", "1_000", "=", "0b1", "2020-01-01", ""])
def test_a_text_stays_a_text_for_every_reader(text: str) -> None:
    written = dump_yaml({"x": text})
    assert yaml_file.parse_yaml(written, "f").data == yaml.safe_load(written) == {"x": text}


def test_every_path_has_its_line() -> None:
    source = yaml_file.parse_yaml("a:\n  b:\n    - 1\n    -\n      c: 2\n", "f")
    places = {path: place.line for path, place in source.places.items() if path}
    assert places == {("a",): 1, ("a", "b"): 2, ("a", "b", 0): 3, ("a", "b", 1): 5, ("a", "b", 1, "c"): 5}
    assert source.place(("a", "nowhere", "x")).line == 1


def test_yes_and_no_are_truths_only_where_one_is_wanted() -> None:
    run = yaml_file.validate(yaml_file.parse_yaml("verbose: yes\nnote: no", "f"), Run)
    assert (run.verbose, run.note) == (True, "no")


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ("note: hä".encode("utf-16"), "is UTF-16, not UTF-8; save it as UTF-8"),
        ("rate: 1\nnote: hä".encode("latin-1"), ":2: is not UTF-8"),
        (b"#" * 5_000_001, "too large"),
        (b"", "the file is empty"),
    ],
)
def test_unreadable_files_are_told_in_one_line(tmp_path: Path, content: bytes, fragment: str) -> None:
    path = write(tmp_path / "run.yaml", content)
    (error,) = yaml_file.problems(path, Run)
    assert fragment in str(error)
    assert str(error).startswith(str(path))
    assert "\n" not in str(error)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    assert "no such file" in str(yaml_file.problems(tmp_path / "none.yaml", Run)[0])
    assert "is a folder" in str(yaml_file.problems(tmp_path, Run)[0])
    assert "not a possible file name" in str(yaml_file.problems("a\0b", Run)[0])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", b"rate: 1")
    path.chmod(0)
    assert "cannot be read (Permission denied)" in str(yaml_file.problems(path, Run)[0])


def test_a_byte_order_mark_and_windows_line_ends_are_harmless(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", b"\xef\xbb\xbfrate: 2\r\nnote: x\r\n")
    assert yaml_file.load_yaml(path, Run).rate == 2


def test_loading_raises_the_first_and_counts_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", b"rate: x\nsamplse: 1\nflips: x\n")
    with pytest.raises(UserError) as caught:
        yaml_file.load_yaml(path, Run)
    assert str(caught.value) == (
        f"{path}:1: `rate` must be a number, got 'x'; and 2 more: `rlaif check` lists them all"
    )
    assert len(yaml_file.problems(path, Run)) == 3


def test_values_of_flags_are_texts_and_are_told_by_the_flag() -> None:
    source = yaml_file.parse_yaml("samples: 2\nserver: {url: x}", "run.yaml")
    source = source.with_value(("samples",), "8", "--samples").with_value(("server", "retries"), "5", "--retries")
    run = yaml_file.validate(source, Run)
    assert (run.samples, run.server) == (8, Server(url="x", retries=5))
    (error,) = yaml_file.find_problems(source.with_value(("samples",), "many", "--samples"), Run)
    assert str(error) == "--samples: `samples` must be a whole number, got 'many'"


def test_a_flag_leaves_the_file_s_data_as_it_was_and_needs_a_mapping() -> None:
    source = yaml_file.parse_yaml("server: {url: x}", "run.yaml")
    source.with_value(("server", "url"), "y", "--url")
    assert source.data == {"server": {"url": "x"}}
    with pytest.raises(UserError, match=r"run.yaml:1: `server` must be a mapping here; --url goes into it"):
        yaml_file.parse_yaml("server: x", "run.yaml").with_value(("server", "url"), "y", "--url")


def test_no_file_at_all() -> None:
    source = yaml_file.Source({}, "command line").with_value(("server", "url"), "y", "--url")
    assert yaml_file.validate(source, Run).server == Server(url="y")
