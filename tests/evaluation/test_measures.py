"""Each statistic of a judge, from hand-made pairs and with its value on paper."""

from __future__ import annotations

import math
import random

import pytest

from rlaif.config.schemas import PairSettings
from rlaif.evaluation.gold import JudgedPair
from rlaif.evaluation.judge_metrics import calibration_of, length_of, measure, slot_of, temperature_of
from rlaif.evaluation.reports import Cost, Measures
from rlaif.records import content_id
from rlaif.stats import calibration_by_chance, fit_temperature, log_loss
from tests.evaluation.judges import pair

FREE = Cost(
    calls=0,
    prompt_tokens=0,
    cached_tokens=0,
    completion_tokens=0,
    calls_per_1000=None,
    prompt_tokens_per_1000=None,
    seconds_per_1000=None,
)


def measured(*judged: JudgedPair, **more: object) -> Measures:
    options = {"canaries": (), "cost": FREE, "failures": {}} | more
    return measure(judged, PairSettings(), **options)  # type: ignore[arg-type]


def values(found: Measures) -> dict[str, float]:
    return {each.name: each.accuracy.value for each in found.baselines}


def test_accuracy_counts_an_exact_half_as_half() -> None:
    """Right, wrong, right, and 2 against -2, which is 0: 2.5 of 4. By single orders 1, 0, 1, 1/2."""
    found = measured(pair(1, 1.0, 3.0), pair(2, -1.0, -1.0), pair(3, 0.5, 0.1), pair(4, 2.0, -2.0, status="tie"))
    assert found.accuracy is not None and found.single_order is not None and found.flips is not None
    assert found.accuracy.value == 2.5 / 4
    assert found.single_order.value == 2.5 / 4
    assert found.flips.value == 1 / 4
    assert found.ties == 1 / 4
    assert found.kept is not None
    assert (found.kept.value, found.kept.pairs) == (2 / 3, 3)


def test_single_orders_differ_from_both_together() -> None:
    """3 and -1 fold to +1, which is right; by single orders one is right and one wrong."""
    found = measured(pair(1, 3.0, -1.0))
    assert found.accuracy is not None and found.single_order is not None
    assert (found.accuracy.value, found.single_order.value) == (1.0, 0.5)
    assert found.kept is None, "a run drops it"


def test_pairs_without_a_label_are_neither_right_nor_wrong() -> None:
    found = measured(pair(1, 1.0, 1.0), pair(2), pair(3), pair(4, status="x"), failures={"http_500": 2})
    assert (found.pairs, found.labelled, found.coverage) == (4, 1, 0.25)
    assert found.accuracy is not None and found.accuracy.value == 1
    assert found.no_label == {"unparsed": 3, "call http_500": 2}
    nothing = measured(pair(1), pair(2))
    assert (nothing.accuracy, nothing.gain, nothing.calibration, nothing.best_baseline) == (None, None, None, None)


def test_baselines_and_the_paired_gain() -> None:
    """Longer is right in 1 of 4 and half right in one: 3/8, shorter 5/8. The judge: right, right, wrong, right = 3/4.
    Minus shorter: 1 - 0, 1 - 1, 0 - 1, 1 - 1/2, mean 1/8.
    """
    found = measured(
        pair(1, 1.0, 1.0, lengths=(20, 10)),
        pair(2, 1.0, 1.0, lengths=(10, 20)),
        pair(3, -1.0, -1.0, lengths=(10, 20)),
        pair(4, 1.0, 1.0, lengths=(10, 10)),
    )
    assert values(found) == {"longer wins": 3 / 8, "shorter wins": 5 / 8, "first slot wins": 0.5}
    assert found.best_baseline is not None and found.best_baseline.name == "shorter wins"
    assert found.gain is not None
    assert found.gain.value == pytest.approx(1 / 8)
    assert found.gain.low < 1 / 8 < found.gain.high


def test_the_first_slot_is_no_half_where_one_order_is_asked() -> None:
    found = measured(pair(1, 1.0, better_first=1.0), pair(2, 1.0, better_first=1.0), pair(3, 1.0, better_first=0.0))
    assert values(found)["first slot wins"] == pytest.approx(2 / 3)
    assert found.flips is None
    assert found.slot is not None and found.slot.bias is None


