"""How far judges agree: against published examples, and by hand."""

from __future__ import annotations

import math
import random

import pytest

from rlaif.feedback.aggregate import Comparison, Status
from rlaif.feedback.agreement import AgreementCounter, cohen_kappa, coincidences, effective_judges, krippendorff_alpha


def own(logit: float | None, *, flip: bool = False, status: Status | None = None) -> Comparison:
    """A judge's own comparison: with these log-odds, or unreadable."""
    if logit is None:
        return Comparison("l", "r", status or Status.UNPARSED)
    tie = abs(1 / (1 + math.exp(-logit)) - 0.5) < 0.05
    return Comparison("l", "r", status or (Status.TIE if tie else Status.LABELLED), logit=logit, flip=flip)


def counted(judges: int, *rows: tuple[float | None, ...], panel: float = 2.0) -> AgreementCounter:
    counting = AgreementCounter([f"judge {at}" for at in range(judges)])
    for row in rows:
        counting.add(own(panel), [own(logit) for logit in row])
    return counting


def test_kappa_by_hand() -> None:
    """p_o = 35/50; the first says yes in 25 and the second in 30 of 50, so p_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5."""
    table = {("yes", "yes"): 20, ("yes", "no"): 5, ("no", "yes"): 10, ("no", "no"): 15}
    assert cohen_kappa(table) == pytest.approx(0.4)
    assert cohen_kappa({("yes", "yes"): 3, ("no", "no"): 1}) == 1
    assert cohen_kappa({("yes", "yes"): 4}) is None
    assert cohen_kappa({}) is None


def test_alpha_of_the_textbook() -> None:
    """The example of three coders with missing values that Krippendorff's texts carry: nominal alpha is 0.691."""
    rows = [
        "* * * * * 3 4 1 2 1 1 3 3 * 3",
        "1 * 2 1 3 3 4 3 * * * * * * *",
        "* * 2 1 3 4 4 * 2 1 1 3 3 * 4",
    ]
    table: dict[tuple[str, str], float] = {}
    for unit in zip(*(row.split() for row in rows), strict=True):
        for pair, count in coincidences([value for value in unit if value != "*"]).items():
            table[pair] = table.get(pair, 0.0) + count
    assert krippendorff_alpha(table) == pytest.approx(0.691, abs=5e-4)


def test_alpha_of_equal_values_is_not_defined() -> None:
    assert krippendorff_alpha({("a", "a"): 6.0}) is None
    assert krippendorff_alpha({}) is None
    assert coincidences(["a"]) == {}


@pytest.mark.parametrize(
    ("judges", "correlation", "worth"),
    [(3, 1.0, 1.0), (3, 0.0, 3.0), (3, 0.5, 1.5), (9, 7 / 16, 2.0), (2, -1.0, 2.0), (3, -1 / 3, 3.0)],
)
def test_effective_judges(judges: int, correlation: float, worth: float) -> None:
    assert effective_judges(judges, correlation) == pytest.approx(worth)


def test_two_judges_by_hand() -> None:
    """Three of four alike; mirrored, each says left in half of its 8 values: p_o = 3/4, p_e = 1/2, kappa = 1/2."""
    found = counted(2, (1.0, 2.0), (1.0, 2.0), (-1.0, -2.0), (1.0, -2.0)).result()
    assert found.kappa == pytest.approx(0.5)
    assert found.alpha is None
    # sum(xy) = 2 + 2 + 2 - 2, sum(xx) = 4, sum(yy) = 16
    assert found.correlation == pytest.approx(4 / 8)
    assert found.effective_at_least == pytest.approx(2 / 1.5)
    assert found.comparisons == 4


def test_kappa_keeps_the_two_judges_apart() -> None:
    """The first says tie twice in four, the second never: p_o = 1/2, p_e = 0.25 * 0.5 + 0.25 * 0.5 = 1/4."""
    found = counted(2, (0.0, 2.0), (0.0, 2.0), (1.0, 2.0), (-1.0, -2.0)).result()
    assert found.kappa == pytest.approx((1 / 2 - 1 / 4) / (1 - 1 / 4))


