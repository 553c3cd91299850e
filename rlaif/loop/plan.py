"""What a run file asks for beyond the preference data: which models to train on them, and how to compare those.

    train:
      sft: {epochs: 2}                        # the name says the method
      reward: {}
      ppo: {reward: reward, steps: 80}        # another step's name stands for the folder of its model
      careful: {method: dpo, model: sft, beta: 0.3}
    evaluate:
      prompts: held-out.jsonl

A step has the settings of `rlaif train METHOD`. What it leaves out comes from the run: the model is the run's policy,
the data are its pairs or its revisions, PPO answers its prompts, and its reward is the last reward model above it, or
the run's judge. `rlaif generate` reads the same file and leaves these two sections alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from rlaif.errors import UserError, nearest
from rlaif.evaluation.policies.settings import EvaluateSettings
from rlaif.loop.looking import missing_of_evaluation, missing_of_training
from rlaif.online.settings import OnlineSettings
from rlaif.plainwords import Where
from rlaif.runfile import Flags, absolute, read_later, read_run
from rlaif.settings import ModelSettings, RunSettings
from rlaif.training.settings import SETTINGS, CommonSettings
from rlaif.training.settingsfile import absolute_paths
from rlaif.yamlfile import Place, Source, find_problems, refuse

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_OTHER_MODELS = (("model",), ("reference",), ("reward",), ("value", "model"))
"""Settings in which the name of a step stands for its model."""
TRAIN, EVALUATION = "train", "evaluation"
"""Folders in the run folder."""
BASE = "base"
"""What the policy that all steps start from is called in the evaluation."""


class LoopEvaluateSettings(EvaluateSettings):
    """How the trained policies are compared with the one that they started from."""

    policies: tuple[str, ...] = ()
    """Steps whose policies are compared; none given takes all but reward models."""
    reward_gold: str | None = None
    """Pairs whose better reply is known, to measure each trained reward model on (as `rlaif evaluate reward` does)."""
    reward_samples: int = Field(0, ge=0)
    """Answers of the run's policy to each prompt, of which each reward model chooses the best of n; 0 draws none."""


@dataclass(frozen=True)
class Step:
    """One training."""

    name: str
    settings: CommonSettings

    @property
    def is_policy(self) -> bool:
        """Whether what it trains answers prompts."""
        return self.settings.method != "reward"


@dataclass(frozen=True)
class Plan:
    """A whole run file."""

    run: RunSettings
    steps: tuple[Step, ...] = ()
    evaluate: LoopEvaluateSettings | None = None

    @property
    def compared(self) -> tuple[Step, ...]:
        """The steps whose policies are compared with their start."""
        wanted = self.evaluate.policies if self.evaluate else ()
        return tuple(step for step in self.steps if step.is_policy and (not wanted or step.name in wanted))

    @property
    def start(self) -> ModelSettings:
        """The policy that all compared ones started from. Raises UserError where there is none."""
        if self.run.policy is not None:
            return self.run.policy
        models = {step.settings.model for step in self.compared} - {step.settings.output for step in self.steps}
        if len(models) == 1:
            return ModelSettings(model=models.pop())
        told = f"the compared policies started from different models ({', '.join(sorted(models))})"
        what = told if models else "no policy is trained here"
        mend = "set `policy`" + (", or name in `policies` those that started from one model" if models else "")
        raise UserError(f"{what}, and the run has no `policy`", where="evaluate", mend=mend)

    @property
    def needs_start(self) -> bool:
        """Whether the evaluation asks that policy."""
        if self.evaluate is None:
            return False
        rewards = any(not step.is_policy for step in self.steps)
        return bool(self.compared) or (rewards and self.evaluate.reward_samples > 0)


def load_plan(path: Path, flags: Flags | None = None) -> Plan:
    """The whole run file. Raises UserError on the first mistake, and says how many more there are."""
    found = _read(path, flags)
    refuse(found.problems)
    return found.plan()


def plan_problems(path: Path, flags: Flags | None = None) -> list[UserError]:
    """Everything that is wrong with the run file, all its sections."""
    try:
        return _read(path, flags).problems
    except UserError as error:
        return [error]


@dataclass(frozen=True)
class _Found:
    """The sections of a file, each with what is missing filled in, and what is wrong with them."""

    run: Source
    steps: tuple[tuple[str, type[CommonSettings], Source], ...]
    evaluate: Source | None
    problems: list[UserError]

    def plan(self) -> Plan:
        steps = (Step(name, kind.model_validate(source.data)) for name, kind, source in self.steps)
        evaluate = None if self.evaluate is None else LoopEvaluateSettings.model_validate(self.evaluate.data)
        return Plan(RunSettings.model_validate(self.run.data), tuple(steps), evaluate)


def _read(path: Path, flags: Flags | None) -> _Found:
    source = read_run(path, flags)
    problems = find_problems(source, RunSettings)
    if problems:
        return _Found(source, (), None, problems)
    run = RunSettings.model_validate(source.data)
    later = read_later(path)
    steps = _Sections(later, run, path.resolve().parent)
    found = _Found(source, tuple(steps.trainings()), steps.evaluation(), steps.problems)
    for _, kind, section in found.steps:
        wrong = find_problems(section, kind)
        steps.problems += wrong or missing_of_training(kind.model_validate(section.data), section, run)
    if found.evaluate is not None:
        wrong = find_problems(found.evaluate, LoopEvaluateSettings)
        steps.problems += wrong or _missing_of(found.evaluate, run)
    if not steps.problems and (plan := found.plan()).needs_start:
        try:
            _ = plan.start
        except UserError as error:
            place = steps.later["evaluate"].place(())
            steps.problems.append(UserError(error.what, where=place.where, line=place.line, mend=error.mend))
    return found


