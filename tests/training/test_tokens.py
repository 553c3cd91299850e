from __future__ import annotations

import os
from array import array
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.data.conversations import Turn
from rlaif.errors import UserError
from rlaif.training.dataset import pairs
from rlaif.training.examples import Example, RowCounts, Template
from rlaif.training.tokenize import Group, Tokens, end_ids, pad_id
from tests.data.made import Words, assistant, clean_rows, user, write_jsonl
from tests.support import DATA
from tests.training.small import CHATML, ENDLESS, GEMMA, THINKING, bpe, letters

HH = DATA / "hh-rlhf-harmless-base-test.jsonl.gz"
A, B, C, D, BC, BOS, EOS = range(7)
_SOURCE = Words()
WORDS = [_SOURCE.text() for _ in range(200)]


def raw(prompt: str, *completions: str, values: Mapping[str, float] | None = None) -> Example:
    return Example("x", prompt, completions, values or {}, 1)


def spoken(*completions: str, asked: str = "Hi?", system: str | None = None) -> Example:
    turns = (Turn("user", asked),) if system is None else (Turn("system", system), Turn("user", asked))
    return Example("x", turns, completions, {}, 1)


def one(tokens: Tokens, example: Example) -> tuple[Group, RowCounts]:
    row_counts = RowCounts()
    (group,) = tokens.groups([example], row_counts)
    return group, row_counts


def ids(group: Group) -> tuple[list[int], list[list[int]]]:
    return list(group.prompt), [list(each) for each in group.completions]


def test_texts_are_joined_and_ended() -> None:
    group, row_counts = one(Tokens(letters()), raw("ad", "ca", "d", values={"probability": 0.7}))
    assert ids(group) == ([A, D], [[C, A, EOS], [D, EOS]])
    assert (group.id, group.values, group.tokens) == ("x", {"probability": 0.7}, 7)
    assert isinstance(group.prompt, array) and group.prompt.itemsize == 4
    assert (row_counts.merged, row_counts.ended, row_counts.truncated) == (0, 0, 0)
    assert (list(row_counts.prompts), list(row_counts.completions)) == ([2], [3, 2])


def test_an_end_that_is_there_is_not_added_again() -> None:
    assert ids(one(Tokens(letters()), raw("a", "d</s>", "c"))[0]) == ([A], [[D, EOS], [C, EOS]])


def test_a_token_across_the_seam_belongs_to_the_completions() -> None:
    """`b` and `c` are one token, so that the prompt of both completions ends before the `b`."""
    group, row_counts = one(Tokens(letters()), raw("ab", "ca", "d"))
    assert ids(group) == ([A], [[BC, A, EOS], [B, D, EOS]])
    assert row_counts.merged == 1


def test_an_empty_prompt_begins_with_the_beginning() -> None:
    assert ids(one(Tokens(letters()), raw("", "ad"))[0]) == ([BOS], [[A, D, EOS]])
    assert ids(one(Tokens(letters()), raw("b", "c"))[0]) == ([BOS], [[BC, EOS]])
    row_counts = RowCounts()
    assert list(Tokens(letters(bos=False)).groups([raw("", "ad"), raw("b", "c")], row_counts)) == []
    assert dict(row_counts.left_out) == {"no-start": 2}
    with_bos = bpe(WORDS, adds_bos=True)
    assert ids(one(Tokens(with_bos), raw("", "a"))[0])[0] == [with_bos.bos_token_id]


def test_long_prompts_lose_their_beginning_and_completions_nothing() -> None:
    tokens = Tokens(letters(), max_length=5)
    group, row_counts = one(tokens, raw("adaca", "d", "ad"))
    assert ids(group) == ([C, A], [[D, EOS], [A, D, EOS]])
    assert row_counts.truncated == 1
    group, _ = one(tokens, raw("<s>adaca", "d", "ad"))
    assert ids(group) == ([BOS, A], [[D, EOS], [A, D, EOS]])
    group, row_counts = one(tokens, raw("ad", "d", "ad"))
    assert (ids(group)[0], row_counts.truncated) == ([A, D], 0)
    group, _ = one(tokens, raw("<s>ad", "d", "ada"))
    assert ids(group) == ([BOS], [[D, EOS], [A, D, A, EOS]])
    row_counts = RowCounts()
    assert list(tokens.groups([raw("a", "d", "adad")], row_counts)) == []
    assert (dict(row_counts.left_out), row_counts.lines, row_counts.truncated) == (
        {"too-long": 1},
        {"too-long": [1]},
        0,
    )


