"""Constitutions from files: the strict format, names and paths, and the hash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from rlaif.constitution import (
    Constitution,
    Principle,
    constitution_problems,
    find_constitution,
    load_constitution,
    shipped_constitutions,
)
from rlaif.errors import UserError

GOOD = """\
name: kind
principles:
  - id: kind
    compare: Which reply is kinder?
    examples:
      - prompt: Hello
        better: Hello, nice to see you.
        worse: What now?
  - id: brief
    compare: >-
      Which reply
      is shorter?
    critique: What could go?
    revise: Shorten it.
    weight: 0.5
    tags: [form]
"""


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_good_file_is_read_whole(tmp_path: Path) -> None:
    constitution = load_constitution(write(tmp_path, GOOD))
    kind, brief = constitution.principles
    assert (kind.weight, kind.critique, kind.examples[0].worse) == (1.0, None, "What now?")
    assert (brief.compare, brief.weight, brief.tags) == ("Which reply is shorter?", 0.5, ("form",))
    assert constitution.principle("brief") is brief
    with pytest.raises(KeyError):
        constitution.principle("none")


@pytest.mark.parametrize(
    ("old", "new", "line", "fragment"),
    [
        ("name: kind\n", "", 1, "`name` is missing"),
        ("name: kind", "name: ", 1, "`name` is empty"),
        ("name: kind", "title: kind", 1, "unknown key `title`"),
        ("compare: Which", "comapre: Which", 4, "unknown key `comapre` in `principles[kind]`; did you mean `compare`?"),
        ("compare: Which reply is kinder?", "comapre: Which?", 3, "`principles[kind].compare` is missing"),
        ("compare: Which reply is kinder?", "compare: '  '", 4, "`principles[kind].compare` is empty"),
        ("compare: Which reply is kinder?", "compare: 7", 4, "must be text, got 7; put it in quotes"),
        ("id: brief", "id: kind", 9, "the id `kind` is taken by principle 1 already"),
        ("id: brief", "id: Too Brief", 9, "did you mean `too-brief`?"),
        ("id: brief", "id: 12", 9, "must be text, got 12; put it in quotes"),
        ("id: brief", "id: '*'", 9, "lower-case letters, digits and hyphens"),
        ("weight: 0.5", "weight: 0", 15, "`principles[brief].weight` must be greater than 0, got 0"),
        ("weight: 0.5", "weight: -1", 15, "must be greater than 0"),
        ("weight: 0.5", "weight: high", 15, "`principles[brief].weight` must be a number, got 'high'"),
        ("weight: 0.5", "weight: .inf", 15, "must be a finite number"),
        ("weight: 0.5", "weight: true", 15, "must be a number, got true"),
        ("tags: [form]", "tags: form", 16, "`principles[brief].tags` must be a list, got 'form'"),
        ("revise: Shorten it.", "revise: ''", 14, "`principles[brief].revise` is empty"),
        ("worse: What now?", "wrose: What now?", 8, "`wrose` in `principles[kind].examples[1]`; did you mean `worse`?"),
        ("worse: What now?", "worse: Hello, nice to see you.", 8, "`better` and `worse` are the same text"),
    ],
)  # fmt: skip
def test_a_bad_file_is_told_with_its_line(tmp_path: Path, old: str, new: str, line: int, fragment: str) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new))
    found = constitution_problems(path)
    assert [error for error in found if error.line == line and fragment in str(error)], [str(error) for error in found]
    with pytest.raises(UserError, match=f"{path.name}:"):
        load_constitution(path)


def test_no_principles(tmp_path: Path) -> None:
    assert "`principles` is empty" in str(constitution_problems(write(tmp_path, "name: x\nprinciples: []"))[0])


def test_repeated_ids_are_found_once_beside_other_mistakes(tmp_path: Path) -> None:
    alone = GOOD.replace("id: brief", "id: kind")
    assert [error.line for error in constitution_problems(write(tmp_path, alone))] == [9]
    both = alone.replace("weight: 0.5", "weight: x")
    assert [error.line for error in constitution_problems(write(tmp_path, both))] == [9, 15]


def test_wrong_items_do_not_make_the_list_short(tmp_path: Path) -> None:
    found = constitution_problems(write(tmp_path, "name: x\nprinciples:\n- id: a\n  compare:\n"))
    assert [error.line for error in found] == [4]


def test_repeated_ids_are_refused_without_a_file_too() -> None:
    with pytest.raises(ValidationError, match="taken by principle 1"):
        Constitution(name="x", principles=(Principle(id="a", compare="b"), Principle(id="a", compare="c")))


def test_paths_are_relative_to_the_folder_given(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", GOOD, "other")
    assert load_constitution("mine.yaml", tmp_path).name == "kind"
    assert load_constitution("sub/other", str(tmp_path)).name == "kind"
    assert load_constitution("other", tmp_path / "sub").name == "kind"
    assert find_constitution(tmp_path / "mine.yaml", "elsewhere") == tmp_path / "mine.yaml"


def test_a_shipped_name_goes_before_a_file_of_that_name(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "harmless")
    assert load_constitution("harmless", tmp_path).name == "harmless"


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("harmles", "no constitution is called `harmles`; did you mean `harmless`?"),
        ("zzz", "known: customer-care, "),
        ("mine", "did you mean `mine.yaml`?"),
        ("", "no constitution is called ``"),
        ("mien.yaml", "mien.yaml: no such file"),
        ("no/such", "no/such: no such file"),
    ],
)
def test_unknown_names(tmp_path: Path, name: str, fragment: str) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(UserError) as caught:
        load_constitution(name, tmp_path)
    assert fragment in str(caught.value)
    assert [str(error) for error in constitution_problems(name, tmp_path)] == [str(caught.value)]


def hashed(tmp_path: Path, old: str = "", new: str = "") -> str:
    assert old in GOOD
    return load_constitution(write(tmp_path, GOOD.replace(old, new))).hash


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: kind", "# a comment\nname: other\ndescription: too"),
        ("    critique: What could go?\n    revise: Shorten it.\n",
         "    revise: Shorten it.\n    critique: What could go?\n"),
        (">-\n      Which reply\n      is shorter?", "Which reply is shorter?"),
        (">-\n      Which reply\n", ">\n      Which reply\n"),
        ("[form]", "[other]"),
        ("What now?", "Go away."),
        ("weight: 0.5", "weight: 0.50"),
    ],
)  # fmt: skip
def test_the_hash_overlooks_what_no_judge_sees(tmp_path: Path, old: str, new: str) -> None:
    assert hashed(tmp_path, old, new) == hashed(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("is kinder?", "is warmer?"),
        ("id: kind", "id: kinder"),
        ("weight: 0.5", "weight: 0.6"),
        ("What could go?", "What could stay?"),
        ("    revise: Shorten it.\n", ""),
    ],
)
def test_the_hash_notices_what_a_judge_sees(tmp_path: Path, old: str, new: str) -> None:
    assert hashed(tmp_path, old, new) != hashed(tmp_path)


def test_the_hash_notices_the_order_of_principles() -> None:
    one, two = Principle(id="a", compare="x"), Principle(id="b", compare="y")
    assert Constitution(name="n", principles=(one, two)).hash != Constitution(name="n", principles=(two, one)).hash


def test_loading_is_light() -> None:
    code = (
        "import sys, rlaif.constitution; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_some_constitutions_are_shipped() -> None:
    assert {"harmless", "helpful-honest-harmless-concise", "customer-care"} <= set(shipped_constitutions())
