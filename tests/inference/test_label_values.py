"""Log-probabilities as servers send them: what is a distribution becomes a soft label, what is none never does."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from rlaif.cli.setup import check
from rlaif.feedback.aggregate import HARD_LOGIT
from rlaif.feedback.judge import judgement
from rlaif.feedback.scoring import score_record
from rlaif.inference.base import Output, Question
from rlaif.inference.chat_api import first_token, is_collapsed, read_top, wrong_listing
from rlaif.records import Sampling
from tests.inference.questions import label_question
from tests.inference.shapes import LEADING, Shape, ShapeServer, label_of, listed, usual_choice, without_values
from tests.inference.test_server_dialect import ask
from tests.inference.test_server_shapes import run, write
from tests.inference.wire import chat
from tests.support import lines

AB = ("A", "B")


def place(*listed: tuple[Any, Any], drawn: tuple[str, float] | None = None, **more: Any) -> dict[str, Any]:
    """A choice whose first token has these alternatives."""
    entries = [{"token": token, "logprob": value, **more} for token, value in listed]
    token, value = drawn or listed[0]
    first = {"token": token, "logprob": value, "top_logprobs": entries, **more}
    return {"message": {"content": "A"}, "logprobs": {"content": [first]}}


def values(*listed: tuple[Any, Any], **more: Any) -> tuple[float, ...] | None:
    return read_top(first_token(place(*listed, **more)), AB)


def cold(body: Any, text: str) -> dict[str, Any]:
    """A server whose values are those after its temperature, a floor in the place of a temperature of 0."""
    label = label_of(body)
    made = without_values(body, text)
    if label and body.get("logprobs"):
        made["logprobs"] = listed(body, label)
        for entry in made["logprobs"]["content"][0]["top_logprobs"]:
            entry["logprob"] = 0.0 if entry["token"] == label else -9999.0
        made["logprobs"]["content"][0]["logprob"] = 0.0
    return made


@pytest.mark.case("19-certain-at-temperature-zero")
def test_one_token_with_everything_is_read_as_a_word(tmp_path: Path) -> None:
    with ShapeServer(Shape("m", choice=cold)) as server:
        path = write(tmp_path, server.url)
        told = CliRunner().invoke(check, [str(path)])
        assert told.exit_code == 0
        assert "log-probabilities in which one token has everything: verdicts in words, hard labels" in told.output
        run(path)
    for pair in lines(tmp_path / "run/pairs.jsonl"):
        assert "GOOD" in pair["chosen"][0]["content"] and pair["hard"]
        assert pair["probability"] == pytest.approx(1 / (1 + math.exp(-HARD_LOGIT)))


@pytest.mark.sibling("certain-at-temperature-zero-in-the-run-alone")
def test_values_that_collapse_after_the_probe_are_read_as_words_too() -> None:
    """Another provider behind a router applies the temperature: seen at each reply."""

    def handle(body: dict[str, Any]) -> httpx.Response:
        probing = "Answer with one of these" in str(body["messages"])
        return chat(place(("A", -0.3), ("B", -1.5)) if probing else place(("A", 0.0), ("B", -9999.0), ("C", -9999.0)))

    (answer,), _ = ask(handle, [label_question()])
    assert (answer.text, answer.logprobs, answer.failure) == ("A", None, None)


@pytest.mark.sibling("temperature-applied-and-asked-at-one")
def test_values_after_a_temperature_are_asked_for_at_temperature_one() -> None:
    """At temperature 0 (taken for 0.001) the gap of 1.9 is one of 1900; at 1 the values are the model's own."""
    bodies = []

    def handle(body: dict[str, Any]) -> httpx.Response:
        bodies.append(body)
        warm = body["temperature"] == 1
        return chat(place(("A", LEADING), ("B", -2.04), ("C", -4.0)) if warm else place(("A", 0.0), ("B", -1900.0)))

    (answer,), _ = ask(handle, [label_question()])
    assert answer.logprobs == (LEADING, -2.04)
    assert bodies[-1]["max_tokens"] == 1 and bodies[-1]["top_p"] == 1.0