def test_chat_templates_keep_what_follows_the_end() -> None:
    tokenizer = bpe(WORDS, CHATML, eos="<|im_end|>")
    group, row_counts = one(Tokens(tokenizer), spoken("Yes.", "No."))
    assert tokenizer.decode(list(group.prompt)) == "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
    assert [tokenizer.decode(list(each)) for each in group.completions] == ["Yes.<|im_end|>\n", "No.<|im_end|>\n"]
    assert (row_counts.ended, row_counts.merged) == (0, 0)


def test_an_end_is_added_where_a_template_has_none() -> None:
    tokenizer = bpe(WORDS, ENDLESS)
    group, row_counts = one(Tokens(tokenizer), spoken("Yes.", "No."))
    assert [tokenizer.decode(list(each)) for each in group.completions] == ["Yes.\n</s>", "No.\n</s>"]
    assert row_counts.ended == 2


def test_ends_of_the_generation_config_count() -> None:
    tokenizer = bpe(WORDS, GEMMA)
    turn_end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    group, row_counts = one(Tokens(tokenizer), spoken("Yes."))
    assert tokenizer.decode(list(group.completions[0])) == "Yes.<end_of_turn>\n</s>"
    assert row_counts.ended == 1
    config = SimpleNamespace(eos_token_id=[tokenizer.eos_token_id, turn_end])
    group, row_counts = one(Tokens(tokenizer, ends=end_ids(config)), spoken("Yes."))
    assert tokenizer.decode(list(group.completions[0])) == "Yes.<end_of_turn>\n"
    assert row_counts.ended == 0
    assert end_ids(SimpleNamespace(eos_token_id=None)) == frozenset()
    assert end_ids(SimpleNamespace(eos_token_id=3)) == frozenset({3})


def test_a_cue_that_the_conversation_drops_stays_in_the_prompt() -> None:
    """The model is asked with the empty thought, and so it is trained."""
    tokenizer = bpe(WORDS, THINKING, eos="<|im_end|>")
    group, row_counts = one(Tokens(tokenizer), spoken("Yes."))
    assert tokenizer.decode(list(group.prompt)).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert tokenizer.decode(list(group.completions[0])) == "Yes.<|im_end|>\n"
    assert (row_counts.merged, row_counts.apart) == (0, 1)


def test_what_a_template_refuses_is_left_out() -> None:
    row_counts = RowCounts()
    rows = [spoken("Yes."), spoken("Yes.", system="Be kind."), raw("a", "b")]
    groups = list(Tokens(bpe(WORDS, GEMMA)).groups(rows, row_counts))
    assert len(groups) == 2
    assert dict(row_counts.left_out) == {"template": 1}
    assert row_counts.notes == ["the chat template refuses a conversation: System role not supported"]


def test_what_a_tokenizer_must_have() -> None:
    with pytest.raises(UserError, match=r"no chat template, and the data are messages; set `template: plain`"):
        list(Tokens(letters()).groups([spoken("Yes.")]))
    tokenizer = letters()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token; set `eos_token`"):
        Tokens(tokenizer)


def test_order_is_kept_over_kinds_and_repeated_texts() -> None:
    tokenizer = bpe(WORDS, CHATML)
    rows = [raw("a", "b"), raw("a", "b"), spoken("b"), raw("c", "d", "b"), spoken("b"), spoken("d")]
    together = list(Tokens(tokenizer).groups(rows))
    assert [ids(group) for group in together] == [ids(one(Tokens(tokenizer), row)[0]) for row in rows]


PLAIN = st.text(min_size=1, max_size=20).filter(lambda text: "s>" not in text)


@given(st.text(max_size=20), st.lists(PLAIN, min_size=1, max_size=3, unique=True))
@settings(max_examples=200, deadline=None)
def test_prompt_and_completion_are_the_ids_of_the_joint_text(prompt: str, completions: list[str]) -> None:
    group, row_counts = one(Tokens(TOKENIZER), raw(prompt, *completions))
    for text, completion in zip(completions, group.completions, strict=True):
        joint = TOKENIZER(prompt + text + ("" if text.endswith("</s>") else "</s>"))["input_ids"]
        head = list(group.prompt) if prompt else list(group.prompt)[1:]
        assert head + list(completion) == joint or group.prompt[0] == TOKENIZER.bos_token_id
    assert row_counts.merged <= 1


TOKENIZER = bpe(WORDS)


def padless(**more: Any) -> Any:
    """A tokenizer of letters with other special tokens."""
    tokenizer = letters()
    if more:
        tokenizer.add_special_tokens(more)
    return tokenizer


