"""Answers from files, joined by what the prompt says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlaif.errors import UserError
from rlaif.evaluation.policies.answers import GivenAnswer, read_answers, require_known
from rlaif.records import Message, Sample
from rlaif.samples.inputs import prompt_id

HOW, WHY = (prompt_id((Message(role="user", content=text),)) for text in ("How?", "Why?"))


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "How?", "response": "So."},
        {"prompt": "How?", "completion": [{"role": "assistant", "content": "So."}]},
        {"prompt": [{"role": "user", "content": "How?"}], "responses": ["So."]},
        {"prompt": "How?", "responses": [{"text": "So."}]},
        {"instruction": "How?", "output": "So.", "generator": "x"},
        {"messages": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]},
    ],
)
def test_forms(tmp_path: Path, row: dict[str, Any]) -> None:
    assert read_answers(written(tmp_path / "a.jsonl", row)) == {HOW: [GivenAnswer("So.")]}


def test_rows_of_one_prompt_come_together_and_blanks_are_answers(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.jsonl",
        {"prompt": "How?", "response": "So."},
        {"prompt": "Why?", "response": ""},
        {"prompt": "How?", "response": None},
        {"prompt": "How?", "response": "Thus."},
        {"prompt": None, "response": "to nothing"},
    )
    assert read_answers(path) == {
        HOW: [GivenAnswer("So."), None, GivenAnswer("Thus.")],
        WHY: [GivenAnswer("")],
    }


def test_samples_of_a_run(tmp_path: Path) -> None:
    samples = [
        Sample(id="0" * 32, prompt=HOW, index=2, text="third", policy="m", finish_reason="length"),
        Sample(id="1" * 32, prompt=HOW, index=0, text="first", policy="m"),
        Sample(id="2" * 32, prompt=HOW, index=1, text="revised", policy="m", revision_of="1" * 32),
    ]
    path = written(tmp_path / "samples.jsonl", *(each.model_dump(mode="json") for each in samples))
    assert read_answers(path) == {HOW: [GivenAnswer("first"), None, GivenAnswer("third", "length")]}
    other = samples[1].model_copy(update={"policy": "n"}).model_dump(mode="json")
    written(path, samples[0].model_dump(mode="json"), other)
    with pytest.raises(UserError, match="answers of 2 policies"):
        read_answers(path)


def test_mistakes(tmp_path: Path) -> None:
    for row, what in (
        ({"prompt": "How?"}, r"no answers that can be recognised \(columns: prompt\)"),
        ({"prompt": "How?", "response": None}, "no row holds a prompt with an answer"),
    ):
        with pytest.raises(UserError, match=what):
            read_answers(written(tmp_path / "a.jsonl", row))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="the file is empty"):
        read_answers(tmp_path / "empty.jsonl")
    with pytest.raises(UserError, match="answers none of the 1 prompts"):
        require_known({HOW: [GivenAnswer("So.")]}, [WHY], tmp_path)
