"""What the rewards of gold pairs come to, by hand."""

from __future__ import annotations

import math

import pytest

from rlaif.evaluation.best_of_n import best_of_n_warnings
from rlaif.evaluation.gold import GoldPair
from rlaif.evaluation.judge_metrics import correlation
from rlaif.evaluation.reports import Gold
from rlaif.evaluation.reward_model import ScoredPair, gold_of, scored_pair
from rlaif.evaluation.reward_scores import Reply, Reward
from rlaif.records import Message, content_id


def pair(
    key: object,
    better: float | None,
    worse: float | None = 0.0,
    lengths: tuple[int, int] = (10, 10),
    subset: str | None = None,
    truncated: bool = False,
) -> ScoredPair:
    whole = better is not None and worse is not None
    return ScoredPair(
        id=content_id(key),
        source="by hand",
        prompt=content_id("prompt", key),
        subset=subset,
        better_reward=better,
        worse_reward=worse,
        margin=better - worse if better is not None and worse is not None else None,
        truncated=truncated,
        reason="" if whole else "too-long",
        lengths=lengths,
    )


def of(pairs: list[ScoredPair], **more: object) -> Gold:
    return gold_of(pairs, path="gold.jsonl", **more)  # type: ignore[arg-type]


def test_accuracy_margin_and_calibration_by_hand() -> None:
    """Margins ln 4, -ln 4, 0 and ln 4: right, wrong, a tie that counts half, right: 2.5 of 4.

    Probabilities 0.8, 0.2, 0.5, 0.8: Brier (0.04 + 0.64 + 0.25 + 0.04) / 4 = 0.2425; log loss
    -(ln 0.8 + ln 0.2 + ln 0.5 + ln 0.8) / 4 = 0.6872; in one bin of four the mean confidence is 0.725, the accuracy
    0.625, the error 0.1.
    """
    log4 = math.log(4)
    found = of([pair(1, log4), pair(2, 1.0, 1.0 + log4), pair(3, 0.3, 0.3), pair(4, 2.0, 2.0 - log4)])
    assert found.accuracy is not None and found.margin is not None and found.calibration is not None
    assert (found.pairs, found.accuracy.value) == (4, 0.625)
    assert found.margin.value == pytest.approx(log4 / 4)
    assert found.calibration.brier == pytest.approx(0.2425)
    assert found.calibration.log_loss == pytest.approx(0.6872, abs=1e-4)
    assert found.calibration.error == pytest.approx(0.1)


def test_temperature_that_would_mend_it() -> None:
    """Margins of 4 ln 3 that are right in three of four: divided by 4 they say three quarters."""
    pairs = [pair(at, 4 * math.log(3) * (1 if at % 4 else -1)) for at in range(400)]
    found = of(pairs).temperature
    assert found is not None and found.helps
    assert found.temperature == pytest.approx(4.0, rel=1e-3)
    assert found.error_before == pytest.approx(81 / 82 - 0.75, abs=1e-3) and found.error_after < 0.05


def test_baselines_and_the_gain_over_the_best() -> None:
    """The better reply is longer in three of four, and the model is right in all: 25 points more than `longer wins`."""
    lengths = [(20, 10), (20, 10), (30, 10), (10, 20)]
    found = of([pair(at, 1.0, 0.0, each) for at, each in enumerate(lengths)])
    assert [(each.name, each.accuracy.value) for each in found.baselines] == [
        ("longer wins", 0.75),
        ("shorter wins", 0.25),
    ]
    assert found.gain is not None and found.gain.value == 0.25
    assert found.best_baseline is not None and found.best_baseline.name == "longer wins"


def test_a_reward_that_is_length_is_no_better_than_length() -> None:
    """The better reply is the longer one in 80 of 100 pairs; the reward is the length."""
    lengths = [(20 + at, 10) if at % 5 else (10, 20 + at) for at in range(100)]
    found = of([pair(at, float(each[0]), float(each[1]), each) for at, each in enumerate(lengths)])
    assert found.length_correlation == pytest.approx(1.0)
    assert found.accuracy is not None and found.accuracy.value == 0.8
    assert found.gain is not None and found.gain.value == 0 and not found.beats_baselines
    assert found.length.shorter is not None and found.length.shorter.value == 0
    assert found.length.longer is not None and found.length.longer.value == 1
    assert found.length.slope is not None and found.length.slope.low > 0
    told = best_of_n_warnings(found, None)
    assert told[0].startswith("no better than `longer wins`: +0.0 points")
    assert told[1] == "the reward follows length (correlation +1.00): a policy learns to be longer"


def test_a_good_model_has_nothing_against_it() -> None:
    pairs = [pair(at, 1.0 + at % 3, 0.0, (15, 10) if at % 2 else (10, 15)) for at in range(120)]
    found = of(pairs)
    assert found.beats_baselines
    assert best_of_n_warnings(found, None) == ()


def test_what_was_left_out_cut_or_trained_on_is_told() -> None:
    pairs = [pair(at, 1.0, 0.0, truncated=at < 3) for at in range(9)] + [pair(9, None)]
    found = of(pairs, trained_on=4)
    assert (found.pairs, found.no_reward, found.truncated) == (9, {"too-long": 1}, pytest.approx(1 / 3))
    assert best_of_n_warnings(found, None) == (
        "4 of the 10 gold pairs stand in the data that the model was trained on: the accuracy is no measure for new "
        "pairs",
        "1 of the 10 gold pairs have no reward (1 too-long)",
        "in 33.3% of the pairs the conversation was too long, and lost its beginning",
        "only 9 pairs: the intervals are wide",
    )


def test_subsets_and_pairs_without_a_reward() -> None:
    pairs = [pair(1, 1.0, subset="a"), pair(2, -1.0, subset="a"), pair(3, 1.0, subset="b"), pair(4, None, subset="b")]
    found = of(pairs)
    assert [(each.name, each.pairs, each.accuracy.value) for each in found.subsets if each.accuracy] == [
        ("a", 2, 0.5),
        ("b", 2, 1.0),
    ]
    assert all(each.flips is None and each.first is None for each in found.subsets)


def test_correlation_by_hand() -> None:
    """Deviations -1, 0, 1 and -1, 1, 0: products 1, sums of squares 2 and 2, so one half."""
    assert correlation([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)
    assert correlation([1, 2, 3], [5, 5, 5]) is None
    assert correlation([1, 2], [1, 2]) is None


def test_a_pair_has_a_margin_where_both_replies_have_a_reward() -> None:
    gold = GoldPair(
        id=content_id("x"), prompt=(Message(role="user", content="Hi"),), better="good", worse="poor one", source="f:1"
    )

    def found(**rewards: float | None) -> ScoredPair:
        def reward_of(reply: Reply) -> Reward | None:
            word = reply.text.partition(" ")[0]
            if word not in rewards:
                return None
            value = rewards[word]
            return Reward(id="", prompt="", model="", reward=value, reason="" if value is not None else "blank")

        return scored_pair(gold, reward_of)

    assert found(good=1.5, poor=1.0).margin == 0.5
    assert found(good=1.5, poor=1.0).lengths == (4, 8)
    assert (found(good=None, poor=1.0).margin, found(good=None, poor=1.0).reason) == (None, "blank")
    assert (found(good=1.0).margin, found(good=1.0).reason) == (None, "not scored")
