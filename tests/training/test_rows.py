from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlaif.data.conversations import Turn, transcript, turns_of
from rlaif.data.publish import make_dataset
from rlaif.errors import UserError
from rlaif.feedback.ranking import write_parquet
from rlaif.records import Demonstration, Message, PreferencePair
from rlaif.store import write_records
from rlaif.training.dataset import demonstrations, judged, pairs
from rlaif.training.examples import Example, RowCounts
from tests.data.made import assistant, clean_rows, user, write_jsonl
from tests.support import DATA

HH = DATA / "hh-rlhf-harmless-base-test.jsonl.gz"
ASKED = Turn("user", "Hi?")
TALK = "\n\nHuman: Hi?\n\nAssistant:"

Reader = Callable[..., Iterator[Example]]


def one(reader: Reader, tmp_path: Path, row: Any, template: str = "auto") -> Example:
    """The first example of a file with one row."""
    return next(iter(reader(write_jsonl(tmp_path / "rows.jsonl", [row]), template)))


def pair(**more: Any) -> dict[str, Any]:
    return {"prompt": "Say:", "chosen": " yes", "rejected": " no", **more}


def record(number: int = 0, **more: Any) -> PreferencePair:
    """A pair as `rlaif generate` writes it."""
    return PreferencePair(
        **{
            "id": f"{number:032x}",
            "prompt": (Message(role="user", content=f"Question {number}?"),),
            "chosen": (Message(role="assistant", content=f"Good {number}."),),
            "rejected": (Message(role="assistant", content=f"Bad {number}."),),
            "probability": 0.8,
            "raw_probability": 0.8,
            "margin": 0.3,
            "flip": False,
            "hard": False,
            "strengths": (1.0, -1.0),
            "ranks": (1, 2),
            "principles": ("kind",),
            "prompt_id": "p",
            "chosen_id": "c",
            "rejected_id": "r",
            "judgements": (),
            "policies": ("x", "x"),
            "judge": "j",
            "constitution": "demo",
            **more,
        }
    )


