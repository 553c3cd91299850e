"""Who meets whom, and under what: stable under growth and rewording."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest

from rlaif.config.schemas import CompareSettings
from rlaif.constitution import Constitution, Principle
from rlaif.feedback.judge import WHOLE, Criterion, Matchup, criteria_of, draw, drawn_order, matchups
from rlaif.records import Sample, content_id


def sample(index: int, text: str | None = None, prompt: str = "p") -> Sample:
    said = f"answer {index}" if text is None else text
    return Sample(id=content_id(prompt, index), prompt=prompt, index=index, text=said, policy="x")


def ids(met: list[Matchup]) -> set[tuple[int, int]]:
    return {(matchup.left.index, matchup.right.index) for matchup in met}


KIND = Criterion("kind", 1.0, "Which is kinder?", None)
TRUE = Criterion("true", 1.0, "Which is truer?", None)
BRIEF = Criterion("brief", 2.0, "Which is briefer?", None)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_up_to_four_samples_all_meet(count: int) -> None:
    met = matchups([sample(index) for index in range(count)], [KIND], CompareSettings())
    assert ids(met) == set(combinations(range(count), 2))


def test_beyond_that_the_cost_grows_by_three_a_sample() -> None:
    """6 of the first four, then three for each of the thirteen others: 6 + 39."""
    met = matchups([sample(index) for index in range(17)], [KIND], CompareSettings())
    assert len(met) == 6 + 13 * 3
    assert all(matchup.left.index < matchup.right.index for matchup in met)


def test_growing_keeps_what_met_before() -> None:
    small = ids(matchups([sample(index) for index in range(6)], [KIND], CompareSettings()))
    large = ids(matchups([sample(index) for index in range(12)], [KIND], CompareSettings()))
    assert small < large


def test_a_revision_always_meets_its_original() -> None:
    """Twelve revisions of twelve replies: each meets three earlier ones, its own original among them."""
    replies = [sample(index) for index in range(12)]
    revised = [
        sample(12 + at).model_copy(update={"revision_of": reply.id}) for at, reply in enumerate(replies)
    ]  # fmt: skip
    met = ids(matchups([*replies, *revised], [KIND], CompareSettings()))
    assert {(at, 12 + at) for at in range(12)} <= met
    assert len(met) == 6 + 20 * 3


def test_blank_and_repeated_answers_meet_nobody() -> None:
    samples = [sample(0, "yes"), sample(1, " \n"), sample(2, "yes "), sample(3, "no")]
    assert ids(matchups(samples, [KIND], CompareSettings())) == {(0, 3)}


def pairs(count: int) -> list[tuple[str, str]]:
    return [(content_id("left", number), content_id("right", number)) for number in range(count)]


def test_a_principle_is_drawn_by_its_weight() -> None:
    """Weights 1, 1, 2: a quarter, a quarter, a half of 4,000 draws, within four standard deviations (27, 32)."""
    drawn = Counter(draw([KIND, TRUE, BRIEF], pair).id for pair in pairs(4000))
    assert drawn["kind"] == pytest.approx(1000, abs=4 * 27.4)
    assert drawn["true"] == pytest.approx(1000, abs=4 * 27.4)
    assert drawn["brief"] == pytest.approx(2000, abs=4 * 31.6)


def test_rewording_moves_no_pair_and_adding_takes_only_its_share() -> None:
    reworded = KIND._replace(compare="Which is more kind?")
    for pair in pairs(500):
        assert draw([reworded, TRUE], pair).id == draw([KIND, TRUE], pair).id
        assert draw([KIND, TRUE], pair).id == draw([KIND, TRUE], pair[::-1]).id
        assert draw([KIND, TRUE, BRIEF], pair).id in (draw([KIND, TRUE], pair).id, "brief")


def test_one_order_is_drawn_evenly() -> None:
    """2,000 fair coins: 1,000 heads within four standard deviations (22)."""
    kept = sum(drawn_order(pair) == pair for pair in pairs(2000))
    assert kept == pytest.approx(1000, abs=4 * 22.4)


def test_all_puts_the_whole_constitution_in_one_question() -> None:
    constitution = Constitution(
        name="c",
        principles=(Principle(id="a", compare="First?", critique="See."), Principle(id="b", compare="Second?")),
    )
    (whole,) = criteria_of(constitution, "all")
    assert whole.id == WHOLE
    assert "1. First?\n2. Second?" in whole.compare
    assert [criterion.id for criterion in criteria_of(constitution, "each")] == ["a", "b"]
