"""The winner in a pair is the reply that the judge preferred: over every order, verdict, flip, tie and failure.

The judge of these tests answers by what a question *shows* (it reads the two replies out of the rendered prompt), so a
swap that is ignored anywhere between plan and pair turns the label around and is seen.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rlaif.feedback.aggregate as folding
from rlaif.config.judge_templates import Judge as AskedJudge
from rlaif.config.schemas import CompareSettings, PairSettings
from rlaif.constitution import Constitution, Principle
from rlaif.feedback.aggregate import Comparison, Status, fold
from rlaif.feedback.judge import compare_questions, criteria_of, judgement, matchups, votes
from rlaif.feedback.ranking import Provenance, pairs, rank_samples
from rlaif.feedback.sampling import given_samples
from rlaif.inference.base import Output, Question
from rlaif.records import GivenResponse, Judgement, Message, PreferencePair, Prompt, Sample, Verdict

SAID = ("left", "right", "tie", "unparsed", "failed")
CONSTITUTION = Constitution(
    name="c", principles=(Principle(id="kind", compare="Which is kinder?"), Principle(id="true", compare="Truer?"))
)

Judge = Callable[[str, str], str]
"""What the judge says when it sees (first, second): `first`, `second`, `tie`, `unparsed` or `failed`."""


def shown(question: Question) -> tuple[str, str]:
    """The two replies as the judge reads them."""
    first, second = re.findall(r"Reply [AB]:\n<<<\w+\n(.*?)\n\w+>>>", question.messages[0].content, re.DOTALL)
    return first, second


def answered(question: Question, said: str, soft: bool) -> Judgement | None:
    if said == "failed":
        return None
    if soft:
        gap = {"first": 2.0, "second": -2.0, "tie": 0.0, "unparsed": 1.0}[said]
        mass = 0.01 if said == "unparsed" else 0.98
        p = mass / (1 + math.exp(-gap))
        return judgement(question, Output(logprobs=(math.log(p), math.log(mass - p))))
    text = {"first": "A", "second": "B", "tie": "Verdict: tie", "unparsed": "Hard to say."}[said]
    return judgement(question, Output(text=text))


def run(
    texts: list[str], judge: Judge, *, soft: bool, compare: CompareSettings, pair: PairSettings
) -> tuple[list[Sample], list[Comparison], list[PreferencePair]]:
    """Plan, answer, fold and pair, as a run does."""
    prompt = Prompt(
        id="p" * 32,
        messages=(Message(role="user", content="Hello?"),),
        source="test",
        responses=tuple(GivenResponse(text=text) for text in texts),
    )
    samples = given_samples(prompt)
    met = matchups(samples, criteria_of(CONSTITUTION, compare.principles), compare)
    questions = list(compare_questions(prompt, met, compare, AskedJudge("judge")))
    answers = {q.id: answered(q, judge(*shown(q)), soft) for q in questions}
    comparisons = [
        fold(
            matchup.left.id,
            matchup.right.id,
            cast,
            min_mass=pair.min_label_mass,
            margin=pair.margin,
            drop_flips=pair.flips == "drop",
        )
        for matchup, cast in votes(met, questions, answers.get, compare)
    ]
    standing = rank_samples(prompt, samples, comparisons)
    return samples, comparisons, pairs(standing, pair, compare, Provenance("judge", "c"))


def check_two(forward: str, backward: str, soft: bool, flips: str, select: str, principles: str) -> None:
    """Two replies; the judge says `forward` on (one, two) and `backward` on (two, one), in terms of left = one."""

    def judge(first: str, second: str) -> str:
        said = forward if first == "one" else backward
        winner = {"left": "one", "right": "two"}.get(said)
        return said if winner is None else "first" if winner == first else "second"

    compare = CompareSettings(principles=principles)
    chosen = PairSettings(flips=flips, select=select)
    _, comparisons, made = run(["one", "two"], judge, soft=soft, compare=compare, pair=chosen)
    outcomes = {forward, backward}
    (comparison,) = comparisons
    if outcomes in ({"left"}, {"left", "tie"}):
        winners = ["one"]
    elif outcomes in ({"right"}, {"right", "tie"}):
        winners = ["two"]
    else:  # a tie, a flip (of equal strength, so even a kept one is a tie), no verdict, no answer
        winners = []
    assert [pair.chosen[0].content for pair in made] == winners
    assert all(pair.rejected[0].content != pair.chosen[0].content for pair in made)
    assert all(pair.probability > 0.5 for pair in made)
    assert (comparison.status is Status.FAILED) == ("failed" in outcomes)
    assert (comparison.status is Status.UNPARSED) == ("unparsed" in outcomes and "failed" not in outcomes)
    assert comparison.flip == (outcomes == {"left", "right"})


EVERY = list(
    itertools.product(SAID, SAID, (True, False), ("drop", "soft"), ("best_worst", "all"), ("one", "each", "all"))
)


@pytest.mark.parametrize("case", EVERY, ids=lambda case: "-".join(map(str, case)))
def test_every_combination_of_two_orders(case: tuple[str, str, bool, str, str, str]) -> None:
    check_two(*case)


def test_a_planted_bug_turns_it_red(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug that a widely used pipeline shipped: the swap is not undone."""
    real = folding.first_logit
    seen: list[Judgement] = []

    def left_logits(vote: folding.Vote, min_mass: float) -> list[float]:
        seen.extend(each for each in vote.judgements if each)
        return [real(each, min_mass=min_mass) or 0.0 for each in vote.judgements if each is not None]

    monkeypatch.setattr(folding, "_left_logits", left_logits)
    with pytest.raises(AssertionError):
        check_two("left", "left", True, "drop", "best_worst", "one")
    assert seen


