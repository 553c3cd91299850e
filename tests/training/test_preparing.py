from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlaif.data.publish import make_dataset
from rlaif.errors import UserError
from rlaif.training.dataset import DataKind, prepare
from rlaif.training.tokenize import Group, Tokens
from tests.data.made import Words, assistant, clean_rows, user, write_jsonl
from tests.support import DATA
from tests.training.small import CHATML, bpe

HH = DATA / "hh-rlhf-harmless-base-test.jsonl.gz"
_SOURCE = Words()
WORDS = [_SOURCE.text() for _ in range(200)]
TOKENIZER = bpe(WORDS, CHATML, eos="<|im_end|>")
TOKENS = Tokens(TOKENIZER)


def rows_of(prompts: int, each: int = 3) -> list[dict[str, Any]]:
    """Pairs, several of each prompt, those of one prompt far from each other."""
    return [
        {
            "id": f"{prompt}-{at}",
            "prompt": [user(f"Question {prompt}?")],
            "chosen": [assistant(f"Good {prompt} {at}.")],
            "rejected": [assistant(f"Bad {prompt} {at}.")],
            "probability": 0.5 + 0.1 * at,
        }
        for at in range(each)
        for prompt in range(prompts)
    ]


def names(groups: list[Group]) -> list[str]:
    return [group.id for group in groups]


def prompts_of(groups: list[Group]) -> set[str]:
    return {TOKENIZER.decode(list(group.prompt)) for group in groups}


def said(group: Group, at: int) -> str:
    return str(TOKENIZER.decode(list(group.completions[at]), skip_special_tokens=True)).strip()


@pytest.mark.sibling("good-and-bad-reply-of-the-same-tokens")
def test_a_good_and_a_bad_reply_of_the_same_tokens_are_left_out(tmp_path: Path) -> None:
    from tokenizers import normalizers

    folding = bpe(WORDS, CHATML, eos="<|im_end|>")
    folding.backend_tokenizer.normalizer = normalizers.Lowercase()
    rows = [
        {"prompt": [user(f"{at}?")], "chosen": [assistant("Yes.")], "rejected": [assistant(other)]}
        for at, other in enumerate(["yes.", "No.", "Never."])
    ]
    made = prepare(write_jsonl(tmp_path / "rows.jsonl", rows), Tokens(folding), "judged")
    assert len(made.train) == 4
    assert {each.reason: each.count for each in made.report.left_out} == {"same-tokens": 1}


def test_all_rows_in_their_order(tmp_path: Path) -> None:
    rows = rows_of(5)
    made = prepare(write_jsonl(tmp_path / "rows.jsonl", rows), TOKENS)
    assert names(made.train) == [row["id"] for row in rows]
    assert made.held == []
    assert [group.values["probability"] for group in made.train] == [row["probability"] for row in rows]
    assert (said(made.train[1], 0), said(made.train[1], 1)) == ("Good 1 0.", "Bad 1 0.")
    assert (made.report.rows, made.report.kept, made.report.held, made.report.soft) == (15, 15, 0, 15)


def test_all_pairs_of_a_prompt_are_held_out_together(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows_of(40))
    made = prepare(path, TOKENS, holdout=0.1, seed=1)
    assert (len(made.held), len(made.train)) == (4 * 3, 36 * 3)
    assert not prompts_of(made.held) & prompts_of(made.train)
    assert made.report.held == 12
    assert names(prepare(path, TOKENS, holdout=0.1, seed=2).held) == names(made.held)
    more = prepare(path, TOKENS, holdout=0.2)
    assert set(names(made.held)) < set(names(more.held))


def test_a_small_share_holds_out_one_prompt_at_least(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows_of(2))
    for share in (0.001, 0.5, 0.999):
        assert len(prepare(path, TOKENS, holdout=share).held) == 3
    with pytest.raises(UserError, match=r"all rows have the same prompt.*`holdout: 0`"):
        prepare(write_jsonl(tmp_path / "one.jsonl", rows_of(1)), TOKENS, holdout=0.1)
    for share in (-0.1, 1.0):
        with pytest.raises(UserError, match="holdout is"):
            prepare(path, TOKENS, holdout=share)


