"""Bradley-Terry strengths of several policies from all their matches, with intervals over prompts.

P(a beats b) = sigmoid(s_a - s_b) (Bradley and Terry 1952, Biometrika 39:324-345), fitted by maximum likelihood; a tie
is half a win and half a loss. The bootstrap resamples prompts, with all comparisons of a prompt across all matches, as
a prompt that is easy for a policy is easy in each of its matches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rlaif.evaluation.reports import Rating
from rlaif.stats import Estimate, quantile

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray[Any, np.dtype[np.float64]]

RIDGE = 0.1
"""A normal prior of variance 10 on every strength: it keeps a policy that always wins finite, and moves the fit of a
hundred comparisons by less than half a point of win rate."""

_ELO, _MIDDLE = 400 / math.log(10), 1000.0
_TOLERANCE = 1e-10
_MOST_STEPS = 200
_NO_ERROR = 1e-6
"""Standard errors below this count as zero."""


class Won(NamedTuple):
    """One comparison with a label."""

    policy: str
    baseline: str
    prompt: str
    share: float
    """1 for a win of the policy, 0 for a loss, between them for a tie or a doubtful win."""


def ratings(
    names: Sequence[str], comparisons: Sequence[Won], *, resamples: int = 1000, seed: int = 0
) -> tuple[Rating, ...]:
    """The policies by strength, strongest first; those without a comparison are left out.

    Intervals are the bootstrap's standard error over prompts (Efron 1979) times Student's t. The bootstrap shows no
    error where prompts do not differ, and too little where some policies never lose to the others (the likelihood then
    has no maximum: Ford 1957, American Mathematical Monthly 64:28-33). The error is then at least that of the penalized
    likelihood, with each prompt of a match as one trial.
    """
    import numpy as np

    seen = {each.policy for each in comparisons} | {each.baseline for each in comparisons}
    rated = [name for name in names if name in seen]
    if not rated:
        return ()
    place = {name: at for at, name in enumerate(rated)}
    prompts = {prompt: at for at, prompt in enumerate(dict.fromkeys(each.prompt for each in comparisons))}
    pairs = {pair: at for at, pair in enumerate(dict.fromkeys((each.policy, each.baseline) for each in comparisons))}
    won, played = np.zeros((len(prompts), len(pairs))), np.zeros((len(prompts), len(pairs)))
    for each in comparisons:
        cell = prompts[each.prompt], pairs[each.policy, each.baseline]
        won[cell] += each.share
        played[cell] += 1
    signs = np.zeros((len(pairs), len(rated)))
    for (policy, baseline), row in pairs.items():
        signs[row, place[policy]], signs[row, place[baseline]] = 1.0, -1.0
    (strength,) = _fitted(signs, won.sum(axis=0)[None], played.sum(axis=0)[None])
    counts = np.random.default_rng(seed).multinomial(len(prompts), [1 / len(prompts)] * len(prompts), size=resamples)
    resampled = _fitted(signs, counts @ won, counts @ played)
    correction = math.sqrt(len(prompts) / max(len(prompts) - 1, 1))  # the bootstrap's error is too small by it
    error = correction * resampled.std(axis=0, ddof=1)
    if _one_sided(signs, won.sum(axis=0), played.sum(axis=0)) or error.min() < _NO_ERROR:
        error = np.maximum(error, _curvature_error(signs, strength, (played > 0).sum(axis=0)))
    reach = quantile(len(prompts) - 1) * error
    total = played.sum(axis=0) @ np.abs(signs)
    rows = []
    for name, at in place.items():
        value, width = float(strength[at]), float(reach[at])
        estimate = Estimate(value=value, low=value - width, high=value + width, pairs=int(total[at]))
        rows.append(Rating(name=name, strength=estimate, elo=_MIDDLE + _ELO * value))
    return tuple(sorted(rows, key=lambda rating: -rating.strength.value))


def _fitted(signs: Numbers, won: Numbers, played: Numbers) -> Numbers:
    """[rows, policies]: strengths with mean 0, by Newton's method on the penalized likelihood.

    `signs` [pairs, policies] has 1 for the policy and -1 for the baseline of a pair; `won` and `played` are
    [rows, pairs], a row a resample.
    """
    import numpy as np

    strength = np.zeros((len(won), signs.shape[1]))
    ridge = RIDGE * np.eye(signs.shape[1])
    for _ in range(_MOST_STEPS):
        p = (1 + np.tanh(strength @ signs.T / 2)) / 2
        up = (won - played * p) @ signs - RIDGE * strength
        curve = np.einsum("rp,pi,pj->rij", played * p * (1 - p), signs, signs) + ridge
        step = np.linalg.solve(curve, up[..., None])[..., 0]
        size = np.abs(step @ signs.T).max(axis=1, initial=0.0)
        # No log-odds moves by more than 1: so shortened, a step cannot leap over the minimum.
        strength += step / np.maximum(1.0, size)[:, None]
        if size.max() < _TOLERANCE:
            break
    centered: Numbers = strength - strength.mean(axis=1, keepdims=True)
    return centered


def _one_sided(signs: Numbers, won: Numbers, played: Numbers) -> bool:
    """Whether the policies fall into two parts of which one never loses anything to the other."""
    import numpy as np

    one, other = (signs > 0).astype(np.float64), (signs < 0).astype(np.float64)
    beats = one.T @ (won[:, None] * other) + other.T @ ((played - won)[:, None] * one) > 0
    reached = beats | np.eye(len(beats), dtype=bool)
    for _ in range(len(beats)):
        reached = reached @ reached
    return not reached.all()


def _curvature_error(signs: Numbers, strength: Numbers, trials: Numbers) -> Numbers:
    """[policies]: the standard errors that the curvature of the penalized likelihood gives with so many trials."""
    import numpy as np

    p = (1 + np.tanh(signs @ strength / 2)) / 2
    curve = (signs.T * (trials * p * (1 - p))) @ signs + RIDGE * np.eye(signs.shape[1])
    centered = np.eye(len(strength)) - 1 / len(strength)
    error: Numbers = np.sqrt(np.diag(centered @ np.linalg.inv(curve) @ centered))
    return error