def _missing_of(evaluate: Source, run: RunSettings) -> Iterator[UserError]:
    settings = LoopEvaluateSettings.model_validate(evaluate.data)
    return missing_of_evaluation(settings, settings.reward_gold, evaluate, run)


class _Sections:
    """Reads the sections after those of `rlaif generate`."""

    def __init__(self, later: Mapping[str, Source], run: RunSettings, base: Path) -> None:
        self.later, self.run, self.base = later, run, base
        self.problems: list[UserError] = []
        self._folders: dict[str, Path] = {}
        self._rewards: list[str] = []
        """Names of the reward models so far."""

    def trainings(self) -> Iterator[tuple[str, type[CommonSettings], Source]]:
        """Every training whose method is known."""
        source = self.later.get("train")
        if source is None:
            return
        if not isinstance(source.data, dict):
            self._wrong(source.place(()), "`train` must be a mapping of trainings", "for instance `train: {dpo: {}}`")
            return
        for name in source.data:
            section = source.below((name,))
            kind = self._kind(name, section)
            if kind is not None:
                yield name, kind, self._filled(name, kind, _without(section, "method"), list(source.data))
            self._folders[name] = self.run.folder / TRAIN / name
            self._rewards += [name] if kind is not None and kind.method == "reward" else []

    def evaluation(self) -> Source | None:
        """How policies are compared, or None where the file does not say."""
        source = self.later.get("evaluate")
        if source is None or not isinstance(source.data, dict):
            return source
        for path in (("prompts",), ("prompts", "path"), ("constitution",), ("judge", "model"), ("reward_gold",)):
            source = absolute(source, path, self.base)
        policies = source.data.get("policies")
        for at, name in enumerate(policies if isinstance(policies, list) else ()):  # else its type is told as wrong
            if isinstance(name, str) and name not in self._folders:
                self._wrong(source.place(("policies", at)), f"no training `{name}`", nearest(name, self._folders))
            if name in self._rewards:
                what = f"`{name}` trains a reward model, which answers nothing"
                self._wrong(source.place(("policies", at)), what, "`reward_gold` and `reward_samples` measure those")
        return source

    def _kind(self, name: str, section: Source) -> type[CommonSettings] | None:
        known: list[type[CommonSettings]] = [*SETTINGS.values(), OnlineSettings]
        kinds = {each.method: each for each in known}
        place = section.place(())
        if not _NAME.fullmatch(name):
            self._wrong(place, f"`{name}` cannot be the name of a folder", "take letters, digits, `-`, `_` and `.`")
            return None
        if name == BASE:
            self._wrong(place, f"`{BASE}` is what the policy before any training is called", "take another name")
        if not isinstance(section.data, dict):
            self._wrong(place, f"`train.{name}` must be a mapping", "with nothing to set, write {}")
            return None
        method = section.data.get("method", name)
        if method not in kinds:
            what = f"no method `{method}`" if "method" in section.data else f"`train.{name}` needs a `method`"
            self._wrong(section.place(("method",)), what, f"there are {', '.join(kinds)}")
            return None
        return kinds[method]

    def _filled(self, name: str, kind: type[CommonSettings], section: Source, names: list[str]) -> Source:
        section = absolute_paths(section, self.base)
        for path in _OTHER_MODELS:
            section = self._of_step(section, path, names[names.index(name) :])
        if "output" in section.data:
            what = f"`train.{name}` goes to {TRAIN}/{name} in the run folder"
            self._wrong(section.place(("output",)), what, "leave `output` out")
        section = section.with_value(("output",), str(self.run.folder / TRAIN / name), f"train.{name}")
        for key, value in self._usual(kind).items():
            if key not in section.data:
                section = section.with_value((key,), value, f"train.{name}")
        if kind.method == "sft" and section.data["data"] == self.run.output and not self.run.revise.enabled:
            what = f"`train.{name}` learns from revisions, and this run makes none"
            self._wrong(
                section.place(()), what, "set `revise: {enabled: true}`, or name other demonstrations in `data`"
            )
        return section

    def _usual(self, kind: type[CommonSettings]) -> dict[str, Any]:
        """What the run says about settings that the file leaves out."""
        usual: dict[str, Any] = {}
        if self.run.policy is not None:
            usual["model"] = self.run.policy.model
        if kind is not OnlineSettings:
            return usual | {"data": self.run.output}
        reward = str(self._folders[self._rewards[-1]]) if self._rewards else "judge"
        judge = self.run.judge.model_dump(mode="json", exclude_unset=True)
        return usual | {
            "prompts": self.run.output, "reward": reward, "judge": judge, "constitution": self.run.constitution,
        }  # fmt: skip

    def _of_step(self, section: Source, path: Where, later: list[str]) -> Source:
        """The name of a step above replaced by the folder of its model; a reward may be a sum of several."""
        value = _at(section.data, path)
        if not isinstance(value, str):
            return section
        parts = re.split(r"([,*])", value)
        folders = dict(self._folders)
        for part in (each.strip() for each in parts):
            if part in later and not (self.base / part).exists():
                self._wrong(section.place(path), f"`{part}` is trained here or further down", "move it above")
                folders[part] = self.run.folder / TRAIN / part
        return section.reworded(path, "".join(str(folders.get(each.strip(), each)) for each in parts))

    def _wrong(self, place: Place, what: str, mend: str = "") -> None:
        self.problems.append(UserError(what, where=place.where, line=place.line, mend=mend))


def _at(data: Any, path: Where) -> object:
    for step in path:
        data = data.get(step) if isinstance(data, dict) else None
    return data


def _without(source: Source, key: str) -> Source:
    return Source({name: value for name, value in source.data.items() if name != key}, source.where, source.places)
