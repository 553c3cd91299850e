"""Reasons before the verdict, over real sockets: what is read, what is not, and what it costs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.run_file import load_run
from rlaif.errors import UserError
from rlaif.feedback.aggregate import HARD_LOGIT
from rlaif.feedback.judge import judgement
from rlaif.feedback.pipeline import Report, run_pipeline
from rlaif.feedback.prompts import LABELS, compare_messages
from rlaif.inference.base import Output, Question, last_label
from rlaif.inference.chat_api import read_last
from rlaif.records import Message, Sampling, Verdict
from tests.fakes import FakeServer, Taste, unit
from tests.support import lines, rlaif, write_run

REASONED = {"reasoning": "reply", "principles": "all"}


def run(path: Path, **compare: str) -> Report:
    return run_pipeline(load_run(path, {("compare", name): value for name, value in compare.items()}))


def judged_right(folder: Path) -> None:
    """Every verdict goes by merit."""
    text = {row["id"]: row["text"] for row in lines(folder / "run/samples.jsonl")}
    for row in lines(folder / "run/judgements.jsonl"):
        better = unit("merit", text[row["first"]]) > unit("merit", text[row["second"]])
        assert row["verdict"] == ("first" if better else "second")


@pytest.mark.parametrize("thinks", ["", "tags", "field"])
@pytest.mark.parametrize("logprobs", ["exact", "top", "none"])
def test_verdicts_behind_reasons_and_thoughts(tmp_path: Path, thinks: str, logprobs: str) -> None:
    """The thoughts state the opposite verdict, the reasons name both labels; soft labels where there are values."""
    with FakeServer(thinks=thinks, logprobs=logprobs, batch=logprobs == "exact") as fake:
        report = run(write_run(tmp_path, fake.url, compare=REASONED))
        asked = [body for body in fake.bodies if body.get("max_tokens") == 1024]
    assert report.outcome is not None
    assert report.outcome.counts["judgements_unparsed"] == report.outcome.counts["judgements_truncated"] == 0
    assert len(lines(tmp_path / "run/pairs.jsonl")) == 10
    judged_right(tmp_path)
    text = {row["id"]: row["text"] for row in lines(tmp_path / "run/samples.jsonl")}
    for row in lines(tmp_path / "run/judgements.jsonl"):
        assert row["text"].endswith("Verdict: " + {"first": "A", "second": "B"}[row["verdict"]])
        assert row["reasoning"].startswith("At first sight") is (thinks == "field")
        if logprobs == "none":
            assert row["logprobs"] is None
            continue
        gap = 8 * (unit("merit", text[row["first"]]) - unit("merit", text[row["second"]]))
        assert row["logprobs"][0] - row["logprobs"][1] == pytest.approx(gap, abs=1e-6)
        assert row["label_mass"] == pytest.approx(0.96)
    pairs = lines(tmp_path / "run/pairs.jsonl")
    assert all(pair["hard"] is (logprobs == "none") for pair in pairs)
    if logprobs == "none":
        assert pairs[0]["probability"] == pytest.approx(1 / (1 + math.exp(-HARD_LOGIT)))
    assert {bool(body.get("logprobs")) for body in asked} == {logprobs != "none"}
    assert {body.get("top_logprobs") for body in asked} == {5 if logprobs == "top" else None}


@pytest.mark.parametrize("thinks", ["", "tags", "field"])
def test_a_reply_that_is_cut_off_has_no_verdict(tmp_path: Path, thinks: str) -> None:
    """The fake needs 39 tokens, and 49 with thoughts; 38 cut off no more than its end token, or its reasons."""
    with FakeServer(thinks=thinks) as fake:
        path = write_run(tmp_path, fake.url, compare=REASONED)
        report = run(path, reasoning_tokens="38")
        assert report.outcome is not None
        count = report.outcome.counts
        assert count["judgements"] == count["judgements_unparsed"] == count["judgements_truncated"] == 120
        said = lines(tmp_path / "run/judgements.jsonl")
        assert any(row["text"].endswith(("Verdict: A", "Verdict: B")) for row in said) is not bool(thinks)
        assert count["pairs"] == count["comparisons_labelled"] == 0
        assert not report.outcome.failures
        before = fake.asked.total()
        longer = run(path)
        assert longer.outcome is not None
        assert longer.outcome.counts["pairs"] == 10, "another budget, other questions"
        assert fake.asked.total() - before == count["judgements"] + 2, "and the probe"
    shown = rlaif("pair", path, "--compare-reasoning-tokens", "38")
    assert "120 (120 unparsed, 120 truncated)" in shown.stdout


def test_it_asks_as_many_questions_as_without(tmp_path: Path) -> None:
    """Four samples: six pairs, twelve calls a prompt in both orders, six in one; a second run asks nothing."""
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url, compare=REASONED)
        assert {tally.stage: tally.asked for tally in run(path).tallies}["compare"] == 120
        assert {tally.stage: tally.asked for tally in run(path).tallies}["compare"] == 0
        assert {tally.stage: tally.asked for tally in run(path, orders="random").tallies}["compare"] == 0
        assert {tally.stage: tally.asked for tally in run(path, reasoning="none").tallies}["compare"] == 120
    rows = lines(tmp_path / "run/judgements.jsonl")
    assert len({row["id"] for row in rows}) == 240


def test_a_panel_gives_reasons_too(tmp_path: Path) -> None:
    contrary = Taste(contrary=True)
    with FakeServer() as one, FakeServer(model="two") as two, FakeServer(model="three", taste=contrary) as three:
        judges = [{"model": fake.model, "base_url": fake.url} for fake in (one, two, three)]
        report = run(write_run(tmp_path, one.url, judge=judges, compare=REASONED))
    assert report.outcome is not None and report.outcome.panel is not None
    found = report.outcome.panel.result()
    assert [part.opposes > part.agrees for part in found.judges] == [False, False, True]


def test_preview_shows_the_reasons_and_counts_the_calls(tmp_path: Path) -> None:
    with FakeServer(thinks="field") as fake:
        path = write_run(tmp_path, fake.url, compare=REASONED)
        shown = rlaif("preview", path, "-n", 2)
        checked = rlaif("check", path)
    assert shown.returncode == checked.returncode == 0, shown.stderr + checked.stderr
    assert "compare             120 calls" in shown.stdout
    assert "is kinder to the person who asked, though." in shown.stdout
    assert "At first sight" in shown.stdout


@pytest.mark.parametrize(
    ("compare", "told"),
    [
        ({"critique": True}, "`compare.critique` and `compare.reasoning` are two ways to the same end"),
        ({"method": "score"}, "`compare.reasoning` goes with pairs, and `method` is score"),
        ({"reasoning_tokens": 8}, "reasoning_tokens"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, compare: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        load_run(write_run(tmp_path, "http://127.0.0.1:1/v1", compare={"reasoning": "reply", **compare}))


def question(tokens: int = 64) -> Question:
    messages = compare_messages((Message(role="user", content="Hi"),), "one", "two", "Which is kinder?", reasoned=True)
    about = {"prompt": "p", "first": "1", "second": "2", "principle": "kind"}
    return Question("compare_reasoned", "j", messages, Sampling(max_tokens=tokens), labels=LABELS, about=about)


@pytest.mark.parametrize(
    ("text", "logprobs", "finish", "verdict", "soft"),
    [
        ("Kinder.\nVerdict: A", (-0.1, -3.0), "stop", Verdict.FIRST, True),
        ("Kinder.\nVerdict: A", None, "stop", Verdict.FIRST, False),
        ("Kinder.\nVerdict: A", (-3.0, -0.1), "stop", Verdict.FIRST, False),  # of another mind than the text
        ("Verdict: A\nNo: verdict: B", (-3.0, -0.1), "stop", Verdict.SECOND, True),
        ("Verdict: A or Verdict: B", (-3.0, -0.1), "stop", Verdict.UNPARSED, False),
        ("Both are fine.", None, "stop", Verdict.UNPARSED, False),
        ("Verdict: A", (-0.1, -3.0), "length", Verdict.UNPARSED, False),
        ("<think>Verdict: A", None, "length", Verdict.UNPARSED, False),
        ("<think>Verdict: A</think>", (-0.1, -3.0), "stop", Verdict.UNPARSED, False),
        ("<think>Verdict: A</think>B", (-3.0, -0.1), "stop", Verdict.SECOND, True),
        ("", None, "stop", Verdict.UNPARSED, False),
    ],
)
def test_reading(text: str, logprobs: tuple[float, float] | None, finish: str, verdict: Verdict, soft: bool) -> None:
    found = judgement(question(), Output(text, logprobs, finish))
    assert found.verdict is verdict
    assert (found.logprobs is not None) is soft
    assert (found.label_mass is not None) is soft
    assert found.truncated is (finish == "length")


@pytest.mark.parametrize(
    ("tokens", "at"),
    [
        (["Verdict", ":", " A"], 2),
        (["Verdict", ":", " **", "A", "**", ".", "\n", "<|im_end|>"], 3),
        (["A", " is", " better"], None),
        (["A", " or", " B", "</s>"], 2),
        (["Verdict: A"], None),
        ([], None),
        (["<eos>"], None),
    ],
)
def test_where_the_last_label_stands(tokens: list[str], at: int | None) -> None:
    assert last_label(tokens, LABELS) == at


def test_values_at_the_last_label() -> None:
    """ "A" and " A" are both the first label: log(0.5 + 0.2) = -0.356675; the second is not listed: bounded by 0.1."""

    def entry(token: str, **listed: float) -> dict[str, Any]:
        values = {name.replace("_", " "): math.log(chance) for name, chance in listed.items()}
        top = [{"token": name, "logprob": value} for name, value in values.items()]
        return {"token": token, "logprob": top[0]["logprob"], "top_logprobs": top}

    content = [entry(" B", _B=0.9), entry(":", x=0.9), entry(" A", _A=0.5, A=0.2, The=0.1), entry("<|end|>", y=1.0)]
    values = read_last({"logprobs": {"content": content}}, LABELS)
    assert values == pytest.approx((-0.356675, -2.302585), abs=1e-6)
    assert read_last({"logprobs": {"content": content[:2]}}, LABELS) is None
    assert read_last({"logprobs": None}, LABELS) is None


def test_the_template_shares_its_beginning_with_the_short_one() -> None:
    """The fixed instructions, the conversation and the replies are the same text, so they share the cache."""
    prompt = (Message(role="user", content="Hi"),)
    short, long = (
        compare_messages(prompt, "one", "two", "Which is kinder?", reasoned=reasoned)[0].content
        for reasoned in (False, True)
    )
    assert long.startswith(short.removesuffix("Answer A or B."))
    assert json.dumps(long).count("Verdict: ") == 2
