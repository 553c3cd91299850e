"""Each shape of preference data is recognised, and its rows say the same in all of them."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rlaif.data.conversations import UnreadableValueError
from rlaif.data.doctor import examine
from rlaif.data.formats import Reading, read, recognise
from tests.data.made import Words, assistant, clean_rows, user, write_jsonl
from tests.support import DATA

Q, A, B = "What is the way?", "Left, then right.", "Find it yourself."
DIALOGUE = [user("Hello."), assistant("Hello to you."), user(Q)]
TRANSCRIPT = f"\n\nHuman: Hello.\n\nAssistant: Hello to you.\n\nHuman: {Q}\n\nAssistant:"


def reading(row: dict[str, Any]) -> Reading:
    shape = recognise(row)
    assert shape is not None
    return read(row, shape)


SAME: list[tuple[str, dict[str, Any], set[str]]] = [
    ("preference", {"prompt": Q, "chosen": A, "rejected": B}, set()),
    ("preference", {"prompt": [user(Q)], "chosen": [assistant(A)], "rejected": [assistant(B)]}, set()),
    ("preference", {"prompt": Q, "chosen": [user(Q), assistant(A)], "rejected": [user(Q), assistant(B)]}, {"forms"}),
    ("preference", {"prompt": [user(Q)], "chosen": A, "rejected": B}, {"forms"}),
    ("preference", {"question": Q, "accepted": A, "rejected_response": B}, set()),
    ("preference", {"prompt": [{"from": "human", "value": Q}], "chosen": [{"from": "gpt", "value": A}],
                    "rejected": [{"role": "assistant", "content": [{"type": "text", "text": B}]}]}, set()),
    ("dialogues", {"chosen": [user(Q), assistant(A)], "rejected": [user(Q), assistant(B)]}, set()),
    ("dialogues", {"chosen": f"\n\nHuman: {Q}\n\nAssistant: {A}", "rejected": f"\n\nHuman: {Q}\n\nAssistant: {B}",
                   "question": "unused"}, {"prompt-column"}),
    ("rated", {"instruction": Q, "completions": [
        {"response": "Maybe.", "overall_score": 5}, {"response": B, "overall_score": 1.5},
        {"response": A, "overall_score": "8"}, {"response": "None.", "overall_score": "N/A"}]}, set()),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "row", "odd"), SAME)
def test_a_pair_is_the_same_in_every_shape(kind: str, row: dict[str, Any], odd: set[str]) -> None:
    shape = recognise(row)
    assert shape is not None and shape.kind == kind
    found = read(row, shape)
    assert [(turn.role, turn.content) for turn in found.prompt] == [("user", Q)]
    assert (found.chosen, found.rejected, found.odd) == (A, B, odd)


def test_a_system_prompt_in_a_column_of_its_own_comes_first() -> None:
    row = {"system": "Be brief.", "question": Q, "chosen": A, "rejected": B}
    assert reading(row).prompt == (("system", "Be brief."), ("user", Q))
    row["question"] = [{"role": "system", "content": "Be kind."}, user(Q)]
    assert reading(row).prompt == (("system", "Be kind."), ("user", Q))
    assert reading({"system": "", "prompt": Q, "chosen": A, "rejected": B}).prompt == (("user", Q),)


def test_numbers_that_no_float_can_hold_are_none() -> None:
    row = {"prompt": Q, "chosen": A, "rejected": B, "probability": 10**400, "chosen_score": 10**400,
           "rejected_score": 1}  # fmt: skip
    assert reading(row).scores is None


def test_dialogues_of_several_turns() -> None:
    """What both share up to a user's turn is the prompt, in messages and in hh-rlhf's texts."""
    rows = [
        {"prompt": DIALOGUE, "chosen": [assistant(A)], "rejected": [assistant(B)]},
        {"prompt": TRANSCRIPT, "chosen": A, "rejected": B},
        {"chosen": [*DIALOGUE, assistant(A)], "rejected": [*DIALOGUE, assistant(B)]},
        {"chosen": f"{TRANSCRIPT} {A}", "rejected": f"{TRANSCRIPT} {B}"},
    ]
    for row in rows:
        found = reading(row)
        assert [turn._asdict() for turn in found.prompt] == DIALOGUE
        assert (found.chosen, found.rejected, found.odd) == (A, B, set())


@pytest.mark.parametrize(("label", "good"), [(True, True), (False, False), (1, True), ("False", False), ("1", True)])
def test_an_unpaired_reply_stands_on_the_side_of_its_label(label: object, good: bool) -> None:
    found = reading({"prompt": Q, "completion": A, "label": label})
    assert (found.chosen, found.rejected) == ((A, None) if good else (None, A))


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ({"prompt": Q, "completion": A, "label": "good"}, "label-type"),
        ({"prompt": Q, "completion": A, "label": 0.7}, "label-type"),
        ({"prompt": Q, "completion": A, "label": None}, "missing"),
        ({"chosen": [user("One?"), assistant(A)], "rejected": [user("Other?"), assistant(B)]}, "no-shared-prompt"),
        ({"chosen": A, "rejected": B}, "no-shared-prompt"),
        ({"instruction": Q, "completions": [{"response": A, "rating": 4}]}, "unrated"),
        ({"instruction": Q, "completions": []}, "unrated"),
        ({"instruction": Q, "completions": [{"text": A, "score": 4}, {"text": B, "score": 4.0}]}, "tied-ratings"),
        ({"prompt": Q, "chosen": {"a": 1}, "rejected": B}, "missing"),
        ({"prompt": Q, "chosen": [3], "rejected": B}, "type"),
    ],
)
def test_a_row_that_says_nothing_names_its_rule(row: dict[str, Any], rule: str) -> None:
    with pytest.raises(UnreadableValueError, match=f"^{rule}$"):
        reading(row)


def test_the_same_rows_in_every_kind_of_file(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    words = Words(2)
    rows = [{"prompt": words.text(), "chosen": words.text(), "rejected": words.text()} for _ in range(20)]
    rows[4]["rejected"] = rows[4]["chosen"]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    (tmp_path / "rows.json").write_text(json.dumps(rows, indent=1))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    places = {"rows.jsonl": 5, "rows.jsonl.gz": 5, "rows.json": 22, "rows.parquet": 5, "rows.csv": 6}
    for name, line in places.items():
        report = examine(tmp_path / name)
        assert (report.rows, report.usable, report.shape) == (20, 20, "preference")
        assert [(finding.rule, finding.lines) for finding in report.findings] == [("identical", (line,))]


def test_unpaired_data(tmp_path: Path) -> None:
    """50 rows, of which 5 desirable: 10%. The same reply under both labels is a contradiction."""
    words = Words(7)
    rows = [{"prompt": words.text(), "completion": words.text(), "label": at % 10 == 0} for at in range(50)]
    rows[21] = {**rows[20], "label": False}
    report = examine(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert report.shape == "unpaired"
    assert report.labels is not None and report.labels.desirable == 0.1
    found = {finding.rule: finding.lines for finding in report.findings}
    assert found.pop("contradictory") == (21, 22)
    assert found.pop("repeated-prompt") == (22,)
    assert found.pop("class-balance") == ()
    assert not found.keys() - {"length-bias"}
    one = examine(write_jsonl(tmp_path / "one.jsonl", [{**row, "label": True} for row in rows[:20]]))
    assert [(finding.level, finding.rule) for finding in one.findings] == [("error", "one-class")]


def test_texts_out_of_csv_can_hold_messages(tmp_path: Path) -> None:
    row = clean_rows(1)[0]
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "chosen", "rejected"])
        writer.writerow([json.dumps(row[name]) for name in ("prompt", "chosen", "rejected")])
    assert [(finding.level, finding.rule) for finding in examine(path).findings] == [("error", "messages-as-text")]


@pytest.mark.skipif(not DATA.exists(), reason="the shared data is not here")
def test_hh_rlhf() -> None:
    """Counted apart from this code: chosen is longer in 44.2%, 4 final replies are blank, 5 rows part early."""
    report = examine(DATA / "hh-rlhf-harmless-base-test.jsonl.gz")
    assert (report.rows, report.shape) == (2312, "dialogues")
    assert report.lengths is not None and report.lengths.chosen_longer == pytest.approx(0.442, abs=0.002)
    found = {finding.rule: finding.count for finding in report.findings}
    assert (found["empty-reply"], found["several-turns"]) == (4, 5)


def test_dialogues_that_part_early_are_cut_at_a_users_turn() -> None:
    """They share a reply too, but part in what the user says next: the prompt ends before that reply."""
    found = reading({"chosen": [*DIALOGUE, assistant(A)], "rejected": [*DIALOGUE[:2], user("Bye."), assistant(B)]})
    assert [turn._asdict() for turn in found.prompt] == DIALOGUE[:1]
    assert found.chosen == f"Hello to you.\n\n{Q}\n\n{A}"
    assert found.odd == {"several-turns"}