SAID = {"role": "user", "content": "Hi?"}
SHAPES: dict[str, tuple[dict[str, Any], str | None]] = {
    "messages": ({"prompt": [SAID], "chosen": [assistant("Yes.")], "rejected": [assistant("No.")]}, None),
    "one message": ({"prompt": [SAID], "chosen": assistant("Yes."), "rejected": assistant("No.")}, None),
    "whole conversations": ({"chosen": [SAID, assistant("Yes.")], "rejected": [SAID, assistant("No.")]}, None),
    "prompt and whole conversations": (
        {"prompt": "Hi?", "chosen": [SAID, assistant("Yes.")], "rejected": [SAID, assistant("No.")]},
        None,
    ),
    "messages as JSON": (
        {"prompt": json.dumps([SAID]), "chosen": json.dumps([assistant("Yes.")]),
         "rejected": json.dumps([assistant("No.")])},
        None,
    ),
    "other roles": (
        {"chosen": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes."}],
         "rejected": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "No."}]},
        None,
    ),
    "rated": (
        {"instruction": "Hi?",
         "completions": [{"response": "No.", "overall_score": 1}, {"response": "Yes.", "overall_score": 9}]},
        None,
    ),
    "strings": ({"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}, "Hi?"),
    "dialogues": ({"chosen": f"{TALK} Yes.", "rejected": f"{TALK} No."}, TALK),
    "dialogue and replies": ({"prompt": TALK, "chosen": " Yes.", "rejected": " No."}, TALK),
    "dialogue and whole dialogues": ({"prompt": TALK, "chosen": f"{TALK} Yes.", "rejected": f"{TALK} No."}, TALK),
    "other names": ({"question": "Hi?", "response_chosen": "Yes.", "response_rejected": "No."}, "Hi?"),
}  # fmt: skip
"""Rows that all say the same, and their raw prompt where they are raw text by themselves."""


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_pairs(tmp_path: Path, name: str) -> None:
    row, raw = SHAPES[name]
    found = one(pairs, tmp_path, row)
    assert found.prompt == ((ASKED,) if raw is None else raw)
    assert [text.strip() for text in found.completions] == ["Yes.", "No."]
    assert (found.id, found.line, found.values) == ("rows.jsonl:1", 1, {"probability": 1.0})
    spoken = one(pairs, tmp_path, row, "chat")
    assert (spoken.prompt, [text.strip() for text in spoken.completions]) == ((ASKED,), ["Yes.", "No."])
    plain = one(pairs, tmp_path, row, "plain")
    assert plain.prompt == (TALK if raw is None else raw)
    if raw is None:
        assert plain.completions == (" Yes.", " No.")
    else:
        assert plain == found


def test_dialogues_stay_the_texts_that_they_were(tmp_path: Path) -> None:
    """Blanks and line breaks at the seams too; the reply holds a cue in the middle of a line."""
    first = "\n\nHuman:  One\n\nAssistant: Two \n\nHuman: Three\n\nAssistant:"
    row = {"chosen": f"{first}  He wrote: Assistant: no.\n", "rejected": f"{first} He left."}
    found = one(pairs, tmp_path, row)
    assert found.prompt == first
    assert found.completions == ("  He wrote: Assistant: no.\n", " He left.")


def test_a_transcript_reads_back() -> None:
    turns = (Turn("user", "One"), Turn("assistant", "Two"), Turn("user", "Three"))
    text = transcript(turns)
    assert text == "\n\nHuman: One\n\nAssistant: Two\n\nHuman: Three\n\nAssistant:"
    assert turns_of(text + " Four", "user", lambda _: None) == (*turns, Turn("assistant", "Four"))
    assert transcript((Turn("system", "Be kind."), ASKED)) == f"Be kind.{TALK}"


def test_our_own_pairs_from_a_run_folder(tmp_path: Path) -> None:
    """Their margin is no margin of rewards."""
    write_records(tmp_path / "pairs.jsonl", [record(0), record(1, probability=1.0)])
    found = list(pairs(tmp_path))
    assert [each.values for each in found] == [{"probability": 0.8}, {"probability": 1.0}]
    assert found[1] == Example(f"{1:032x}", (Turn("user", "Question 1?"),), ("Good 1.", "Bad 1."), found[1].values, 2)
    write_parquet(tmp_path / "pairs.jsonl", tmp_path / "pairs.parquet")
    assert list(pairs(tmp_path / "pairs.parquet")) == found
    (tmp_path / "pairs.jsonl").unlink()
    assert list(pairs(tmp_path)) == found


def test_an_exported_folder_gives_its_training_rows(tmp_path: Path) -> None:
    rows = clean_rows(40)
    make_dataset(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "trl", "trl", split=0.3)
    found = list(pairs(tmp_path / "trl"))
    assert 0 < len(found) < 40
    wanted = {row["chosen"][0]["content"]: row["probability"] for row in rows}
    assert all(each.values == {"probability": wanted[each.completions[0]]} for each in found)
    good = list(judged(tmp_path / "trl"))
    assert [each.values["label"] for each in good] == [1, 0] * len(found)


def test_numbers_of_a_pair(tmp_path: Path) -> None:
    assert one(pairs, tmp_path, pair(id="x7", probability=0.75)).values == {"probability": 0.75}
    assert one(pairs, tmp_path, pair(id="x7")).id == "x7"
    assert one(pairs, tmp_path, pair(id=7, margin=3)).values == {"probability": 1.0, "margin": 3.0}
    assert one(pairs, tmp_path, pair(margin=None, probability=None)).values == {"probability": 1.0}
    assert one(pairs, tmp_path, pair(probability=0)).values == {"probability": 0.0}
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [["prompt", "chosen", "rejected", "probability", "margin"], ["a", "b", "c", "0.5", ""]]
        )
    (found,) = pairs(path)
    assert found.values == {"probability": 0.5}


@pytest.mark.parametrize(
    ("name", "value"),
    [("probability", value) for value in (1.5, -0.1, "high", True, float("nan"), [1])]
    + [("margin", value) for value in ("wide", True, float("inf"))],
)
def test_numbers_that_are_none_stop_with_their_line(tmp_path: Path, name: str, value: Any) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [pair(**{name: 0.5}), pair(**{name: value})])
    with pytest.raises(UserError, match=rf"rows.jsonl:2: `{name}` is") as caught:
        list(pairs(path))
    assert "\n" not in str(caught.value)


def test_useless_rows_are_counted_by_reason_with_their_lines(tmp_path: Path) -> None:
    rows = [
        pair(), pair(chosen=" "), pair(chosen="same", rejected="same"), pair(chosen=None), pair(prompt=""), ["no"],
        pair(chosen="half \ud800"), pair(rejected=3), pair(rejected=" "),
        {"prompt": [user("a"), user("b")], "chosen": [assistant("c")], "rejected": [assistant("d")]},
    ]  # fmt: skip
    row_counts = RowCounts()
    assert len(list(pairs(write_jsonl(tmp_path / "rows.jsonl", rows), row_counts=row_counts))) == 1
    assert row_counts.rows == len(rows)
    assert row_counts.lines == {
        "empty-reply": [2, 9], "identical": [3], "missing": [4], "empty-prompt": [5], "type": [6, 8],
        "half-character": [7], "role-order": [10],
    }  # fmt: skip
    assert dict(row_counts.left_out) == {reason: len(lines) for reason, lines in row_counts.lines.items()}


