"""Counting how often a judge agrees with the oracle, on replies whose faults are plain to see."""

from __future__ import annotations

import yaml

from rlaif.demo.agreement import GARBLED, Score, by_principle
from rlaif.records import Judgement, Message, Prompt, Sample, Verdict, content_id
from rlaif.store import resource


def case(principle: str) -> tuple[str, str, str]:
    """Prompt, better and worse reply of a principle's first example in the demo constitution."""
    content = yaml.safe_load((resource("constitutions") / "demo.yaml").read_text())
    (found,) = [each for each in content["principles"] if each["id"] == principle]
    example = found["examples"][0]
    return example["prompt"], example["better"], example["worse"]


def judged(first: str, second: str, gap: float) -> Judgement:
    return Judgement(
        id=content_id(first, second),
        prompt="p",
        first=first,
        second=second,
        principle="polite",
        judge="j",
        verdict=Verdict.FIRST if gap > 0 else Verdict.SECOND,
        logprobs=(-1.0, -1.0 - gap),
        label_mass=0.5,
    )


def score(forward: float, backward: float, *, worse: str | None = None, under: str = "polite") -> Score:
    """Agreement when the judge says `forward` with the better reply first, `backward` with the worse one first."""
    prompt, better, rude = case("polite")
    worse = worse or rude
    samples = {
        name: Sample(id=name, prompt="p", index=0, text=text, policy="x")
        for name, text in (("good", better), ("bad", worse))
    }
    prompts = {"p": Prompt(id="p", messages=(Message(role="user", content=prompt),), source="t")}
    judgements = [judged("good", "bad", forward), judged("bad", "good", backward)]
    return by_principle(prompts, samples, judgements)[under]


def test_garbled_replies_are_counted_apart() -> None:
    """Every principle prefers the readable reply."""
    found = score(2.0, -2.0, worse="You are eggs an, water.", under=GARBLED)
    assert (found.right, found.total) == (1, 1)


def test_both_orders_are_averaged() -> None:
    assert (score(2.0, -2.0).right, score(2.0, -2.0).total) == (1, 1)
    assert score(-2.0, 2.0).right == 0
    assert score(3.0, 1.0).right == 1, "a slot bias of two that the mean takes off"
    assert score(1.0, 3.0).right == 0