def test_slot_preference() -> None:
    """Better first 3, second 1: the first slot gets 3 and -1, bias 1. Then 0 and -4: the first slot 0 and +4, bias 2.
    Single verdicts for the first slot: 1 of 2, then 1.5 of 2.
    """
    found = slot_of([pair(1, 3.0, 1.0), pair(2, 0.0, -4.0)])
    assert found is not None and found.bias is not None
    assert found.bias.value == pytest.approx((1 + 2) / 2)
    assert found.first.value == pytest.approx((0.5 + 0.75) / 2)


def test_groups() -> None:
    found = measured(
        pair(1, 1.0, 1.0, subset="a", own={"kind": 1.0, "true": -1.0}),
        pair(2, 2.0, -1.0, subset="a", own={"kind": -1.0, "true": None}),
        pair(3, subset="b", own={"kind": None}),
        pair(4, -1.0, -1.0, own={"true": -2.0}),
    )
    a, b = found.subsets
    assert (a.name, a.pairs, a.accuracy and a.accuracy.value, a.flips) == ("a", 2, 1.0, 0.5)
    assert (b.name, b.pairs, b.accuracy, b.flips) == ("b", 1, None, None)
    kind, true = found.principles
    assert (kind.name, kind.pairs, kind.accuracy and kind.accuracy.value) == ("kind", 3, 0.5)
    assert (true.name, true.pairs, true.accuracy and true.accuracy.value) == ("true", 3, 0.0)


def test_calibration() -> None:
    """Forty pairs at 0.8, of which 28 are right: accuracy 0.7, error 0.1, Brier 0.7 * 0.04 + 0.3 * 0.64 = 0.22."""
    four = math.log(4)
    found = calibration_of([four] * 28 + [-four] * 12)
    assert found is not None
    assert found.error == pytest.approx(0.1)
    assert found.brier == pytest.approx(0.22)
    assert found.log_loss == pytest.approx(-0.7 * math.log(0.8) - 0.3 * math.log(0.2))
    assert [each.pairs for each in found.bins] == [20, 20], "twenty pairs a bin at least"
    # 0.8 lies on an edge of the ten steps from 0.5 to 1: in the sixth or the seventh, by rounding.
    assert sum(found.confidences) == 40 and sum(found.confidences[5:7]) == 40


def test_the_temperature_is_fitted_on_one_half_and_measured_on_the_other() -> None:
    """In each half 75 of 100 right at ln 9: likeliest is T = ln 9 / ln 3 = 2, where 0.9 becomes 0.75, which is true."""
    nine = math.log(9)
    halves: dict[int, int] = {0: 0, 1: 0}
    judged = []
    for key in range(2000):
        each = pair(key, nine, nine)
        half = int(each.prompt, 16) % 2
        if halves[half] < 100:
            halves[half] += 1
            judged.append(each if halves[half] > 25 else pair(key, -nine, -nine))
    found = temperature_of(judged)
    assert found is not None
    assert found.temperature == pytest.approx(2.0, rel=1e-4)
    assert (found.error_before, found.error_after) == (pytest.approx(0.15), pytest.approx(0.0, abs=1e-4))
    assert found.helps and not found.bounded
    doubled = temperature_of(judged, used=1.5)
    assert doubled is not None and doubled.temperature == pytest.approx(3.0, rel=1e-4)


def test_halves_that_disagree_are_seen() -> None:
    """One half is always right and the other always wrong: each half's temperature is the worst one for the other."""
    keys = range(200)
    judged = [pair(key, *([1.0, 1.0] if int(pair(key).prompt, 16) % 2 else [-1.0, -1.0])) for key in keys]
    found = temperature_of(judged)
    assert found is not None
    assert found.log_loss_after > found.log_loss_before
    assert not found.helps
    assert temperature_of([]) is None


@pytest.mark.finding(15)
def test_pairs_of_one_prompt_are_in_one_half() -> None:
    """40 prompts of 30 pairs, each right in all of them or in none, at random: nothing can be learned of one prompt
    from another. A temperature that met a prompt's other pairs would be measured on what it was fitted to."""
    rng, judged = random.Random(5), []
    for prompt in range(40):
        sign = rng.choice((1, -1))
        keys = [(prompt, at) for at in range(30)]
        judged += [pair(key, 2.0 * sign, prompt=content_id("prompt", prompt)) for key in keys]
    found = temperature_of(judged)
    by_half = {half: [each for each in judged if int(each.prompt, 16) % 2 == half] for half in (0, 1)}
    fits = [fit_temperature([each.logit or 0.0 for each in by_half[half]]) for half in (0, 1)]
    assert found is not None and fits[0] != pytest.approx(fits[1], rel=1e-3)
    cooled = [(each.logit or 0.0) / fits[1 - half] for half in (0, 1) for each in by_half[half]]
    assert found.log_loss_after == pytest.approx(log_loss(cooled))


