"""The plan of `rlaif run`: which models to train on the preference data, how to compare them, and what is done already.

A run file has two sections beyond those of `rlaif generate`, which ignores them:

    train:
      sft: {epochs: 2}                        # the name says the method
      reward: {}
      ppo: {reward: reward, steps: 80}        # another step's name stands for the folder of its model
      careful: {method: dpo, model: sft, beta: 0.3}
    evaluate:
      prompts: held-out.jsonl

A step takes the settings of `rlaif train METHOD`. Omitted ones come from the run: the model is the run's policy, the
data are its pairs or its revisions, PPO responds to its prompts, and the reward is the last reward model above the
step, or the run's judge. `load_plan` also checks that every file and model that the sections name exists, except those
that the run itself makes; it loads no model, and a name like `owner/name` may be on a hub.

`loop.json` in the run folder, the `Ledger`, makes a second call resume. The key of a training hashes everything that
its result depends on: settings, contents of the data, starting model. With the same key, a finished training is done
and a started one resumes. With another key, the folder holds another training: it is moved aside, never removed, and
the training starts over.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, JsonValue, ValidationError

from rlaif.config.run_file import Flags, absolute, read_later, read_run
from rlaif.config.schemas import JudgeSettings, ModelSettings, RunSettings
from rlaif.config.yaml import Place, Source, Where, find_problems, refuse
from rlaif.constitution import load_constitution
from rlaif.data.files import require_rows
from rlaif.errors import UserError, nearest
from rlaif.evaluation.policy_specs import EvaluateSettings
from rlaif.inference.model_folder import identity, require_model
from rlaif.records import Record, content_id
from rlaif.rl.config import OnlineSettings
from rlaif.rl.rewards import require_reward
from rlaif.store import sha256_of, shipped_model, write_text
from rlaif.training.config import SETTINGS, CommonSettings, absolute_paths
from rlaif.training.dataset import DEMONSTRATION_FILES, PAIR_FILES, file_of
from rlaif.training.folder import binding, is_finished, is_started

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_OTHER_MODELS = (("model",), ("reference",), ("reward",), ("value", "model"))
"""Settings in which the name of a step stands for its model."""
_HASHED = frozenset({"model", "data", "held_data", "reference", "center_dataset", "prompts"})
"""Settings whose contents, not their names, are part of a training's key."""
_LEDGER = "loop.json"
TRAIN, EVALUATION = "train", "evaluation"
"""Folders in the run folder."""
BASE = "base"
"""The name, in the evaluation, of the policy from which all steps start."""
State = Literal["new", "started", "finished"]
_Check = tuple[Where, str | None, Callable[[str], object]]
"""The path of a setting, its value, and a function that raises UserError where the value names nothing."""


class LoopEvaluateSettings(EvaluateSettings):
    """How to compare the trained policies with the one from which they started."""

    policies: tuple[str, ...] = ()
    """Steps whose policies are compared; none given takes all but reward models."""
    reward_gold: str | None = None
    """Pairs whose better response is known, for measuring each reward model (as `rlaif evaluate reward` does)."""
    reward_samples: int = Field(0, ge=0)
    """Responses of the run's policy per prompt, of which each reward model chooses the best of n; 0 draws none."""


@dataclass(frozen=True)
class Step:
    """One training."""

    name: str
    settings: CommonSettings

    @property
    def is_policy(self) -> bool:
        """Whether it trains a policy, not a reward model."""
        return self.settings.method != "reward"


@dataclass(frozen=True)
class Plan:
    """A whole run file."""

    run: RunSettings
    steps: tuple[Step, ...] = ()
    evaluate: LoopEvaluateSettings | None = None

    @property
    def compared(self) -> tuple[Step, ...]:
        """The steps whose policies are compared with the starting policy."""
        selected = self.evaluate.policies if self.evaluate else ()
        return tuple(step for step in self.steps if step.is_policy and (not selected or step.name in selected))

    @property
    def start(self) -> ModelSettings:
        """The policy from which all compared ones started. Raises UserError where there is none."""
        if self.run.policy is not None:
            return self.run.policy
        models = {step.settings.model for step in self.compared} - {step.settings.output for step in self.steps}
        if len(models) == 1:
            return ModelSettings(model=models.pop())
        problem = "no policy is trained here"
        if models:
            problem = f"the compared policies started from different models ({', '.join(sorted(models))})"
        hint = "set `policy`" + (", or name in `policies` those that started from one model" if models else "")
        raise UserError(f"{problem}, and the run has no `policy`", where="evaluate", hint=hint)

    @property
    def needs_start(self) -> bool:
        """Whether the evaluation needs responses of the starting policy."""
        if self.evaluate is None:
            return False
        rewards = any(not step.is_policy for step in self.steps)
        return bool(self.compared) or (rewards and self.evaluate.reward_samples > 0)