@st.composite
def opinions(draw: st.DrawFn) -> tuple[list[str], dict[tuple[str, str], str]]:
    """Up to five replies (some equal, some blank) and what the judge says of every ordered pair."""
    texts = draw(st.lists(st.sampled_from(["a", "b", "c", "d", "e", "", " ", "a "]), min_size=2, max_size=5))
    said = st.sampled_from(["first", "second", "first", "second", "tie", "unparsed", "failed"])
    return texts, {pair: draw(said) for pair in itertools.product("abcde", "abcde")}


@settings(max_examples=300, deadline=None)
@given(
    opinions(),
    st.booleans(),
    st.sampled_from(["drop", "soft"]),
    st.sampled_from(["best_worst", "all"]),
    st.sampled_from(["one", "each", "all"]),
    st.sampled_from(["both", "random"]),
)
def test_no_pair_against_the_judge(
    opinion: tuple[list[str], dict[tuple[str, str], str]],
    soft: bool,
    flips: str,
    select: str,
    principles: str,
    orders: str,
) -> None:
    texts, said = opinion
    compare = CompareSettings(principles=principles, orders=orders)
    chosen = PairSettings(flips=flips, select=select, per_prompt=100)
    _, comparisons, made = run(texts, lambda a, b: said[a.strip(), b.strip()], soft=soft, compare=compare, pair=chosen)

    def score(winner: str, loser: str) -> int:
        """Verdicts for minus verdicts against, over the orders that were asked."""
        points = {"first": 1, "second": -1}
        return points.get(said[winner, loser], 0) - points.get(said[loser, winner], 0)

    for pair in made:
        winner, loser = pair.chosen[0].content.strip(), pair.rejected[0].content.strip()
        assert winner and loser and winner != loser
        verdicts = {said[winner, loser], said[loser, winner]}
        if orders == "both":
            assert score(winner, loser) > 0
            assert not verdicts & {"unparsed", "failed"}
            assert len(pair.judgements) == 2 * len(pair.principles)
        else:
            assert said[winner, loser] == "first" or said[loser, winner] == "second"
    if select == "all":
        assert len(made) == sum(each.status is Status.LABELLED for each in comparisons)


def test_verdict_is_an_enum_of_four() -> None:
    """A new verdict must be thought of here."""
    assert set(Verdict) == {"first", "second", "tie", "unparsed"}
