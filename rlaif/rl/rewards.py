"""Rewards from settings: `./rm`, `judge`, `http://...`, `rewards.py:polite`, or a weighted sum of several.

`open_reward` reads the `reward` setting and builds the reward. In a sum (`WeightedReward`), each reward is standardized
by its running mean and deviation before it is weighed.

`JudgeReward` is the judge as the reward: direct RLAIF, without a reward model in between (arXiv:2309.00267, section
2.2.2).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from rlaif.config.judge_templates import SHIPPED, Judge, Templates
from rlaif.constitution import Constitution
from rlaif.errors import ModelError, UserError, closest
from rlaif.feedback.judge import WHOLE, criteria_of
from rlaif.feedback.scoring import readable, score_question, score_record
from rlaif.inference.base import Background, Model, ModelSource, Output, Question
from rlaif.records import Messages, Prompt, Sample
from rlaif.rl.experience import Reward, Scores

if TYPE_CHECKING:
    from rlaif.config.schemas import JudgeSettings


_FLOOR = 1e-4
"""Least standard deviation: below it scores differ by rounding alone, which a division would blow up."""
_MOMENTS = ("count", "mean", "squares")

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
    gather: Callable[[list[float]], list[float]] = list,
) -> Reward:
    """The reward of a setting, ready to score.

    `spec` is the folder or hub name of a reward model, `judge`, an http(s) URL, or a function as `module:function` or
    `file.py:function`. Several, separated by commas, become a sum, in which each is normalised unless `normalise` is
    false; `*0.5` after one is its weight, which is 1 otherwise: `judge*0.5,./rm`.

    For `judge`: its settings, the constitution (a shipped name, or a path), whether its principles are asked one by
    one, the log of a launched server, and the callback for notes. For a reward model: the device, and the maximum
    number of tokens of a forward pass. For a URL: the function from prompt to text (by default the dialogue as text).
    For a sum: the function that gathers numbers over processes (see `WeightedReward`).

    Raises UserError for any other `spec` and for missing settings, ModelError where a judge cannot be reached.
    """

    def open_one(name: str) -> Reward:
        match kinds[name]:
            case "judge":
                assert judge is not None and constitution is not None
                return _open_judge(judge, constitution, principles, log, say)
            case "url":
                from rlaif.rl.remote_reward import RemoteReward, dialogue

                return RemoteReward(name, render=render or dialogue)
            case "function":
                from rlaif.rl.reward_sources import FunctionReward

                return FunctionReward(name)
            case "model":
                return _open_model(name, device, tokens, say)

    weights = _parse(spec)
    kinds = {name: _require_kind(name) for name, _ in weights}
    for needed, thing, hint in ((judge, "judge", "judge.model"), (constitution, "constitution", "constitution")):
        if JUDGE in kinds and needed is None:
            raise UserError(f"the reward `judge` needs a {thing}", where="reward", hint=f"set `{hint}`")
    if len(weights) == 1:
        return open_one(weights[0][0])
    with contextlib.ExitStack() as stack:  # where one cannot be opened, those before it are closed
        rewards = []
        for column, (name, weight) in zip(_columns([name for name, _ in weights]), weights, strict=True):
            rewards.append((column, reward := open_one(name), weight))
            stack.callback(reward.close)
        total = WeightedReward(rewards, normalise, gather)
        stack.pop_all()
    return total


def require_reward(spec: str, planned: Callable[[str], bool]) -> None:
    """Raise UserError for a reward that `open_reward` could not open; checks files alone, and runs or loads nothing.

    `planned` is true of names that an earlier step of the workflow is still to create.
    """
    from rlaif.inference.model_folder import require_model
    from rlaif.rl.reward_sources import require_function

    for name, _ in _parse(spec):
        if planned(name):
            continue
        match _require_kind(name):
            case "function":
                require_function(name)
            case "model":
                require_model(name)


def only_model(spec: str) -> str | None:
    """The reward model, by folder or hub name, where a setting names one and nothing beside it."""
    ((name, _), *more) = _parse(spec)
    return name if not more and _kind(name) == "model" else None


def has_judge(spec: str) -> bool:
    """Whether the judge is the reward of a setting, or one of several."""
    return any(_kind(name) == "judge" for name, _ in _parse(spec))


@dataclass(slots=True)
class Moments:
    """Running mean and standard deviation of a stream of numbers, number by number (Welford 1962)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of the squared distances from the mean."""

    def add(self, value: float) -> None:
        """Add a number."""
        self.count += 1
        distance = value - self.mean
        self.mean += distance / self.count
        self.squares += distance * (value - self.mean)

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
    scores that it ever gave in any process, those of this call included: the weights then hold whatever the units of
    the rewards. A response has a score where all of them have one. The parts are the raw scores of each reward: `name`,
    and `name/part` where a reward has several parts itself.
    """

    def __init__(
        self,
        rewards: Sequence[tuple[str, Reward, float]],
        normalise: bool = True,
        gather: Callable[[list[float]], list[float]] = list,
    ) -> None:
        """Each with a distinct name, without a `/`, and a weight, which may be negative.

        `gather` turns the numbers of one process into those of all processes, in the same order in each.

        Raises UserError for invalid names and weights.
        """
        names = [name for name, _, _ in rewards]
        for name, _, weight in rewards:
            if not name or "/" in name or names.count(name) > 1:
                raise UserError(f"a sum of rewards needs a name of its own for each, without a `/`, not `{name}`")
            if not math.isfinite(weight):
                raise UserError(f"the weight of the reward `{name}` is {weight}", hint="give a number")
        if not rewards:
            raise UserError("a sum of rewards needs at least one")
        self._rewards, self._gather = tuple(rewards), gather
        self._moments = {name: Moments() for name in names} if normalise else {}

    def __call__(self, prompts: Sequence[Messages], responses: Sequence[str]) -> Scores:
        """One score a response, None where a part has none. Raises ModelError where a part is no finite number."""
        sums: list[float | None] = [0.0] * len(responses)
        parts: dict[str, Sequence[float | None]] = {}
        for name, reward, weight in self._rewards:
            scores = reward(prompts, responses)
            inner = scores.parts if len(scores.parts) > 1 else {}
            parts |= {name: scores.total, **{f"{name}/{part}": values for part, values in inner.items()}}
            values = zip(sums, self._standardized(name, scores.total), strict=True)
            sums = [None if value is None or before is None else before + weight * value for before, value in values]
        return Scores(sums, parts)

    def _standardized(self, name: str, total: Sequence[float | None]) -> Sequence[float | None]:
        scores = [value for value in total if value is not None]
        for value in scores:
            if not math.isfinite(value):
                raise ModelError(f"the reward `{name}` gave a score of {value}")
        if name not in self._moments:
            return total
        moments = self._moments[name]
        for value in self._gather(scores):
            moments.add(value)
        return [None if value is None else moments.scaled(value) for value in total]

    def state(self) -> Mapping[str, float]:
        """`name:count`, `name:mean` and `name:squares` of each reward, and its state under `name/`."""
        moments = {f"{name}:{key}": getattr(entry, key) for name, entry in self._moments.items() for key in _MOMENTS}
        inner = {f"{name}/{key}": value for name, reward, _ in self._rewards for key, value in reward.state().items()}
        return {**moments, **inner}

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue from a `state`. Raises UserError for the state of other rewards."""
        keys = {f"{name}:{key}" for name in self._moments for key in _MOMENTS}
        if keys != {key for key in state if "/" not in key}:
            names = ", ".join(name for name, _, _ in self._rewards)
            what = f"the running means to go on from are not those of these rewards ({names})"
            raise UserError(what, hint="resume with the rewards that the training began with")
        for name, moments in self._moments.items():
            moments.count = int(state[f"{name}:count"])
            moments.mean, moments.squares = state[f"{name}:mean"], state[f"{name}:squares"]
        for name, reward, _ in self._rewards:
            prefix = f"{name}/"
            reward.restore({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})

    def close(self) -> None:
        """Close all rewards, even where one fails to."""
        with contextlib.ExitStack() as stack:
            for _, reward, _ in self._rewards:
                stack.callback(reward.close)


def _parse(spec: str) -> list[tuple[str, float]]:
    """The rewards of a setting, each with its weight."""
    if spec and Path(spec).expanduser().is_dir():  # its name may hold commas
        return [(spec, 1.0)]
    weights = []
    for part in spec.split(","):
        name, star, weight = (text.strip() for text in part.rpartition("*"))
        name = name if star else weight
        if not name:
            raise UserError(f"there is an empty reward in `{spec}`", where="reward", hint=_FORMS)
        try:
            value = float(weight) if star else 1.0
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            what = f"the weight `{weight}` of `{name}` is not a number"
            raise UserError(what, where="reward", hint=f"write `{name}*0.5`")
        weights.append((name, value))
    if len(weights) == 1 and "*" in spec:
        what, hint = "a single reward has nothing to be weighed against", f"write `{weights[0][0]}`"
        raise UserError(f"{what}: `{spec}`", where="reward", hint=hint)
    return weights


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


def _require_kind(name: str) -> _Kind:
    """The kind of a reward by its name. Raises UserError where it has none."""
    kind = _kind(name)
    if kind is None:
        raise _unknown(name)
    return kind


def _open_judge(
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

    source, templates = LazyModel(judge, log=log, labels=DIGITS, say=say), load_templates(judge.templates)
    return JudgeReward(source, load_constitution(constitution), principles, templates=templates)


def _open_model(name: str, device: Literal["auto", "cpu"], tokens: int, say: Callable[[str], None] | None) -> Reward:
    from rlaif.rl.reward_sources import ModelReward

    try:
        reward = ModelReward(name, device, tokens)
    except UserError as error:
        if Path(name).expanduser().is_dir():
            raise
        raise _unknown(name, error.what) from error
    if say is not None and reward.note:
        say(reward.note)
    return reward


def _unknown(name: str, why: str = "") -> UserError:
    close = _closest(name)
    hint = f"{_FORMS}; did you mean `{close}`?" if close else _FORMS
    return UserError(why or f"no reward is called `{name}`", where="reward", hint=hint)


def _closest(name: str) -> str | None:
    """The likely spelling of a mistyped reward: the word `judge`, a folder beside it, a file's function, or a URL."""
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