def load_plan(path: Path, flags: Flags | None = None) -> Plan:
    """The whole run file. Raises UserError on the first mistake, with the number of further ones."""
    sections = _Sections(path, flags)
    refuse(sections.problems)
    return sections.plan()


def plan_problems(path: Path, flags: Flags | None = None) -> list[UserError]:
    """Everything that is wrong with the run file, in all its sections."""
    try:
        return _Sections(path, flags).problems
    except UserError as error:
        return [error]


class _Sections:
    """The sections of a run file with omitted settings filled in, and everything that is wrong with them."""

    def __init__(self, path: Path, flags: Flags | None) -> None:
        self._source = read_run(path, flags)
        self._steps: list[tuple[str, type[CommonSettings], Source]] = []
        self._evaluate: Source | None = None
        self._folders: dict[str, Path] = {}
        self._rewards: list[str] = []
        """Names of the reward models so far."""
        self._base = path.resolve().parent
        self.problems = find_problems(self._source, RunSettings)
        if self.problems:
            return
        self._run = RunSettings.model_validate(self._source.data)
        later = read_later(path)
        if "train" in later:
            self._read_trainings(later["train"])
        if "evaluate" in later:
            self._evaluate = self._read_evaluation(later["evaluate"])
        for _, kind, section in self._steps:
            problems = find_problems(section, kind)
            self.problems += problems or missing_of_training(kind.model_validate(section.data), section, self._run)
        if self._evaluate is not None:
            problems = find_problems(self._evaluate, LoopEvaluateSettings)
            self.problems += problems or missing_of_evaluation(self._evaluate, self._run)
        if not self.problems and (plan := self.plan()).needs_start:
            try:
                _ = plan.start
            except UserError as error:
                self._report(later["evaluate"].place(()), error.what, error.hint)

    def plan(self) -> Plan:
        steps = tuple(Step(name, kind.model_validate(source.data)) for name, kind, source in self._steps)
        evaluate = None if self._evaluate is None else LoopEvaluateSettings.model_validate(self._evaluate.data)
        return Plan(RunSettings.model_validate(self._source.data), steps, evaluate)

    def _read_trainings(self, source: Source) -> None:
        """Every training whose method is known."""
        if not isinstance(source.data, dict):
            self._report(source.place(()), "`train` must be a mapping of trainings", "for instance `train: {dpo: {}}`")
            return
        names = list(source.data)
        for at, name in enumerate(names):
            section = source.below((name,))
            kind = self._kind(name, section)
            if kind is not None:
                data = {key: value for key, value in section.data.items() if key != "method"}
                section = Source(data, section.where, section.places)
                self._steps.append((name, kind, self._filled(name, kind, section, names[at:])))
            self._folders[name] = self._run.folder / TRAIN / name
            self._rewards += [name] if kind is not None and kind.method == "reward" else []

    def _read_evaluation(self, source: Source) -> Source:
        if not isinstance(source.data, dict):
            return source
        for path in (("prompts",), ("prompts", "path"), ("constitution",), ("judge", "model"), ("reward_gold",)):
            source = absolute(source, path, self._base)
        policies = source.data.get("policies")
        # `find_problems` reports a list of another type.
        for at, name in enumerate(policies if isinstance(policies, list) else ()):
            if isinstance(name, str) and name not in self._folders:
                self._report(source.place(("policies", at)), f"no training `{name}`", nearest(name, self._folders))
            if name in self._rewards:
                problem = f"`{name}` trains a reward model, which generates no responses"
                hint = "`reward_gold` and `reward_samples` measure those"
                self._report(source.place(("policies", at)), problem, hint)
        return source

    def _kind(self, name: str, section: Source) -> type[CommonSettings] | None:
        settings: list[type[CommonSettings]] = [*SETTINGS.values(), OnlineSettings]
        kinds = {kind.method: kind for kind in settings}
        place = section.place(())
        if not _NAME.fullmatch(name):
            self._report(place, f"`{name}` cannot be the name of a folder", "use letters, digits, `-`, `_` and `.`")
            return None
        if name == BASE:
            self._report(place, f"`{BASE}` is the name of the policy before any training", "choose another name")
        if not isinstance(section.data, dict):
            self._report(place, f"`train.{name}` must be a mapping", "with nothing to set, write {}")
            return None
        method = section.data.get("method", name)
        if method not in kinds:
            problem = f"no method `{method}`" if "method" in section.data else f"`train.{name}` needs a `method`"
            self._report(section.place(("method",)), problem, f"there are {', '.join(kinds)}")
            return None
        return kinds[method]

    def _filled(self, name: str, kind: type[CommonSettings], section: Source, later: list[str]) -> Source:
        """The settings of a training with paths resolved and defaults of the run; `later` are steps not above it."""
        section = absolute_paths(section, self._base)
        for path in _OTHER_MODELS:
            section = self._with_step_folders(section, path, later)
        if "output" in section.data:
            problem = f"the output of `train.{name}` is {TRAIN}/{name} in the run folder"
            self._report(section.place(("output",)), problem, "leave `output` out")
        section = section.with_value(("output",), str(self._run.folder / TRAIN / name), f"train.{name}")
        for key, value in self._run_defaults(kind).items():
            if key not in section.data:
                section = section.with_value((key,), value, f"train.{name}")
        if kind.method == "sft" and section.data["data"] == self._run.output and not self._run.revise.enabled:
            problem = f"`train.{name}` learns from revisions, and this run makes none"
            hint = "set `revise: {enabled: true}`, or name other demonstrations in `data`"
            self._report(section.place(()), problem, hint)
        return section

    def _run_defaults(self, kind: type[CommonSettings]) -> dict[str, Any]:
        """The run's values for settings that the file omits."""
        defaults: dict[str, Any] = {}
        if self._run.policy is not None:
            defaults["model"] = self._run.policy.model
        if kind is not OnlineSettings:
            return defaults | {"data": self._run.output}
        reward = str(self._folders[self._rewards[-1]]) if self._rewards else "judge"
        judge = self._run.judge.model_dump(mode="json", exclude_unset=True)
        return defaults | {
            "prompts": self._run.output, "reward": reward, "judge": judge, "constitution": self._run.constitution,
        }  # fmt: skip

    def _with_step_folders(self, section: Source, path: Where, later: list[str]) -> Source:
        """Replace the name of a step above by the folder of its model; a reward may be a sum of several."""
        value = section.data
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, str):
            return section
        parts = re.split(r"([,*])", value)
        folders = dict(self._folders)
        for part in (part.strip() for part in parts):
            if part in later and not (self._base / part).exists():
                self._report(section.place(path), f"`{part}` is trained here or further down", "move it above")
                folders[part] = self._run.folder / TRAIN / part
        return section.reworded(path, "".join(str(folders.get(part.strip(), part)) for part in parts))

    def _report(self, place: Place, problem: str, hint: str = "") -> None:
        self.problems.append(UserError(problem, where=place.where, line=place.line, hint=hint))


