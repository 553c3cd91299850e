"""Prompts out of rows of every form, what is odd about them counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlaif.data.prompts import InputIssues, prompt_id, read_prompts
from rlaif.errors import UserError
from rlaif.records import GivenResponse, Prompt

USER, SYSTEM, BOT = "user", "system", "assistant"


def lines(folder: Path, *rows: object, name: str = "p.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def connection(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def shape(prompt: Prompt) -> tuple[list[tuple[str, str]], list[str]]:
    return [(turn.role, turn.content) for turn in prompt.messages], [given.text for given in prompt.responses]


HH = {"chosen": "\n\nHuman: a: b\n\nc\n\nAssistant: d\n\nHuman: e\n\nAssistant: good",
      "rejected": "\n\nHuman: a: b\n\nc\n\nAssistant: d\n\nHuman: e\n\nAssistant: bad"}  # fmt: skip


@pytest.mark.parametrize(
    ("row", "messages", "responses"),
    [
        ("hi", [(USER, "hi")], []),
        (connection((USER, "hi")), [(USER, "hi")], []),
        ({"prompt": "hi", "x": 1}, [(USER, "hi")], []),
        ({"prompt": " indented\n"}, [(USER, " indented\n")], []),
        ({"prompt": connection((SYSTEM, "s"), (USER, "hi"))}, [(SYSTEM, "s"), (USER, "hi")], []),
        ({"prompt": "hi", "system": "Be brief."}, [(SYSTEM, "Be brief."), (USER, "hi")], []),
        ({"prompt": "hi", "system_prompt": " "}, [(USER, "hi")], []),
        ({"prompt": connection((SYSTEM, "s"), (USER, "hi")), "system": "t"}, [(SYSTEM, "s"), (USER, "hi")], []),
        ({"conversations": [{"from": "Human", "value": "hi"}, {"from": "bot", "value": "ho"}]}, [(USER, "hi")], ["ho"]),
        ({"prompt": "\n\nHuman: hi\n\nAssistant: ho\n\nHuman: so?\n\nAssistant:"},
         [(USER, "hi"), (BOT, "ho"), (USER, "so?")], []),
        ({"prompt": "\n\nHuman: hi"}, [(USER, "hi")], []),
        ({"prompt": "Why does `Note: x` print\n\nHuman: is it a bug?"},
         [(USER, "Why does `Note: x` print\n\nHuman: is it a bug?")], []),
        ({"messages": connection((USER, "hi"))}, [(USER, "hi")], []),
        ({"messages": connection((USER, "hi"), (BOT, "ho"))}, [(USER, "hi")], ["ho"]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]},
         [(USER, "hi")], []),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}, [(USER, "hi")], ["ho"]),
        (HH, [(USER, "a: b\n\nc"), (BOT, "d"), (USER, "e")], ["good", "bad"]),
        ({"prompt": "hi", "chosen": "good", "rejected": "bad"}, [(USER, "hi")], ["good", "bad"]),
        ({"prompt": "hi", "chosen": connection((USER, "hi"), (BOT, "good")), "rejected": connection((BOT, "bad"))},
         [(USER, "hi")], ["good", "bad"]),
        ({"chosen": connection((USER, "hi"), (BOT, "good")), "rejected": connection((USER, "hi"), (BOT, "bad"))},
         [(USER, "hi")], ["good", "bad"]),
    ],
)  # fmt: skip
def test_known_forms(tmp_path: Path, row: object, messages: list[object], responses: list[str]) -> None:
    odd = InputIssues()
    path = lines(tmp_path, row)
    (prompt,) = read_prompts(path, input_issues=odd)
    assert shape(prompt) == (messages, responses)
    assert prompt.source == f"{path}:1"
    assert (odd.rows, odd.prompts, str(odd)) == (1, 1, "")


def test_the_id_is_of_roles_and_contents_alone(tmp_path: Path) -> None:
    (plain,) = read_prompts(lines(tmp_path, {"prompt": "hi"}))
    (listed,) = read_prompts(
        lines(tmp_path, {"messages": [{"content": "hi", "role": "user", "weight": 1}]}, name="b.jsonl")
    )
    assert plain.id == listed.id == prompt_id(plain.messages)
    # sha256 of '[[{"content":"hi","role":"user"}]]', worked out with sha256sum
    assert plain.id == "8a3a7f1e5d1503b3cfb39c8a5e001e6c"


@pytest.mark.parametrize(
    ("column", "responses", "row", "expected"),
    [
        ("q", None, {"q": "hi", "prompt": "no"}, ([(USER, "hi")], [])),
        ("a.q", None, {"a": {"q": "hi"}}, ([(USER, "hi")], [])),
        ("a.q", None, {"a.q": "hi", "a": {"q": "no"}}, ([(USER, "hi")], [])),
        ("chosen", None, HH, ([(USER, "a: b\n\nc"), (BOT, "d"), (USER, "e")], ["good"])),
        (None, "answers", {"prompt": "hi", "answers": ["x", " y "]}, ([(USER, "hi")], ["x", "y"])),
        (None, "answer", {"prompt": "hi", "answer": "x"}, ([(USER, "hi")], ["x"])),
        (None, "a.b.c", {"prompt": "hi", "a": [{"b": {"c": "x"}}, {"b": {"c": "y"}}]}, ([(USER, "hi")], ["x", "y"])),
        (None, "answers", {"prompt": "hi", "answers": ["x\n\nHuman:"]}, ([(USER, "hi")], ["x"])),
        ("q", "chosen", {"q": "hi", "chosen": "x", "rejected": "y"}, ([(USER, "hi")], ["x"])),
        ("q", None, {"q": "hi", "chosen": "x", "rejected": "y"}, ([(USER, "hi")], ["x", "y"])),
    ],
)
def test_columns_by_name(tmp_path: Path, column: str, responses: str, row: object, expected: object) -> None:
    (prompt,) = read_prompts(lines(tmp_path, row), column=column, responses=responses)
    assert shape(prompt) == expected


def test_revisions_point_to_what_they_revise(tmp_path: Path) -> None:
    given = [
        {"text": " "},
        {"text": "draft"},
        {"text": "better", "revision_of": 1},
        {"text": "of a blank", "revision_of": 0},
    ]
    odd = InputIssues()
    (prompt,) = read_prompts(lines(tmp_path, {"prompt": "hi", "r": given}), responses="r", input_issues=odd)
    assert prompt.responses == (
        GivenResponse(text="draft"),
        GivenResponse(text="better", revision_of=0),
        GivenResponse(text="of a blank"),
    )
    assert odd.counts == {
        "blank given response (left out)": 1,
        "revision of an answer that is not there (kept as an answer)": 1,
    }


ODD_ROWS: list[tuple[object, str]] = [
    ({"prompt": ""}, "blank prompt"),
    ({"prompt": " \n"}, "blank prompt"),
    ({"prompt": None}, "blank prompt"),
    ({"prompt": []}, "blank prompt"),
    ({"prompt": 3}, "prompt that is not text"),
    ({"prompt": {"a": 1}}, "prompt that is not text"),
    ({"prompt": "half \ud83d"}, "text with half a surrogate pair"),
    ({"other": 3}, "row without one `prompt`"),
    (3, "row without one `prompt`"),
    ({"prompt": connection((USER, "hi"), (BOT, "ho"))}, "prompt that ends in an assistant turn"),
    ({"prompt": "\n\nHuman: hi\n\nAssistant: ho"}, "prompt that ends in an assistant turn"),
    ({"prompt": connection((USER, "hi"), (SYSTEM, "ho"))}, "prompt that ends in a turn of the system"),
    ({"prompt": ["hi"]}, "message that is not an object"),
    ({"prompt": connection(("critic", "hi"))}, "message with a role that is not system, user or assistant"),
    ({"prompt": connection(("tool", "hi"))}, "message that calls a tool, or is what one answered"),
    ({"prompt": [{"role": "user", "content": 3}]}, "message that is not text"),
    ({"prompt": [{"role": ["user"], "content": "x"}]}, "message with a role that is not system, user or assistant"),
    ({"prompt": "ok"}, "repeated prompt"),
]


@pytest.mark.parametrize(("row", "kind"), ODD_ROWS)
def test_odd_rows_are_skipped_and_counted(tmp_path: Path, row: object, kind: str) -> None:
    odd = InputIssues()
    path = lines(tmp_path, {"prompt": "ok"}, row, row, {"prompt": "fine"})
    assert [shape(prompt)[0][0][1] for prompt in read_prompts(path, input_issues=odd)] == ["ok", "fine"]
    assert (odd.counts, odd.first_lines) == ({kind: 2}, {kind: 2})
    assert (odd.rows, odd.prompts) == (4, 2)
    assert str(odd) == f"2 x {kind} (first on line 2)"


def test_only_odd_rows_are_an_error(tmp_path: Path) -> None:
    path = lines(tmp_path, {"prompt": ""}, {"prompt": 3})
    with pytest.raises(UserError) as caught:
        list(read_prompts(path))
    assert str(caught.value) == (
        f"{path}: no row holds a usable prompt: 1 x blank prompt (first on line 1), "
        "1 x prompt that is not text (first on line 2)"
    )


@pytest.mark.parametrize(
    ("chosen", "rejected", "responses", "kind"),
    [
        (" b\n\nHuman: c\n\nAssistant: d", " x", ["x"], "answer that is more than one turn (left out)"),
        (" x", " b\n\nAssistant: c", ["x"], "answer that is more than one turn (left out)"),
        (" ", " x", ["x"], "blank given response (left out)"),
    ],
)  # fmt: skip
def test_dialogues_that_part_early(tmp_path: Path, chosen: str, rejected: str, responses: list[str], kind: str) -> None:
    odd, start = InputIssues(), "\n\nHuman: a\n\nAssistant:"
    row = {"chosen": start + chosen, "rejected": start + rejected}
    (prompt,) = read_prompts(lines(tmp_path, row), input_issues=odd)
    assert shape(prompt) == ([(USER, "a")], responses)
    assert odd.counts == {kind: 1}


@pytest.mark.parametrize(
    ("row", "responses", "kind"),
    [
        ({"prompt": "hi", "chosen": None, "rejected": "bad"}, ["bad"], "given response that is not text (left out)"),
        ({"prompt": "hi", "chosen": [], "rejected": "bad"}, ["bad"], "given response that is not text (left out)"),
        ({"prompt": "hi", "chosen": "\ud83d", "rejected": "b"}, ["b"], "given response that is not text (left out)"),
        ({"prompt": "hi", "chosen": connection((USER, "hey"), (BOT, "good")), "rejected": "bad"}, ["bad"],
         "answer whose dialogue is not the prompt's (left out)"),
    ],
)  # fmt: skip
def test_an_odd_answer_does_not_cost_the_prompt(tmp_path: Path, row: object, responses: list[str], kind: str) -> None:
    odd = InputIssues()
    (prompt,) = read_prompts(lines(tmp_path, row), input_issues=odd)
    assert shape(prompt) == ([(USER, "hi")], responses)
    assert odd.counts == {kind: 1}


def test_dialogues_that_share_nothing_are_odd(tmp_path: Path) -> None:
    odd = InputIssues()
    other = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: z\n\nAssistant: b"}
    assert len(list(read_prompts(lines(tmp_path, HH, other), input_issues=odd))) == 1
    assert odd.counts == {"pair of dialogues that share no prompt": 1}


def test_equal_dialogues_give_two_equal_answers(tmp_path: Path) -> None:
    (prompt,) = read_prompts(lines(tmp_path, {"chosen": HH["chosen"], "rejected": HH["chosen"]}))
    assert shape(prompt)[1] == ["good", "good"]


def test_a_speaker_twice_in_a_row_is_joined_and_counted(tmp_path: Path) -> None:
    odd = InputIssues()
    (prompt,) = read_prompts(lines(tmp_path, {"prompt": "\n\nHuman: a\n\nHuman: b\n\nAssistant:"}), input_issues=odd)
    assert shape(prompt)[0] == [(USER, "a\n\nb")]
    assert list(odd.counts) == ["prompt with one speaker twice in a row (turns joined)"]


@pytest.mark.parametrize(
    ("row", "column", "responses", "fragment"),
    [
        ({"question": "hi", "x": 1}, None, None,
         "no column `prompt`, `messages`, or `chosen` with `rejected`; columns: question, x; "
         "name yours: prompts: {path: ..., column: question}"),
        ({"question": "hi"}, "qestion", None, "no column `qestion`; did you mean `question`? columns: question"),
        ({"prompt": "hi", "b": []}, None, "answers.text", "no column `answers.text`; "),
        ("hi", "prompt", None, "no column `prompt`: the rows are not objects"),
        (3, None, None, "a row must be a text, a list of messages or an object, got 3"),
    ],
)  # fmt: skip
def test_unknown_forms_stop(tmp_path: Path, row: object, column: str, responses: str, fragment: str) -> None:
    path = lines(tmp_path, row)
    with pytest.raises(UserError) as caught:
        list(read_prompts(path, column=column, responses=responses))
    assert f"{path}:1: {fragment}" in str(caught.value)


def test_text_and_csv_files(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\n\ntwo\none\n", encoding="utf-8")
    odd = InputIssues()
    found = list(read_prompts(tmp_path / "p.txt", input_issues=odd))
    assert [(shape(prompt)[0][0][1], prompt.source[-2:]) for prompt in found] == [("one", ":1"), ("two", ":3")]
    assert odd.counts == {"blank prompt": 1, "repeated prompt": 1}
    (tmp_path / "p.csv").write_text('prompt,x\n"a, b",1\n', encoding="utf-8")
    assert [shape(prompt)[0] for prompt in read_prompts(tmp_path / "p.csv")] == [[(USER, "a, b")]]


def test_the_limit_stops_reading(tmp_path: Path) -> None:
    path = lines(tmp_path, "a", "a", "b", "c")
    path.write_text(path.read_text() + "broken", encoding="utf-8")
    odd = InputIssues()
    assert len(list(read_prompts(path, limit=2, input_issues=odd))) == 2
    assert (odd.rows, odd.prompts) == (3, 2)


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    reading: Iterator[Prompt] = read_prompts(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="no such file"):
        next(reading)
