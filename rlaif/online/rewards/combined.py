"""Several rewards as one: each on its own scale first, then their sum by weight."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rlaif.errors import ModelError, UserError
from rlaif.online.responses import Reward, Scores
from rlaif.records import Messages

_FLOOR = 1e-4
"""Least standard deviation: below it scores differ by how they were rounded, and that is not to be blown up."""
_MOMENTS = ("count", "mean", "squares")


@dataclass(slots=True)
class Moments:
    """Running mean and standard deviation of a stream of numbers, number by number (Welford 1962)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of the squared distances from the mean."""

    def add(self, value: float) -> None:
        """Take one more number in."""
        self.count += 1
        away = value - self.mean
        self.mean += away / self.count
        self.squares += away * (value - self.mean)

    @property
    def deviation(self) -> float:
        """Of all numbers so far, as a population, and no less than 1e-4."""
        return max(_FLOOR, math.sqrt(self.squares / self.count)) if self.count else 1.0

    def scaled(self, value: float) -> float:
        """How many deviations a number is above the mean."""
        return (value - self.mean) / self.deviation


class WeightedReward:
    """The weighted sum of some rewards.

    With `normalise`, each has its running mean taken off and is divided by its running standard deviation, over all
    scores that it ever gave in any process, those of this call included: rewards in other units then weigh what their
    weights say. A response has a score where all of them have one. The parts are their own numbers, before all that:
    `name`, and `name/part` where a reward has several parts itself.
    """

    def __init__(
        self,
        rewards: Sequence[tuple[str, Reward, float]],
        normalise: bool = True,
        everyones: Callable[[list[float]], list[float]] = list,
    ) -> None:
        """Each with a name of its own, without a `/`, and a weight, which may be negative.

        `everyones` makes of one process's numbers those of all processes, in the same order in each.

        Raises UserError for names and weights that are none.
        """
        names = [name for name, _, _ in rewards]
        for name, _, weight in rewards:
            if not name or "/" in name or names.count(name) > 1:
                raise UserError(f"a sum of rewards needs a name of its own for each, without a `/`, not `{name}`")
            if not math.isfinite(weight):
                raise UserError(f"the weight of the reward `{name}` is {weight}", mend="give a number")
        if not rewards:
            raise UserError("a sum of rewards needs at least one")
        self._rewards, self._everyones = tuple(rewards), everyones
        self._moments = {name: Moments() for name in names} if normalise else {}

    def __call__(self, prompts: Sequence[Messages], responses: Sequence[str]) -> Scores:
        """One score a response, None where a part has none. Raises ModelError where a part is no finite number."""
        sums: list[float | None] = [0.0] * len(responses)
        parts: dict[str, Sequence[float | None]] = {}
        for name, reward, weight in self._rewards:
            scores = reward(prompts, responses)
            parts |= _named(name, scores)
            values = zip(sums, self._scaled(name, scores.total), strict=True)
            sums = [None if value is None or before is None else before + weight * value for before, value in values]
        return Scores(sums, parts)

    def _scaled(self, name: str, total: Sequence[float | None]) -> Sequence[float | None]:
        known = [value for value in total if value is not None]
        for value in known:
            if not math.isfinite(value):
                raise ModelError(f"the reward `{name}` gave a score of {value}")
        if name not in self._moments:
            return total
        moments = self._moments[name]
        for value in self._everyones(known):
            moments.add(value)
        return [None if value is None else moments.scaled(value) for value in total]

    def state(self) -> Mapping[str, float]:
        """`name:count`, `name:mean` and `name:squares` of each reward, and under `name/` what it has itself."""
        own = {f"{name}:{key}": getattr(each, key) for name, each in self._moments.items() for key in _MOMENTS}
        inner = {f"{name}/{key}": value for name, reward, _ in self._rewards for key, value in reward.state().items()}
        return {**own, **inner}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on exactly as before. Raises UserError for the state of other rewards."""
        wanted = {f"{name}:{key}" for name in self._moments for key in _MOMENTS}
        if wanted != {key for key in state if "/" not in key}:
            known = ", ".join(name for name, _, _ in self._rewards)
            what = f"the running means to go on from are not those of these rewards ({known})"
            raise UserError(what, mend="resume with the rewards that the training began with")
        for name, moments in self._moments.items():
            moments.count = int(state[f"{name}:count"])
            moments.mean, moments.squares = state[f"{name}:mean"], state[f"{name}:squares"]
        for name, reward, _ in self._rewards:
            start = f"{name}/"
            reward.restore({key.removeprefix(start): value for key, value in state.items() if key.startswith(start)})

    def close(self) -> None:
        """Close them all, whatever becomes of one."""
        with contextlib.ExitStack() as stack:
            for _, reward, _ in self._rewards:
                stack.callback(reward.close)


def _named(name: str, scores: Scores) -> dict[str, Sequence[float | None]]:
    inner = scores.parts if len(scores.parts) > 1 else {}
    return {name: scores.total, **{f"{name}/{part}": values for part, values in inner.items()}}
