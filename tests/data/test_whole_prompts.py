"""No part of a prompt is lost, no reply that is marked as bad is learned, and no call of a tool becomes a phrase."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlaif.data.checks import check_special, cut_end_tokens
from rlaif.data.conversations import Turn
from rlaif.data.doctor import examine
from rlaif.data.export import export_rows
from rlaif.data.formats import Reading
from rlaif.data.prompts import InputIssues, prompt_id, read_prompts
from rlaif.errors import UserError
from rlaif.evaluation.gold import read_gold
from rlaif.evaluation.policy_responses import read_answers
from rlaif.training.dataset import demonstrations, judged, pairs
from rlaif.training.examples import RowCounts
from rlaif.training.score import responses
from tests.data.made import assistant, user, write_jsonl
from tests.support import rlaif

Row = dict[str, Any]
WHAT, ABOUT, GOOD, BAD = "Translate into French.", "Good morning!", "Bonjour !", "Salut"
BOTH = f"{WHAT}\n\n{ABOUT}"


def exported(rows: list[Row], tmp_path: Path) -> list[Row]:
    folder = tmp_path / "out"
    folder.mkdir()
    export_rows(write_jsonl(tmp_path / "rows.jsonl", rows), folder, "trl", soft=False, kind="jsonl")
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def rules(rows: list[Row], tmp_path: Path) -> dict[str, tuple[int, ...]]:
    report = examine(write_jsonl(tmp_path / "rows.jsonl", rows))
    return {finding.rule: finding.lines for finding in report.findings}


# Parts of the prompt --------------------------------------------------------------------------------------------------


@pytest.mark.case("02-instruction-with-input")
def test_the_input_of_an_instruction_is_read_by_every_reader(tmp_path: Path) -> None:
    row = {"instruction": WHAT, "input": ABOUT, "chosen": GOOD, "rejected": BAD}
    (written,) = exported([row], tmp_path)
    assert written["prompt"] == [user(BOTH)]
    path = tmp_path / "rows.jsonl"
    (example,) = pairs(path)
    assert example.prompt == BOTH
    (shown,) = demonstrations(path)
    assert (shown.prompt, shown.completions) == (BOTH, (GOOD,))
    assert {each.prompt for each in judged(path)} == {BOTH}
    (gold,) = read_gold(str(path))
    assert gold.prompt[0].content == BOTH
    (prompt,) = read_prompts(path, column="instruction")
    assert prompt.messages[0].content == BOTH
    (scored,) = responses(path)
    assert scored.prompt == BOTH
    assert "the prompt is `instruction`, `input` together" in [each.what for each in examine(path).findings]


@pytest.mark.sibling("alpaca-demonstrations")
def test_alpaca_demonstrations_and_answers(tmp_path: Path) -> None:
    """`instruction`, `input`, `output`: the input is part of the prompt, and a blank one is nothing."""
    rows = [
        {"instruction": WHAT, "input": ABOUT, "output": GOOD},
        {"instruction": "Hello?", "input": "", "output": "Hi."},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    row_counts = RowCounts()
    assert [each.prompt for each in demonstrations(path, row_counts=row_counts)] == [BOTH, "Hello?"]
    assert "the prompt is `instruction`, `input` together" in row_counts.notes
    assert [each.prompt for each in responses(path)] == [BOTH, "Hello?"]
    (asked, _) = read_prompts(path, column="instruction")
    assert prompt_id(asked.messages) in read_answers(path)


PARTS: dict[str, tuple[Row, list[Row]]] = {
    "question-and-context": ({"question": WHAT, "context": ABOUT}, [user(f"{ABOUT}\n\n{WHAT}")]),
    "instruction-and-context": ({"instruction": WHAT, "context": ABOUT}, [user(BOTH)]),
    "prompt-and-document": ({"prompt": WHAT, "document": ABOUT}, [user(BOTH)]),
    "several-passages": ({"prompt": WHAT, "documents": ["One.", "Two."]}, [user(f"{WHAT}\n\nOne.\n\nTwo.")]),
    "history-of-pairs": ({"instruction": WHAT, "input": ABOUT, "history": [["Hi?", "Ho."]]},
                         [user("Hi?"), assistant("Ho."), user(BOTH)]),
    "history-of-messages": ({"prompt": WHAT, "history": [user("Hi?"), assistant("Ho.")]},
                            [user("Hi?"), assistant("Ho."), user(WHAT)]),
    "context-of-messages": ({"context": [user("Hi?"), assistant("Ho."), user(WHAT)]},
                            [user("Hi?"), assistant("Ho."), user(WHAT)]),
    "joined-before": ({"prompt": BOTH, "input": ABOUT}, [user(BOTH)]),
    "blank-parts": ({"prompt": WHAT, "input": None, "history": [], "context": " "}, [user(WHAT)]),
}  # fmt: skip


@pytest.mark.sibling("parts-of-a-prompt")
@pytest.mark.parametrize("name", PARTS)
def test_parts_are_joined(name: str, tmp_path: Path) -> None:
    columns, prompt = PARTS[name]
    (written,) = exported([{**columns, "chosen": GOOD, "rejected": BAD}], tmp_path)
    assert written["prompt"] == prompt
    (gold,) = read_gold(str(tmp_path / "rows.jsonl"))
    assert [turn.model_dump() for turn in gold.prompt] == prompt
    main = next(iter(columns))
    if main != "context":
        (read,) = read_prompts(tmp_path / "rows.jsonl", column=main)
        assert [turn.model_dump() for turn in read.messages] == prompt


REFUSED: dict[str, Row] = {
    "an-object": {"question": WHAT, "context": {"title": ["x"], "sentences": [["y"]]}},
    "texts-of-unknown-speakers": {"prompt": WHAT, "history": ["Hi?", "Ho."]},
    "a-text-beside-messages": {"prompt": [user(WHAT)], "input": ABOUT},
    "a-number": {"instruction": WHAT, "input": 7},
}


@pytest.mark.sibling("parts-that-cannot-be-joined")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_joined_is_left_out(name: str, tmp_path: Path) -> None:
    rows = [{**REFUSED[name], "chosen": GOOD, "rejected": BAD}] * 2
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert {"prompt-part", "unusable"} <= rules(rows, tmp_path).keys()
    for read in (lambda: list(pairs(path)), lambda: list(read_gold(str(path)))):
        with pytest.raises(UserError):
            read()
    with pytest.raises(UserError, match="cannot be joined"):
        list(read_prompts(path, column=next(iter(REFUSED[name]))))


@pytest.mark.sibling("an-unread-question")
def test_a_column_that_looks_like_a_prompt_is_named(tmp_path: Path) -> None:
    """`question` beside `prompt`: where the prompt holds it, nothing is lost; else it is counted."""
    rows = [{"prompt": f"Q: {WHAT}", "question": WHAT, "chosen": GOOD, "rejected": BAD},
            {"prompt": "Answer it.", "question": WHAT, "chosen": GOOD, "rejected": BAD}]  # fmt: skip
    assert rules(rows, tmp_path)["prompt-column"] == (2,)
    odd = InputIssues()
    list(read_prompts(tmp_path / "rows.jsonl", input_issues=odd))
    assert odd.counts["column `question` that looks like a part of the prompt and is not read"] == 1


@pytest.mark.sibling("columns-that-are-not-used")
def test_columns_that_are_not_used_are_named(tmp_path: Path) -> None:
    rows = [{"id": 1, "prompt": WHAT, "chosen": GOOD, "rejected": BAD, "helpfulness": 3, "tools": ["search"]}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    told = "columns not used: `helpfulness`, `tools`"
    assert [(each.level, each.what) for each in examine(path).findings] == [("note", told)]
    for read in (pairs, demonstrations, judged):
        row_counts = RowCounts()
        list(read(path, row_counts=row_counts))
        assert told in row_counts.notes
    odd = InputIssues()
    list(read_gold(str(path), input_issues=odd))
    assert told in odd.counts
    row_counts = RowCounts()
    write_jsonl(path, [{"prompt": WHAT, "response": GOOD, "score": 1}])
    list(demonstrations(path, row_counts=row_counts))
    assert row_counts.notes == ["columns not used: `score`"]


# Labels of single replies ---------------------------------------------------------------------------------------------


def marked(form: str, good: object) -> Row:
    text = GOOD if good in (True, 1, "true", "1") else BAD
    dialogue = [user(WHAT), assistant(text)]
    return {
        "messages": {"messages": dialogue, "label": good},
        "conversations": {"conversations": [{"from": "human", "value": WHAT}, {"from": "gpt", "value": text}],
                          "label": good},
        "messages-desirable": {"messages": dialogue, "desirable": good},
        "completion": {"prompt": WHAT, "completion": text, "label": good},
        "response": {"prompt": WHAT, "response": text, "label": good},
        "alpaca": {"instruction": WHAT, "output": text, "good": good},
        "thumbs": {"prompt": [user(WHAT)], "completion": [assistant(text)], "thumbs_up": good},
        "json-messages": {"messages": json.dumps(dialogue), "label": good},
        "dialogue": {"messages": f"\n\nHuman: {WHAT}\n\nAssistant: {text}", "label": good},
        "text": {"text": f"{WHAT} {text}", "label": good},
    }[form]  # fmt: skip


@pytest.mark.case("03-messages-with-false-label")
@pytest.mark.sibling("false-labels-in-other-forms")
@pytest.mark.parametrize("form", ["messages", "conversations", "messages-desirable", "completion", "response", "alpaca",
                                  "thumbs", "json-messages", "dialogue", "text"])  # fmt: skip
@pytest.mark.parametrize("labels", [(True, False), (1, 0), ("true", "false")])
def test_a_reply_that_is_marked_as_bad_is_not_imitated(form: str, labels: tuple[Any, Any], tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [marked(form, label) for label in (*labels, labels[1])])
    row_counts = RowCounts()
    (shown,) = demonstrations(path, row_counts=row_counts)
    assert GOOD in shown.completions[0]
    assert row_counts.lines == {"undesirable": [2, 3]}


@pytest.mark.case("03-messages-with-false-label")
def test_kto_takes_messages_with_a_label(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [marked("messages", True), marked("messages", False)])
    found = list(judged(path))
    assert [(each.completions, each.values["label"]) for each in found] == [((GOOD,), 1), ((BAD,), 0)]
    assert {each.prompt for each in found} == {(Turn("user", WHAT),)}
    folder = tmp_path / "kto"
    folder.mkdir()
    export_rows(path, folder, "kto", soft=False, kind="jsonl")
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert [(row["completion"], row["label"]) for row in rows] == [([assistant(GOOD)], True), ([assistant(BAD)], False)]
    assert rows[0]["prompt"] == [user(WHAT)]


@pytest.mark.sibling("imitating-a-soft-label-below-one-half")
def test_what_a_soft_label_calls_worse_is_not_imitated(tmp_path: Path) -> None:
    """SFT and KTO read no soft labels: the reply that is better by the label counts, and none at one half."""
    rows = [{"prompt": "a", "chosen": "bad", "rejected": "good", "probability": 0.2},
            {"prompt": "b", "chosen": "x", "rejected": "y", "probability": 0.5}]  # fmt: skip
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    (shown,) = demonstrations(path)
    assert shown.completions == ("good",)
    assert [(each.completions[0], each.values["label"]) for each in judged(path)] == [("good", 1), ("bad", 0)]


@pytest.mark.sibling("single-messages-of-a-tree")
def test_single_messages_of_a_conversation_are_no_demonstrations(tmp_path: Path) -> None:
    """`text` with a `role`, a message a row: half of them are the user's."""
    path = write_jsonl(tmp_path / "rows.jsonl", [{"message_id": "a", "text": WHAT, "role": "prompter"}])
    with pytest.raises(UserError, match="no demonstrations"):
        list(demonstrations(path))


