"""Numbers by pencil and paper."""

from __future__ import annotations

import math
import random

import pytest

from rlaif.stats import Bin, brier, calibration_error, fit_temperature, hits, log_loss, mean, reliability


def test_hits() -> None:
    assert hits([2.0, -0.1, 0.0]) == [1.0, 0.0, 0.5]


def test_brier_by_hand() -> None:
    assert brier([1.0, 0.5, 0.0]) == pytest.approx((0 + 0.25 + 1) / 3)


def test_log_loss_by_hand() -> None:
    assert log_loss([0.0]) == pytest.approx(math.log(2))
    assert log_loss([math.log(3), -math.log(3)]) == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    assert log_loss([-800.0]) == pytest.approx(800.0)


def test_bins_have_equal_mass() -> None:
    """Confidences 0.6, 0.7 (one wrong) and 0.8, 0.9 (both right)."""
    found = reliability([0.9, 0.4, 0.7, 0.8], bins=2)
    assert found == [Bin(pytest.approx(0.65), 0.5, 2), Bin(pytest.approx(0.85), 1.0, 2)]
    assert calibration_error([0.9, 0.4, 0.7, 0.8], bins=2) == pytest.approx((0.15 + 0.15) / 2)
    assert [each.size for each in reliability([0.9] * 7, bins=3)] == [2, 3, 2]
    assert reliability([], bins=3) == []


def test_equal_confidences_in_several_bins_are_equally_right() -> None:
    """Three right and one wrong, all at 0.8: each of two bins is right in 0.75, wherever the wrong one is put."""
    for said in ([0.8, 0.8, 0.8, 0.2], [0.2, 0.8, 0.8, 0.8]):
        assert reliability(said, bins=2) == [Bin(pytest.approx(0.8), 0.75, 2)] * 2
        assert calibration_error(said, bins=2) == pytest.approx(0.05)


def test_a_perfectly_calibrated_judge_has_no_error() -> None:
    rng = random.Random(1)
    said = [rng.random() for _ in range(20000)]
    right = [p if rng.random() < max(p, 1 - p) else 1 - p for p in (max(p, 1 - p) for p in said)]
    assert calibration_error(right) < 0.015


def test_a_temperature_undoes_a_known_one() -> None:
    """Labels drawn by sigmoid(z); the judge says 3 z, so the best temperature is 3."""
    rng = random.Random(2)
    logits = []
    for _ in range(20000):
        true = rng.gauss(0, 1.5)
        right = rng.random() < 1 / (1 + math.exp(-true))
        logits.append(3 * true if right else -3 * true)
    assert fit_temperature(logits) == pytest.approx(3.0, rel=0.05)


def test_a_temperature_by_hand_and_at_its_bounds() -> None:
    """Three right and one wrong at the same |logit| ln 9: likeliest is sigmoid(ln 9 / T) = 3/4, so T = ln 9 / ln 3."""
    assert fit_temperature([math.log(9)] * 3 + [-math.log(9)]) == pytest.approx(2.0, rel=1e-6)
    assert fit_temperature([1.0, 2.0]) == pytest.approx(0.05)
    assert fit_temperature([-1.0, -2.0]) == pytest.approx(20.0)


def test_mean_of_nothing_is_not_a_number() -> None:
    assert math.isnan(mean([]))
