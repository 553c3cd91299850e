"""The length-controlled win rate: what a policy wins against a baseline where both responses are equally long.

Judges prefer long responses, so a policy can win by padding. AlpacaEval 2 (Dubois et al. 2024, arXiv:2404.04475, eq. 2)
therefore fits

    logit P(policy wins) = theta + phi * tanh(d / std(d)),   d = length of the policy's response - the baseline's

and evaluates it at d = 0. The differences are scaled but not centered, as 0 is equal length; with one policy, theta
itself is the difference of the models.

This module departs from the paper: there is no term for the difficulty of an instruction, which takes many models to
estimate. Where the policy's responses are longer to prompts that it does better at, phi attributes that to the judge's
length bias, however many comparisons there are, and the value at d = 0 is off by that error of phi times the mean of
tanh(d / std(d)). Therefore:

- The value is withheld where equal length lies at the edge of what was compared (`LARGEST_GAP`, `SMALLEST_SIDE`). Of
  13 models of AlpacaEval 2's leaderboard 8 are withheld; without these rules the fit would be 13 points off the
  published figure for them on average, and 24 for one that was made to game the metric (`tests.bench coverage`).
- Half of the difference between phi and the published slope (`USUAL_SLOPE`) counts as difficulty, up to
  `MOST_DIFFICULTY`. Difficulty remains where both responses are equally long: the value is the mean of
  sigmoid(theta + difficulty * tanh(d / std(d))) over the comparisons, as the paper's is over its instructions. The rest
  of phi is the judge's length bias, and is removed.
- The interval includes the uncertainty of that slope (`SLOPE_ERROR`): the farther apart the mean lengths, the wider.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rlaif.stats import Interval, wilson

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray[Any, np.dtype[np.float64]]

LARGEST_GAP = 0.5
"""Farthest mean of the length differences from 0, in their standard deviations, at which a value is given."""
SMALLEST_SIDE = 0.2
"""Least share of the answers that are at least as long as the baseline's, and of those that are at most as long."""
USUAL_SLOPE = 1.0
"""phi of AlpacaEval 2's judge as published, for models whose answers are about as long as the baseline's: 0.97 to 1.31
(this module's own fit, without a term for difficulty: 0.77 to 0.98)."""
MOST_DIFFICULTY = 0.75
"""Most of phi that is taken for difficulty."""
SLOPE_ERROR = 0.8
"""Standard error of the judge's taste. In simulated evaluations (`tests.bench coverage`) tastes from 0 to 2 meet
difficulty of log-odds from 0 to 0.75 for each standard deviation of length: with this error at least 93% of the
intervals hold the truth; with 0.7 it was 90% where a judge without any taste met the strongest difficulty."""
RIDGE = 0.1
"""A normal prior of variance 10 on either coefficient: it moves the fit of a hundred comparisons by less than half a
point, and keeps it finite where length, or nothing at all, decides every one of them."""

_CERTAIN = 1e-3
"""A preference this close to 0 or 1 counts as certain when separation is looked for."""
_Z95 = 1.959963984540054
_BATCH = 2_000_000
"""Resamples times comparisons that are drawn and fitted together: each of a dozen tables has so many numbers."""
_TOLERANCE = 1e-10
_MOST_STEPS = 1000


class LengthControlled(NamedTuple):
    """A win rate as it is, and at equal length. All shares are from 0 to 1, all intervals hold 95%."""

    raw: float
    """Mean preference for the policy's answer."""
    raw_interval: tuple[float, float]
    raw_error: float
    """Standard error of `raw`."""
    length_controlled: float | None
    """The same where both answers are equally long; None where the comparisons cannot tell, and `note` says why."""
    interval: tuple[float, float] | None
    """Of `length_controlled`."""
    error: float | None
    """Standard error of `length_controlled`."""
    note: str
    """Why there is no `length_controlled`, or what to know of it; empty where there is nothing."""
    slope: float | None
    """phi: what length adds to the log-odds, at most; above 0 the judge likes the longer answer. None where nothing was
    fitted: without a `length_controlled`, or where it is `raw`, as lengths or preferences do not differ."""
    wins: int
    """Preferences above one half by the margin."""
    ties: int
    losses: int