def test_what_was_split_by_the_export_can_be_split_again(tmp_path: Path) -> None:
    """Had both the same hash, the prompts that are still there would all be on one side."""
    make_dataset(write_jsonl(tmp_path / "rows.jsonl", clean_rows(200)), tmp_path / "trl", "trl", split=0.5)
    made = prepare(tmp_path / "trl", TOKENS, holdout=0.5)
    assert len(made.train) == pytest.approx(len(made.held), abs=1)
    everything = prepare(tmp_path / "rows.jsonl", TOKENS, holdout=0.5)
    share = len(prompts_of(everything.held) & prompts_of(made.train + made.held)) / len(everything.held)
    assert 0.35 < share < 0.65


def test_texts_without_a_prompt_are_held_out_one_by_one(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in WORDS[:50]])
    made = prepare(path, TOKENS, "demonstrations", holdout=0.1)
    assert (len(made.train), len(made.held)) == (45, 5)


def test_other_data_to_evaluate_on(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", rows_of(10, 1))
    other = write_jsonl(tmp_path / "other.jsonl", rows_of(12, 2)[8:12])
    made = prepare(train, TOKENS, holdout=0.5, held_data=other)
    assert (len(made.train), len(made.held)) == (10, 4)
    assert made.report.shared == 2
    assert made.report.lines()[-1] == f"{other}: 4 rows, 4 to evaluate on, of 2 the prompt is trained on too"
    assert made.data_hash != prepare(train, TOKENS).data_hash


def test_the_hash_is_that_of_the_content(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows_of(3))
    (tmp_path / "run").mkdir()
    same = write_jsonl(tmp_path / "run" / "pairs.jsonl", rows_of(3))
    other = write_jsonl(tmp_path / "other.jsonl", rows_of(3)[::-1])
    first = prepare(path, TOKENS).data_hash
    assert prepare(same, TOKENS).data_hash == first == prepare(same.parent, TOKENS).data_hash
    assert prepare(other, TOKENS).data_hash != first


def test_the_hash_of_what_is_no_file_is_that_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"one/a": rows_of(3), "one/b": rows_of(3), "one/c": rows_of(3)[::-1]}
    monkeypatch.setattr("rlaif.data.formats.read_rows", lambda path: iter(enumerate(held[path], 1)))
    first, second, third = (prepare(name, TOKENS).data_hash for name in held)
    assert first == second != third


def test_a_limit_takes_the_first_rows(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [*rows_of(10), {"probability": 7}])
    made = prepare(path, TOKENS, limit=4)
    assert names(made.train) == ["0-0", "1-0", "2-0", "3-0"]
    assert made.report.rows == 4


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[int] = []
    prepare(write_jsonl(tmp_path / "rows.jsonl", rows_of(2500, 1)), TOKENS, on_rows=told.append)
    assert told == [1000, 2000]


def test_judged_replies_get_one_of_another_prompt(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows_of(10))
    made = prepare(path, TOKENS, "judged", seed=3)
    assert len(made.train) == 40, "a pair of which neither is better has no good reply, and no bad one"
    assert Counter(group.values["label"] for group in made.train) == {1.0: 20, 0.0: 20}
    for group in made.train:
        prompt, side = group.id.partition("-")[0], group.id.partition(":")[2]
        own = said(group, 0).split()
        assert own[:2] == ["Good" if side == "chosen" else "Bad", prompt]
        assert said(group, 1).split()[1] != prompt
    mismatched = Counter(said(group, 1) for group in made.train)
    assert max(mismatched.values()) <= 3  # each about once
    assert [said(group, 1) for group in prepare(path, TOKENS, "judged", seed=3).train] == [
        said(group, 1) for group in made.train
    ]
    assert [said(group, 1) for group in prepare(path, TOKENS, "judged", seed=4).train] != [
        said(group, 1) for group in made.train
    ]


def test_one_held_out_prompt_gets_its_mismatch_from_the_others(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows_of(3))
    made = prepare(path, TOKENS, "judged", holdout=0.3)
    (prompt,) = {group.id.partition("-")[0] for group in made.held}
    assert all(said(group, 1).split()[1] != prompt for group in made.held)
    with pytest.raises(UserError, match="KTO needs replies to two prompts"):
        prepare(write_jsonl(tmp_path / "one.jsonl", rows_of(1)), TOKENS, "judged")


