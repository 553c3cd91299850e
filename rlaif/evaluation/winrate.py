"""The win rate of a policy against a baseline, and what is left of it where both answers are equally long.

Judges like long answers, so a policy can win by padding. AlpacaEval 2 (Dubois et al. 2024, arXiv:2404.04475, eq. 2)
therefore fits

    logit P(policy wins) = theta + phi * tanh(d / std(d)),   d = length of the policy's answer - the baseline's

and reads the win rate off at d = 0. Departs from the paper: there is no term for the difficulty of an instruction,
which takes many models to tell; the ridge is fixed and mild instead of cross-validated; and, as there is one policy,
theta itself stands for the difference of the models. The differences are scaled but not centred: 0 is equal length.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rlaif.evaluation.intervals import wilson
from rlaif.evaluation.metrics import Interval

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray[Any, np.dtype[np.float64]]

RIDGE = 0.1
"""A normal prior of variance 10 on either coefficient: it moves the fit of a hundred comparisons by less than half a
point, and keeps it finite where length, or nothing at all, decides every one of them."""

_CERTAIN = 1e-3
"""A preference this close to 0 or 1 counts as certain when separation is looked for."""
_SURE = 1.959963984540054
_AT_ONCE = 2_000_000
"""Resamples times comparisons that are drawn and fitted together: each of a dozen tables has so many numbers."""
_ENOUGH = 1e-10
_MOST_STEPS = 1000


class LengthControlled(NamedTuple):
    """A win rate as it is, and at equal length. All shares are from 0 to 1, all intervals hold 95%."""

    raw: float
    """Mean preference for the policy's answer."""
    controlled: float
    """The same where both answers are equally long."""
    interval: tuple[float, float]
    """Of `controlled`."""
    note: str
    """What to know before `controlled` is believed; empty where there is nothing."""
    raw_interval: tuple[float, float]
    error: float
    """Standard error of `controlled`."""
    slope: float
    """phi: what length adds to the log-odds, at most; above 0 the judge likes the longer answer. 0 where not fitted."""
    wins: int
    """Preferences above one half by the margin."""
    ties: int
    losses: int
    separated: Literal["", "side", "length"] = ""
    """What the fit cannot weigh against chance: `side` where one side wins every comparison, `length` where length
    alone decides every one. `controlled` then rests on the ridge, and its interval on nothing."""


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

    said, gaps = np.asarray(preferences, dtype=np.float64), np.asarray(length_differences, dtype=np.float64)
    _check(said, gaps, prompts)
    note = _unable(said, gaps)
    x = None if note is not None else np.tanh(gaps / gaps.std())
    raw, redrawn = _drawn(said, x, range(len(said)) if prompts is None else prompts, resamples, seed)
    if x is not None:
        (theta,), (phi,) = _newton(x, said, np.ones((1, len(said))))
        controlled, slope = float(_sigmoid(theta)), float(phi)
        interval, error, note = _ends(redrawn), float(redrawn.std(ddof=1)), _doubt(said, gaps)
    else:
        controlled, slope = float(said.mean()), 0.0
        interval, error = _raw_interval(said, raw), _raw_error(said, raw)
    wins, losses = int((said - 0.5 >= margin).sum()), int((0.5 - said >= margin).sum())
    return LengthControlled(
        raw=float(said.mean()),
        controlled=controlled,
        interval=interval,
        note=note or "",
        raw_interval=_raw_interval(said, raw),
        error=error,
        slope=slope,
        wins=wins,
        ties=len(said) - wins - losses,
        losses=losses,
        separated="" if slope == 0.0 else _separated(said, gaps),
    )


def _check(said: Numbers, gaps: Numbers, prompts: Sequence[Hashable] | None) -> None:
    import numpy as np

    if not len(said):
        raise ValueError("no comparison to take a win rate of")
    if len(gaps) != len(said) or (prompts is not None and len(prompts) != len(said)):
        raise ValueError("one preference, one length difference and one prompt a comparison")
    if not np.isfinite(gaps).all() or not ((said >= 0) & (said <= 1)).all():
        raise ValueError("preferences lie between 0 and 1, and length differences are finite")


