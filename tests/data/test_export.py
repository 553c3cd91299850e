"""Exported datasets hold the pairs, are read by `datasets`, and their card tells where they come from."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.data.export import Form
from rlaif.data.publish import make_dataset
from rlaif.errors import UserError
from rlaif.records import PreferencePair
from rlaif.store import read_records
from tests.data.made import Words, assistant, clean_rows, user, write_jsonl
from tests.fakes import FakeServer
from tests.support import ROOT, rlaif, write_run


def loaded(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    """The rows as `datasets` reads them, by the card's own configuration."""
    import datasets

    return datasets.load_dataset(str(folder), split=split, cache_dir=str(folder.parent / "cache")).to_list()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run")
    with FakeServer() as server:
        result = rlaif("generate", write_run(folder, server.url))
    assert result.returncode == 0, result.stderr
    return folder / "run"


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_trl_rows_are_the_pairs(run: Path, tmp_path: Path, kind: str) -> None:
    made = make_dataset(run / "pairs.jsonl", tmp_path / "out", "trl", kind=kind)  # type: ignore[arg-type]
    expected = [
        {
            **pair.model_dump(mode="json", include={"prompt", "chosen", "rejected", "probability"}),
            "label_margin": pair.probability - 0.5,
        }
        for pair in read_records(run / "pairs.jsonl", PreferencePair)
    ]
    assert expected and loaded(tmp_path / "out") == expected
    assert made.exported.rows == {"train": len(expected), "test": 0}
    assert not made.exported.left_out


def test_openrlhf_rows_are_whole_conversations(run: Path, tmp_path: Path) -> None:
    make_dataset(run / "pairs.jsonl", tmp_path / "out", "openrlhf")
    pairs = [pair.model_dump(mode="json") for pair in read_records(run / "pairs.jsonl", PreferencePair)]
    rows = loaded(tmp_path / "out")
    assert [(row["chosen"], row["rejected"]) for row in rows] == [
        (pair["prompt"] + pair["chosen"], pair["prompt"] + pair["rejected"]) for pair in pairs
    ]
    assert rows[0].keys() == {"chosen", "rejected", "probability", "label_margin"}


def test_kto_rows_are_single_replies_once_each(tmp_path: Path) -> None:
    """Two pairs of one prompt share their chosen reply: three rows."""
    prompt = [user("Which one?")]
    pairs = [
        {"prompt": prompt, "chosen": [assistant("This.")], "rejected": [assistant(text)]} for text in ("That.", "None.")
    ]
    made = make_dataset(write_jsonl(tmp_path / "pairs.jsonl", pairs), tmp_path / "out", "kto")
    assert loaded(tmp_path / "out") == [
        {"prompt": prompt, "completion": [assistant("This.")], "label": True},
        {"prompt": prompt, "completion": [assistant("That.")], "label": False},
        {"prompt": prompt, "completion": [assistant("None.")], "label": False},
    ]
    assert (made.exported.pairs, made.exported.rows["train"]) == (2, 3)


def test_no_column_is_called_margin() -> None:
    """TRL's RewardTrainer and OpenRLHF take a column of that name off the difference of the rewards."""
    from rlaif.data.export import _COLUMNS, _SOFT

    assert "margin" not in {*_SOFT, *(name for names in _COLUMNS.values() for name in names)}


def test_other_shapes_become_the_same_rows(tmp_path: Path) -> None:
    words = Words(9)
    plain = [{"prompt": words.text(), "chosen": words.text(), "rejected": words.text()} for _ in range(5)]
    rated = [
        {"instruction": row["prompt"], "completions": [
            {"response": row["rejected"], "overall_score": 2.0}, {"response": row["chosen"], "overall_score": 9.0}]}
        for row in plain
    ]  # fmt: skip
    whole = [
        {side: f"\n\nHuman: {row['prompt']}\n\nAssistant: {row[side]}" for side in ("chosen", "rejected")}
        for row in plain
    ]
    expected = [
        {"prompt": [user(r["prompt"])], "chosen": [assistant(r["chosen"])], "rejected": [assistant(r["rejected"])]}
        for r in plain
    ]
    for name, rows in (("plain", plain), ("rated", rated), ("whole", whole)):
        make_dataset(write_jsonl(tmp_path / f"{name}.jsonl", rows), tmp_path / name, "trl")
        assert loaded(tmp_path / name) == expected