def _columns(specs: list[str]) -> Iterator[str]:
    """A short, distinct name for each of several rewards: the columns of a training's log."""
    taken: set[str] = set()
    for spec in specs:
        kind = _kind(spec)
        if kind == "url":
            short = urlsplit(spec).hostname or "remote"
        elif kind == "function":
            short = spec.rpartition(":")[2]
        else:
            short = Path(spec).expanduser().resolve().name or "model"
        column, number = short, 1
        while column in taken:
            number += 1
            column = f"{short}-{number}"
        taken.add(column)
        yield column


_BEST = 9
"""The highest grade."""
_DETAIL_CHARS = 200


class JudgeReward(Reward):
    """The judge's grade of every response, from 0 to 1: the mean over the principles, by their weights.

    A grade is the expectation over the digits 0 to 9, by their log-probabilities, divided by 9. Each principle is one
    question, and one part; with `all` the whole constitution is one question, and the part is called `all`. Where one
    grade of a response fails, or cannot be read, the response has no score: never 0, which would be trained on.

    The time limit of a question is a setting of the judge. Its connections live in a thread of their own, and stay open
    from call to call.
    """

    def __init__(
        self,
        judge: ModelSource,
        constitution: Constitution,
        principles: Literal["each", "all"] = "each",
        *,
        max_chars: int = 12_000,
        min_mass: float = 0.5,
        templates: Templates = SHIPPED,
    ) -> None:
        """Open the judge. Conversations and responses longer than `max_chars` are cut in the middle, and a grade with
        less than `min_mass` probability on the digits cannot be read, as in a run. `templates` are the words of the
        question.

        Raises UserError or ModelError with what is wrong with the judge.
        """
        self._criteria = criteria_of(constitution, principles)
        self._form, self._max_chars, self._min_mass = Judge(judge.name, templates), max_chars, min_mass
        self._judge, self._background, self._closed = judge, Background("judge"), False
        try:
            self._model = self._background.run(judge.open())
        except BaseException:
            self.close()
            raise

    def __call__(self, prompts: Sequence[Messages], responses: Sequence[str]) -> Scores:
        """One score from 0 to 1 a response, None where the judge failed; one part a principle, from 0 to 1 as well.

        Equal questions are asked once. Raises ModelError where the judge cannot go on, or where no response has a
        score.
        """
        if self._closed:
            raise ModelError("the judge was closed")
        by_response = [self._questions(*pair) for pair in zip(prompts, responses, strict=True)]
        questions = {question.id: question for row in by_response for question in row}
        outputs = self._background.run(_outputs(self._model, list(questions.values())))
        grades, failures = self._grades(questions, outputs)
        rows = [[grades[question.id] for question in row] for row in by_response]
        weights = [criterion.weight for criterion in self._criteria]
        total: list[float | None] = []
        for row in rows:
            read = [grade for grade in row if grade is not None]
            complete = len(read) == len(row)
            weighted = (weight * grade for weight, grade in zip(weights, read, strict=False))
            total.append(sum(weighted) / sum(weights) if complete else None)
        if total and all(score is None for score in total):
            ((kind, count),) = Counter(kind for kind, _ in failures).most_common(1)
            detail = next(detail for other, detail in failures if other == kind)[:_DETAIL_CHARS]
            what = f"the judge {self._form.name} gave none of {len(total)} responses a score"
            raise ModelError(f"{what}: {kind} {count} of {len(failures)} times ({detail})")
        names = ("all" if criterion.id == WHOLE else criterion.id for criterion in self._criteria)
        return Scores(total, {name: [row[at] for row in rows] for at, name in enumerate(names)})

    def _questions(self, messages: Messages, response: str) -> list[Question]:
        """The questions about one response, adjacent so that a server's prefix cache holds all but the principle."""
        prompt = Prompt(id="", messages=messages, source="")
        sample = Sample(id="", prompt="", index=0, text=response, policy="")
        return [
            score_question(prompt, sample, criterion, self._form, max_chars=self._max_chars)
            for criterion in self._criteria
        ]

    def _grades(
        self, questions: Mapping[str, Question], outputs: Mapping[str, Output]
    ) -> tuple[dict[str, float | None], list[tuple[str, str]]]:
        """By question the grade from 0 to 1, or None; and the kind and the detail of every failure."""
        grades: dict[str, float | None] = {}
        failures: list[tuple[str, str]] = []
        for key, question in questions.items():
            output, grades[key] = outputs[key], None
            if output.failure is not None:
                failures.append((output.failure, output.detail))
                continue
            score = score_record(question, output)
            if readable(score, min_mass=self._min_mass) and score.value is not None:
                grades[key] = score.value / _BEST
            elif score.label_mass is None:
                failures.append(("unreadable", f"no grade, but `{score.text}`"))
            else:
                failures.append(("unreadable", f"less than {self._min_mass:g} probability on the digits"))
        return grades, failures

    def close(self) -> None:
        """Close the judge, stop a server that was started for it, and end its thread."""
        if not self._closed:
            self._closed = True
            self._background.close(self._judge.close())


async def _outputs(model: Model, questions: Sequence[Question]) -> dict[str, Output]:
    """The outputs by question, in batches, with as many concurrent calls as the model takes."""
    outputs: dict[str, Output] = {}
    starts = iter(range(0, len(questions), model.batch_size))

    async def worker() -> None:
        for start in starts:
            batch = questions[start : start + model.batch_size]
            batch_outputs = await model.answer(batch)
            outputs.update(zip((question.id for question in batch), batch_outputs, strict=True))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(model.concurrency, -(-len(questions) // model.batch_size))):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return outputs
