"""Gold pairs of every shape."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rlaif.data.prompts import InputIssues
from rlaif.errors import UserError
from rlaif.evaluation.gold import GoldPair, read_gold
from tests.support import DATA

HHH = DATA / "constitutional-ai/438HHHEvaluations.jsonl"
HH = DATA / "hh-rlhf-harmless-base-test.jsonl.gz"


def read(tmp_path: Path, *rows: dict[str, Any]) -> tuple[list[GoldPair], InputIssues]:
    path, odd = tmp_path / "gold.jsonl", InputIssues()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(read_gold(str(path), input_issues=odd)), odd


def test_a_prompt_with_two_texts(tmp_path: Path) -> None:
    """RewardBench's shape."""
    row = {"prompt": "Hi?", "chosen": "Hello.", "rejected": "What.", "subset": "chat", "id": 7}
    ((pair,), _) = read(tmp_path, row)
    assert (pair.prompt[0].content, pair.better, pair.worse, pair.subset) == ("Hi?", "Hello.", "What.", "chat")
    better, worse = pair.samples()
    assert (better.text, worse.text) == ("Hello.", "What.")
    assert better.id != worse.id and better.prompt == worse.prompt == pair.as_prompt().id


def test_messages_and_our_own_pairs(tmp_path: Path) -> None:
    def turns(*texts: str) -> list[dict[str, str]]:
        return [{"role": "user" if at % 2 == 0 else "assistant", "content": text} for at, text in enumerate(texts)]

    said = {"prompt": turns("Hi?"), "chosen": turns("Hi?", "Hello.")[1:], "rejected": turns("Hi?", "What.")[1:]}
    ((pair,), _) = read(tmp_path, {**said, "principle": "kind", "id": "x" * 32})
    assert (pair.better, pair.worse, pair.principle) == ("Hello.", "What.", "kind")


def test_a_blank_cell_names_no_principle(tmp_path: Path) -> None:
    """As in a CSV, where only some rows name one; pandas writes NaN into JSON."""
    path = tmp_path / "gold.csv"
    path.write_text("prompt,chosen,rejected,principle,subset\nHi?,Hello.,What.,,\nHo?,Hello.,What.,kind,a\n")
    blank, named = read_gold(str(path))
    assert (blank.principle, blank.subset, named.principle, named.subset) == (None, None, "kind", "a")
    ((odd,), _) = read(tmp_path, {"prompt": "Hi?", "chosen": "Hello.", "rejected": "What.", "principle": math.nan})
    assert odd.principle is None


def test_dialogues(tmp_path: Path) -> None:
    row = {"chosen": "\n\nHuman: Hi?\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi?\n\nAssistant: What."}
    hhh = {"prompt": "x", "text_correct": row["chosen"], "text_incorrect": row["rejected"], "corrects": [" (A)"]}
    for shape in (row, hhh):
        ((pair,), _) = read(tmp_path, shape)
        assert (pair.prompt[0].content, pair.better, pair.worse) == ("Hi?", "Hello.", "What.")


def test_odd_rows_are_counted_and_equal_prompts_kept(tmp_path: Path) -> None:
    pairs, odd = read(
        tmp_path,
        {"prompt": "Hi?", "chosen": "Hello.", "rejected": "What."},
        {"prompt": "Hi?", "chosen": "Good day.", "rejected": "What."},
        {"prompt": "Hi?", "chosen": "Hello.", "rejected": "What."},
        {"prompt": "Hi?", "chosen": "What.", "rejected": "What."},
        {"prompt": "Hi?", "chosen": "", "rejected": "What."},
    )
    assert [pair.better for pair in pairs] == ["Hello.", "Good day."]
    assert odd.counts["repeated pair"] == 1
    assert odd.counts["pair of equal answers (left out)"] == 1
    assert odd.counts["pair without two answers (left out)"] == 1


def test_what_is_no_pair_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gold pairs need the columns `chosen` and `rejected`"):
        read(tmp_path, {"prompt": "Hi?", "response": "Hello."})
    with pytest.raises(UserError, match="no row holds a usable pair"):
        read(tmp_path, {"prompt": "Hi?", "chosen": "x", "rejected": "x"})


@pytest.mark.skipif(not HHH.exists(), reason="the shared data is not here")
def test_the_real_files() -> None:
    hhh = list(read_gold(str(HHH)))
    assert len(hhh) == 438
    assert sum(len(pair.better) > len(pair.worse) for pair in hhh) == 246  # 56.2%
    odd = InputIssues()
    hh = list(read_gold(str(HH), input_issues=odd))
    assert len(hh) == 2303
    assert odd.counts["pair without two answers (left out)"] == 9  # 4 blank ones, 5 of more than a turn
    assert sum(len(pair.better) > len(pair.worse) for pair in hh) / 2303 == pytest.approx(0.442, abs=0.005)