def missing_of_training(settings: CommonSettings, source: Source, run: RunSettings) -> Iterator[UserError]:
    """The files and models of a training that do not exist."""

    def require_rows_of(files: tuple[str, ...], value: str) -> None:
        require_rows(file_of(value, files))

    checks: list[_Check] = [
        ((name,), getattr(settings, name), partial(require_rows_of, files))
        for name in type(settings).model_fields
        if (files := files_of(name, settings.method))
    ]
    checks += [((name,), getattr(settings, name, None), require_model) for name in ("model", "reference")]
    if isinstance(settings, OnlineSettings):
        checks += [
            (("reward",), settings.reward, lambda spec: require_reward(spec, lambda name: _is_of_run(name, run))),
            (("value", "model"), settings.value.model, require_model),
            (("judge", "model"), _local_model(settings.judge), require_model),
            (("held_out", "judge", "model"), _local_model(settings.held_out.judge), require_model),
            (("constitution",), settings.constitution, load_constitution),
        ]
    return _missing(checks, source, run)


def missing_of_evaluation(source: Source, run: RunSettings) -> Iterator[UserError]:
    """The files and models of the evaluation that do not exist."""
    settings = LoopEvaluateSettings.model_validate(source.data)
    checks: list[_Check] = [
        (("prompts", "path"), settings.prompts.path, require_rows),
        (("reward_gold",), settings.reward_gold, require_rows),
        (("judge", "model"), _local_model(settings.judge), require_model),
    ]
    return _missing(checks, source, run)


def files_of(setting: str, method: str) -> tuple[str, ...]:
    """The files that the trainer of a method reads in a folder named by this setting; empty for a model."""
    if setting == "prompts":
        return ("prompts.jsonl",)
    if setting == "center_dataset" or (setting in ("data", "held_data") and method == "sft"):
        return DEMONSTRATION_FILES
    return PAIR_FILES if setting in ("data", "held_data") else ()


