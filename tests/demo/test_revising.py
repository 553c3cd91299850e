"""Revisions in the tiny world: the oracle says whether they are better, and whether the judge sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlaif.config.schemas import JudgeSettings, PolicySettings, PromptSettings, ReviseSettings, RunSettings
from rlaif.demo.agreement import confirmed, violation_rates
from rlaif.feedback.pipeline import run_pipeline
from rlaif.feedback.revise import as_sample
from rlaif.feedback.revision_checks import spoken
from rlaif.records import Chain, Message, PreferencePair, Prompt, Revision, Round, Sample
from rlaif.store import read_records, resource

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
    run_pipeline(settings, ["revise"])
    return folder


def told(run: Path) -> tuple[dict[str, Prompt], dict[str, Sample], list[Chain]]:
    """The prompts, the replies with the revisions among them, and the chains."""
    prompts = {each.id: each for each in read_records(run / "prompts.jsonl", Prompt)}
    samples = {each.id: each for each in read_records(run / "samples.jsonl", Sample)}
    for each in read_records(run / "revisions.jsonl", Revision):
        samples[each.id] = as_sample(each, samples[each.sample], spoken(each.text))
    return prompts, samples, list(read_records(run / "chains.jsonl", Chain))


@pytest.mark.slow
def test_two_rounds_cut_the_violations_by_three_fifths(run: Path) -> None:
    rates = violation_rates(*told(run))
    assert len(rates) == 3
    assert rates[0] > 0.4, rates
    assert rates[2] <= 0.4 * rates[0], rates


@pytest.mark.slow
def test_the_judge_confirms_what_the_oracle_calls_better(run: Path) -> None:
    score = confirmed(*told(run), read_records(run / "revised_pairs.jsonl", PreferencePair))
    assert score.total >= 30, score
    assert score.right >= 0.85 * score.total, score


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def sample(name: str, text: str) -> Sample:
    return Sample(id=name, prompt="p", index=0, text=text, policy="policy")


def chain(name: str, *rounds: tuple[str, str]) -> Chain:
    """A chain of the sample `name`: each round's revision and its use."""
    made = tuple(
        Round(round=at, principle="x", parent="?", critique=None, revision=revision, use=use)
        for at, (revision, use) in enumerate(rounds, start=1)
    )
    final = next((revision for revision, use in reversed(rounds) if use == "revised"), name)
    return Chain(id=name, prompt="p", rounds=made, final=final)


PROMPTS = {"p": Prompt(id="p", messages=user(EGGS), source="here")}


def test_violation_rates_by_hand() -> None:
    """Two rude replies: one is mended in round 1, the other's first revision is unusable and its second no better."""
    samples = {name: sample(name, text) for name, text in (("s", RUDE), ("t", RUDE), ("a", GOOD), ("b", RUDE))}
    chains = [chain("s", ("a", "revised"), ("c", "unchanged")), chain("t", ("d", "critique"), ("b", "revised"))]
    assert violation_rates(PROMPTS, samples, chains) == [1.0, 0.5, 0.5]


def test_confirmed_by_hand() -> None:
    """Of a mended and a spoilt reply only the mended counts, by its last round; it is confirmed if it was chosen."""
    samples = {name: sample(name, text) for name, text in (("s", RUDE), ("t", GOOD), ("a", RUDE), ("b", GOOD))}
    samples["c"] = sample("c", RUDE)
    chains = [chain("s", ("a", "revised"), ("b", "revised")), chain("t", ("c", "revised"))]

    def pair(chosen: str, rejected: str) -> PreferencePair:
        return PreferencePair.model_construct(chosen_id=chosen, rejected_id=rejected)

    assert str(confirmed(PROMPTS, samples, chains, [pair("b", "s"), pair("c", "t")])) == "100% of 1"
    assert str(confirmed(PROMPTS, samples, chains, [pair("s", "b"), pair("a", "s")])) == "0% of 1"
    assert str(confirmed(PROMPTS, samples, chains, [])) == "0% of 1"