def length_controlled(
    preferences: Sequence[float],
    length_differences: Sequence[float],
    prompts: Sequence[Hashable] | None = None,
    *,
    margin: float = 0.05,
    resamples: int = 1000,
    seed: int = 0,
) -> LengthControlled:
    """The win rate at equal length.

    `preferences` are the probabilities, one a comparison, that the policy's answer beats the baseline's;
    `length_differences` are the policy's length less the baseline's, in any unit. `prompts` says which comparisons
    belong together: those of one prompt are drawn together for the intervals (Efron 1979, percentiles); without it each
    is its own. A preference nearer to one half than `margin` is a tie.

    Raises ValueError where there is no comparison, where the lists differ in length, or a preference is out of range.
    """
    import numpy as np

    outcomes, gaps = np.asarray(preferences, dtype=np.float64), np.asarray(length_differences, dtype=np.float64)
    _require_valid(outcomes, gaps, prompts)
    withheld, unneeded = _why_withheld(outcomes, gaps), _why_unneeded(outcomes, gaps)
    x = np.tanh(gaps / gaps.std()) if withheld is None and unneeded is None else None
    raw, controlled = _bootstrap(outcomes, x, range(len(outcomes)) if prompts is None else prompts, resamples, seed)
    certain = _score_interval(outcomes)
    wins, losses = int((outcomes - 0.5 >= margin).sum()), int((0.5 - outcomes >= margin).sum())
    plain = LengthControlled(
        raw=float(outcomes.mean()),
        raw_interval=_percentiles(raw) if certain is None else (certain.low, certain.high),
        raw_error=float(raw.std(ddof=1)) if certain is None else (certain.high - certain.low) / (2 * _Z95),
        length_controlled=None,
        interval=None,
        error=None,
        note=withheld or unneeded or "",
        slope=None,
        wins=wins,
        ties=len(outcomes) - wins - losses,
        losses=losses,
    )
    if withheld is not None:
        return plain
    if x is None:
        return plain._replace(length_controlled=plain.raw, interval=plain.raw_interval, error=plain.raw_error)
    ones = np.ones((1, len(outcomes)))
    theta, phi = _newton(x, outcomes, ones)
    (estimate,) = _at_equal_length(theta, phi, x, ones, np.zeros(1))
    return plain._replace(
        length_controlled=float(estimate),
        interval=_percentiles(controlled),
        error=float(controlled.std(ddof=1)),
        slope=float(phi[0]),
    )


def _require_valid(outcomes: Numbers, gaps: Numbers, prompts: Sequence[Hashable] | None) -> None:
    import numpy as np

    if not len(outcomes):
        raise ValueError("no comparison to take a win rate of")
    if len(gaps) != len(outcomes) or (prompts is not None and len(prompts) != len(outcomes)):
        raise ValueError("one preference, one length difference and one prompt a comparison")
    if not np.isfinite(gaps).all() or not ((outcomes >= 0) & (outcomes <= 1)).all():
        raise ValueError("preferences lie between 0 and 1, and length differences are finite")


