"""What `rlaif run` will do: its steps, what each was made from, and which are done.

What trainings and the evaluation of a run file name, looked for on the disk before anything is spent.

Nothing is loaded and no hub asked: `owner/name` may be there. What lies in the run's folder the run may make itself.

What a run has done beyond its data, so that a second `rlaif run` goes on: `loop.json` in the run folder.

Each training has a key, a hash of everything that it depends on: its settings, the contents of its data, the model that
it starts from. Same key and finished: nothing to do. Same key and begun: go on. Another key: what is there was made
from something else; it is moved aside, never removed, and the training is done anew.

What a run file asks for beyond the preference data: which models to train on them, and how to compare those.

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

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, JsonValue, ValidationError

from rlaif.config.messages import Where
from rlaif.config.run_file import Flags, absolute, read_later, read_run
from rlaif.config.schemas import JudgeSettings, ModelSettings, RunSettings
from rlaif.config.shipped import shipped_model
from rlaif.config.yaml import Place, Source, find_problems, refuse
from rlaif.constitution import load_constitution
from rlaif.data.files import require_rows
from rlaif.errors import UserError, nearest
from rlaif.evaluation.policy_specs import EvaluateSettings
from rlaif.inference.model_folder import identity, require_model
from rlaif.records import Record, content_id
from rlaif.rl.config import OnlineSettings
from rlaif.rl.rewards import require_reward
from rlaif.store import sha256_of, write_text
from rlaif.training.config import SETTINGS, CommonSettings, absolute_paths
from rlaif.training.dataset import DEMONSTRATION_FILES, PAIR_FILES, file_of
from rlaif.training.folder import binding, is_finished, is_started

_Look = tuple[Where, str | None, Callable[[str], object]]
"""Where a name stands, the name, and what raises UserError where nothing can be behind it."""


def files_of(setting: str, method: str) -> tuple[str, ...]:
    """What the trainer of a method reads of a folder that this setting names; nothing of a model's."""
    if setting == "prompts":
        return ("prompts.jsonl",)
    if setting == "center_dataset" or (setting in ("data", "held_data") and method == "sft"):
        return DEMONSTRATION_FILES
    return PAIR_FILES if setting in ("data", "held_data") else ()


def missing_of_training(settings: CommonSettings, source: Source, run: RunSettings) -> Iterator[UserError]:
    """What a training names and nobody will find."""
    for name in type(settings).model_fields:
        if files := files_of(name, settings.method):
            yield from _missing(((name,), getattr(settings, name), partial(_require_rows_in, files)), source, run)
    for name in ("model", "reference"):
        yield from _missing(((name,), getattr(settings, name, None), require_model), source, run)
    if isinstance(settings, OnlineSettings):
        for look in _online(settings, run):
            yield from _missing(look, source, run)


def missing_of_evaluation(
    settings: EvaluateSettings, gold: str | None, source: Source, run: RunSettings
) -> Iterator[UserError]:
    """What the evaluation names and nobody will find; `gold` are pairs for reward models."""
    looks: list[_Look] = [
        (("prompts", "path"), settings.prompts.path, require_rows),
        (("reward_gold",), gold, require_rows),
        (("judge", "model"), _in_process(settings.judge), require_model),
    ]
    for look in looks:
        yield from _missing(look, source, run)


def _require_rows_in(files: tuple[str, ...], value: str) -> None:
    require_rows(file_of(value, files))


def _online(settings: OnlineSettings, run: RunSettings) -> Iterator[_Look]:
    yield ("reward",), settings.reward, lambda spec: require_reward(spec, lambda name: _is_known(name, run))
    yield ("value", "model"), settings.value.model, require_model
    yield ("judge", "model"), _in_process(settings.judge), require_model
    yield ("held_out", "judge", "model"), _in_process(settings.held_out.judge), require_model
    yield ("constitution",), settings.constitution, load_constitution


def _in_process(judge: JudgeSettings | None) -> str | None:
    """The model of a judge that no server has."""
    return judge.model if judge is not None and judge.base_url is None and judge.launch is None else None


def _missing(look: _Look, source: Source, run: RunSettings) -> Iterator[UserError]:
    path, value, require = look
    if value is None or _is_known(value, run):
        return
    try:
        require(value)
    except UserError as error:
        where, line = source.place(path)
        told = error.what if value in error.what else f"{value}: {error.what}"
        yield UserError(told, where=where, line=line, hint=error.hint)


def _is_known(value: str, run: RunSettings) -> bool:
    """Whether the run names it too, which is looked at there, or makes it."""
    models = [each.model for each in (run.policy, *run.judges) if each is not None]
    if value in (run.constitution, *models):
        return True
    try:
        return Path(value).expanduser().resolve().is_relative_to(run.folder.resolve())
    except (OSError, ValueError, RuntimeError):  # what cannot be a path
        return False