def test_what_no_trainer_can_use_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = clean_rows(10)
    rows[1]["rejected"] = rows[1]["chosen"]
    rows[2]["chosen"] = [assistant(" ")]
    rows[3]["prompt"] = [user("One."), user("Two.")]
    del rows[4]["rejected"]
    rows[5]["probability"] = 0.55
    rows[6]["probability"] = 7
    made = make_dataset(write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out", "trl", margin=0.06)
    kept = [row for at, row in enumerate(rows) if at not in (1, 2, 3, 4, 5, 6) and row["probability"] >= 0.56]
    assert [row["chosen"] for row in loaded(tmp_path / "out")] == [row["chosen"] for row in kept]
    left = dict(made.exported.left_out)
    assert left.pop("margin") == 10 - 5 - len(kept)
    assert left == {"identical": 1, "empty-reply": 1, "role-order": 1, "missing": 1, "probability-range": 1}
    assert "1 identical" in (tmp_path / "out" / "README.md").read_text()


def test_no_prompt_stands_in_both_splits(tmp_path: Path) -> None:
    rows = clean_rows(300)
    for row, other in zip(rows[:150], rows[150:], strict=True):
        asked = row["prompt"][0]["content"]
        other["prompt"] = row["prompt"] if len(asked) % 2 else [user(f" {asked.upper()}  ")]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    made = make_dataset(source, tmp_path / "out", "trl", split=0.2)
    splits = [
        {row["prompt"][0]["content"].lower().strip() for row in loaded(tmp_path / "out", name)}
        for name in ("train", "test")
    ]
    assert not splits[0] & splits[1]
    assert made.exported.rows == {"train": 300 - 2 * len(splits[1]), "test": 2 * len(splits[1])}
    assert 15 <= len(splits[1]) <= 45
    make_dataset(write_jsonl(tmp_path / "few.jsonl", rows[:100][::-1]), tmp_path / "few", "kto", split=0.2)
    again = {row["prompt"][0]["content"].lower() for row in loaded(tmp_path / "few", "test")}
    assert again == splits[1] & {row["prompt"][0]["content"].lower() for row in rows[:100]}


def test_the_card_tells_where_the_labels_come_from(run: Path, tmp_path: Path) -> None:
    make_dataset(run / "pairs.jsonl", tmp_path / "out", "trl", split=0.3)
    card = (tmp_path / "out" / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["configs"][0]["data_files"] == [
        {"split": "train", "path": "train.parquet"}, {"split": "test", "path": "test.parquet"}]  # fmt: skip
    assert (head["license"], head["size_categories"]) == ("unknown", ["n<1K"])
    manifest = json.loads((run / "manifest.json").read_text())
    compare = hashlib.sha256((ROOT / "prompts" / "judge" / "compare.txt").read_bytes()).hexdigest()
    for told in (
        f"harmless, hash `{manifest['constitution']['hash']}`",
        "| judge | `fake",
        "| policy | `fake",
        f"| template `compare.txt` | sha256 `{compare}` |",
        f"| ties | {manifest['counts']['comparisons_tie']} |",
        f"| comparisons whose two orders disagreed | {manifest['counts']['comparisons_flipped']} |",
        "| judge calls without a verdict | ",
        "length alone as a reward has AUC",
    ):
        assert told in card


@pytest.mark.parametrize(
    ("compare", "names"),
    [
        ({"method": "score"}, ["score"]),
        ({"method": "rank"}, ["rank"]),
        ({"method": "tournament"}, ["score", "compare"]),
        ({"method": "pairwise", "reasoning": "reply"}, ["compare_reasoned"]),
        ({"method": "pairwise", "critique": True}, ["compare_critiqued", "critique"]),
    ],
)
def test_the_card_names_the_templates_that_were_asked(
    run: Path, tmp_path: Path, compare: dict[str, Any], names: list[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["settings"]["compare"] |= compare
    (folder / "manifest.json").write_text(json.dumps(manifest))
    make_dataset(folder / "pairs.jsonl", tmp_path / "out", "trl")
    card = (tmp_path / "out" / "README.md").read_text()
    assert re.findall(r"\| template `(\w+)\.txt` \| sha256 `\w{64}` \|", card) == names


def test_a_manifest_of_another_file_is_not_believed(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "pairs.jsonl"
    copy.write_text((run / "pairs.jsonl").read_text().split("\n", 1)[1])
    (tmp_path / "manifest.json").write_bytes((run / "manifest.json").read_bytes())
    make_dataset(copy, tmp_path / "out", "trl")
    assert "harmless" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("rows", "form", "told"),
    [
        (
            [{"prompt": "a b c", "completion": "d e f", "label": True}],
            "trl",
            "rows.jsonl:1: the rows are single replies",
        ),
        ([{"text": "alone"}], "trl", "no preference data of a known shape"),
        ([{"prompt": "a", "chosen": "b", "rejected": "b"}], "trl", "no row can be exported (1 identical)"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(rows: list[Any], form: Form, told: str, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError) as error:
        make_dataset(source, tmp_path / "out", form)
    assert told in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_folder_in_use_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    source = write_jsonl(tmp_path / "rows.jsonl", clean_rows(3))
    result = rlaif("data", "export", source, "--format", "trl", "-o", tmp_path / "out")
    assert result.returncode == 2 and "is there already and not empty" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_the_command_says_what_it_made(tmp_path: Path) -> None:
    rows = clean_rows(20)
    rows[3]["chosen"] = rows[3]["rejected"]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    result = rlaif("data", "export", source, "--format", "trl", "-o", tmp_path / "out", "--jsonl")
    assert result.returncode == 0, result.stderr
    assert f"Made {tmp_path / 'out'}: 19 train rows, README.md" in result.stdout
    assert "left out: 1 identical" in result.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "train.jsonl"]
    assert rlaif("data", "check", tmp_path / "out" / "train.jsonl").returncode == 0