def _drawn(
    said: Numbers, x: Numbers | None, prompts: Sequence[Hashable], resamples: int, seed: int
) -> tuple[Numbers, Numbers]:
    """The bootstrap: of every resample its mean preference, and, where there is an `x`, what is fitted at equal length.

    As many resamples at once as there is room for: how often each comparison was drawn is a number for each of both.
    """
    import numpy as np

    places: dict[Hashable, int] = {}
    group = np.array([places.setdefault(prompt, len(places)) for prompt in prompts])
    rng, even = np.random.default_rng(seed), [1 / len(places)] * len(places)
    rows = max(1, _AT_ONCE // len(said))
    raw, fitted = np.empty(resamples), np.empty(resamples if x is not None else 0)
    for at in range(0, resamples, rows):
        size = min(rows, resamples - at)
        weights = rng.multinomial(len(places), even, size=size)[:, group].astype(np.float64)
        raw[at : at + size] = weights @ said / weights.sum(axis=1)
        if x is not None:
            fitted[at : at + size] = _sigmoid(_newton(x, said, weights)[0])
    return raw, fitted


def _unable(said: Numbers, gaps: Numbers) -> str | None:
    """Why the effect of length cannot be told, or None where it can."""
    if said.min() == said.max():
        return "all preferences are equal: nothing to control for" if gaps.any() else ""
    if gaps.min() == gaps.max():
        alike = "all answers are as long as the baseline's"
        apart = f"all answers differ from the baseline's by {gaps[0]:+g}: length and quality cannot be told apart"
        return apart if gaps[0] else alike
    return None


def _doubt(said: Numbers, gaps: Numbers) -> str:
    """What makes a fitted value at equal length doubtful."""
    separated = _separated(said, gaps)
    if separated == "side":
        return "one side wins every comparison: the value at equal length rests on the ridge"
    if separated == "length":
        return "length alone decides every comparison: what is left at equal length cannot be told"
    if gaps.min() > 0 or gaps.max() < 0:
        side = "longer" if gaps.min() > 0 else "shorter"
        return f"every answer is {side} than the baseline's: the value at equal length is extrapolated"
    return ""


def _separated(said: Numbers, gaps: Numbers) -> Literal["", "side", "length"]:
    can_win, can_lose = gaps[said > _CERTAIN], gaps[said < 1 - _CERTAIN]
    if not len(can_win) or not len(can_lose):
        return "side"
    return "length" if can_lose.max() <= can_win.min() or can_win.max() <= can_lose.min() else ""


def _newton(x: Numbers, said: Numbers, weights: Numbers) -> tuple[Numbers, Numbers]:
    """theta and phi for every row of weights, by Newton's method on the penalised cross-entropy, soft targets and all.

    `x` and `said` are (comparisons,), `weights` (rows, comparisons); what returns is (rows,) twice.
    """
    import numpy as np

    theta, phi = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(_MOST_STEPS):
        p = _sigmoid(theta[:, None] + phi[:, None] * x)
        miss, curve = weights * (said - p), weights * p * (1 - p)
        up, along = miss.sum(axis=1) - RIDGE * theta, miss @ x - RIDGE * phi
        a, b, c = curve.sum(axis=1) + RIDGE, curve @ x, curve @ (x * x) + RIDGE
        determinant = a * c - b * b
        step, turn = (c * up - b * along) / determinant, (a * along - b * up) / determinant
        # Where no log-odds moves by more than 1, no curvature changes by more than a factor of e: so shortened, a step
        # always lowers the loss, where a full one might leap over the minimum.
        size = np.maximum(np.abs(step + turn * x.min()), np.abs(step + turn * x.max()))
        short = 1 / np.maximum(1, size)
        theta, phi = theta + short * step, phi + short * turn
        if size.max() < _ENOUGH:
            break
    return theta, phi


def _sigmoid(logits: Numbers) -> Numbers:
    import numpy as np

    half: Numbers = (1 + np.tanh(logits / 2)) / 2
    return half


def _ends(values: Numbers) -> tuple[float, float]:
    import numpy as np

    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _score_interval(said: Numbers) -> Interval | None:
    """Where all are won, or all lost, drawing them anew shows no doubt: the score interval does."""
    return wilson(float(said.sum()), len(said)) if said.min() == said.max() and said[0] in (0, 1) else None


def _raw_interval(said: Numbers, raw: Numbers) -> tuple[float, float]:
    certain = _score_interval(said)
    return _ends(raw) if certain is None else (certain.low, certain.high)


def _raw_error(said: Numbers, raw: Numbers) -> float:
    certain = _score_interval(said)
    return float(raw.std(ddof=1)) if certain is None else (certain.high - certain.low) / (2 * _SURE)
