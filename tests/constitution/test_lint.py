"""Planted mistakes: each is found on its line, in these words, and sound constitutions are left in peace."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlaif.constitution import shipped_constitutions
from rlaif.constitution.lint import Finding, asks_about_one, double_negative, lint_constitution, names_a_slot
from rlaif.constitution.write import STARTER

GOOD = """\
name: care
principles:
  - id: kind
    compare: Which reply is kinder?
    critique: Quote what is unkind in this reply.
    revise: Rewrite the reply in kinder words.
    examples:
      - prompt: Hello
        better: Hello, nice to see you.
        worse: What now?
      - prompt: Bye
        better: See you soon.
        worse: At last.
  - id: brief
    compare: Which reply comes to the point sooner?
    critique: Mark the words that could go.
    revise: Rewrite the reply with its filler gone.
    weight: 0.5
    tags: [form]
    examples:
      - prompt: Which day is it?
        better: Friday.
        worse: As everyone knows, it is Friday.
"""
KINDER = "compare: Which reply is kinder?"
SOONER = "compare: Which reply comes to the point sooner?"
UNKIND = "critique: Quote what is unkind in this reply."
KIND_WORDS = "revise: Rewrite the reply in kinder words."


def lint(folder: Path, text: str) -> list[Finding]:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return lint_constitution(path)


def swap(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


PLANTED = [
    # errors
    ("name: care\n", "", "error", "format", 1, "`name` is missing"),
    ("compare: Which reply is k", "comapre: Which reply is k", "error", "format", 4, "did you mean `compare`?"),
    (KINDER, "compare: ''", "error", "format", 4, "`principles[kind].compare` is empty"),
    ("id: brief", "id: kind", "error", "format", 14, "the id `kind` is taken by principle 1"),
    ("id: brief", "id: Too Brief", "error", "format", 14, "did you mean `too-brief`?"),
    ("weight: 0.5", "weight: -2", "error", "format", 18, "must be greater than 0"),
    ("weight: 0.5", "weight: heavy", "error", "format", 18, "must be a number, got 'heavy'"),
    ("tags: [form]", "tags: form", "error", "format", 19, "must be a list, got 'form'"),
    ("worse: At last.", "worse: See you soon.", "error", "format", 13, "`better` and `worse` are the same text"),
    (KINDER, "compare: Which reply: the kinder?", "error", "unreadable", 4, "must stand in quotes"),
    # slots
    (KINDER, "compare: Which is kinder, response A?", "warning", "slot", 4, "“response A”"),
    (KINDER, "compare: Which is kinder, is it reply (B)?", "warning", "slot", 4, "“reply (B)”"),
    (KINDER, "compare: Which is kinder, A or B?", "warning", "slot", 4, "“A or B”"),
    (KINDER, "compare: 'Which is kinder, (A) or the other, (B)?'", "warning", "slot", 4, "“(A)”"),
    (KINDER, "compare: Prefer the first reply if it is kinder.", "warning", "slot", 4, "“the first reply”"),
    (SOONER, "compare: Which is sooner done, or is it option 2?", "warning", "slot", 15, "“option 2”"),
    (SOONER, "compare: Is the second one better to read?", "warning", "slot", 15, "“Is the second one”"),
    (UNKIND, "critique: Quote what is unkind in Answer B.", "warning", "slot", 5, "asked about one reply alone"),
    # slots of other templates
    (KINDER, "compare: '{question} Which reply is kinder?'", "warning", "template-slot", 4, "holds {question}"),
    (KIND_WORDS, "revise: 'Rewrite {{ first }} in kinder words.'", "warning", "template-slot", 6, "holds {{ first }}"),
    # double negatives
    (KINDER, "compare: Which reply is not unhelpful?", "warning", "double-negative", 4, "“not unhelpful”"),
    (KINDER, "compare: Which reply does not fail to avoid harm?", "warning", "double-negative", 4, "“not fail”"),
    (KIND_WORDS, "revise: Rewrite it without no insult.", "warning", "double-negative", 6, "“without no”"),
    (UNKIND, "critique: Say where it isn't without risk.", "warning", "double-negative", 5, "“isn't without”"),
    (SOONER, "compare: Which reply never gives no answer?", "warning", "double-negative", 15, "“never gives no”"),
    (KIND_WORDS, "revise: Mend where it neglects to avoid insults.", "warning", "double-negative", 6, "“neglects to"),
    (KIND_WORDS, "revise: Avoid never greeting the person.", "warning", "double-negative", 6, "“Avoid never”"),
    # questions about one reply
    (KINDER, "compare: Is the reply kind?", "warning", "one-reply", 4, "(“Is the reply kind”)"),
    (SOONER, "compare: Does it come to the point more than usual?", "warning", "one-reply", 15, "asks about one reply"),
    (SOONER, "compare: 'If the question is short, should the reply be so?'", "warning", "one-reply", 15, "one reply"),
    (KINDER, "compare: How kind is the reply?", "warning", "one-reply", 4, "not which of two is better"),
    (KINDER, "compare: Be kind.", "warning", "one-reply", 4, "does not ask which of two replies is better"),
    # near-duplicates
    (SOONER, KINDER, "warning", "near-duplicate", 15, "asks the same as `kind` (line 4)"),
    (SOONER, "compare: 'Which of the replies is kinder, please?'", "warning", "near-duplicate", 15, "nearly the same"),
    # parts that others have
    ("    " + KIND_WORDS + "\n", "", "warning", "missing-part", 3, "no `revise` where another has: a run that revises"),
    ("    critique: Mark the words that could go.\n", "", "warning", "missing-part", 14, "no `critique` where another"),
    ("    critique: Mark the words that could go.\n    revise: Rewrite the reply with its filler gone.\n", "",
     "warning", "missing-part", 14, "no `critique` and no `revise`"),
    # weights
    ("weight: 0.5", "weight: 0.005", "warning", "weight", 18, "its weight 0.005 is 0.50% of the whole (1.005)"),
    ("weight: 0.5", "weight: 200", "warning", "weight", 3, "`kind` hardly ever counts: its weight 1"),
    # length
    (KINDER, "compare: Which reply is kinder? " + "Look closely. " * 60, "warning", "long", 4, "862 characters"),
    (UNKIND, "critique: " + "Quote it. " * 90, "warning", "long", 5, "899 characters"),
    ("worse: At last.", "worse: " + "x" * 12_001, "warning", "long", 13, "example 2 is so long that the judge"),
    # examples
    ("      - prompt: Bye\n        better: See you soon.\n        worse: At last.",
     "      - prompt: hello\n        better: What now?\n        worse: Hello, nice to see you.",
     "warning", "contradiction", 11, "contradicts example 1 of `kind` (line 8)"),
    ("      - prompt: Which day is it?\n        better: Friday.\n        worse: As everyone knows, it is Friday.",
     "      - prompt: Bye\n        better: At last.\n        worse: See you soon.",
     "warning", "contradiction", 21, "example 1 of `brief` contradicts example 2 of `kind` (line 11)"),
    ("      - prompt: Bye\n        better: See you soon.\n        worse: At last.",
     "      - prompt: Hello\n        better: Hello, nice to  see you.\n        worse: What now?",
     "warning", "duplicate-example", 11, "repeats example 1 (line 8)"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "level", "rule", "line", "words"), PLANTED)
def test_a_planted_mistake_is_found(
    tmp_path: Path, old: str, new: str, level: str, rule: str, line: int, words: str
) -> None:
    found = lint(tmp_path, swap(old, new))
    hits = [one for one in found if (one.level, one.rule, one.line) == (level, rule, line)]
    assert len(hits) == 1, [str(one) for one in found]
    assert words in f"{hits[0].message}; {hits[0].hint}"
    assert hits[0].file == str(tmp_path / "mine.yaml")
    if level == "warning":
        assert hits[0].hint, "says what to do"
        assert hits[0].principle == ("kind" if line < 14 else "brief")
        assert [one for one in found if one.rule != rule and one.rule != "slot"] == [], "and nothing else"


def test_the_table_has_every_rule() -> None:
    assert len(PLANTED) >= 30
    assert {rule for _, _, _, rule, _, _ in PLANTED} == {
        "format", "unreadable", "slot", "template-slot", "double-negative", "one-reply", "near-duplicate",
        "missing-part", "weight", "long", "contradiction", "duplicate-example",
    }  # fmt: skip


def test_a_sound_file_has_no_findings(tmp_path: Path) -> None:
    assert lint(tmp_path, GOOD) == []
    assert lint(tmp_path, STARTER) == []


@pytest.mark.parametrize("name", list(shipped_constitutions()))
def test_shipped_constitutions_have_no_findings(name: str) -> None:
    assert [str(one) for one in lint_constitution(name)] == []


def test_a_finding_reads_as_a_line(tmp_path: Path) -> None:
    (found,) = lint(tmp_path, swap("weight: 0.5", "weight: 0"))
    assert str(found).startswith(f"{tmp_path}/mine.yaml:18: error: `principles[brief].weight` must be greater than 0")
    assert (found.principle, found.level) == ("brief", "error")


def test_findings_come_by_line_and_an_error_hides_no_warning(tmp_path: Path) -> None:
    text = swap(KINDER, "compare: Is it kind?").replace("weight: 0.5", "weight: no")
    text += "  - id: safe\n    compare: Which reply is not unsafe?\n"
    found = lint(tmp_path, text)
    assert [(one.line, one.level, one.rule) for one in found] == [
        (4, "warning", "one-reply"), (18, "error", "format"),
        (24, "warning", "missing-part"), (25, "warning", "double-negative"),
    ]  # fmt: skip
    assert [one.principle for one in found] == ["kind", "brief", "safe", "safe"]


def test_what_cannot_be_read_is_one_error(tmp_path: Path) -> None:
    (found,) = lint_constitution(tmp_path / "none.yaml")
    assert str(found) == f"{tmp_path}/none.yaml: error: no such file"
    (unknown,) = lint_constitution("harmles")
    assert (unknown.file, unknown.line, unknown.rule) == ("harmles", None, "unreadable")
    assert "did you mean `harmless`?" in str(unknown)
    for text in ("", "- 1\n", "principles: 3\n", "name: x\nprinciples: [1, {id: 2}, null]\n"):
        assert {one.level for one in lint(tmp_path, text)} == {"error"}


def test_principles_that_only_compare_are_fine_together(tmp_path: Path) -> None:
    parts = ("critique:", "revise:")
    assert lint(tmp_path, "".join(line for line in GOOD.splitlines(True) if not line.strip().startswith(parts))) == []


def test_two_principles_may_share_an_example(tmp_path: Path) -> None:
    shared = "      - prompt: Hello\n        better: Hello, nice to see you.\n        worse: What now?\n"
    assert lint(tmp_path, GOOD + shared) == []


def test_a_frame_around_each_question_does_not_make_them_alike(tmp_path: Path) -> None:
    frame = "Which reply gives less ground for this reviewer's request? Point out every"
    texts = [f"{frame} {word} in it." for word in ("insult", "lie", "repetition", "crime", "lecture")]
    principles = "".join(f"  - id: p{at}\n    compare: {text}\n" for at, text in enumerate(texts))
    assert lint(tmp_path, f"name: x\nprinciples:\n{principles}") == []


@pytest.mark.parametrize(
    ("late", "alike"),
    [
        ("Which reply is calm, honest, brief and generous?", True),  # 4 of 5 words
        ("Which reply is calm, honest and brief?", False),  # 3 of 5
        ("Which reply is calm, honest, brief, witty and loyal?", False),  # 3 of 7
    ],
)
def test_how_much_alike_is_too_much(tmp_path: Path, late: str, alike: bool) -> None:
    early = "Which reply is calm, honest, brief, generous and humble?"
    text = f"name: x\nprinciples:\n  - id: a\n    compare: {early}\n  - id: b\n    compare: {late}\n"
    assert [one.rule for one in lint(tmp_path, text)] == ["near-duplicate"] * alike


@pytest.mark.parametrize(
    "text",
    [
        "Which reply gives the right answer to a question of two parts?",
        "Which reply would answer 2 questions at once?",
        "Which reply explains vitamin A and vitamin B better?",
        "Which reply is closer to the reply one would expect?",
        "Look at (A) tone, (B) facts and (C) length: which reply is better?",
        "Which reply gives the second half of the answer a better form?",
        "Which reply does first things first, and answers at once?",
        "Which reply would earn an A in school?",
    ],
)
def test_no_slot_is_seen_where_none_is_named(text: str) -> None:
    assert names_a_slot(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "Which reply does not only help but also never lies?",
        "Which reply says no kindly, and never blames?",
        "Which reply is not understood until the end?",
        "Which reply asks for nothing, never for passwords?",
        "Which reply has no insults and no threats?",
        "Which reply says that it is not sure, where it does not know?",
        "Does the reply fail to show a safe way instead?",
        "Which reply does not act without consent?",
        "Which reply helps, whether or not there is nothing to gain?",
        "Rewrite it without unnecessary words.",
        "Which reply is not united under one unique heading?",
    ],
)
def test_no_double_negative_is_seen_where_there_is_none(text: str) -> None:
    assert double_negative(text) is None


@pytest.mark.parametrize(
    "text",
    ["Which reply is kind? Is it also brief?", "Choose the kinder one. Does it help?", "Is one reply the better?"],
)
def test_a_choice_may_hold_a_question(text: str) -> None:
    assert asks_about_one(text) is None