@pytest.mark.finding(8)
@pytest.mark.parametrize(("pairs", "by_chance"), [(100, 0.072), (200, 0.072), (500, 0.046), (2000, 0.023)])
def test_the_calibration_error_of_a_calibrated_judge_is_what_chance_is_said_to_give(
    pairs: int, by_chance: float
) -> None:
    """Confidences spread evenly from one half to 1, each as often right as it says: the true error is 0."""
    rng, errors, chances = random.Random(6), [], []
    for _ in range(40):
        said = [rng.uniform(0.5, 0.999) for _ in range(pairs)]
        found = calibration_of([math.log(p / (1 - p)) * (1 if rng.random() < p else -1) for p in said])
        assert found is not None and found.chance is not None and found.chance_high is not None
        errors.append(found.error)
        chances.append(found.chance)
        assert found.chance < found.chance_high
    assert sum(errors) / 40 == pytest.approx(by_chance, abs=0.012)
    assert sum(chances) / 40 == pytest.approx(sum(errors) / 40, rel=0.15)


@pytest.mark.finding(8)
def test_few_pairs_are_no_doubt_where_chance_gives_as_much() -> None:
    said = [0.7] * 24
    by_chance = calibration_by_chance(said, 1)
    assert by_chance.high > 0.15, "the standard error of 24 is 0.094, and 1.96 of it 0.18"
    assert by_chance.mean == pytest.approx(0.094 * math.sqrt(2 / math.pi), abs=0.01)
    assert calibration_by_chance([1.0] * 50) == (0.0, 0.0) == calibration_by_chance([0.5] * 50)


def test_a_temperature_without_a_bound_is_no_setting() -> None:
    found = temperature_of([pair(key, 2.0, 2.0) for key in range(50)])
    assert found is not None and found.bounded and not found.helps


def test_length() -> None:
    """Right where longer (2 of 2), right once where shorter (1 of 2). Log ratios ln 2, ln 4, -ln 2, -ln 4 with
    log-odds 2, 3, 1, -1: the slope is (2 a + 3 * 2a - a + 2a) / (10 a²) = 0.9 / a, a = ln 2.
    """
    found = length_of(
        [
            pair(1, 2.0, 2.0, lengths=(20, 10)),
            pair(2, 3.0, 3.0, lengths=(40, 10)),
            pair(3, 1.0, 1.0, lengths=(10, 20)),
            pair(4, -1.0, -1.0, lengths=(10, 40)),
        ]
    )
    assert found.longer is not None and found.shorter is not None and found.slope is not None
    assert (found.longer.value, found.shorter.value) == (1.0, 0.5)
    assert found.slope.value == pytest.approx(0.9 / math.log(2))
    assert [(each.low, each.high, each.accuracy.value) for each in found.bins] == [
        (0.0, 0.5, 0.0),
        (0.5, 0.8, 1.0),
        (2.0, None, 1.0),
    ]


def test_label_mass() -> None:
    found = measured(pair(1, 1.0, 1.0, masses=(0.9, 0.7)), pair(2, masses=(0.2,))).mass
    assert found is not None
    assert (found.mean, found.below, found.answers) == (pytest.approx(0.6), pytest.approx(1 / 3), 3)
    assert measured(pair(1, 1.0, 1.0)).mass is None


def test_pairs_of_one_prompt_stand_together() -> None:
    """Three pairs of each of 40 prompts, all right or all wrong: no surer than one pair of each."""
    once = [pair(at, 1.0 if at % 4 else -1.0, prompt=str(at)) for at in range(40)]
    thrice = [pair((at, copy), *each.orders, prompt=each.prompt) for at, each in enumerate(once) for copy in range(3)]
    one, three = measured(*once), measured(*thrice)
    assert one.accuracy is not None and three.accuracy is not None
    assert (three.accuracy.low, three.accuracy.high) == pytest.approx((one.accuracy.low, one.accuracy.high))
    assert (one.accuracy.pairs, three.accuracy.pairs) == (40, 120)
