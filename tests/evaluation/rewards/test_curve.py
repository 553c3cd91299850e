"""The curve of best-of-n: its figures by hand, and rewards whose soundness is known."""

from __future__ import annotations

import random

import pytest

from rlaif.evaluation.best_of_n import Rated, best_of_n_warnings, curve_of
from rlaif.evaluation.reports import BestOfN


def curve(rated: list[Rated], **more: object) -> BestOfN:
    return curve_of(rated, policy="p", measure="m", **more)  # type: ignore[arg-type]


def test_by_hand() -> None:
    """Rewards 0, 1 and 10, 13: means 0.5 and 11.5, deviations from 6 of 6, 5, 4 and 7, so sqrt(31.5) = 5.612.

    Best of 2 gains 0.5 and 1.5 over the means: 1 on average, 0.178 deviations. The chosen answers have 5 and 1 by the
    other measure, 3 on average, where all have (2 + 5 + 4 + 1) / 4 = 3, and are 30 and 60 characters long.
    """
    found = curve([Rated((0, 1), (2, 5), (10, 30)), Rated((13, 10), (1, 4), (60, 20))])
    one, two = found.points
    assert (one.n, one.kl, one.reward.value, one.gold.value, one.length) == (1, 0, 0, 3, 30)
    assert (two.n, two.reward.value) == (2, pytest.approx(0.1782, abs=1e-4))
    # 5 and 1: an error of 2, times 12.706, Student's t of one degree.
    assert (two.gold.value, two.gold.high, two.gold.pairs) == (3, pytest.approx(3 + 2 * 12.706, abs=0.01), 2)
    assert two.length == 45
    assert two.kl == pytest.approx(0.1931, abs=1e-4)
    assert (found.best_n, found.overoptimised) == (1, False)
    assert found.drop is not None and (found.drop.value, found.drop.high) == (0, pytest.approx(1.5 * 12.706, abs=0.01))
    assert (found.prompts, found.samples) == (2, 2)


def answers(kind: str, prompts: int, seed: int = 0) -> list[Rated]:
    """Sixteen answers a prompt, better the longer they are up to 100 characters, and worse beyond.

    A `greedy` reward is the length itself; a `sound` one is the quality with noise as large as the quality's own
    deviation.
    """
    rng = random.Random(seed)
    found = []
    for _ in range(prompts):
        lengths = [rng.randint(10, 200) for _ in range(16)]
        golds = [9 - abs(length - 100) / 10 for length in lengths]
        rewards = [
            float(length) if kind == "greedy" else gold + rng.gauss(0, 2.8)
            for length, gold in zip(lengths, golds, strict=True)
        ]
        found.append(Rated(tuple(rewards), tuple(golds), tuple(lengths)))
    return found


def test_a_reward_that_likes_length_beyond_reason_is_over_optimised() -> None:
    found = curve(answers("greedy", 60))
    assert found.overoptimised and found.drop is not None and found.drop.low > 0
    assert found.best_n < 16 and found.points[-1].gold.value < found.points[0].gold.value
    assert [point.n for point in found.points] == [1, 2, 4, 8, 16]
    rewards = [point.reward.value for point in found.points]
    assert rewards == sorted(rewards) and rewards[0] == pytest.approx(0, abs=1e-12)
    lengths = [point.length for point in found.points]
    assert lengths == sorted(lengths) and lengths[-1] > 180
    (warning,) = best_of_n_warnings(None, found)
    assert warning.startswith(f"over-optimised: from best-of-{found.best_n} to best-of-16 the other measure falls by ")


@pytest.mark.parametrize("seed", range(5))
def test_a_sound_reward_is_not(seed: int) -> None:
    found = curve(answers("sound", 60, seed))
    assert not found.overoptimised and found.best_n == 16 and found.drop is None
    assert found.points[-1].gold.low > found.points[0].gold.high
    assert best_of_n_warnings(None, found) == ()


def test_a_reward_that_knows_nothing_is_seldom_called_over_optimised() -> None:
    """The best n is chosen on the same prompts, so that a few of forty may be: 5 would be one in eight."""
    flagged = 0
    for seed in range(40):
        rng = random.Random(seed)
        rated = [
            Rated(tuple(rng.random() for _ in range(8)), tuple(rng.random() for _ in range(8)), (1,) * 8)
            for _ in range(30)
        ]
        flagged += curve(rated).overoptimised
    assert flagged <= 5


def test_too_few_prompts_are_told_and_never_over_optimised() -> None:
    """Nine prompts that all fall alike have an interval without width: it shows no doubt, where there is some."""
    falling = Rated((1, 2), (9, 0), (5, 5))
    few = curve([falling] * 9)
    assert few.drop is not None and few.drop.low == 4.5 and not few.overoptimised
    assert best_of_n_warnings(None, few) == ("best-of-n on only 9 prompts: too few to call it over-optimised or not",)
    assert curve([falling] * 10).overoptimised


def test_rewards_that_are_all_equal() -> None:
    found = curve([Rated((3, 3), (0, 4), (1, 1))] * 2)
    assert [point.reward.value for point in found.points] == [0, 0]
    assert [point.gold.value for point in found.points] == [2, 2]


@pytest.mark.parametrize("rated", [[], [Rated((1,), (1,), (1,)), Rated((1, 2), (1, 2), (1, 2))]])
def test_equally_many_answers_each(rated: list[Rated]) -> None:
    with pytest.raises(ValueError, match="same number of answers"):
        curve(rated)


def test_what_is_left_out_is_told() -> None:
    found = curve(answers("sound", 60), left_out={"an answer has no grade": 20}, truncated=0.5)
    assert found.left_out == {"an answer has no grade": 20}
    assert best_of_n_warnings(None, found) == (
        "best-of-n leaves out 20 of 80 prompts (20 an answer has no grade)",
        "50% of the answers were cut off at the limit of tokens",
    )