def test_nothing_left_is_an_error_that_says_why(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [pair(chosen="x", rejected="x")] * 7 + [pair(chosen="")])
    wanted = (
        r"no row of 8 can be trained on: 7 where chosen and rejected are the same text.*\(lines 1, 2, 3, 4, 5, \.\.\.\)"
    )
    with pytest.raises(UserError, match=wanted):
        list(pairs(path))


def test_wrong_columns_name_the_right_ones(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "chosn": "b", "foo": "c"}])
    with pytest.raises(UserError, match=r"`chosn`: did you mean `chosen`\?.* needed: prompt, chosen, rejected"):
        list(pairs(path))
    path = write_jsonl(tmp_path / "rows.jsonl", [{"promt": "a", "completion": "b"}])
    with pytest.raises(UserError, match=r"`promt`: did you mean `prompt`\? .*needed: messages"):
        list(demonstrations(path))
    row_counts = RowCounts()
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "Chosen": "b", "rejected": "c"}])
    assert len(list(pairs(path, row_counts=row_counts))) == 1
    assert row_counts.notes == ["the column `Chosen` is read as `chosen`"]


def test_what_is_not_pairs(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b", "label": True}])
    with pytest.raises(UserError, match="single replies, not pairs; train on them with KTO"):
        list(pairs(path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no pairs\.jsonl, "):
        list(pairs(tmp_path / "empty"))
    with pytest.raises(UserError, match="no such file"):
        list(pairs(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match=r"known \(the rows are not objects\)"):
        list(demonstrations(write_jsonl(tmp_path / "rows.jsonl", [1, 2])))


def test_judged_replies(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "c", "label": 0}]
    found = list(judged(write_jsonl(tmp_path / "rows.jsonl", [*rows, rows[0]])))
    assert [(each.completions, each.values) for each in found] == [
        (("b",), {"label": 1.0}), (("c",), {"label": 0.0}), (("b",), {"label": 1.0}),
    ]  # fmt: skip
    spoken = {"prompt": [user("a")], "completion": [assistant("b")], "label": False}
    assert one(judged, tmp_path, spoken) == Example("rows.jsonl:1", (Turn("user", "a"),), ("b",), {"label": 0.0}, 1)


def test_judged_pairs_say_each_reply_once(tmp_path: Path) -> None:
    row_counts = RowCounts()
    rows = [pair(id="x"), pair(id="y", rejected=" never"), pair(id="z", chosen=" no", rejected=" yes")]
    found = list(judged(write_jsonl(tmp_path / "rows.jsonl", rows), row_counts=row_counts))
    assert [(each.id, each.completions[0], each.values["label"]) for each in found] == [
        ("x:chosen", " yes", 1), ("x:rejected", " no", 0), ("y:rejected", " never", 0),
        ("z:chosen", " no", 1), ("z:rejected", " yes", 0),
    ]  # fmt: skip
    assert dict(row_counts.left_out) == {"repeated": 1}


TALKED = [user("Hi?"), assistant("Yes.")]


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        ({"messages": TALKED}, (ASKED,), "Yes."),
        ({"messages": [*TALKED, user("So?"), assistant("No.")]},
         (ASKED, Turn("assistant", "Yes."), Turn("user", "So?")), "No."),
        ({"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes."}]}, (ASKED,), "Yes."),
        ({"prompt": [user("Hi?")], "completion": [assistant("Yes.")]}, (ASKED,), "Yes."),
        ({"prompt": [user("Hi?")], "response": [assistant("Yes.")]}, (ASKED,), "Yes."),
        ({"prompt": "Hi?", "completion": " Yes."}, "Hi?", " Yes."),
        ({"prompt": "Hi?", "response": " Yes."}, "Hi?", " Yes."),
        ({"system": "Be brief.", "prompt": "Hi?", "response": "Yes."}, (Turn("system", "Be brief."), ASKED), "Yes."),
        ({"system": "Be brief.", "question": "Hi?", "chosen": "Yes.", "rejected": "No."},
         (Turn("system", "Be brief."), ASKED), "Yes."),
        ({"system": "Be brief.", "chosen": f"{TALK} Yes.", "rejected": f"{TALK} No."},
         (Turn("system", "Be brief."), ASKED), "Yes."),
        ({"text": "Hi there."}, "", "Hi there."),
        ({"prompt": "Hi?", "completion": "Yes.", "label": True}, "Hi?", "Yes."),
        ({"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}, "Hi?", "Yes."),
        ({"chosen": f"{TALK} Yes.", "rejected": f"{TALK} No."}, TALK, " Yes."),
        ({"chosen": TALKED, "rejected": [user("Hi?"), assistant("No.")], "messages": TALKED}, (ASKED,), "Yes."),
    ],
)  # fmt: skip
def test_demonstrations(tmp_path: Path, row: Any, prompt: Any, completion: str) -> None:
    found = one(demonstrations, tmp_path, row)
    assert (found.prompt, found.completions, found.values) == (prompt, (completion,), {})


def test_demonstrations_by_template(tmp_path: Path) -> None:
    assert one(demonstrations, tmp_path, {"messages": TALKED}, "plain").prompt == TALK
    assert one(demonstrations, tmp_path, {"messages": TALKED}, "plain").completions == (" Yes.",)
    dialogue = {"text": f"{TALK} Yes."}
    assert one(demonstrations, tmp_path, dialogue).prompt == ""
    assert one(demonstrations, tmp_path, dialogue, "chat").prompt == (ASKED,)
    assert one(demonstrations, tmp_path, {"text": "Just so."}, "chat").prompt == ""


def test_our_own_demonstrations(tmp_path: Path) -> None:
    """A run's folder gives its demonstrations, where it has no such file its chosen replies."""
    write_records(tmp_path / "pairs.jsonl", [record(0), record(0, id="f" * 32), record(1)])
    row_counts = RowCounts()
    found = list(demonstrations(tmp_path, row_counts=row_counts))
    assert [each.completions for each in found] == [("Good 0.",), ("Good 1.",)]
    assert dict(row_counts.left_out) == {"repeated": 1}
    said = Message(role="user", content="Hi?"), Message(role="assistant", content="Yes.")
    row = Demonstration(id="0" * 32, prompt=said[:1], response=said[1:], source="revision", prompt_id="p")
    write_records(tmp_path / "sft.jsonl", [row])
    (shown,) = demonstrations(tmp_path)
    assert shown == Example("0" * 32, (ASKED,), ("Yes.",), {}, 1)


def test_what_is_no_demonstration(tmp_path: Path) -> None:
    rows = [{"messages": TALKED}, {"messages": TALKED[:1]}, {"messages": [assistant("Yes.")]}, {"messages": []}, {}]
    row_counts = RowCounts()
    assert len(list(demonstrations(write_jsonl(tmp_path / "rows.jsonl", rows), row_counts=row_counts))) == 1
    assert row_counts.left_out.total() == 4 and row_counts.lines["missing"] == [5]
    bad = [{"prompt": "a", "completion": "b", "label": label} for label in (True, False)]
    row_counts = RowCounts()
    assert len(list(demonstrations(write_jsonl(tmp_path / "rows.jsonl", bad), row_counts=row_counts))) == 1
    assert row_counts.lines == {"undesirable": [2]}
    texts = [{"text": "a"}, {"text": " "}, {"text": "half \ud800"}, {"text": None}]
    row_counts = RowCounts()
    assert len(list(demonstrations(write_jsonl(tmp_path / "rows.jsonl", texts), row_counts=row_counts))) == 1
    assert row_counts.lines == {"empty-reply": [2], "half-character": [3], "missing": [4]}


@pytest.mark.skipif(not HH.exists(), reason="the shared data is not here")
def test_hh_rlhf_as_raw_text_and_as_turns() -> None:
    """Prompt and completion together are the original texts. Counted apart: 4 blank replies, 5 that part early."""
    import gzip

    with gzip.open(HH, "rt") as file:
        rows = [json.loads(line) for line in file]
    row_counts = RowCounts()
    found = list(pairs(HH, row_counts=row_counts))
    assert (row_counts.rows, row_counts.left_out["empty-reply"], row_counts.left_out["several-turns"]) == (2312, 4, 5)
    assert len(found) == 2312 - row_counts.left_out.total() > 2290
    for each in found:
        assert isinstance(each.prompt, str) and each.prompt.endswith("\n\nAssistant:")
        row = rows[each.line - 1]
        assert tuple(each.prompt + text for text in each.completions) == (row["chosen"], row["rejected"])
    spoken = list(pairs(HH, "chat"))
    assert [each.line for each in spoken] == [each.line for each in found]
    assert all(isinstance(each.prompt, tuple) and each.prompt[-1].role == "user" for each in spoken)
