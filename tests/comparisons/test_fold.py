"""Folding two orders and several principles into one label, with the arithmetic on paper."""

from __future__ import annotations

import math

import pytest

from rlaif.feedback.aggregate import Comparison, Status, Vote, fold
from rlaif.records import Judgement, Verdict, content_id


def judged(first: str, second: str, gap: float | None, *, mass: float = 1.0, text: str = "") -> Judgement:
    """A judgement with log P(A) - log P(B) = `gap` and P(A) + P(B) = `mass`; None: a text verdict."""
    logprobs, verdict = None, Verdict(text) if text else Verdict.UNPARSED
    if gap is not None:
        p = mass / (1 + math.exp(-gap))
        logprobs = (math.log(p), math.log(mass - p))
        verdict = Verdict.FIRST if gap > 0 else Verdict.SECOND if gap < 0 else Verdict.TIE
    return Judgement(
        id=content_id(first, second, gap, mass, text),
        prompt="p",
        first=first,
        second=second,
        principle="kind",
        judge="j",
        verdict=verdict,
        logprobs=logprobs,
        label_mass=None if gap is None else mass,
    )


def vote(forward: float, backward: float, *, weight: float = 1.0, name: str = "kind", mass: float = 1.0) -> Vote:
    return Vote(name, weight, judged("l", "r", forward, mass=mass), judged("r", "l", backward, mass=mass))


def folded(*votes: Vote, margin: float = 0.05, drop_flips: bool = True) -> Comparison:
    return fold("l", "r", votes, min_mass=0.5, margin=margin, drop_flips=drop_flips)


def test_both_orders_are_averaged_as_logits() -> None:
    """+3 for the left shown first, -1 (so +1 for the left) shown second: mean 2, sigma(2) = 0.880797."""
    result = folded(vote(3.0, -1.0))
    assert result.status is Status.LABELLED
    assert result.probability == pytest.approx(0.880797, abs=1e-6)
    assert not result.flip


def test_an_additive_slot_bias_cancels() -> None:
    """The judge adds +1.5 to whatever stands first; the pair itself is worth +0.4 for the left."""
    result = folded(vote(0.4 + 1.5, -0.4 + 1.5), drop_flips=False)
    assert result.logit == pytest.approx(0.4)
    assert result.flip


def test_a_flip_is_dropped_or_kept_soft() -> None:
    """+2 and +1 for the first slot: the orders disagree; what is left is (2 - 1) / 2 = 0.5, sigma = 0.622459."""
    assert folded(vote(2.0, 1.0)).status is Status.FLIP
    soft = folded(vote(2.0, 1.0), drop_flips=False)
    assert soft.status is Status.LABELLED
    assert soft.flip
    assert soft.probability == pytest.approx(0.622459, abs=1e-6)


def test_principles_are_averaged_by_weight() -> None:
    """(3 * 1 + 1 * -2) / 4 = 0.25, sigma = 0.562177; each principle agrees with itself, so nothing flips."""
    result = folded(vote(1.0, -1.0, weight=3, name="a"), vote(-2.0, 2.0, weight=1, name="b"))
    assert result.probability == pytest.approx(0.562177, abs=1e-6)
    assert result.principles == ("a", "b")
    assert not result.flip
    assert result.flips == ()


@pytest.mark.parametrize(("logit", "tie"), [(0.19, True), (0.21, False), (-0.19, True), (-0.21, False), (0.0, True)])
def test_too_close_to_one_half_is_a_tie(logit: float, tie: bool) -> None:
    """sigma(0.2) = 0.5498; the margin of 0.05 lies at a logit of 0.2007."""
    assert (folded(vote(logit, -logit)).status is Status.TIE) == tie


def test_exactly_one_half_is_a_tie_under_any_margin() -> None:
    assert folded(vote(0.0, 0.0), margin=0.0).status is Status.TIE


def test_low_label_mass_is_no_label() -> None:
    assert folded(vote(3.0, -3.0, mass=0.4)).status is Status.UNPARSED
    assert folded(vote(3.0, -3.0, mass=0.6)).status is Status.LABELLED


def test_half_a_principle_does_not_count() -> None:
    """The second principle has a label in one order only: the first one alone decides."""
    half = Vote("b", 1.0, judged("l", "r", -9.0), judged("r", "l", 9.0, mass=0.1))
    result = folded(vote(1.0, -1.0, name="a"), half)
    assert result.principles == ("a",)
    assert result.logit == pytest.approx(1.0)
    assert len(result.judgements) == 4


def test_a_missing_answer_is_a_failure_not_a_label() -> None:
    result = folded(Vote("kind", 1.0, judged("l", "r", 5.0), None))
    assert result.status is Status.FAILED
    assert result.logit == 0


@pytest.mark.finding(10)
def test_text_verdicts_are_hard_and_cancel_when_they_flip() -> None:
    agree = Vote("kind", 1.0, judged("l", "r", None, text="first"), judged("r", "l", None, text="second"))
    result = folded(agree)
    assert result.hard
    assert result.probability == pytest.approx(0.946442, abs=1e-6)  # ln(99) / 1.6 = 2.871950
    flip = Vote("kind", 1.0, judged("l", "r", None, text="first"), judged("r", "l", None, text="first"))
    assert folded(flip, drop_flips=False).status is Status.TIE


def test_one_order_asked_is_one_order_counted() -> None:
    single = Vote("kind", 1.0, None, judged("r", "l", 2.0), wanted=(False, True))
    result = folded(single)
    assert result.status is Status.LABELLED
    assert result.logit == pytest.approx(-2.0)