def _bootstrap(
    outcomes: Numbers, x: Numbers | None, prompts: Sequence[Hashable], resamples: int, seed: int
) -> tuple[Numbers, Numbers]:
    """The bootstrap: each resample's mean preference, and, with an `x`, its value at equal length.

    Resamples are fitted in batches that fit into memory, one weight per resample and comparison. The error of phi does
    not come from the choice of comparisons, so it is sampled independently of them.
    """
    import numpy as np

    places: dict[Hashable, int] = {}
    group = np.array([places.setdefault(prompt, len(places)) for prompt in prompts])
    rng, even = np.random.default_rng(seed), [1 / len(places)] * len(places)
    error = np.random.default_rng([seed, 1]).normal(0, SLOPE_ERROR, resamples)
    rows = max(1, _BATCH // len(outcomes))
    raw, fitted = np.empty(resamples), np.empty(resamples if x is not None else 0)
    for at in range(0, resamples, rows):
        size = min(rows, resamples - at)
        weights = rng.multinomial(len(places), even, size=size)[:, group].astype(np.float64)
        raw[at : at + size] = weights @ outcomes / weights.sum(axis=1)
        if x is not None:
            fitted[at : at + size] = _at_equal_length(*_newton(x, outcomes, weights), x, weights, error[at : at + size])
    return raw, fitted


def _why_withheld(outcomes: Numbers, gaps: Numbers) -> str | None:
    """Why the value at equal length is withheld, or None."""
    if not gaps.any():
        return None
    mean, spread = float(gaps.mean()), float(gaps.std())
    longer, shorter = float((gaps >= 0).mean()), float((gaps <= 0).mean())
    if abs(mean) > LARGEST_GAP * spread or min(longer, shorter) < SMALLEST_SIDE:
        side, share = ("longer", 1 - shorter) if mean > 0 else ("shorter", 1 - longer)
        return (
            f"{share:.0%} of the responses are {side} than the baseline's, on average by {abs(mean):.4g}, so that a "
            "length-controlled value would be extrapolated"
        )
    can_win, can_lose = gaps[outcomes > _CERTAIN], gaps[outcomes < 1 - _CERTAIN]
    if not len(can_win) or not len(can_lose):
        return None
    # One bound on the length difference separates all wins from all losses.
    separated = can_lose.max() <= can_win.min() or can_win.max() <= can_lose.min()
    return "length alone decides every comparison" if separated else None


def _why_unneeded(outcomes: Numbers, gaps: Numbers) -> str | None:
    """Why the value at equal length is the raw one without a fit, or None."""
    if not gaps.any():
        return ""
    if outcomes.min() == outcomes.max() or outcomes.min() >= 1 - _CERTAIN or outcomes.max() <= _CERTAIN:
        return "all preferences are equal, whatever the lengths"
    return None


def _newton(x: Numbers, outcomes: Numbers, weights: Numbers) -> tuple[Numbers, Numbers]:
    """theta and phi for every row of weights, by Newton's method on the penalized cross-entropy with soft targets.

    `x` and `outcomes` are (comparisons,), `weights` (rows, comparisons); what returns is (rows,) twice.
    """
    import numpy as np

    theta, phi = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(_MOST_STEPS):
        p = _sigmoid(theta[:, None] + phi[:, None] * x)
        miss, curve = weights * (outcomes - p), weights * p * (1 - p)
        up, along = miss.sum(axis=1) - RIDGE * theta, miss @ x - RIDGE * phi
        a, b, c = curve.sum(axis=1) + RIDGE, curve @ x, curve @ (x * x) + RIDGE
        determinant = a * c - b * b
        step, turn = (c * up - b * along) / determinant, (a * along - b * up) / determinant
        # Where no log-odds moves by more than 1, no curvature changes by more than a factor of e: so shortened, a step
        # always lowers the loss, where a full one might leap over the minimum.
        size = np.maximum(np.abs(step + turn * x.min()), np.abs(step + turn * x.max()))
        short = 1 / np.maximum(1, size)
        theta, phi = theta + short * step, phi + short * turn
        if size.max() < _TOLERANCE:
            break
    return theta, phi


def _at_equal_length(theta: Numbers, phi: Numbers, x: Numbers, weights: Numbers, error: Numbers) -> Numbers:
    """[rows]: the mean preference without the judge's length bias, whose slope is larger by `error`."""
    difficulty = ((phi - USUAL_SLOPE) / 2).clip(-MOST_DIFFICULTY, MOST_DIFFICULTY)
    equal = _sigmoid(theta[:, None] + (difficulty - error)[:, None] * x)
    mean: Numbers = (weights * equal).sum(axis=1) / weights.sum(axis=1)
    return mean


def _sigmoid(logits: Numbers) -> Numbers:
    import numpy as np

    half: Numbers = (1 + np.tanh(logits / 2)) / 2
    return half


def _percentiles(values: Numbers) -> tuple[float, float]:
    import numpy as np

    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _score_interval(outcomes: Numbers) -> Interval | None:
    """The score interval where all are won, or all lost, and the bootstrap shows no error; None elsewhere."""
    return (
        wilson(float(outcomes.sum()), len(outcomes))
        if outcomes.min() == outcomes.max() and outcomes[0] in (0, 1)
        else None
    )