@pytest.mark.case("20-one-log-probability")
def test_one_listed_token_bounds_the_other_label(tmp_path: Path) -> None:
    """-0.1 for one label leaves 1 - e^-0.1 = 0.0952 for the other: log 0.0952 = -2.352."""

    def one(body: Any, text: str) -> dict[str, Any]:
        made = usual_choice(body, text)
        if made["logprobs"]:
            token = {"token": text, "logprob": -0.1}
            made["logprobs"] = {"content": [token | {"top_logprobs": [token]}]}
        return made

    with ShapeServer(Shape("m", choice=one)) as server:
        path = write(tmp_path, server.url)
        assert "the log-probability of one token" in CliRunner().invoke(check, [str(path)]).output
        report = run(path)
    assert report.outcome is not None and report.outcome.counts["pairs"] == 3
    for row in lines(tmp_path / "run/judgements.jsonl"):
        assert sorted(row["logprobs"]) == pytest.approx([-2.3522, -0.1], abs=1e-4)
        assert row["label_mass"] == pytest.approx(math.exp(-0.1)), "what is listed, and no bound"
    for pair in lines(tmp_path / "run/pairs.jsonl"):
        assert "GOOD" in pair["chosen"][0]["content"] and not pair["hard"]


@pytest.mark.sibling("bound-that-would-overturn")
def test_a_bound_never_overturns_what_is_listed() -> None:
    """A drawn token of 0.3 leaves 0.7, and the other label gets no more than the 0.3."""
    assert values(("A", math.log(0.3))) == pytest.approx((math.log(0.3), math.log(0.3)))
    assert values(("A", math.log(0.6)), ("x", math.log(0.3))) == pytest.approx((math.log(0.6), math.log(0.1)))
    assert values(("A", math.log(0.6)), ("x", math.log(0.01))) == pytest.approx((math.log(0.6), math.log(0.01)))


@pytest.mark.sibling("bounds-of-ten-grades")
def test_bounds_of_several_labels_share_what_is_left() -> None:
    """Two grades of 0.5 and 0.3 and a word of 0.1 leave 0.1 to the other eight together, not to each of them."""
    question = Question("score", "m", (), Sampling(max_tokens=1), labels=tuple("0123456789"),
                        about=dict.fromkeys(("prompt", "sample", "principle"), "x"))  # fmt: skip
    reply = place(("7", math.log(0.5)), ("8", math.log(0.3)), ("I", math.log(0.1)))
    found = read_top(first_token(reply), question.labels)
    assert found is not None and sum(map(math.exp, found)) == pytest.approx(0.9)
    record = score_record(question, Output(logprobs=found, label_mass=0.8))
    assert record.label_mass == 0.8
    assert record.value == pytest.approx((7 * 0.5 + 8 * 0.3 + 0.0125 * (45 - 15)) / 0.9)


@pytest.mark.sibling("token-listed-twice")
def test_a_token_that_is_listed_twice_counts_once() -> None:
    pair = (("A", math.log(0.5)), ("B", math.log(0.3)))
    assert values(*pair, pair[0]) == values(*pair) == pytest.approx((math.log(0.5), math.log(0.3)))
    spelled = (("A", math.log(0.5)), ("A", math.log(0.1)), ("B", math.log(0.3)))
    assert values(*spelled) == pytest.approx((math.log(0.6), math.log(0.3))), "two tokens, with and without a space"


@pytest.mark.sibling("tokens-in-other-forms")
@pytest.mark.parametrize("form", ["{}", "Ġ{}", "▁{}", " {}", "\n{}", "\u010a{}"])
def test_labels_as_vocabularies_write_them(form: str) -> None:
    assert values((form.format("A"), -0.3), (form.format("B"), -1.5)) == (-0.3, -1.5)