# Tools ----------------------------------------------------------------------------------------------------------------

CALL = [{"type": "function", "function": {"name": "weather", "arguments": {}}}]
TOOLS: dict[str, Row] = {
    "a-call-in-the-reply": {"prompt": [user("Rain?")], "chosen": [{**assistant("Let me look."), "tool_calls": CALL}],
                            "rejected": [assistant("No.")]},
    "a-call-without-content": {"prompt": [user("Rain?")], "rejected": [assistant("No.")],
                               "chosen": [{"role": "assistant", "content": None, "tool_calls": CALL}]},
    "an-old-call": {"prompt": [user("Rain?")], "rejected": [assistant("No.")],
                    "chosen": [{**assistant(""), "function_call": {"name": "weather"}}]},
    "a-call-in-the-prompt": {
        "prompt": [user("Rain?"), {**assistant(""), "tool_calls": CALL}, {"role": "tool", "content": "dry"}],
        "chosen": [assistant("No.")], "rejected": [assistant("Yes.")]},
    "parts-of-a-tool": {"prompt": [user("Rain?")], "rejected": [assistant("No.")], "chosen": [
        {"role": "assistant", "content": [{"type": "text", "text": "Hm."}, {"type": "tool_use", "name": "x"}]}]},
    "as-text": {"prompt": "Rain?", "chosen": str([{**assistant("Let me look."), "tool_calls": CALL}]),
                "rejected": "No."},
}  # fmt: skip


