"""Responses that were cut off, and thoughts of the judge: neither is learned."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlaif.config.schemas import CompareSettings, PairSettings
from rlaif.feedback.aggregate import Comparison, Status
from rlaif.feedback.ranking import Provenance, pairs, rank_samples
from rlaif.feedback.revision_checks import spoken
from rlaif.records import Message, PreferencePair, Prompt, Sample
from rlaif.training.dataset import demonstrations, judged
from rlaif.training.dataset import pairs as training_pairs
from rlaif.training.examples import RowCounts
from tests.data.made import write_jsonl

PROMPT = Prompt(id="p", messages=(Message(role="user", content="Why is the sky blue?"),), source="here:1")


def made(cut: str, **settings: str) -> list[PreferencePair]:
    """The pair of two samples of which `left` is better, and those named in `cut` were cut off."""
    samples = [
        Sample(id=name, prompt="p", index=at, text=f"It is {name}", policy="m",
               finish_reason="length" if name in cut else "stop")
        for at, name in enumerate(("left", "right"))
    ]  # fmt: skip
    standing = rank_samples(PROMPT, samples, [Comparison("left", "right", Status.LABELLED, logit=2.0)])
    return pairs(standing, PairSettings.model_validate(settings), CompareSettings(), Provenance("j", "c"))


@pytest.mark.case("22-cut-off-answer-wins")
def test_a_cut_off_response_is_never_chosen_over_a_whole_one() -> None:
    assert made("left") == []
    assert [(each.chosen_truncated, each.rejected_truncated) for each in made("right")] == [(False, True)]
    assert [(each.chosen_truncated, each.rejected_truncated) for each in made("left right")] == [(True, True)]
    assert [each.chosen_truncated for each in made("left", truncated="any")] == [True]
    assert [each.chosen_truncated for each in made("")] == [False]


@pytest.mark.case("22-cut-off-answer-wins")
def test_no_trainer_learns_where_a_cut_off_response_stops(tmp_path: Path) -> None:
    row = {"prompt": "Say:", "chosen": " yes", "rejected": " no"}
    rows = [
        row,
        row | {"chosen": " ye", "chosen_truncated": True},
        row | {"rejected": " n", "rejected_truncated": True},
    ]
    path = write_jsonl(tmp_path / "pairs.jsonl", rows)
    for reader, texts, left_out in ((training_pairs, 2, 2), (judged, 2, 2), (demonstrations, 1, 1)):
        row_counts = RowCounts()
        found = [text for example in reader(path, "auto", row_counts) for text in example.completions]
        assert len(found) == texts and set(found) <= {" yes", " no"}
        assert row_counts.left_out["cut-off"] == left_out


@pytest.mark.sibling("cut-off-response-under-a-flipped-label")
def test_a_label_that_turns_a_pair_turns_what_was_cut_off_with_it(tmp_path: Path) -> None:
    row = {"prompt": "Say:", "chosen": " yes", "rejected": " n", "rejected_truncated": True, "probability": 0.2}
    other = {"prompt": "Ask:", "chosen": " ye", "rejected": " no", "chosen_truncated": True, "probability": 0.2}
    path = write_jsonl(tmp_path / "pairs.jsonl", [row, other])
    for reader, texts in ((judged, {" yes", " no"}), (demonstrations, {" no"})):
        row_counts = RowCounts()
        assert {text for example in reader(path, "auto", row_counts) for text in example.completions} == texts


@pytest.mark.sibling("demonstration-that-says-it-was-cut")
def test_a_demonstration_with_its_finish_reason(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Say:", "completion": " yes", "finish_reason": "stop"},
        {"prompt": "Say:", "completion": " ye", "finish_reason": "length"},
    ]
    row_counts = RowCounts()
    assert len(list(demonstrations(write_jsonl(tmp_path / "sft.jsonl", rows), "auto", row_counts))) == 1
    assert row_counts.left_out == {"cut-off": 1}


@pytest.mark.case("21-thinking-in-a-revision")
@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("<think>The user wants it kinder.</think>\n\nI am glad to help.", "I am glad to help."),
        ("The user wants it kinder.</think>I am glad to help.", "I am glad to help."),
        ("<think>The user wants", ""),
        ("[THINK]kinder[/THINK]I am glad to help.", "I am glad to help."),
        ("I am glad to help.", "I am glad to help."),
    ],
)
def test_thoughts_are_no_part_of_a_revision(text: str, reply: str) -> None:
    assert spoken(text) == reply
