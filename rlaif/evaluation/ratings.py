"""Bradley-Terry strengths of several policies from all their matches, with intervals over prompts.

P(a beats b) = sigmoid(s_a - s_b) (Bradley and Terry 1952, Biometrika 39:324-345), fitted by maximum likelihood; a tie
is half a win and half a loss. All comparisons of a prompt, in whatever match,
are drawn together for the intervals, as a prompt that is easy for one policy is so in all its matches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rlaif.evaluation.reports import Rating
from rlaif.stats import Estimate, quantile

if TYPE_CHECKING:
    import numpy as np

if TYPE_CHECKING:
    Numbers = np.ndarray[Any, np.dtype[np.float64]]

RIDGE = 0.1
"""A normal prior of variance 10 on every strength: it keeps a policy that always wins finite, and moves the fit of a
hundred comparisons by less than half a point of win rate."""

_ELO, _MIDDLE = 400 / math.log(10), 1000.0
_ENOUGH = 1e-10
_MOST_STEPS = 200
_UNSEEN = 1e-6
"""Errors under this are none."""


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

    Intervals are the bootstrap's standard error over prompts (Efron 1979) times Student's t. Prompts drawn anew show no
    doubt where they do not differ, and too little where some policies never lose to the others (the likelihood then has
    no maximum of its own: Ford 1957, American Mathematical Monthly 64:28-33): the error is then at least that of the
    penalised likelihood, each prompt of a match counted as one trial.
    """
    import numpy as np

    seen = {each.policy for each in comparisons} | {each.baseline for each in comparisons}
    known = [name for name in names if name in seen]
    if not known:
        return ()
    place = {name: at for at, name in enumerate(known)}
    prompts = {prompt: at for at, prompt in enumerate(dict.fromkeys(each.prompt for each in comparisons))}
    pairs = {pair: at for at, pair in enumerate(dict.fromkeys((each.policy, each.baseline) for each in comparisons))}
    won, played = np.zeros((len(prompts), len(pairs))), np.zeros((len(prompts), len(pairs)))
    for each in comparisons:
        at = prompts[each.prompt], pairs[each.policy, each.baseline]
        won[at] += each.share
        played[at] += 1
    signs = np.zeros((len(pairs), len(known)))
    for (policy, baseline), row in pairs.items():
        signs[row, place[policy]], signs[row, place[baseline]] = 1.0, -1.0
    (strength,) = _fitted(signs, won.sum(axis=0)[None], played.sum(axis=0)[None])
    counts = np.random.default_rng(seed).multinomial(len(prompts), [1 / len(prompts)] * len(prompts), size=resamples)
    drawn = _fitted(signs, counts @ won, counts @ played)
    few = math.sqrt(len(prompts) / max(len(prompts) - 1, 1))  # the bootstrap's error is too small by that
    error = few * drawn.std(axis=0, ddof=1)
    if _one_sided(signs, won.sum(axis=0), played.sum(axis=0)) or error.min() < _UNSEEN:
        error = np.maximum(error, _curvature_error(signs, strength, (played > 0).sum(axis=0)))
    reach = quantile(len(prompts) - 1) * error
    total = played.sum(axis=0) @ np.abs(signs)
    found = [_rating(name, float(strength[at]), float(reach[at]), int(total[at])) for name, at in place.items()]
    return tuple(sorted(found, key=lambda each: -each.strength.value))


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
    """[policies]: the standard errors that the curvature of the penalised likelihood gives with so many trials."""
    import numpy as np

    p = (1 + np.tanh(signs @ strength / 2)) / 2
    curve = (signs.T * (trials * p * (1 - p))) @ signs + RIDGE * np.eye(signs.shape[1])
    centred = np.eye(len(strength)) - 1 / len(strength)
    error: Numbers = np.sqrt(np.diag(centred @ np.linalg.inv(curve) @ centred))
    return error


def _rating(name: str, strength: float, reach: float, comparisons: int) -> Rating:
    estimate = Estimate(value=strength, low=strength - reach, high=strength + reach, pairs=comparisons)
    return Rating(name=name, strength=estimate, elo=_MIDDLE + _ELO * strength)


def _fitted(signs: Numbers, won: Numbers, played: Numbers) -> Numbers:
    """[rows, policies]: strengths with mean 0, by Newton's method on the penalised likelihood.

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
        if size.max() < _ENOUGH:
            break
    centred: Numbers = strength - strength.mean(axis=1, keepdims=True)
    return centred
