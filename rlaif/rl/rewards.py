"""From a setting to a reward: `./rm`, `judge`, `http://...`, `rewards.py:polite`, or several with weights.

Several rewards as one: each on its own scale first, then their sum by weight.

From a setting to a reward: `./rm`, `judge`, `http://...`, `rewards.py:polite`, or several with weights.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from rlaif.errors import ModelError, UserError, closest
from rlaif.records import Messages
from rlaif.rl.responses import Reward, Scores

if TYPE_CHECKING:
    from rlaif.config.schemas import JudgeSettings

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
                raise UserError(f"the weight of the reward `{name}` is {weight}", hint="give a number")
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
            raise UserError(what, hint="resume with the rewards that the training began with")
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


JUDGE = "judge"
_Kind = Literal["judge", "url", "function", "model"]

_URL = re.compile(r"https?://", re.IGNORECASE)
_FUNCTION = re.compile(r"(?P<module>.+):(?P<name>[^\W\d]\w*)")
_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_HOST = re.compile(r"[\w.-]+:\d+(/.*)?")
_FORMS = (
    "a reward is `judge`, the URL of a server, a function as `module:function` or `file.py:function`, or a reward "
    "model (its folder, or its hub name as `owner/name`)"
)


def open_reward(
    spec: str,
    *,
    normalise: bool = True,
    judge: JudgeSettings | None = None,
    constitution: str | Path | None = None,
    principles: Literal["each", "all"] = "each",
    log: Path = Path("judge.log"),
    say: Callable[[str], None] | None = None,
    device: Literal["auto", "cpu"] = "auto",
    tokens: int = 8192,
    render: Callable[[Messages], str] | None = None,
    everyones: Callable[[list[float]], list[float]] = list,
) -> Reward:
    """The reward of a setting, ready to score.

    Known are the folder or hub name of a reward model, `judge`, an http(s) URL, and `module:function` or
    `file.py:function`. Several, separated by commas, become a sum, in which each is normalised unless `normalise` is
    false; `*0.5` behind one is its weight, which is 1 otherwise: `judge*0.5,./rm`.

    For `judge`: its settings, the constitution (a shipped name, or a path), how its principles are asked, where a
    launched server logs, and who hears that it is started. For a reward model: the device, and the most tokens of a
    forward pass. For a URL: how a prompt becomes text (none writes the dialogue out). For a sum: what makes one
    process's numbers those of all (see `WeightedReward`).

    Raises UserError for what is none of these or lacks something, ModelError where a judge cannot be reached.
    """

    def opened(name: str) -> Reward:
        match kinds[name]:
            case "judge":
                assert judge is not None and constitution is not None
                return _judge(judge, constitution, principles, log, say)
            case "url":
                from rlaif.rl.remote_reward import RemoteReward, dialogue

                return RemoteReward(name, render=render or dialogue)
            case "function":
                from rlaif.rl.reward_sources import FunctionReward

                return FunctionReward(name)
            case "model":
                return _model(name, device, tokens, say)

    listed = _listed(spec)
    kinds = {name: _known_kind(name) for name, _ in listed}
    for needed, thing, hint in ((judge, "judge", "judge.model"), (constitution, "constitution", "constitution")):
        if JUDGE in kinds and needed is None:
            raise UserError(f"the reward `judge` needs a {thing}", where="reward", hint=f"set `{hint}`")
    if len(listed) == 1:
        return opened(listed[0][0])
    return _sum(listed, opened, normalise, everyones)


def _sum(
    listed: list[tuple[str, float]],
    opened: Callable[[str], Reward],
    normalise: bool,
    everyones: Callable[[list[float]], list[float]],
) -> Reward:
    """All rewards of a setting as one; where one cannot be opened, those before it are closed."""

    with contextlib.ExitStack() as stack:
        rewards = []
        for called, (name, weight) in zip(_names([name for name, _ in listed]), listed, strict=True):
            rewards.append((called, reward := opened(name), weight))
            stack.callback(reward.close)
        total = WeightedReward(rewards, normalise, everyones)
        stack.pop_all()
    return total


def require_reward(spec: str, made: Callable[[str], bool]) -> None:
    """Raise UserError for what `open_reward` could not open, as far as the disk tells; nothing is run or loaded.

    `made` says of which names nothing needs to be there yet.
    """
    from rlaif.inference.model_folder import require_model
    from rlaif.rl.reward_sources import require_function

    for name, _ in _listed(spec):
        if made(name):
            continue
        match _known_kind(name):
            case "function":
                require_function(name)
            case "model":
                require_model(name)


def only_model(spec: str) -> str | None:
    """The reward model, by folder or hub name, where a setting names one and nothing beside it."""
    ((name, _), *more) = _listed(spec)
    return name if not more and _kind(name) == "model" else None


def has_judge(spec: str) -> bool:
    """Whether the judge is the reward of a setting, or one of several."""
    return any(_kind(name) == "judge" for name, _ in _listed(spec))


def _listed(spec: str) -> list[tuple[str, float]]:
    """The rewards of a setting, each with its weight."""
    if spec and Path(spec).expanduser().is_dir():  # whatever its name holds
        return [(spec, 1.0)]
    found = []
    for part in spec.split(","):
        name, star, weight = (text.strip() for text in part.rpartition("*"))
        name = name if star else weight
        if not name:
            raise UserError(f"there is an empty reward in `{spec}`", where="reward", hint=_FORMS)
        found.append((name, _weight(weight, name) if star else 1.0))
    if len(found) == 1 and "*" in spec:
        what, hint = "a single reward has nothing to be weighed against", f"write `{found[0][0]}`"
        raise UserError(f"{what}: `{spec}`", where="reward", hint=hint)
    return found


def _weight(text: str, name: str) -> float:
    with contextlib.suppress(ValueError):
        if math.isfinite(weight := float(text)):
            return weight
    raise UserError(f"the weight `{text}` of `{name}` is not a number", where="reward", hint=f"write `{name}*0.5`")


def _kind(name: str) -> _Kind | None:
    if name == JUDGE:
        return "judge"
    if _URL.match(name):
        return "url"
    if Path(name).expanduser().is_dir():
        return "model"
    if _FUNCTION.fullmatch(name):
        return "function"
    return "model" if _HUB.fullmatch(name) and name[0] not in "./" else None


def _known_kind(name: str) -> _Kind:
    """Raises UserError for what can be told before anything is loaded."""
    kind = _kind(name)
    if kind is None:
        raise _unknown(name)
    return kind


def _model(name: str, device: Literal["auto", "cpu"], tokens: int, say: Callable[[str], None] | None) -> Reward:
    from rlaif.rl.reward_sources import ModelReward

    try:
        reward = ModelReward(name, device, tokens)
        if say is not None and reward.note:
            say(reward.note)
        return reward
    except UserError as error:
        if Path(name).expanduser().is_dir():
            raise
        raise _unknown(name, error.what) from error


def _judge(
    judge: JudgeSettings,
    constitution: str | Path,
    principles: Literal["each", "all"],
    log: Path,
    say: Callable[[str], None] | None,
) -> Reward:
    from rlaif.config.judge_templates import load_templates
    from rlaif.constitution import load_constitution
    from rlaif.feedback.prompts import DIGITS
    from rlaif.inference.models import LazyModel
    from rlaif.rl.judge_reward import JudgeReward

    source = LazyModel(judge, log=log, labels=DIGITS, say=say)
    return JudgeReward(source, load_constitution(constitution), principles, templates=load_templates(judge.templates))


def _unknown(name: str, why: str = "") -> UserError:
    close = _closest(name)
    hint = f"{_FORMS}; did you mean `{close}`?" if close else _FORMS
    return UserError(why or f"no reward is called `{name}`", where="reward", hint=hint)


def _closest(name: str) -> str | None:
    """What was perhaps meant: the one word, a folder beside it, a file's function, or a URL."""
    if name.endswith(".py"):
        return f"{name}:function"
    if _HOST.fullmatch(name):
        return f"http://{name}"
    path = Path(name).expanduser()
    folders: list[str] = []
    with contextlib.suppress(OSError):
        folders = [each.name for each in path.parent.iterdir() if each.is_dir()]
    start = name[: len(name) - len(path.name)] if path.name else ""
    return closest(name, [JUDGE, *(f"{start}{each}" for each in folders)])


def _names(specs: list[str]) -> Iterator[str]:
    """A short name of its own for each of several rewards: the columns of a training's log."""
    taken: set[str] = set()
    for spec in specs:
        short = called = _short(spec)
        number = 1
        while called in taken:
            number += 1
            called = f"{short}-{number}"
        taken.add(called)
        yield called


def _short(spec: str) -> str:
    kind = _kind(spec)
    if kind == "url":
        return urlsplit(spec).hostname or "remote"
    if kind == "function":
        return spec.rpartition(":")[2]
    return Path(spec).expanduser().resolve().name or "model"