def test_a_pad_token_that_is_not_the_end() -> None:
    assert pad_id(padless(pad_token="<p>")) == 7
    same = padless()
    same.pad_token = same.eos_token
    same.add_special_tokens({"unk_token": "<unk>"})
    assert pad_id(same) == 7
    for names, found in ((["<x>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"], 8),
                         (["<|reserved_1|>", "<|finetune_right_pad_id|>"], 8), (["<unused0>"], 7)):  # fmt: skip
        assert pad_id(padless(additional_special_tokens=names)) == found
    with pytest.raises(UserError, match=r"left to pad with; add one: `tokenizer\.add_special_tokens"):
        pad_id(padless(additional_special_tokens=["<keypad>"]))


def trl_ids(
    tokenizer: Any, rows: list[dict[str, Any]], model: Path, folder: Path
) -> list[tuple[list[int], list[list[int]]]]:
    """What TRL's DPOTrainer makes of some rows."""
    if os.environ.get("CI_REQUIRE_TRL") == "1":
        import trl
    else:
        trl = pytest.importorskip("trl", reason="the extra `trl` is not installed")
    import datasets
    from transformers import AutoModelForCausalLM

    args = trl.DPOConfig(output_dir=str(folder), report_to=[], use_cpu=True, bf16=False, max_length=None)
    trainer = trl.DPOTrainer(
        AutoModelForCausalLM.from_pretrained(model), args=args, processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list(rows),
    )  # fmt: skip
    made = list(trainer.train_dataset)
    return [(row["prompt_ids"], [row["chosen_ids"], row["rejected_ids"]]) for row in made]


SEAMS = [
    {"prompt": "Say it: ", "chosen": "yes", "rejected": "no"},
    {"prompt": "Say it:", "chosen": " yes", "rejected": "no</s>"},
    {"prompt": "What is thi", "chosen": "s?", "rejected": "\n\nx"},
    {"prompt": "Ünï ", "chosen": "😀 ja", "rejected": " nein"},
]
MANY = [
    {"prompt": [{"role": "system", "content": "Be kind."}, user("Hi?")], "chosen": [assistant("Yes.")],
     "rejected": [assistant(" No. ")]},
    {"prompt": [user("Hi?"), assistant("So?"), user("Go on.\n")], "chosen": [assistant("\nYes <b> no")],
     "rejected": [assistant("No.")]},
]  # fmt: skip
BARE = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in clean_rows(20)]
STRINGS = [{name: value[0]["content"] for name, value in row.items()} for row in BARE]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "adds_bos", "eos", "rows"),
    [
        (None, False, "</s>", SEAMS + STRINGS),
        (None, True, "</s>", SEAMS + STRINGS),
        (CHATML, False, "<|im_end|>", MANY + BARE),
        (THINKING, False, "<|im_end|>", MANY + BARE),
        (GEMMA, True, "<end_of_turn>", MANY[1:] + BARE),
    ],
    ids=["plain", "bos", "chatml", "thinking", "gemma"],
)
def test_ids_are_those_of_trl(
    tiny_model: Path, tmp_path: Path, template: str | None, adds_bos: bool, eos: str, rows: list[dict[str, Any]]
) -> None:
    tokenizer = bpe(WORDS, template, adds_bos=adds_bos, eos=eos)
    row_counts = RowCounts()
    examples = list(pairs(write_jsonl(tmp_path / "rows.jsonl", rows), row_counts=row_counts))
    assert len(examples) == len(rows)
    found = [ids(group) for group in Tokens(tokenizer).groups(examples, row_counts)]
    wanted = trl_ids(tokenizer, rows, tiny_model, tmp_path)
    if template == THINKING:  # TRL leaves the cue's thought out of the prompt that it trains on
        thought = tokenizer("<think>\n\n</think>\n\n", add_special_tokens=False)["input_ids"]
        wanted = [([*prompt, *thought], completions) for prompt, completions in wanted]
    assert found == wanted
    assert row_counts.ended == 0


@pytest.mark.slow
@pytest.mark.skipif(not HH.exists(), reason="the shared data is not here")
@pytest.mark.parametrize("template", ["auto", "chat"])
def test_ids_of_real_dialogues_are_those_of_trl(tiny_model: Path, tmp_path: Path, template: Template) -> None:
    examples = list(pairs(HH, template))[:300]
    texts = [text for each in examples for text in each.completions]
    tokenizer = bpe(texts, CHATML, size=4000, eos="</s>" if template == "auto" else "<|im_end|>")
    rows = [
        dict(zip(("prompt", "chosen", "rejected"), (each.prompt, *each.completions), strict=True))
        if isinstance(each.prompt, str)
        else {
            "prompt": [turn._asdict() for turn in each.prompt],
            **dict(zip(("chosen", "rejected"), ([assistant(text)] for text in each.completions), strict=True)),
        }
        for each in examples
    ]
    found = [ids(group) for group in Tokens(tokenizer).groups(examples)]
    assert found == trl_ids(tokenizer, rows, tiny_model, tmp_path)
