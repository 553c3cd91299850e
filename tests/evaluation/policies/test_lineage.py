"""What a policy's folder tells of how it was made, and the warnings that come of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlaif.data.prompts import prompt_id
from rlaif.evaluation.provenance import Lineage, lineage_of, same_model, trained_prompts
from rlaif.records import Message


def training(folder: Path, **settings: object) -> Path:
    folder.mkdir(parents=True)
    begun = {"method": "dpo", "settings": settings, "data_hash": "-", "model_hash": "-"}
    (folder / "train.json").write_text(json.dumps(begun))
    return folder


def test_judges_data_and_bases_through_the_chain(tmp_path: Path) -> None:
    pairs = tmp_path / "run" / "pairs.jsonl"
    pairs.parent.mkdir()
    pairs.write_text(json.dumps({"prompt": "How?", "chosen": "a", "rejected": "b", "judge": "big@12345678"}) + "\n")
    first = training(tmp_path / "dpo", model="org/base-1b", data=str(pairs.parent))
    reward = training(tmp_path / "rm", model="org/base-1b", data=str(pairs))
    second = training(
        tmp_path / "ppo", model=str(first), prompts="gone.jsonl", reward=f"judge*0.5,{reward}", judge={"model": "small"}
    )
    assert lineage_of(str(first)) == Lineage(frozenset({"big@12345678"}), (pairs,), ("org/base-1b",))
    assert lineage_of(str(second)) == Lineage(
        frozenset({"small", "big@12345678"}), (pairs,), (str(first), "org/base-1b")
    )
    assert trained_prompts(lineage_of(str(second))) == {prompt_id((Message(role="user", content="How?"),))}


def test_a_card_tells_where_the_data_are_gone(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "---\nbase_model: org/base-1b\n---\n\n| | |\n|---|---|\n| judge | `demo-judge@2b4638a0` |\n| judges | `no` |\n"
    )
    assert lineage_of(str(tmp_path)) == Lineage(frozenset({"demo-judge@2b4638a0"}), (), ("org/base-1b",))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"settings": 3}'])
def test_a_folder_that_tells_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "train.json").write_text(text)
    assert lineage_of(str(tmp_path)) == Lineage()
    assert lineage_of("no-such-model") == Lineage()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("demo-judge@2b4638a0", "demo-judge", True),
        ("/models/Judge-8B/", "org/judge-8b@12345678", True),
        ("judge@11111111", "judge@22222222", False),
        ("judge", "judge-large", False),
        ('judge@11111111 {"path":"a/b@c"}', "org/judge", True),
    ],
)
def test_which_names_mean_one_model(one: str, other: str, same: bool) -> None:
    assert same_model(one, other) is same_model(other, one) is same
