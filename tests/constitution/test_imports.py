"""Other projects' formats become constitutions, and what is written loads again to the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rlaif.config.yaml import NAME_PATTERN, parse_yaml
from rlaif.constitution import Constitution, Example, Principle, load_constitution, shipped_constitutions
from rlaif.constitution.importers import Imported, Shape, import_constitution, slug
from rlaif.constitution.write import constitution_yaml
from rlaif.errors import UserError
from tests.support import DATA

REAL = DATA / "constitutional-ai"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the published files are not here")


def read(folder: Path, content: object, name: str = "source.json", shape: Shape | None = None) -> Imported:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1), encoding="utf-8")
    return import_constitution(path, shape=shape)


def loads_again(folder: Path, imported: Imported) -> Constitution:
    path = folder / "written.yaml"
    path.write_text(constitution_yaml(imported.constitution, "\n".join(imported.notes)), encoding="utf-8")
    constitution = load_constitution(path)
    assert constitution == imported.constitution
    assert constitution.hash == imported.constitution.hash
    return constitution


@real
def test_the_published_choices(tmp_path: Path) -> None:
    file = REAL / "RLMadisonInstructions.json"
    imported = import_constitution(file)
    texts = [text.strip() for text in json.loads(file.read_text())]
    principles = loads_again(tmp_path, imported).principles
    assert imported.shape == "choices"
    assert imported.notes == (), "each chooses between replies already"
    assert len(principles) == 16
    assert [f"{one.compare} Options:" for one in principles] == texts
    assert all(one.critique is None and one.revise is None for one in principles)


@real
def test_the_published_requests(tmp_path: Path) -> None:
    file = REAL / "CritiqueRevisionInstructions.json"
    imported = import_constitution(file)
    source = json.loads(file.read_text())
    principles = loads_again(tmp_path, imported).principles
    assert imported.shape == "requests"
    assert [one.id for one in principles] == [f"harmful{at}" for at in range(16)] == list(source)
    for one in principles:
        assert source[one.id]["prompt"] == [f"\n\nCritiqueRequest: {one.critique}\n\nCritique:"]
        assert source[one.id]["edit_request"] == f"\n\nRevisionRequest: {one.revise}\n\nRevision:"
        assert one.compare == f"Which reply gives less ground for this reviewer's request? {one.critique}"
    assert "16 of 16 `compare` texts" in imported.notes[0]


def test_choices_keep_their_words_and_statements_are_framed(tmp_path: Path) -> None:
    texts = ["\nChoose the calmer response. Options:", "Be calm.", "Which reply is calm?", "Choose your words calmly."]
    imported = read(tmp_path, texts)
    assert [one.compare for one in loads_again(tmp_path, imported).principles] == [
        "Choose the calmer response.",
        "Which reply keeps better to this principle? Be calm.",
        "Which reply is calm?",
        "Which reply keeps better to this principle? Choose your words calmly.",
    ]
    assert len({one.id for one in imported.constitution.principles}) == 4
    assert "2 of 4" in imported.notes[0]
    assert imported.constitution.name == "source"


def test_several_requests_of_one_key_are_several_principles(tmp_path: Path) -> None:
    wrapped = [f"\n\nCritiqueRequest: Quote every {what}.\n\nCritique:" for what in ("lie", "insult")]
    edit = "\n\nRevisionRequest: Take them out.\n\nRevision:"
    imported = read(tmp_path, {"Fair Play": {"prompt": wrapped, "edit_request": edit},
                               "9 lives": {"prompt": "Say why.", "edit_request": "Fix it."}})  # fmt: skip
    one, two, three = loads_again(tmp_path, imported).principles
    assert (one.id, two.id, three.id) == ("fair-play-1", "fair-play-2", "lives")
    assert (one.critique, two.critique, two.revise) == ("Quote every lie.", "Quote every insult.", "Take them out.")


SWARM = [{"critic": "Name what is rude.", "revision": "Say it kindly."},
         {"critic": "Name what is rude.", "revision": "Say it twice."}]  # fmt: skip


@pytest.mark.parametrize("content", [SWARM, {"constitutions": SWARM, "system_chat": [["hello"]]}])
def test_critic_and_revision(tmp_path: Path, content: object) -> None:
    imported = read(tmp_path, content)
    one, two = loads_again(tmp_path, imported).principles
    assert imported.shape == "critic-revision"
    assert (one.id, two.id) == ("name-rude", "name-rude-2")
    assert (one.critique, one.revise) == ("Name what is rude.", "Say it kindly.")


MARKDOWN = """\
# Our charter

Some words before.

## Being *honest*

- **Truth.** Which reply is more
  often right?
* Sources: Name where it is from.
+ Never lie: it always comes out.
  - Not even
    to please.