def test_nothing_depends_on_which_reply_is_called_left() -> None:
    rows = ((1.0, 2.0, -1.0), (1.0, -2.0, None), (3.0, 2.0, 0.0), (1.0, 0.5, 2.0))
    turned = [tuple(None if logit is None else -logit for logit in row) for row in rows[:2]]
    one, other = counted(3, *rows).result(), counted(3, *turned, *rows[2:]).result()
    assert (one.alpha, one.correlation) == pytest.approx((other.alpha, other.correlation))


def test_alpha_of_three_judges_by_hand() -> None:
    """Two comparisons: left left right, and left left (the third is silent). Mirrored, there are four units.

    o_LR + o_RL is 2 in the first and in its mirror, so 4 of 10; n_L = n_R = 5, so that chance disagrees in 1/2:
    alpha = 1 - 0.4 / 0.5.
    """
    found = counted(3, (1.0, 1.0, -1.0), (1.0, 1.0, None)).result()
    assert found.alpha == pytest.approx(0.2)
    assert found.kappa is None
    assert found.comparisons == 2
    # the correlations are 1, -1 (one comparison each with the third) and -1
    assert found.correlation == pytest.approx(-1 / 3)


def test_a_judge_beside_the_panel() -> None:
    counting = AgreementCounter(["a", "b"])
    counting.add(own(2.0), [own(1.0), own(-1.0, flip=True)])
    counting.add(own(2.0), [own(0.0), own(None)])
    counting.add(own(-2.0), [own(-1.0), own(-1.0)])
    counting.add(own(0.0), [own(1.0), own(-1.0, flip=True)])  # no label: only its flip counts
    counting.add(own(None, status=Status.FAILED), [own(None, status=Status.FAILED), own(1.0)])
    a, b = counting.result().judges
    assert (a.judge, a.agrees, a.opposes, a.abstains, a.flips) == ("a", 2, 0, 1, 0)
    assert (b.judge, b.agrees, b.opposes, b.abstains, b.flips) == ("b", 1, 1, 1, 2)


def test_without_answers_there_is_no_agreement() -> None:
    found = counted(3, (None, None, 1.0)).result()
    assert (found.comparisons, found.alpha, found.correlation, found.effective_at_least) == (0, None, None, None)


@pytest.mark.finding(12)
@pytest.mark.parametrize("comparisons", [10, 30, 300])
def test_alpha_is_the_same_of_few_comparisons(comparisons: int) -> None:
    """Three judges, each right in 0.848 of all comparisons: two agree in 0.848^2 + 0.152^2 = 0.742, chance in one half.

    So alpha is 2 * 0.742 - 1 = 0.484, on average over panels however few the comparisons; with n - 1 of mirrored
    counts it is 0.493 for ten.
    """
    rng, found = random.Random(3), []
    for _ in range(120_000 // comparisons):
        truths = [rng.choice((1.0, -1.0)) for _ in range(comparisons)]
        rows = [tuple(truth if rng.random() < 0.848 else -truth for _ in range(3)) for truth in truths]
        found.append(counted(3, *rows).result().alpha or 0.0)
    assert sum(found) / len(found) == pytest.approx(0.4844, abs=0.006)


@pytest.mark.finding(5)
@pytest.mark.parametrize(("skill", "most"), [(1.0, 1.75), (2.0, 1.3)])
def test_what_judges_are_worth_is_no_more_than_a_lower_bound(skill: float, most: float) -> None:
    """Five judges whose errors are independent by construction are worth five; accuracy 0.84 gives about 1.65, and
    accuracy 0.977 even less, as good judges agree more."""
    rng, counting = random.Random(4), AgreementCounter([f"judge {at}" for at in range(5)])
    for _ in range(4000):
        truth = rng.choice((1.0, -1.0))
        counting.add(own(2.0), [own(truth * skill + rng.gauss(0, 1)) for _ in range(5)])
    found = counting.result()
    assert found.effective_at_least is not None and 1.0 < found.effective_at_least < most
