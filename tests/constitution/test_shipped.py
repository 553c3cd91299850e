"""The shipped constitutions keep to what the judge templates expect of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlaif.constitution import Constitution, Principle, constitution_problems, load_constitution, shipped_constitutions
from rlaif.data.prompts import read_prompts
from rlaif.feedback.prompts import compare_messages
from rlaif.records import Message

NAMES = list(shipped_constitutions())
PRINCIPLES = [pytest.param(principle, id=f"{name}-{principle.id}") for name in NAMES
              for principle in load_constitution(name).principles]  # fmt: skip


def test_there_are_some() -> None:
    assert len(NAMES) >= 3
    assert len(PRINCIPLES) >= 27


@pytest.mark.parametrize("name", NAMES)
def test_each_is_sound_and_says_what_it_is_for(name: str) -> None:
    assert constitution_problems(name) == []
    constitution: Constitution = load_constitution(name)
    assert constitution.name == name
    assert constitution.description
    assert shipped_constitutions()[name].read_text(encoding="utf-8").splitlines()[1].startswith("# "), (
        "a comment says what it is for"
    )


@pytest.mark.parametrize("principle", PRINCIPLES)
def test_the_comparing_question_fits_the_template(principle: Principle) -> None:
    assert re.match(r"(If [^?]*, w|W)hich reply [^?]+\?", principle.compare), "is a complete question"
    assert principle.compare[-1] in ".?"
    assert not re.search(r"\b[AB]\b|\bfirst reply\b|\bsecond reply\b", principle.compare), "names a slot"
    assert not re.search(
        r"\b(do(es)? not|n't|never|without)\b.*\b(not|n't|never|un\w+)\b", principle.compare.split("?")[0]
    )
    prompt = (Message(role="user", content="Hello"),)
    (asked,) = compare_messages(prompt, "one", "two", principle.compare)
    assert f"{principle.compare}\nAnswer A or B." in asked.content


@pytest.mark.parametrize("principle", PRINCIPLES)
def test_it_can_also_critique_and_revise(principle: Principle) -> None:
    assert principle.critique
    assert principle.revise
    assert principle.examples


def test_the_everyday_prompts_are_read_whole() -> None:
    path = Path(__file__).resolve().parents[2] / "prompts" / "policy" / "everyday.jsonl"
    prompts = list(read_prompts(path))
    assert len(prompts) == len(path.read_text(encoding="utf-8").splitlines()) == 42