def test_a_mismatched_reply_fits_the_limit(tmp_path: Path) -> None:
    rows = [
        {"prompt": [user(WORDS[0])], "completion": [assistant("No.")], "label": False},
        {"prompt": [user("Hi?")], "completion": [assistant(WORDS[1])], "label": True},
    ]
    whole = prepare(write_jsonl(tmp_path / "rows.jsonl", rows), TOKENS, "judged").train
    limit = max(len(group.prompt) + len(group.completions[0]) for group in whole)
    assert any(len(group.prompt) + len(group.completions[1]) > limit for group in whole)
    cut = prepare(tmp_path / "rows.jsonl", Tokens(TOKENIZER, max_length=limit), "judged").train
    assert [group.completions[0] for group in cut] == [group.completions[0] for group in whole]
    assert all(len(group.prompt) + len(group.completions[1]) <= limit for group in cut)


def test_the_report(tmp_path: Path) -> None:
    rows = [
        *rows_of(20, 1),
        {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("b")]},
        {"prompt": [user("a")], "chosen": [assistant(" ".join(WORDS[:9]))], "rejected": [assistant("b")]},
        {"prompt": [user(" ".join(WORDS[:9]))], "chosen": [assistant("c")], "rejected": [assistant("b")],
         "probability": 1},
    ]  # fmt: skip
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    made = prepare(path, Tokens(TOKENIZER, max_length=200), holdout=0.25)
    report = made.report
    lengths = sorted(len(group.prompt) for group in made.train + made.held)
    assert (report.prompt_median, report.prompt_p95) == (lengths[10], lengths[19])
    assert {each.reason: (each.count, each.lines) for each in report.left_out} == {
        "identical": (1, (21,)),
        "too-long": (1, (22,)),
    }
    assert (report.kept, report.held, report.truncated, report.soft) == (21, 5, 1, 20)
    lines = report.lines()
    assert lines[0] == f"{path}: 23 rows, 16 to train on, 5 held out"
    assert lines[1].startswith(
        "left out: 1 where chosen and rejected are the same text: nothing to learn (line 21); 1 "
    )
    assert lines[3] == "1 cut to 200 tokens (4.8%), 95% soft labels"
    assert json.loads(report.model_dump_json())["rows"] == 23


def test_nothing_left_after_tokenizing(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows_of(4))
    wanted = r"no row of 12 can be trained on: 12 where a completion alone is longer.*; raise max_length"
    with pytest.raises(UserError, match=wanted):
        prepare(path, Tokens(TOKENIZER, max_length=2))
    bad = {"prompt": "a", "completion": "b", "label": False}
    with pytest.raises(UserError, match="1 where labelled as bad"):
        prepare(write_jsonl(tmp_path / "bad.jsonl", [bad]), TOKENS, "demonstrations")


@pytest.mark.slow
@pytest.mark.skipif(not HH.exists(), reason="the shared data is not here")
@pytest.mark.parametrize("kind", ["pairs", "judged", "demonstrations"])
def test_hh_rlhf(kind: DataKind) -> None:
    """Every row is accounted for, and every group fits."""
    with gzip.open(HH, "rt") as file:
        tokenizer = bpe((json.loads(line)["chosen"] for line in file), size=4000)
    made = prepare(HH, Tokens(tokenizer, max_length=512), kind, holdout=0.05)
    groups, report = made.train + made.held, made.report
    assert report.rows == 2312
    assert len(groups) == report.kept
    lost = sum(each.count for each in report.left_out if each.reason not in ("too-long", "repeated"))
    whole = (2312 - lost) * (2 if kind == "judged" else 1)
    assert report.kept + sum(each.count for each in report.left_out if each.reason in ("too-long", "repeated")) == whole
    assert 0.04 < len(made.held) / len(groups) < 0.06
    for group in groups:
        assert len(group.prompt) > 0
        assert all(len(group.prompt) + len(ids) <= 512 and len(ids) > 0 for ids in group.completions)
        assert group.completions[0][-1] == tokenizer.eos_token_id
    assert 0 < report.truncated < 0.2 * report.kept
    assert report.ended == 0
