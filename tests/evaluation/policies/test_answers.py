"""Answers from files, joined by what the prompt says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.schemas import PolicySettings
from rlaif.data.prompts import prompt_id
from rlaif.errors import UserError
from rlaif.evaluation.policy_responses import GivenAnswer, read_answers, require_known
from rlaif.evaluation.reward_scores import Given, given_pool
from rlaif.feedback.sampling import sampling_of
from rlaif.records import Message, Prompt, Sample, content_id

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


def drawn(text: str, index: int = 0, **more: Any) -> dict[str, Any]:
    """A sample as a run of these settings draws it."""
    policy = PolicySettings(model="m", **more)
    sample = Sample(id=content_id(text), prompt=HOW, index=index, text=text, policy="m@1",
                    sampling=sampling_of(policy, HOW, index))  # fmt: skip
    return sample.model_dump(mode="json")


def test_a_run_folder_holds_the_answers_of_its_own_settings(tmp_path: Path) -> None:
    """Those of earlier settings stay in the table: another temperature, another seed, more samples."""
    old = [drawn(f"warm {at}", at, temperature=1.5) for at in range(4)]
    old += [drawn(f"other {at}", at, temperature=0.1, seed=7) for at in range(2)]
    own = [drawn(f"cold {at}", at, temperature=0.1) for at in range(3)]
    path = written(tmp_path / "samples.jsonl", *old, *own)
    run = {"constitution": "demo", "prompts": "p.jsonl", "judge": {"model": "j"}, "output": str(tmp_path)}
    policy = {"model": "m", "temperature": 0.1, "samples": 2}
    (tmp_path / "run.yaml").write_text(json.dumps(run | {"policy": policy}))
    assert read_answers(path) == {HOW: [GivenAnswer("cold 0"), GivenAnswer("cold 1")]}
    written(tmp_path / "prompts.jsonl", Prompt(id=HOW, messages=(Message(role="user", content="How?"),), source="p")
            .model_dump(mode="json"))  # fmt: skip
    (both,) = given_pool(Given(str(tmp_path))).answers
    assert [sample.text for sample in both.samples] == ["cold 0", "cold 1"]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([drawn("a", 0, temperature=1.5), drawn("b", 1, temperature=0.1)], "2 settings (temperatures 0.1, 1.5)"),
        ([drawn("a", 0, seed=1), drawn("b", 0, seed=2)], "several answers to one prompt with one number"),
    ],
)
def test_answers_of_several_settings_are_no_sample(rows: list[dict[str, Any]], told: str, tmp_path: Path) -> None:
    """Where nothing says which of them are meant."""
    path = written(tmp_path / "samples.jsonl", *rows)
    with pytest.raises(UserError, match=re.escape(told)):
        read_answers(path)


def test_revisions_are_no_draws(tmp_path: Path) -> None:
    prompt = Prompt(id=HOW, messages=(Message(role="user", content="How?"),), source="p")
    written(tmp_path / "prompts.jsonl", prompt.model_dump(mode="json"))
    revised = Sample(id="2" * 32, prompt=HOW, index=1, text="revised", policy="m@1", revision_of="1" * 32)
    written(tmp_path / "samples.jsonl", drawn("a"), revised.model_dump(mode="json"))
    (found,) = given_pool(Given(str(tmp_path))).answers
    assert [sample.text for sample in found.samples] == ["a"]


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