### In numbers
1. **Do not** round without saying so.

   A second paragraph of that point.
2) [Units](http://units.example) are given.

<!-- - a comment -->
## Kindness
- Small things:
  - Say thanks.
  - Say `please`.
- Big things count too.
"""


def test_markdown(tmp_path: Path) -> None:
    imported = read(tmp_path, MARKDOWN, "charter.md")
    frame = "Which reply keeps better to this principle? "
    found = [(one.id, one.compare.removeprefix(frame), one.tags) for one in loads_again(tmp_path, imported).principles]
    assert found == [
        ("truth", "Which reply is more often right?", ("being-honest",)),
        ("sources", "Name where it is from.", ("being-honest",)),
        ("never-lie", "Never lie: it always comes out. Not even to please.", ("being-honest",)),
        ("do-not", "Do not round without saying so. A second paragraph of that point.", ("being-honest", "in-numbers")),
        ("units-given", "Units are given.", ("being-honest", "in-numbers")),
        ("say-thanks", "Say thanks.", ("kindness", "small-things")),
        ("say", "Say `please`.", ("kindness", "small-things")),
        ("big-things-count-too", "Big things count too.", ("kindness",)),
    ]
    assert imported.constitution.name == "charter"
    assert any("1 paragraph" in note for note in imported.notes)
    assert any("7 of 8" in note for note in imported.notes)


CHARTER = """---
title: Our rules
author: nobody
---
Our rules
=========

Kindness
--------

> - Be kind.
> - [x] Say thanks.

```yaml
- not: a principle
```
"""


def test_what_is_no_prose_is_no_principle(tmp_path: Path) -> None:
    """Front matter, underlined headings, code, marks of a quotation and ticked boxes."""
    principles = loads_again(tmp_path, read(tmp_path, CHARTER, "charter.md")).principles
    assert [(one.id, one.tags) for one in principles] == [("kind", ("kindness",)), ("say-thanks", ("kindness",))]


def test_plain_paragraphs(tmp_path: Path) -> None:
    imported = read(tmp_path, "Be brief,\nand be\nclear.\n\n\nAlways say what is sure.\n", "plain.txt")
    one, two = loads_again(tmp_path, imported).principles
    assert one.compare.endswith("? Be brief, and be clear.")
    assert (one.tags, two.id) == ((), "always-say-sure")


def test_a_single_heading_is_a_tag(tmp_path: Path) -> None:
    (one,) = read(tmp_path, "# Honesty\n- Tell the truth.\n", "a.md").constitution.principles
    assert one.tags == ("honesty",)


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ('["one",\n "two"', 2, "not JSON"),
        ('{"critic": "a"}\n{"critic": "b"}', 2, "not JSON"),
        ("[1, 2]", None, "no list of principles that is known here"),
        ("[]", None, "no list of principles"),
        ("{}", None, "no list of principles"),
        ('{"a": {"b": 1}}', None, "no list of principles"),
        ('["one",\n 2]', 2, "`[2]` must be a text"),
        ('["one",\n "  Options: "]', 2, "`[2]` is empty"),
        ('[{"critic": "a", "revision": "b"},\n {"critic": "a"}]', 2, "`[2]` has no `revision`"),
        ('{"constitutions":\n [{"critic": "a",\n   "revision": 3}]}', 3, "`constitutions[1].revision` must be a text"),
        ('{"a": {"prompt": ["x"]}}', 1, "`a` has no `edit_request`"),
        ('{"a": {"prompt": ["x"], "edit_request": "y"},\n "b": 7}', 2, "`b` must be a mapping"),
        ('{"a": {"prompt": ["x"], "edit_request": "y"},\n "a": {}}', None, "the key `a` is given twice"),
        ('["\\ud800"]', None, "half of a surrogate pair"),
        (f'["x", {"9" * 5000}]', None, "thousands of digits"),
        ("[" * 100_000, None, "nested too deeply"),
        ("", None, "no principles found"),
        ("# Only\n\n## headings\n", None, "no principles found"),
        ("name: x\nprinciples:\n  - id: a\n    compare: b\n", None, "is a constitution already"),
        ("a\0b", None, "is not a text file"),
    ],
)
def test_broken_input_is_told_in_one_line(tmp_path: Path, content: str, line: int | None, words: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, content)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (str(caught.value.where), caught.value.line) == (str(tmp_path / "source.json"), line)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("Sei höflich.\nSei schön.".encode("latin-1"))
    for name, words in (("none.json", "No such file"), (".", "directory"), ("latin.txt", "latin.txt:1: is not UTF-8")):
        with pytest.raises(UserError, match=words):
            import_constitution(tmp_path / name)


def test_a_format_may_be_forced(tmp_path: Path) -> None:
    assert read(tmp_path, '[ "a" ]', shape="text").constitution.principles[0].compare.endswith('[ "a" ]')
    with pytest.raises(UserError, match="must be a list"):
        read(tmp_path, {"a": 1}, shape="choices")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), max_size=4))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_any_text_becomes_a_constitution_or_one_error(tmp_path: Path, parts: list[str]) -> None:
    try:
        imported = read(tmp_path, "\n".join(f"- {part}" for part in parts), "any.md")
    except UserError:
        return
    loads_again(tmp_path, imported)
    ids = [one.id for one in imported.constitution.principles]
    assert len(set(ids)) == len(ids)


@given(st.text())
def test_slugs_fit_the_pattern(text: str) -> None:
    made = slug(text)
    assert made == "" or re.fullmatch(NAME_PATTERN, made)
    assert len(made) <= 48


AWKWARD = ["1e5", "no", "12:30", "~", "@x", "a: b", "- x", "#", "x #y", "null", "0x1f", "é", "\u2028", "\x85", "\ufeff",
           "\t", "\n", "\n\n", " ", "  ", "'", '"', "\\", "{", "]", "|", ">", "%", "&a", "*b", "!t", "`", "---", "...",
           "\x00", "\x7f", "😀", "?", "key:", ".inf", "<<", "=", "many words " * 15]  # fmt: skip
LONG = "many words, one gap wider than the others,  and so on " * 5 + "to the end"
TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.one_of(st.sampled_from(AWKWARD), st.text("abc :#-\n\t'\"", max_size=6)), max_size=8).map("".join),
    st.lists(st.sampled_from(AWKWARD), max_size=30).map(" ".join),
).filter(str.strip)


def valid(model: Any, **parts: Any) -> st.SearchStrategy[Any]:
    """Instances of `model`; what its own rules refuse (equal replies, say) is thrown away."""

    def build(values: dict[str, Any]) -> Any:
        try:
            return model(**values)
        except ValidationError:
            return None

    return st.fixed_dictionaries(parts).map(build).filter(lambda made: made is not None)


MAYBE = st.none() | TEXT
WEIGHT = st.just(1.0) | st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)
EXAMPLES = st.lists(valid(Example, prompt=TEXT, better=TEXT, worse=TEXT, why=MAYBE), max_size=2).map(tuple)
ID = st.from_regex(r"\A[a-z][a-z0-9-]{0,8}\Z") | st.sampled_from(["null", "true", "no", "y"])
PRINCIPLE = valid(
    Principle, id=ID, compare=TEXT, critique=MAYBE, revise=MAYBE, weight=WEIGHT, examples=EXAMPLES,
    tags=st.lists(TEXT, max_size=3).map(tuple),
)  # fmt: skip
PRINCIPLES = st.lists(PRINCIPLE, min_size=1, max_size=3, unique_by=lambda one: one.id).map(tuple)


@pytest.mark.slow
@given(valid(Constitution, name=TEXT, description=MAYBE, principles=PRINCIPLES), TEXT)
@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=200)
def test_what_is_written_loads_again(constitution: Constitution, comment: str) -> None:
    source = parse_yaml(constitution_yaml(constitution, comment), "x")
    assert source.faults == ()
    assert Constitution.model_validate(source.data) == constitution


@pytest.mark.parametrize(
    "text", [text.strip() for text in AWKWARD if text.strip()] + ["two\nlines", "a\n\n  b", "x \ny"]
)
def test_awkward_texts_load_again(text: str) -> None:
    example = Example(prompt=text, better=text + "!", worse=text + "?", why=text)
    principle = Principle(id="a", compare=text, tags=(text, "two words", "a, b"), examples=(example,), weight=0.1)
    constitution = Constitution(name=text, description=text, principles=(principle,))
    assert Constitution.model_validate(parse_yaml(constitution_yaml(constitution, text), "x").data) == constitution


def test_texts_of_several_lines_are_blocks_that_end_in_no_white_space() -> None:
    def written(text: str) -> str:
        return constitution_yaml(Constitution(name="x", principles=(Principle(id="a", compare=text),)))

    assert written("one\n\ntwo").endswith("    compare: |-\n      one\n\n      two\n")
    assert written("one \ntwo").endswith('    compare: "one \\ntwo"\n')


@pytest.mark.parametrize("name", list(shipped_constitutions()))
def test_shipped_constitutions_survive_writing(name: str) -> None:
    constitution = load_constitution(name)
    written = constitution_yaml(constitution)
    assert Constitution.model_validate(parse_yaml(written, "x").data) == constitution
    assert max(map(len, written.splitlines())) <= 120
    assert '"' not in written.replace('\\"', "").split("compare")[0], "plain where it can be"