@pytest.mark.case("05-reply-is-a-tool-call")
@pytest.mark.sibling("calls-of-tools-anywhere")
@pytest.mark.parametrize("name", TOOLS)
def test_calls_of_tools_are_left_out_by_a_rule_of_their_own(name: str, tmp_path: Path) -> None:
    fine = {"prompt": [user("Hi?")], "chosen": [{**assistant("Ho."), "tool_calls": None, "function_call": None}],
            "rejected": [{**assistant("No."), "tool_calls": []}]}  # fmt: skip
    rows = [fine, TOOLS[name]]
    assert rules(rows, tmp_path)["tool-calls"] == (2,)
    (written,) = exported(rows, tmp_path)
    assert written["chosen"] == [assistant("Ho.")]
    path = tmp_path / "rows.jsonl"
    assert len(list(pairs(path))) == len(list(read_gold(str(path)))) == len(list(demonstrations(path))) == 1
    odd = InputIssues()
    prompts = list(read_prompts(path, input_issues=odd))
    assert all(turn.content for prompt in prompts for turn in prompt.messages)


# Special tokens -------------------------------------------------------------------------------------------------------


@pytest.mark.case("08-end-token-in-a-reply")
def test_special_tokens_in_replies_are_counted(tmp_path: Path) -> None:
    rows = [
        {"prompt": [user(f"What is {at}?")], "chosen": [assistant(chosen)], "rejected": [assistant("No idea at all.")]}
        for at, chosen in enumerate(
            ["It is 1.<|im_end|>", "It is 2.<|eot_id|> Of course.", "It is 3.</s>\n", "It is 4."]
        )
    ]
    found = rules(rows, tmp_path)
    assert (found["end-token"], found["special-token"]) == ((1, 3), (2,))
    written = exported(rows, tmp_path)
    assert [row["chosen"][0]["content"] for row in written] == ["It is 1.", "It is 3.", "It is 4."]