def _local_model(judge: JudgeSettings | None) -> str | None:
    """The model of a judge that runs in this process, not on a server."""
    return judge.model if judge is not None and judge.base_url is None and judge.launch is None else None


def _missing(checks: Iterable[_Check], source: Source, run: RunSettings) -> Iterator[UserError]:
    for path, value, require in checks:
        if value is None or _is_of_run(value, run):
            continue
        try:
            require(value)
        except UserError as error:
            where, line = source.place(path)
            problem = error.what if value in error.what else f"{value}: {error.what}"
            yield UserError(problem, where=where, line=line, hint=error.hint)


def _is_of_run(value: str, run: RunSettings) -> bool:
    """Whether the run itself names the value, and checks it, or makes it."""
    models = [model.model for model in (run.policy, *run.judges) if model is not None]
    if value in (run.constitution, *models):
        return True
    try:
        return Path(value).expanduser().resolve().is_relative_to(run.folder.resolve())
    except (OSError, ValueError, RuntimeError):  # not a valid path
        return False


class StepRecord(Record):
    """The ledger's entry for one step."""

    key: str
    seconds: float | None = None
    """None while the step is unfinished."""


class Ledger(Record):
    """The content of `loop.json`."""

    format: Literal[1] = 1
    command: str = ""
    """The command that resumes the run, for the report."""
    finished: bool = False
    """Whether everything in the run file is done."""
    steps: dict[str, StepRecord] = Field(default_factory=dict)

    @staticmethod
    def read(folder: Path) -> Ledger:
        """The ledger of a run folder; an empty one where it is missing or unreadable."""
        with contextlib.suppress(OSError, ValidationError):
            return Ledger.model_validate_json((folder / _LEDGER).read_text(encoding="utf-8"))
        return Ledger()

    def with_step(self, folder: Path, name: str, record: StepRecord) -> Ledger:
        """Write and return the ledger with one more entry."""
        ledger = self.model_copy(update={"steps": {**self.steps, name: record}})
        ledger.write(folder)
        return ledger

    def write(self, folder: Path) -> None:
        """Write `loop.json` into the run folder."""
        write_text(folder / _LEDGER, self.model_dump_json(indent=2) + "\n")


class StepState(NamedTuple):
    """The progress of a training."""

    state: State
    key: str
    moved: Path | None = None
    """The new folder of another training that stood in its place."""


def state_of(step: Step, ledger: Ledger) -> StepState:
    """The progress of a training; moves aside the folder of one with another key."""
    key, folder = key_of(step), step.settings.folder
    record = ledger.steps.get(step.name)
    same = record is not None and record.key == key
    if same and is_finished(folder):
        return StepState("finished", key)
    if same and is_started(folder):
        return StepState("started", key)
    if not folder.exists() or not any(folder.iterdir()):
        return StepState("new", key)
    number = 1
    while (free := folder.with_name(f"{folder.name}.before-{number}")).exists():
        number += 1
    folder.rename(free)
    return StepState("new", key, free)


def key_of(step: Step) -> str:
    """A hash of everything that the result of a training depends on."""
    method = step.settings.method
    plain = _with_contents(binding(step.settings.plain()), method)
    if isinstance(constitution := plain.get("constitution"), str):
        plain["constitution"] = load_constitution(constitution).hash
    return content_id(method, plain)


def _with_contents(plain: Mapping[str, JsonValue], method: str) -> dict[str, JsonValue]:
    """The settings with file and model names replaced by hashes of their contents, also in groups."""
    contents = dict(plain)
    for name, value in plain.items():
        if isinstance(value, dict):
            contents[name] = _with_contents(value, method)
        elif name == "reward" and isinstance(value, str):  # may be a sum of several
            parts = (part.strip() for part in re.split("([,*])", value))
            # A function counts by the content of its file and its name.
            split = (part.rpartition(":") if ".py:" in part else (part, "", "") for part in parts)
            contents[name] = [[_content(file, ()), function] for file, _, function in split]
        elif name in _HASHED and isinstance(value, str):
            contents[name] = _content(value, files_of(name, method))
    return contents


def _content(value: str, files: Sequence[str]) -> JsonValue:
    """The hash of a file, of the first of `files` in a folder, or of a model; any other name as it is.

    Raises UserError for a folder that holds none of them.
    """
    path = Path(file_of(value, files) if files else value).expanduser()
    if path.is_file():
        return sha256_of(path)
    return identity(value, rewards=True) if path.is_dir() or shipped_model(value) else value