@pytest.mark.sibling("tokens-by-their-bytes")
def test_labels_by_their_bytes() -> None:
    entries = [
        {"token": f"<0x{ord(label):X}>", "logprob": value, "bytes": [ord(label)]}
        for label, value in (("A", -0.3), ("B", -1.5))
    ]
    choice = {"logprobs": {"content": [entries[0] | {"top_logprobs": entries}]}}
    assert read_top(first_token(choice), AB) == (-0.3, -1.5)
    broken = [entry | {"token": label, "bytes": [300]} for label, entry in zip(AB, entries, strict=True)]
    assert read_top(first_token({"logprobs": {"content": [broken[0] | {"top_logprobs": broken}]}}), AB) == (-0.3, -1.5)


@pytest.mark.sibling("log-probabilities-in-the-older-form")
def test_the_older_form_of_log_probabilities() -> None:
    old = {"tokens": ["A"], "token_logprobs": [-0.3], "top_logprobs": [{"A": -0.3, " B": -1.5}]}
    assert read_top(first_token({"logprobs": old}), AB) == (-0.3, -1.5)
    alone = {"tokens": ["A"], "token_logprobs": [-0.3], "top_logprobs": None}
    assert read_top(first_token({"logprobs": alone}), AB) == pytest.approx((-0.3, math.log(1 - math.exp(-0.3))))


@pytest.mark.sibling("values-that-are-no-log-probabilities")
@pytest.mark.parametrize(
    "wrong",
    [
        [("A", 0.85), ("B", 0.13), ("x", 0.02)],  # probabilities
        [("A", 0.05), ("B", 0.04), ("x", 0.03)],  # small ones
        [("A", 12.5), ("B", 9.0), ("x", -3.0)],  # logits
        [("A", -0.1), ("B", -0.2), ("x", -0.3)],  # logits below 0
        [("A", 0.1), ("B", 2.0), ("x", 4.0)],  # negated ones
        [("x", 3.0), ("A", -0.1), ("B", -2.0)],  # a token that is no label
    ],
)
def test_what_cannot_be_log_probabilities_is_no_label(wrong: list[tuple[str, float]]) -> None:
    """In the run it is a failure; where the probe sees it, verdicts are read as words."""

    def later(body: dict[str, Any]) -> httpx.Response:
        probing = "Answer with one of these" in str(body["messages"])
        return chat(place(("A", -0.3), ("B", -1.5)) if probing else place(*wrong))

    assert [answer.failure for answer in ask(later, [label_question()])[0]] == ["bad_logprobs"]
    (answer,), _ = ask(lambda body: chat(place(*wrong) if body.get("logprobs") else {"message": {"content": "A"}}),
                       [label_question()])  # fmt: skip
    assert (answer.text, answer.logprobs, answer.failure) == ("A", None, None)


@pytest.mark.sibling("null-as-a-log-probability")
def test_null_in_the_place_of_a_number() -> None:
    """JSON writers that know no infinity write null: of a label nothing is known then, of another token nothing lost;
    and where all but one are null, one token has everything."""

    def answer(*listing: tuple[str, float | None]) -> Output:
        usual = place(("A", -0.3), ("B", -1.5))
        return ask(lambda body: chat(place(*listing) if "Which" in str(body) else usual), [label_question()])[0][0]

    assert answer(("A", -0.3), ("B", None), ("x", -3.0)).failure == "bad_logprobs"
    assert answer(("A", -0.3), ("B", -1.5), ("x", None)).logprobs == (-0.3, -1.5)
    assert answer(("A", -0.3), ("B", None), ("x", None)) == Output("A", finish_reason="stop")


@pytest.mark.sibling("null-before-the-token-that-was-drawn")
def test_null_is_never_the_most_probable_token() -> None:
    """Nor where no text says what was drawn: 0 in the place of null would be certainty, and the wrong label."""
    unsaid = {**place(("B", None), ("A", -0.3)), "message": {"content": ""}}
    usual = place(("A", -0.3), ("B", -1.5))
    (answer,), _ = ask(lambda body: chat(unsaid if "Which" in str(body) else usual), [label_question()])
    assert answer.text == "A"