@pytest.mark.sibling("special-tokens-of-a-tokenizer")
def test_the_special_tokens_of_a_tokenizer(tmp_path: Path) -> None:
    """`<pad>` is in no common format's list, and is one of the demo policy's; --tokenizer alone is enough."""
    row = {"prompt": [user("Hi?")], "chosen": [assistant("Ho. <|end|>")], "rejected": [assistant("No")]}
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    result = rlaif("data", "check", str(path), "--tokenizer", "demo-policy", "--format", "json")
    assert [each["rule"] for each in json.loads(result.stdout)["findings"]] == ["end-token"]
    reading = Reading((Turn("user", "Hi?"),), "Ho <reserved_7> no.", "x")
    told: list[str] = []
    check_special(reading, frozenset({"<reserved_7>"}), told.append)
    assert told == ["special-token"]


@pytest.mark.sibling("end-tokens-of-families")
@pytest.mark.parametrize(
    "token",
    ["<|im_end|>", "</s>", "<|eot_id|>", "<|endoftext|>", "<|end|>", "<end_of_turn>", "<｜end▁of▁sentence｜>", "<eos>",
     "<|END_OF_TURN_TOKEN|>", "<|return|>", "<|eot|>", "<|end_of_text|>", "<|eom_id|>", "<end_of_utterance>"],
)  # fmt: skip
def test_end_tokens_of_model_families(token: str) -> None:
    assert cut_end_tokens(f"Yes. {token}") == "Yes."
    assert cut_end_tokens(f"Yes.{token}\n{token} ") == "Yes."
    assert cut_end_tokens(f"{token} is a token ") == f"{token} is a token "


@pytest.mark.parametrize("text", ["a <| b |> c", "if (a<|b) {}", "<s>struck</s>", "x </S>", "[INSTALL]", "<|x y|>"])
def test_what_is_no_special_token(text: str) -> None:
    told: list[str] = []
    check_special(Reading((), text, text), frozenset(), told.append)
    assert (cut_end_tokens(text), told) == (text, [])


@pytest.mark.sibling("end-tokens-without-end")
@pytest.mark.parametrize("piece", ["<|im_end|>", "<|im_end|> \n", "<|", "<｜", "[", " ", "</s>"])
def test_many_tokens_take_no_long_time(piece: str) -> None:
    """A million characters, well under a second each; quadratic code would take minutes."""
    import time

    began = time.monotonic()
    cut_end_tokens(piece * (1_000_000 // len(piece)))
    assert time.monotonic() - began < 10
