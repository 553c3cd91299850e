"""What changed between two constitutions."""

from __future__ import annotations

from typing import Any

import pytest

from rlaif.constitution import Constitution
from rlaif.constitution.diff import Kind, changes, words


def constitution(*principles: dict[str, Any]) -> Constitution:
    return Constitution.model_validate({"name": "c", "principles": principles})


def principle(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "compare": f"Which reply is more {name}?"} | more


A, B, C = (principle(name) for name in ("a", "b", "c"))
CASE = {"prompt": "Hi", "better": "Hello.", "worse": "What?"}


@pytest.mark.parametrize(
    ("new", "kinds"),
    [
        ([A, B, C], {}),
        ([A, B, C, principle("d")], {"d": [Kind.ADDED]}),
        ([A, C], {"b": [Kind.REMOVED]}),
        ([A, principle("b", compare="Which?"), C], {"b": [Kind.REWORDED]}),
        ([A, principle("b", critique="Find it."), C], {"b": [Kind.REWORDED]}),
        ([A, principle("b", weight=2), C], {"b": [Kind.REWEIGHTED]}),
        ([A, principle("b", tags=["x"]), C], {"b": [Kind.TAGS]}),
        ([A, principle("b", examples=[CASE]), C], {"b": [Kind.EXAMPLES]}),
        ([B, C, A], {"a": [Kind.MOVED]}),
        ([principle("z"), A, B, C], {"z": [Kind.ADDED]}),
        ([A, principle("new", compare=B["compare"]), C], {"new": [Kind.RENAMED]}),
        ([A, principle("new", compare=B["compare"], weight=3), C], {"new": [Kind.RENAMED, Kind.REWEIGHTED]}),
        ([A, principle("new"), C], {"new": [Kind.ADDED], "b": [Kind.REMOVED]}),
        ([A, principle("b", compare="W?", tags=["x"])], {"b": [Kind.REWORDED, Kind.TAGS], "c": [Kind.REMOVED]}),
    ],
)  # fmt: skip
def test_every_kind(new: list[dict[str, Any]], kinds: dict[str, list[str]]) -> None:
    found = changes(constitution(A, B, C), constitution(*new))
    assert {each.id: list(each.kinds) for each in found.principles} == kinds
    assert found.same == len(new) - sum(kinds != ["removed"] for kinds in kinds.values())
    silent = {"moved", "tags", "examples"}
    assert found.loud == {name for name, of in kinds.items() if not silent.issuperset(of)}


def test_what_is_told_with_a_change() -> None:
    old = constitution(A, principle("b", weight=1, tags=["x"], examples=[CASE], critique="Old?"))
    other = CASE | {"prompt": "Hey"}
    new = constitution(principle("a", revise="Fix it."), principle("b", weight=2, examples=[other], critique="New?"))
    first, second = changes(old, new).principles
    assert [tuple(each) for each in first.wordings] == [("revise", None, "Fix it.")]
    assert [tuple(each) for each in second.wordings] == [("critique", "Old?", "New?")]
    assert (second.weights, second.tags, second.examples) == ((1, 2), (("x",), ()), (1, 1))


def test_each_of_two_equal_principles_is_renamed_once() -> None:
    same = {"compare": "Which?"}
    old = constitution(principle("a", **same), principle("b", **same))
    new = constitution(principle("x", **same), principle("y", **same), principle("z", **same))
    found = changes(old, new)
    assert found.renamed == {"a": "x", "b": "y"}
    assert [each.kinds for each in found.principles][-1] == (Kind.ADDED,)


@pytest.mark.parametrize(
    ("old", "new", "marked"),
    [
        ("is kind?", "is kind?", "is kind?"),
        ("is more kind?", "is kinder?", "is [more kind]{kinder}?"),
        ("Which is kind", "Which is kind to her", "Which is kind {to her}"),
        ("Say it, please.", "Say it.", "Say it[, please]."),
        ("", "New.", "{New.}"),
    ],
)
def test_word_marks(old: str, new: str, marked: str) -> None:
    text = "".join(
        piece.new if piece.same else (piece.old and f"[{piece.old}]") + (piece.new and f"{{{piece.new}}}")
        for piece in words(old, new)
    )
    assert text.replace(" ]", "] ").replace(" }", "} ").strip() == marked


def test_both_texts_come_back_from_the_pieces() -> None:
    old, new = "Which reply is more polite, and warmer?", "Which of the replies is polite and warm to her?"
    pieces = list(words(old, new))
    assert "".join(piece.old for piece in pieces) == old
    assert "".join(piece.new for piece in pieces) == new