def test_what_is_collapsed_and_what_is_sure() -> None:
    def collapsed(*listing: tuple[str, float], part: bool = False) -> bool:
        return is_collapsed(first_token(place(*listing)), part=part)

    assert collapsed(("A", 0.0), ("B", -9999.0)) and collapsed(("A", 0.0), ("B", -math.inf)) and collapsed(("A", 0.0))
    assert collapsed(("A", -0.7), ("B", -9999.0)), "what is cut off is no distribution either"
    assert not collapsed(("A", 0.0), ("B", -17.3)) and not collapsed(("A", -0.1))
    assert collapsed(("A", 0.0), ("B", -9999.0), part=True) and not collapsed(("A", -0.5), ("B", -60.0), part=True)
    assert wrong_listing(first_token(place(("A", -0.2), ("B", -1.8)))) is None


@pytest.mark.case("28-first-token-is-never-a-label")
def test_a_model_whose_first_token_is_never_a_label(tmp_path: Path) -> None:
    def channel(body: Any, text: str) -> dict[str, Any]:
        if not body.get("logprobs"):
            message = {"role": "assistant", "content": None, "reasoning_content": "Let me see."}
            return {"index": 0, "message": message, "finish_reason": "length"}
        made = place(("<|channel|>", -0.0001), ("A", -11.0), ("B", -12.0), ("x", -13.0))
        return made | {"message": {"content": ""}, "finish_reason": "length"}

    with ShapeServer(Shape("m", choice=channel)) as server:
        told = CliRunner().invoke(check, [str(write(tmp_path, server.url))])
        assert told.exit_code == 1
        assert "A and B had a share of 0.002% of the first token" in told.output and "<|channel|>" in told.output
        assert "compare: {reasoning: reply}" in told.output and "template_options" in told.output
        reasoned = write(tmp_path, server.url, compare={"principles": "one", "reasoning": "reply"})
        assert CliRunner().invoke(check, [str(reasoned)]).exit_code == 0, "there the first token does not matter"


@pytest.mark.sibling("no-label-among-the-listed-tokens")
def test_a_model_that_lists_no_label_at_all(tmp_path: Path) -> None:
    def echo(body: Any, text: str) -> dict[str, Any]:
        made = without_values(body, text)
        return made | ({"logprobs": place(("<<<", -0.1), ("The", -3.0))["logprobs"]} if body.get("logprobs") else {})

    with ShapeServer(Shape("m", choice=echo)) as server:
        told = CliRunner().invoke(check, [str(write(tmp_path, server.url))])
    assert told.exit_code == 1 and "a share of 0.000% of the first token" in told.output and "<<<" in told.output


@pytest.mark.sibling("words-that-say-no-label")
def test_a_judge_in_words_that_says_something_else(tmp_path: Path) -> None:
    def chatty(body: Any, text: str) -> dict[str, Any]:
        return without_values(body, "I would rather not choose.")

    with ShapeServer(Shape("m", choice=chatty)) as server:
        told = CliRunner().invoke(check, [str(write(tmp_path, server.url))])
    assert told.exit_code == 1 and "says none of A, B (it began with 'I would rather not choose.')" in told.output


def test_the_mass_of_a_judgement_is_what_was_listed() -> None:
    question = Question("compare", "m", (), Sampling(max_tokens=1), labels=AB,
                        about=dict.fromkeys(("prompt", "first", "second", "principle"), "x"))  # fmt: skip
    assert judgement(question, Output(logprobs=(-0.9, -1.0), label_mass=0.41)).label_mass == 0.41
    assert json.loads(judgement(question, Output(logprobs=(-0.9, -1.0))).model_dump_json())["label_mass"] < 0.8
