"""Several judges' comparisons of one pair become one, by hand."""

from __future__ import annotations

import math

import pytest

from rlaif.config.schemas import PairSettings
from rlaif.feedback.aggregate import JudgeVotes, Status, Vote, aggregate_panel, folded
from rlaif.records import Judgement, Verdict, content_id

PAIR = PairSettings()


def call(judge: str, order: str, logit: float | None, principle: str = "kind") -> Judgement:
    """One call whose first label has these log-odds; None is a reply that names no label."""
    logprobs = None
    if logit is not None:
        first = 1 / (1 + math.exp(-logit))
        logprobs = (math.log(first), math.log(1 - first))
    return Judgement(
        id=content_id(judge, order, principle),
        prompt="p",
        first="l" if order == "forward" else "r",
        second="r" if order == "forward" else "l",
        principle=principle,
        judge=judge,
        verdict=Verdict.UNPARSED if logit is None else Verdict.FIRST,
        logprobs=logprobs,
        label_mass=None if logit is None else 1.0,
    )


def vote(
    judge: str, forward: float | None, backward: float | None, *, temperature: float = 1.0, principle: str = "kind"
) -> Vote:
    """What a judge says of `l` by either order, as log-odds for `l`."""
    back = None if backward is None else -backward
    calls = call(judge, "forward", forward, principle), call(judge, "backward", back, principle)
    return Vote(principle, 1.0, *calls, temperature=temperature)


def test_the_logits_are_averaged_by_weight() -> None:
    ballots = [JudgeVotes(3.0, [vote("a", 2.0, 1.0)]), JudgeVotes(1.0, [vote("b", -2.0, -1.0)])]
    found = aggregate_panel("l", "r", ballots, PAIR).panel
    assert found.orders == pytest.approx(((3 * 2.0 - 2.0) / 4, (3 * 1.0 - 1.0) / 4))
    assert found.logit == pytest.approx((1.0 + 0.5) / 2)
    assert (found.status, found.flip) == (Status.LABELLED, False)
    assert len(found.judgements) == 4


def test_each_judge_has_its_own_calibration() -> None:
    ballots = [JudgeVotes(1.0, [vote("a", 2.0, 2.0)]), JudgeVotes(1.0, [vote("b", 8.0, 8.0, temperature=4.0)])]
    election = aggregate_panel("l", "r", ballots, PAIR)
    assert [own.logit for own in election.by_judge] == pytest.approx([2.0, 2.0])
    assert election.panel.logit == pytest.approx(2.0)


def test_a_panel_flips_where_its_means_do() -> None:
    """The first judge alone flips (3, -1), the second does not (2, 2): the means are 2.5 and 0.5."""
    steady = aggregate_panel(
        "l", "r", [JudgeVotes(1.0, [vote("a", 3.0, -1.0)]), JudgeVotes(1.0, [vote("b", 2.0, 2.0)])], PAIR
    )
    assert [own.flip for own in steady.by_judge] == [True, False]
    assert (steady.panel.flip, steady.panel.status, steady.panel.flips) == (False, Status.LABELLED, ())
    # Neither judge flips (3, 1) and (-1, -3), and the means do: 1 and -1.
    torn = [JudgeVotes(1.0, [vote("a", 3.0, 1.0)]), JudgeVotes(1.0, [vote("b", -1.0, -3.0)])]
    assert (aggregate_panel("l", "r", torn, PAIR).panel.flip, aggregate_panel("l", "r", torn, PAIR).panel.status) == (
        True,
        Status.FLIP,
    )
    soft = aggregate_panel("l", "r", torn, PAIR.model_copy(update={"flips": "soft"})).panel
    assert (soft.flip, soft.status) == (True, Status.TIE)


@pytest.mark.parametrize(
    ("readable", "of", "status"),
    [(2, 2, "labelled"), (1, 2, "unparsed"), (2, 3, "labelled"), (1, 3, "unparsed"), (2, 4, "unparsed")],
)
def test_a_majority_must_have_a_label(readable: int, of: int, status: str) -> None:
    ballots = [JudgeVotes(1.0, [vote(f"j{at}", *((2.0, 2.0) if at < readable else (2.0, None)))]) for at in range(of)]
    found = aggregate_panel("l", "r", ballots, PAIR).panel
    assert found.status.value == status
    assert len(found.judgements) == 2 * of
    assert found.logit == (pytest.approx(2.0) if status == "labelled" else 0.0)


def test_one_missing_answer_fails_the_pair() -> None:
    lacking = Vote("kind", 1.0, call("c", "forward", 1.0), None)
    ballots = [*(JudgeVotes(1.0, [vote(name, 2.0, 2.0)]) for name in "ab"), JudgeVotes(1.0, [lacking])]
    found = aggregate_panel("l", "r", ballots, PAIR).panel
    assert (found.status, len(found.judgements)) == (Status.FAILED, 5)


def test_principles_that_count_for_some_judge() -> None:
    """`short` flips for two of three judges, `kind` for one; only one judge has a verdict under `sweet`."""
    ballots = [
        JudgeVotes(1.0, [vote(name, 4.0, kind), vote(name, 4.0, short, principle="short"), sweet])
        for name, kind, short, sweet in (
            ("a", -1.0, -1.0, vote("a", 4.0, 4.0, principle="sweet")),
            ("b", 1.0, -1.0, vote("b", 4.0, None, principle="sweet")),
            ("c", 1.0, 1.0, vote("c", 4.0, None, principle="sweet")),
        )
    ]
    found = aggregate_panel("l", "r", ballots, PAIR).panel
    assert found.principles == ("kind", "short", "sweet")
    assert found.flips == ("short",)


def test_a_panel_of_one_is_its_judge() -> None:
    flips = aggregate_panel("l", "r", [JudgeVotes(7.0, [vote("a", 3.0, -1.0)])], PAIR)
    assert flips.panel.status is Status.FLIP
    assert flips.panel.orders == pytest.approx((3.0, -1.0))
    assert aggregate_panel("l", "r", [JudgeVotes(7.0, [vote("a", None, 2.0)])], PAIR).panel.status is Status.UNPARSED
    # To the last digit: over ten pairs of orders, some `weight * x / weight` is not `x`.
    for forward in range(1, 11):
        votes = [vote("a", forward / 3, forward / 7)]
        assert aggregate_panel("l", "r", [JudgeVotes(49.0, votes)], PAIR).panel == folded("l", "r", votes, PAIR)
