"""Preference data as others publish them: each row's better response is known by how it was made.

The rows are written by hand after the documented columns of these data sets; the texts are made up.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from rlaif.data.doctor import examine
from rlaif.data.export import export_rows
from rlaif.errors import UserError
from rlaif.evaluation.gold import read_gold
from rlaif.training.dataset import pairs
from tests.data.made import assistant, user, write_jsonl
from tests.support import rlaif

Row = dict[str, Any]
Q = "Why is the sky blue?"
GOOD, BAD = "Light is scattered by the air.", "Because it is painted."


def exported(path: Path, folder: Path) -> list[Row]:
    """What `rlaif data export --format trl` makes of a file."""
    folder.mkdir()
    export_rows(path, folder, "trl", soft=True, kind="jsonl")
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def chosen_of(rows: list[Row], tmp_path: Path) -> list[str]:
    """The chosen texts by all three readers, which agree; the rejected ones are the others."""
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    written = exported(path, tmp_path / "out")
    chosen = [row["chosen"][-1]["content"] for row in written]
    trained = [each.completions for each in pairs(path, "chat")]
    gold = list(read_gold(str(path)))
    assert [texts[0] for texts in trained] == chosen
    assert {pair.better for pair in gold} == set(chosen)
    for row, texts in zip(written, trained, strict=True):
        assert {row["chosen"][-1]["content"], row["rejected"][-1]["content"]} == set(texts) == {GOOD, BAD}
    return chosen


def refusal(rows: list[Row], tmp_path: Path) -> str:
    """The one line that every reader stops with."""
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    said = set()
    for read in (examine, lambda path: list(pairs(path)), lambda path: list(read_gold(str(path)))):
        with pytest.raises(UserError) as caught:
            read(path)  # type: ignore[operator]
        said.add(str(caught.value))
    (line,) = said
    assert "\n" not in line
    return line


def two(first: str, second: str, good_first: bool, **more: Any) -> Row:
    """A prompt with the two responses in these columns."""
    one, other = (GOOD, BAD) if good_first else (BAD, GOOD)
    return {"prompt": Q, first: one, second: other, **more}


# Two numbered responses -----------------------------------------------------------------------------------------------


@pytest.mark.case("01-preference-column")
def test_a_preference_between_one_and_two(tmp_path: Path) -> None:
    """P(second) is the preference less 1; 1.5 is a tie; the label is soft as soon as one value is between."""
    values = [1, 2, 1.03, 1.97, 1.5, 2.0]
    rows = [two("output_1", "output_2", value < 1.5, preference=value) for value in values]
    rows = [{**row, "prompt": f"{Q} {at}"} for at, row in enumerate(rows)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    made = exported(path, tmp_path / "out")
    assert [row["chosen"][0]["content"] for row in made] == [GOOD] * 5
    assert [row["probability"] for row in made] == [1, 1, 0.97, 0.97, 1]
    assert [each.values["probability"] for each in pairs(path)] == [1, 1, 0.97, 0.97, 1]
    report = examine(path)
    assert {finding.rule: finding.lines for finding in report.findings}["tie"] == (5,)


CHATBOT_ARENA = [
    {"question_id": str(at), "model_a": "vicuna", "model_b": "alpaca", "winner": winner, "judge": "arena_user_7",
     "conversation_a": [user(Q), assistant(a)], "conversation_b": [user(Q), assistant(b)], "turn": 1}
    for at, (winner, a, b) in enumerate([("model_a", GOOD, BAD), ("model_b", BAD, GOOD), ("model_a", GOOD, BAD)])
]  # fmt: skip

SHAPES: dict[str, list[Row]] = {
    "alpaca-farm": [
        {"instruction": Q, "input": "", "output_1": GOOD, "output_2": BAD, "preference": 1, "datasplit": "eval"},
        {"instruction": Q, "input": "", "output_1": BAD, "output_2": GOOD, "preference": 2, "datasplit": "eval"},
    ],
    "chatbot-arena": CHATBOT_ARENA,
    "winner-by-model-name": [{**row, "winner": row[row["winner"]]} for row in CHATBOT_ARENA],
    "arena-one-hot": [
        {"id": 1, "prompt": Q, "response_a": GOOD, "response_b": BAD, "winner_model_a": 1, "winner_model_b": 0,
         "winner_tie": 0},
        {"id": 2, "prompt": Q, "response_a": BAD, "response_b": GOOD, "winner_model_a": 0, "winner_model_b": 1,
         "winner_tie": 0},
    ],
    "mt-bench-letters": [
        two("response_a", "response_b", True, verdict="[[A]]"), two("response_a", "response_b", False, verdict="[[B]]"),
    ],
    "arena-hard-letters": [
        two("answer_a", "answer_b", True, verdict="[[A>>B]]"), two("answer_a", "answer_b", False, verdict="[[A<B]]"),
    ],
    "pku-saferlhf": [
        two("response_0", "response_1", True, better_response_id=0, safer_response_id=1, is_response_0_safe=False),
        two("response_0", "response_1", False, better_response_id=1, safer_response_id=1, is_response_0_safe=True),
    ],
    "pku-safer-alone": [
        two("response_0", "response_1", False, safer_response_id=1), two("response_0", "response_1", False,
                                                                         safer_response_id=1)],
    "webgpt": [
        {"question": Q, "answer_0": GOOD, "answer_1": BAD, "score_0": 0.5, "score_1": -0.5},
        {"question": Q, "answer_0": BAD, "answer_1": GOOD, "score_0": -1, "score_1": 1},
    ],
    "shp": [
        {"post_id": "x", "history": Q, "human_ref_A": GOOD, "human_ref_B": BAD, "labels": 1, "score_A": 52,
         "score_B": 13, "score_ratio": 4.0, "seconds_difference": 10.0},
        {"post_id": "y", "history": Q, "human_ref_A": BAD, "human_ref_B": GOOD, "labels": 0, "score_A": 2,
         "score_B": 13, "score_ratio": 6.5, "seconds_difference": 10.0},
    ],
    "helpsteer2-preference": [
        two("response_1", "response_2", True, preference_strength=-3, preference_statement="First.", split="train"),
        two("response_1", "response_2", False, preference_strength=1, preference_statement="Second.", split="train"),
    ],
    "helpsteer3": [
        {"domain": "stem", "language": "english", "context": [user(Q)], "response1": GOOD, "response2": BAD,
         "overall_preference": -1, "individual_preference": [{"score": -1}]},
        {"domain": "stem", "language": "english", "context": [user(Q)], "response1": BAD, "response2": GOOD,
         "overall_preference": 2, "individual_preference": [{"score": 2}]},
    ],
    "pandalm-votes": [
        {"idx": 1, "instruction": Q, "input": "", "response1": GOOD, "response2": BAD, "annotator1": 1,
         "annotator2": 1, "annotator3": 2},
        {"idx": 2, "instruction": Q, "input": "", "response1": BAD, "response2": GOOD, "annotator1": 2,
         "annotator2": 0, "annotator3": 2},
    ],
    "judgelm": [
        {"question_id": 1, "question_body": Q, "answer1_body": GOOD, "answer2_body": BAD, "score": [9, 3],
         "answer1_model_id": "a", "answer2_model_id": "b"},
        {"question_id": 2, "question_body": Q, "answer1_body": BAD, "answer2_body": GOOD, "score": [2.0, 8.0],
         "answer1_model_id": "a", "answer2_model_id": "b"},
    ],
    "openai-comparisons": [
        {"prompt": Q, "summaries": [{"text": GOOD, "policy": "sup2"}, {"text": BAD, "policy": "ref"}], "choice": 0},
        {"prompt": Q, "summaries": [{"text": BAD, "policy": "sup2"}, {"text": GOOD, "policy": "ref"}], "choice": 1},
    ],
    "ranks-beside-two": [
        two("response_1", "response_2", True, rank_1=1, rank_2=2), two("response_1", "response_2", False, rank_1=2,
                                                                       rank_2=1)],
    "chosen-as-a-letter": [
        two("response_a", "response_b", True, chosen="A", rejected="B"),
        two("response_a", "response_b", False, chosen="B", rejected="A"),
    ],
    "chosen-as-a-column": [
        two("response_1", "response_2", True, chosen="response_1"),
        two("response_1", "response_2", False, chosen="response_2"),
    ],
    "chosen-index-of-a-list": [
        {"prompt": Q, "responses": [GOOD, BAD], "chosen_index": 0},
        {"prompt": Q, "responses": [BAD, GOOD], "chosen_index": 1},
    ],
    "the-better-text-itself": [
        two("output_1", "output_2", True, better=GOOD), two("output_1", "output_2", False, better=GOOD)],
    "left-and-right": [
        two("response_left", "response_right", True, choice="left"),
        two("response_left", "response_right", False, choice="Right"),
    ],
    "zero-is-a-tie": [
        two("response_1", "response_2", True, label=1), two("response_1", "response_2", False, label=2),
        two("response_1", "response_2", False, label=0),
    ],
    "votes-in-a-list": [
        two("output_1", "output_2", True, preference=[1, 1, 2]), two("output_1", "output_2", False, preference=[2, 2]),
    ],
}  # fmt: skip
"""In all of them the good response is the better one."""


@pytest.mark.sibling("winners-of-published-data-sets")
@pytest.mark.parametrize("name", SHAPES)
def test_the_winner_is_obeyed_by_every_reader(name: str, tmp_path: Path) -> None:
    rows = SHAPES[name]
    assert set(chosen_of(rows, tmp_path)) == {GOOD}
    report = examine(tmp_path / "rows.jsonl")
    (use,) = (finding.what for finding in report.findings if finding.rule == "columns" and "chosen and" in finding.what)
    assert "are read as chosen and rejected" in use or "is read as chosen and rejected" in use


@pytest.mark.parametrize("value", ["tie", "tie (bothbad)", "Both good", "neither", "[[A=B]]", "A=B"])
@pytest.mark.sibling("ties-in-words")
def test_a_tie_makes_no_pair(value: str, tmp_path: Path) -> None:
    rows = [two("response_a", "response_b", True, winner="A"), two("response_a", "response_b", True, winner=value)]
    assert chosen_of(rows, tmp_path) == [GOOD]
    found = {finding.rule: finding.lines for finding in examine(tmp_path / "rows.jsonl").findings}
    assert found["tie"] == (2,)


@pytest.mark.parametrize("value", ["C", "model_c", "yes", "gpt-4", 3, -1])
@pytest.mark.sibling("a-winner-that-is-nobody")
def test_a_winner_that_names_neither_is_left_out(value: object, tmp_path: Path) -> None:
    rows = [two("response_a", "response_b", True, winner="A"), two("response_a", "response_b", True, winner=value)]
    if isinstance(value, int):
        assert "not clearly" in refusal(rows, tmp_path)
        return
    assert chosen_of(rows, tmp_path) == [GOOD]
    found = {finding.rule: finding.lines for finding in examine(tmp_path / "rows.jsonl").findings}
    assert found["winner"] == (2,)


AMBIGUOUS: dict[str, list[Row]] = {
    "0 and 1 of responses 1 and 2": [two("response_1", "response_2", True, choice=value) for value in (0, 1)],
    "1 alone": [two("response_1", "response_2", True, preference=1)] * 3,
    "0 and 1 of a and b": [two("response_a", "response_b", True, label=value) for value in (0, 1)],
    "0, 1 and 2 of a and b": [two("response_a", "response_b", True, label=value) for value in (0, 1, 2)],
    "1 and 2 of responses 0 and 1": [two("response_0", "response_1", True, label=value) for value in (1, 2)],
    "shares": [two("response_a", "response_b", True, preference=value) for value in (0.2, 0.9)],
    "another scale": [two("response_1", "response_2", True, preference=value) for value in (1, 4, 7)],
    "signs of an unknown scale": [two("response_1", "response_2", True, preference=value) for value in (-1, 1)],
    "1 alone of a list": [{"prompt": Q, "responses": [GOOD, BAD], "chosen_index": 1}] * 2,
    "true and false": [two("response_1", "response_2", True, preference=value) for value in ("0", "1", "")],
}


@pytest.mark.sibling("counted-from-zero-or-one")
@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_numbers_mean_is_not_guessed(name: str, tmp_path: Path) -> None:
    assert "is better, but not clearly: it holds" in refusal(AMBIGUOUS[name], tmp_path)


@pytest.mark.sibling("counted-from-zero-or-one")
def test_the_last_row_may_decide(tmp_path: Path) -> None:
    """1,000 rows hold 1 alone: the 2 at the end says that they are counted from 1."""
    rows = [{**two("response_1", "response_2", True, choice=1), "prompt": f"{Q} {at}"} for at in range(1000)]
    rows.append(two("response_1", "response_2", False, choice=2))
    assert set(chosen_of(rows, tmp_path)) == {GOOD}


@pytest.mark.sibling("zero-and-one-with-scores")
@pytest.mark.parametrize("first_is", [0, 1])
def test_scores_beside_say_what_0_and_1_are(first_is: int, tmp_path: Path) -> None:
    rows = [
        two("response_a", "response_b", True, label=first_is, score_a=5, score_b=1),
        two("response_a", "response_b", False, label=1 - first_is, score_a=1, score_b=4),
    ]
    assert set(chosen_of(rows, tmp_path)) == {GOOD}


@pytest.mark.sibling("two-responses-without-a-winner")
@pytest.mark.parametrize(("first", "second"), [("output_1", "output_2"), ("response-1", "response-2")])
def test_two_responses_and_no_winner_are_refused(first: str, second: str, tmp_path: Path) -> None:
    line = refusal([two(first, second, True)], tmp_path)
    assert "no column that says which is better" in line
    assert rlaif("data", "check", str(tmp_path / "rows.jsonl")).returncode == 2


def test_more_than_two_numbered_responses_are_no_pair(tmp_path: Path) -> None:
    rows = [{**two("response_1", "response_2", True, winner=1), "response_3": "x"}]
    report = examine(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert (report.shape, report.worst) == (None, "error")


@pytest.mark.sibling("a-second-column-of-a-winner")
def test_another_winner_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", SHAPES["pku-saferlhf"])
    told = [finding.what for finding in examine(path).findings if finding.level == "warning"]
    assert "columns that may name a winner and are not read: `safer_response_id`" in told
    rows = [{"prompt": Q, "chosen": GOOD, "rejected": BAD, "winner": "B"}]
    told = [finding.what for finding in examine(write_jsonl(path, rows)).findings]
    assert "columns that may name a winner and are not read: `winner`" in told


@pytest.mark.sibling("soft-votes")
def test_votes_are_soft_labels(tmp_path: Path) -> None:
    """Two of three votes for the better one; with one for a tie, 2.5 of 3."""
    path = write_jsonl(tmp_path / "rows.jsonl", SHAPES["pandalm-votes"])
    assert [each.values["probability"] for each in pairs(path)] == pytest.approx([2 / 3, 2.5 / 3])


@pytest.mark.sibling("a-label-below-one-half")
def test_a_label_below_one_half_turns_the_pair(tmp_path: Path) -> None:
    """TRL reads no label: what `probability` calls better is chosen."""
    rows = [{"prompt": Q, "chosen": BAD, "rejected": GOOD, "probability": 0.25}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    (row,) = exported(path, tmp_path / "out")
    assert (row["chosen"][0]["content"], row["probability"]) == (GOOD, 0.75)
    ((pair),) = read_gold(str(path))
    assert pair.better == GOOD


# Other shapes ---------------------------------------------------------------------------------------------------------

CHAT = [user(Q), assistant(GOOD)]
OTHER = [user(Q), assistant(BAD)]
PLAIN: dict[str, Row] = {
    "ultrafeedback-binarized": {"prompt": Q, "prompt_id": "x", "chosen": CHAT, "rejected": OTHER, "messages": CHAT,
                                "score_chosen": 8.5, "score_rejected": 2.0},
    "orca-dpo-pairs": {"system": "", "question": Q, "chosen": GOOD, "rejected": BAD},
    "hh-rlhf": {"chosen": f"\n\nHuman: {Q}\n\nAssistant: {GOOD}", "rejected": f"\n\nHuman: {Q}\n\nAssistant: {BAD}"},
    "stack-exchange-paired": {"qid": 3, "question": Q, "date": "2020-01-01", "metadata": ["x"], "response_j": GOOD,
                              "response_k": BAD},
    "rewardbench": {"prompt": Q, "chosen": GOOD, "chosen_model": "gpt-4", "rejected": BAD, "rejected_model": "llama",
                    "subset": "chat", "id": 7},
    "tulu-mixture": {"id": "a", "source": "wildchat", "prompt": Q, "chosen": CHAT, "rejected": OTHER,
                     "chosen_rating": 5.0, "rejected_rating": 2.0, "chosen_model": "m", "rejected_model": "n"},
    "sharegpt-preferences": {"conversations": [{"from": "human", "value": Q}],
                             "chosen": {"from": "gpt", "value": GOOD}, "rejected": {"from": "gpt", "value": BAD}},
    "argilla-ultrafeedback": {"instruction": Q, "chosen_response": GOOD, "rejected_response": BAD,
                              "chosen_avg_rating": 4.5, "rejected_avg_rating": 3.0, "chosen_model": "a"},
    "nectar": {"prompt": f"\n\nHuman: {Q}\n\nAssistant: ", "turns": 1, "num_responses": 3, "answers": [
        {"answer": BAD, "model": "a", "rank": 7.0}, {"answer": GOOD, "model": "b", "rank": 1.0},
        {"answer": "Hm.", "model": "c", "rank": 3.0}]},
    "ultrafeedback": {"instruction": Q, "models": ["a", "b"], "source": "x", "completions": [
        {"model": "a", "response": BAD, "overall_score": 3.0, "fine-grained_score": 1.5,
         "annotations": {"honesty": {"Rating": "1"}, "helpfulness": {"Rating": "2"}}},
        {"model": "b", "response": GOOD, "overall_score": 8.0, "fine-grained_score": 4.5,
         "annotations": {"honesty": {"Rating": "4"}, "helpfulness": {"Rating": "5"}}}]},
    "responses-with-scores": {"prompt": Q, "responses": ["Hm.", GOOD, BAD], "scores": [0.2, 0.9, 0.1]},
    "responses-with-ranks": {"prompt": Q, "responses": ["Hm.", GOOD, BAD], "ranks": [2, 1, 3]},
    "scores-out-of-ten": {"prompt": Q, "completions": [
        {"text": BAD, "score": "2/10"}, {"text": GOOD, "score": "9/10"}]},
}  # fmt: skip


@pytest.mark.sibling("shapes-of-published-data-sets")
@pytest.mark.parametrize("name", PLAIN)
def test_published_shapes(name: str, tmp_path: Path) -> None:
    assert chosen_of([PLAIN[name]], tmp_path) == [GOOD]
    (row,) = [json.loads(line) for line in (tmp_path / "out/train.jsonl").read_text().splitlines()]
    assert row["prompt"] == [user(Q)]
    assert row["rejected"] == [assistant(BAD)]


def rated(overall: tuple[float, float], fine: tuple[float | None, float | None]) -> Row:
    """A bad and a good completion with these scores."""
    return {"instruction": Q, "completions": [
        {"response": text, "overall_score": score, **({} if aspect is None else {
            "fine-grained_score": aspect, "annotations": {"truth": {"Rating": str(int(aspect))}}})}
        for text, score, aspect in zip((BAD, GOOD), overall, fine, strict=True)]}  # fmt: skip


@pytest.mark.case("06-overall-score-of-ten")
def test_aspects_count_before_an_overall_score(tmp_path: Path) -> None:
    """The overall score of 10 was a 1: every aspect says so, and the row is counted."""
    rows = [rated((10, 8.5), (1, 4)), rated((2, 8.5), (1, 4))]
    assert chosen_of(rows, tmp_path) == [GOOD, GOOD]
    found = {finding.rule: finding.lines for finding in examine(tmp_path / "rows.jsonl").findings}
    assert found["ratings-disagree"] == (1,)


@pytest.mark.sibling("ratings-of-some-completions-only")
def test_completions_are_compared_by_one_measure(tmp_path: Path) -> None:
    """One completion has aspects on a scale to 5, both have an overall score to 10: only the latter compares them."""
    assert chosen_of([rated((3, 8), (5, None))], tmp_path) == [GOOD]


@pytest.mark.case("07-ranks-instead-of-ratings")
def test_ranks_are_read_and_nothing_usable_is_an_error(tmp_path: Path) -> None:
    row = {"prompt": Q, "answers": [{"answer": BAD, "rank": 2}, {"answer": GOOD, "rank": 1.0}]}
    assert chosen_of([row], tmp_path) == [GOOD]
    unrated = [{"instruction": Q, "completions": [{"response": GOOD}, {"response": BAD}]}] * 3
    path = write_jsonl(tmp_path / "unrated.jsonl", unrated)
    assert ("error", "unusable") in [(finding.level, finding.rule) for finding in examine(path).findings]
    assert rlaif("data", "check", str(path)).returncode == 2


@pytest.mark.sibling("only-ties-are-nothing-usable")
def test_a_file_of_ties_is_an_error(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [two("output_1", "output_2", True, preference=1.5)])
    assert examine(path).worst == "error"


UNKNOWN: dict[str, Row] = {
    "helpsteer": {"prompt": Q, "response": GOOD, "helpfulness": 4, "correctness": 4},
    "openassistant-flat": {"message_id": "a", "parent_id": "b", "text": GOOD, "role": "assistant", "rank": 0},
    "openassistant-tree": {"message_tree_id": "x", "prompt": {"text": Q, "role": "prompter", "replies": [
        {"text": GOOD, "role": "assistant", "rank": 0}, {"text": BAD, "role": "assistant", "rank": 1}]}},
    "rewardbench-2": {"id": 1, "prompt": Q, "chosen": [GOOD], "rejected": [BAD, BAD, BAD]},
    "argilla-records": {"fields": {"prompt": Q, "response-1": GOOD, "response-2": BAD}, "responses": []},
    "openai-comparisons-nested": {"info": {"post": Q}, "summaries": [{"text": GOOD}, {"text": BAD}], "choice": 0},
}  # fmt: skip


@pytest.mark.sibling("shapes-that-are-refused")
@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_read_is_refused(name: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [UNKNOWN[name]])
    result = rlaif("data", "check", str(path))
    assert (result.returncode, result.stderr) == (2, "")
    made = rlaif("data", "export", str(path), "--format", "trl", "-o", str(tmp_path / "out"))
    assert made.returncode == 2
    assert made.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


# Tables ---------------------------------------------------------------------------------------------------------------


def table(path: Path, rows: list[Row], delimiter: str = ",", head: str = "") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(head)
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.sibling("winners-out-of-a-table")
@pytest.mark.parametrize(("delimiter", "head"), [(",", ""), (";", "\ufeff"), ("\t", "")])
def test_a_winner_in_a_table(delimiter: str, head: str, tmp_path: Path) -> None:
    """Numbers are texts there, and a missing cell is blank."""
    rows = [
        two("response_1", "response_2", True, choice="1"), two("response_1", "response_2", False, choice="2.0"),
        two("response_1", "response_2", False, choice=""),
    ]  # fmt: skip
    path = table(tmp_path / "rows.csv", rows, delimiter, head)
    made = exported(path, tmp_path / "out")
    assert [row["chosen"][0]["content"] for row in made] == [GOOD, GOOD]


@pytest.mark.case("04-messages-as-python-text")
@pytest.mark.sibling("messages-as-python-text-everywhere")
def test_messages_as_python_text(tmp_path: Path) -> None:
    """As `str()` writes them, apostrophes and all; what an array prints is refused by every reader."""
    texts = [str([user("Who's there?")]), str([assistant("It's me.")]), str([assistant("Nobody.")])]
    path = table(tmp_path / "rows.csv", [dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))])
    assert [(each.level, each.rule) for each in examine(path).findings] == [("error", "messages-as-text")]
    (row,) = exported(path, tmp_path / "out")
    assert (row["prompt"], row["chosen"]) == ([user("Who's there?")], [assistant("It's me.")])
    (pair,) = read_gold(str(path))
    assert (pair.prompt[0].content, pair.better) == ("Who's there?", "It's me.")
    (example,) = pairs(path)
    assert example.completions == ("It's me.", "Nobody.")
    array = "[{'content': 'Hi?', 'role': 'user'}\n {'content': 'Ho.', 'role': 'assistant'}]"
    path = table(tmp_path / "array.csv", [{"prompt": "Hi?", "chosen": array, "rejected": "No."}])
    assert ("error", "unparsed-messages") in [(each.level, each.rule) for each in examine(path).findings]
    for read in (lambda: list(pairs(path)), lambda: list(read_gold(str(path)))):
        with pytest.raises(UserError):
            read()


@pytest.mark.sibling("texts-that-only-look-like-messages")
@pytest.mark.parametrize(
    "text",
    ['[{"name": "Ann", "role": "admin"}]', "{'a': 1}", '{"role": "admin"}', "[1, 2]", "[{}]",
     "[{'role': 'user', 'content': 'x'}] is a list in Python."],
)  # fmt: skip
def test_an_answer_that_holds_data_is_a_text(text: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": Q, "chosen": text, "rejected": BAD}])
    (row,) = exported(path, tmp_path / "out")
    assert row["chosen"] == [assistant(text)]


@pytest.mark.sibling("a-list-in-a-cell")
def test_rated_completions_in_a_cell(tmp_path: Path) -> None:
    completions = json.dumps(PLAIN["ultrafeedback"]["completions"])
    path = table(tmp_path / "rows.csv", [{"instruction": Q, "completions": completions}])
    (row,) = exported(path, tmp_path / "out")
    assert row["chosen"] == [assistant(GOOD)]


@pytest.mark.sibling("missing-cells-as-nan")
def test_a_missing_cell_is_no_text(tmp_path: Path) -> None:
    rows = [{"prompt": Q, "input": float("nan"), "chosen": GOOD, "rejected": BAD},
            {"prompt": Q, "input": float("nan"), "chosen": float("nan"), "rejected": BAD}]  # fmt: skip
    assert chosen_of(rows, tmp_path) == [GOOD]
    found = {finding.rule: finding.lines for finding in examine(tmp_path / "rows.jsonl").findings}
    assert found["missing"] == (2,)
