"""What comparisons come to, by hand; and what is mirrored when two policies change places."""

from __future__ import annotations

import random

import pytest

from rlaif.evaluation.policy_metrics import match_of
from rlaif.evaluation.reports import Match
from tests.evaluation.policies.scenes import compared


def match(*rows: object) -> Match:
    return match_of("a", "b", rows, margin=0.05, principles=["kind", "true"])  # type: ignore[arg-type]


def test_by_hand() -> None:
    found = match(
        compared("p", 0.9, tag="x", principles={"kind": 0.8, "true": 0.6}, lengths=(30, 10), flip=True),
        compared("q", 0.55, tag="x", principles={"kind": 0.4, "true": None}, lengths=(10, 20)),  # exactly the margin
        compared("r", 0.54, tag="y", status="tie", principles={"kind": 0.6, "true": 0.4}),
        compared("s", 0.1, tag="y", principles={"kind": 0.2, "true": 0.1}, lengths=(10, 20)),
        compared("t", 0.5, tag="y", status="identical", principles={"kind": 0.5, "true": 0.5}),
        compared("u", None),
        compared("v", None, status="missing", lengths=None),
        compared("w", None, status="failed"),
    )
    assert (found.compared, found.identical) == (5, 1)
    assert found.no_label == {"missing": 1, "unparsed": 1, "failed": 1}
    assert found.wins and found.ties and found.losses and found.win_rate
    assert (found.wins.value, found.ties.value, found.losses.value) == (0.4, 0.4, 0.2)
    assert found.win_rate.value == pytest.approx((1 + 1 + 0.5 + 0 + 0.5) / 5)
    assert found.preference and found.preference.value == pytest.approx((0.9 + 0.55 + 0.54 + 0.1 + 0.5) / 5)
    assert found.flips == 0.25, "of the four that were judged"
    assert found.length_ratio == pytest.approx((30 + 10 + 10 + 10 + 10 + 10 + 10) / (10 + 20 + 10 + 20 + 10 + 10 + 10))
    kind, true = found.principles
    assert kind.rate and kind.rate.value == pytest.approx((1 + 0 + 1 + 0 + 0.5) / 5) and kind.rate.pairs == 5
    assert true.rate and true.rate.value == pytest.approx((1 + 0 + 0 + 0.5) / 4), "no verdict counts as nothing"
    x, y = found.tags
    assert (x.name, y.name) == ("x", "y") and x.rate and y.rate
    assert (x.rate.value, y.rate.value) == pytest.approx((1.0, 1 / 3))


def test_nothing_compared_is_no_rate_of_0() -> None:
    found = match(compared("p", None), compared("q", None, status="missing", lengths=None))
    assert (found.win_rate, found.wins, found.length_controlled, found.flips) == (None, None, None, None)
    assert found.length_controlled_note == "nothing was compared"
    assert [part.rate for part in found.principles] == [None, None]


def random_rows(rng: random.Random) -> list[tuple[str, float, int, int]]:
    return [(f"p{at // 2}", rng.betavariate(2, 1), rng.randint(5, 60), rng.randint(5, 60)) for at in range(60)]


@pytest.mark.parametrize("seed", range(4))
def test_changing_places_mirrors_everything(seed: int) -> None:
    rows = random_rows(random.Random(seed))
    one = match(*(compared(key, p, lengths=(own, other)) for key, p, own, other in rows))
    two = match(*(compared(key, 1 - p, lengths=(other, own)) for key, p, own, other in rows))
    assert one.win_rate and two.win_rate and one.length_controlled and two.length_controlled and one.wins and two.losses
    for here, there in ((one.win_rate, two.win_rate), (one.length_controlled, two.length_controlled)):
        assert (here.value, here.low, here.high) == pytest.approx(
            (1 - there.value, 1 - there.high, 1 - there.low), abs=1e-6
        )
    assert one.wins == two.losses
    assert one.length_slope == pytest.approx(two.length_slope)
    assert one.length_ratio and two.length_ratio and one.length_ratio == pytest.approx(1 / two.length_ratio)


def test_the_length_of_nothing() -> None:
    """Blank answers are of no length, which is a ratio of 0; over blank ones there is no ratio."""
    rows = [compared(key, 0.2, lengths=(0, 10)) for key in "pq"]
    assert match(*rows).length_ratio == 0.0
    assert match(*(compared(key, 0.2, lengths=(10, 0)) for key in "pq")).length_ratio is None


def test_length_is_taken_out() -> None:
    """Preferences that follow the length difference and chance: at equal length there is no winner."""
    rng = random.Random(5)
    rows = []
    for at in range(300):
        longer = rng.choice((40, 40, 40, -40, -40)) + rng.randint(-5, 5)
        liked = longer > 0 if rng.random() < 0.8 else longer <= 0
        rows.append(compared(f"p{at}", 0.8 if liked else 0.2, lengths=(100 + longer, 100)))
    found = match(*rows)
    assert found.preference and found.length_controlled
    assert found.preference.low > 0.5
    assert found.length_controlled.low < 0.5 < found.length_controlled.high
    assert found.length_slope and found.length_slope > 0.8


def test_where_length_alone_decides_nothing_is_told_of_equal_length() -> None:
    rows = [compared(f"p{at}", 1.0 if at % 2 else 0.0, lengths=(140 if at % 2 else 60, 100)) for at in range(40)]
    found = match(*rows)
    assert (found.length_controlled, found.length_slope) == (None, None)
    assert "length alone decides every comparison" in found.length_controlled_note


def test_where_one_side_wins_all_the_interval_is_that_of_the_wins() -> None:
    found = match(*(compared(f"p{at}", 1.0, lengths=(80 + at, 100)) for at in range(40)))
    assert found.length_controlled == found.preference == found.win_rate
    assert found.win_rate and 0.85 < found.win_rate.low < 0.95
    assert "equal" in found.length_controlled_note


@pytest.mark.finding(11)
def test_at_equal_length_probabilities_count_and_not_outcomes() -> None:
    """100 pairs of 0.6 and 0.45 at either length, all wins and ties by the margin: 0.525 is what both lengths have."""
    rows = [compared(f"p{at}", (0.6, 0.45)[at // 2 % 2], lengths=((90, 110)[at % 2], 100)) for at in range(100)]
    found = match(*rows)
    assert found.win_rate and found.preference and found.length_controlled
    assert found.win_rate.value == pytest.approx((1 + 0.5) / 2)
    assert found.preference.value == pytest.approx(0.525)
    assert found.length_controlled.value == pytest.approx(0.525, abs=0.005)


def test_where_length_cannot_be_told_apart() -> None:
    found = match(compared("p", 0.9), compared("q", 0.6), compared("r", 0.7))
    assert found.length_controlled == found.preference
    assert found.length_controlled_note == "" or "as long" in found.length_controlled_note
