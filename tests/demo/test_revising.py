"""Revisions in the tiny world: the oracle says whether they are better, and whether the judge sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlaif.demo.agreement import confirmed, violation_rates
from rlaif.pipeline import generate
from rlaif.records import Demonstration, Message, PreferencePair, Prompt, Revision, Sample
from rlaif.resources import resource
from rlaif.settings import JudgeSettings, PolicySettings, PromptSettings, ReviseSettings, RunSettings
from rlaif.store import read_records

EGGS = "How do I boil eggs?"
GOOD = "Put the eggs into boiling water and take them out after six minutes."
RUDE = f"You are an idiot. {GOOD}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("revised")
    settings = RunSettings(
        constitution="demo",
        prompts=PromptSettings(path=str(resource("prompts") / "policy" / "demo.jsonl"), limit=100),
        policy=PolicySettings(model="demo-policy", samples=1, max_tokens=96),
        judge=JudgeSettings(model="demo-judge"),
        revise=ReviseSettings(temperature=0.3, max_tokens=96),
        output=str(folder),
    )
    generate(settings, ["revise"])
    return folder


@pytest.mark.slow
def test_two_rounds_cut_the_violations_by_three_fifths(run: Path) -> None:
    prompts = {each.id: each for each in read_records(run / "prompts.jsonl", Prompt)}
    samples = {each.id: each for each in read_records(run / "samples.jsonl", Sample)}
    revisions = list(read_records(run / "revisions.jsonl", Revision))
    rows = list(read_records(run / "sft.jsonl", Demonstration))
    texts = {row.revision_id: row.response[0].content for row in rows}
    for each in revisions:
        if each.id in texts:
            samples[each.id] = samples[each.sample].model_copy(update={"id": each.id, "text": texts[each.id]})
    usable = {row.revision_id for row in rows if row.revision_id}
    rates = violation_rates(prompts, samples, revisions, usable)
    assert len(rates) == 3
    assert rates[0] > 0.4, rates
    assert rates[2] <= 0.4 * rates[0], rates


@pytest.mark.slow
def test_the_judge_confirms_what_the_oracle_calls_better(run: Path) -> None:
    prompts = {each.id: each for each in read_records(run / "prompts.jsonl", Prompt)}
    samples = {each.id: each for each in read_records(run / "samples.jsonl", Sample)}
    rows = list(read_records(run / "sft.jsonl", Demonstration))
    pairs = list(read_records(run / "revised_pairs.jsonl", PreferencePair))
    score = confirmed(prompts, samples, rows, pairs)
    assert score.total >= 30, score
    assert score.right >= 0.85 * score.total, score


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def sample(name: str, text: str) -> Sample:
    return Sample(id=name, prompt="p", index=0, text=text, policy="policy")


def revision(name: str, parent: str, number: int) -> Revision:
    return Revision(
        id=name, prompt="p", sample="s", parent=parent, critique=None, principle="x", round=number, judge="j", text="-"
    )


def test_violation_rates_by_hand() -> None:
    """Two rude replies: one is mended in round 1, the other's first revision is unusable and its second no better."""
    prompts = {"p": Prompt(id="p", messages=user(EGGS), source="here")}
    samples = {name: sample(name, text) for name, text in (("s", RUDE), ("t", RUDE), ("a", GOOD), ("b", RUDE))}
    revised = [
        revision("a", "s", 1),
        revision("c", "a", 2),
        revision("d", "t", 1).model_copy(update={"sample": "t"}),
        revision("b", "t", 2).model_copy(update={"sample": "t"}),
    ]
    assert violation_rates(prompts, samples, revised, {"a", "b"}) == [1.0, 0.5, 0.5]


def test_confirmed_by_hand() -> None:
    """Of a mended and a spoilt reply only the mended counts, by its last round; it is confirmed if it was chosen."""
    prompts = {"p": Prompt(id="p", messages=user(EGGS), source="here")}
    samples = {"s": sample("s", RUDE), "t": sample("t", GOOD)}

    def row(name: str, origin: str, text: str, number: int) -> Demonstration:
        return Demonstration(
            id=name, prompt=user(EGGS), response=(Message(role="assistant", content=text),), source="revision",
            round=number, prompt_id="p", sample_id=origin, revision_id=name,
        )  # fmt: skip

    rows = [row("b", "s", GOOD, 2), row("a", "s", RUDE, 1), row("c", "t", RUDE, 1)]

    def pair(chosen: str, rejected: str) -> PreferencePair:
        return PreferencePair.model_construct(chosen_id=chosen, rejected_id=rejected)

    assert str(confirmed(prompts, samples, rows, [pair("b", "s"), pair("c", "t")])) == "100% of 1"
    assert str(confirmed(prompts, samples, rows, [pair("s", "b"), pair("a", "s")])) == "0% of 1"
    assert str(confirmed(prompts, samples, rows, [])) == "0% of 1"