_FILE = "loop.json"
_THINGS = frozenset({"model", "data", "held_data", "reference", "center_dataset", "prompts"})
"""Settings that name something whose contents count."""
State = Literal["new", "begun", "finished"]


class StepRecord(Record):
    """What is known of one step."""

    key: str
    seconds: float | None = None
    """None while it is not finished."""


class Ledger(Record):
    """The file."""

    format: Literal[1] = 1
    command: str = ""
    """What goes on with the loop, for the report."""
    finished: bool = False
    """Whether all was done that the run file asks for."""
    steps: dict[str, StepRecord] = Field(default_factory=dict)

    @staticmethod
    def read(folder: Path) -> Ledger:
        """The ledger of a run folder; an empty one where there is none that can be read."""
        with contextlib.suppress(OSError, ValidationError):
            return Ledger.model_validate_json((folder / _FILE).read_text(encoding="utf-8"))
        return Ledger()

    def noted(self, folder: Path, name: str, kept: StepRecord) -> Ledger:
        """The same with one more entry, written down."""
        found = self.model_copy(update={"steps": {**self.steps, name: kept}})
        found.write(folder)
        return found

    def write(self, folder: Path) -> None:
        """Write it down."""
        write_text(folder / _FILE, self.model_dump_json(indent=2) + "\n")


class StepState(NamedTuple):
    """How far a training is."""

    state: State
    key: str
    moved: Path | None = None
    """Where another training that stood in its place has been moved to."""


def state_of(step: Step, ledger: Ledger) -> StepState:
    """How far a training is; one of other settings, data or start is moved aside."""
    key, folder = key_of(step), step.settings.folder
    known = ledger.steps.get(step.name)
    same = known is not None and known.key == key
    if same and is_finished(folder):
        return StepState("finished", key)
    if same and is_started(folder):
        return StepState("begun", key)
    return StepState("new", key, _aside(folder))


def _aside(folder: Path) -> Path | None:
    """Move a folder out of the way, to the first free name."""
    if not folder.exists() or not any(folder.iterdir()):
        return None
    at = 1
    while (free := folder.with_name(f"{folder.name}.before-{at}")).exists():
        at += 1
    folder.rename(free)
    return free


def key_of(step: Step) -> str:
    """A hash of everything that the result of a training depends on."""
    method = step.settings.method
    plain = _with_contents(binding(step.settings.plain()), method)
    if isinstance(constitution := plain.get("constitution"), str):
        plain["constitution"] = load_constitution(constitution).hash
    return content_id(method, plain)


def _with_contents(plain: Mapping[str, JsonValue], method: str) -> dict[str, JsonValue]:
    """The settings with what is in the things that they name, groups of settings too."""
    found = dict(plain)
    for name, value in plain.items():
        if isinstance(value, dict):
            found[name] = _with_contents(value, method)
        elif name == "reward" and isinstance(value, str):  # may be a sum of several
            found[name] = [_of_reward(part.strip()) for part in re.split("([,*])", value)]
        elif name in _THINGS and isinstance(value, str):
            found[name] = _content(value, files_of(name, method))
    return found


def _of_reward(part: str) -> JsonValue:
    """A function goes by its file and its name; a reward model by what is in it."""
    file, _, function = part.rpartition(":") if ".py:" in part else (part, "", "")
    return [_content(file, ()), function]


def _content(value: str, files: Sequence[str]) -> JsonValue:
    """What is in the file, the first of `files` in a folder, or the model of this name; a name from elsewhere as it is.

    Raises UserError for a folder that holds none of them.
    """
    path = Path(file_of(value, files) if files else value).expanduser()
    if path.is_file():
        return sha256_of(path)
    return identity(value, rewards=True) if path.is_dir() or shipped_model(value) else value


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
        hint = "set `policy`" + (", or name in `policies` those that started from one model" if models else "")
        raise UserError(f"{what}, and the run has no `policy`", where="evaluate", hint=hint)

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
            steps.problems.append(UserError(error.what, where=place.where, line=place.line, hint=error.hint))
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

    def _wrong(self, place: Place, what: str, hint: str = "") -> None:
        self.problems.append(UserError(what, where=place.where, line=place.line, hint=hint))


def _at(data: Any, path: Where) -> object:
    for step in path:
        data = data.get(step) if isinstance(data, dict) else None
    return data


def _without(source: Source, key: str) -> Source:
    return Source({name: value for name, value in source.data.items() if name != key}, source.where, source.places)
