"""The policies of an evaluation and its settings.

`EvaluateSettings` are the keys of `evaluate:` in a run file, and flags of the same names. `contestants` turns texts of
the user into `PolicySpec`s: models in this process, models on servers, and files of responses, each under a short name
of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from rlaif.config.schemas import (
    NAME,
    CompareSettings,
    JudgeSettings,
    ModelSettings,
    PairSettings,
    PolicySettings,
    PromptSettings,
    RunSettings,
)
from rlaif.config.secrets import SECRET_IN_URL, secret_in, shown_url
from rlaif.config.yaml import located
from rlaif.errors import UserError
from rlaif.inference.model_folder import model_folder
from rlaif.records import Record
from rlaif.training.tokenize import asked_options

_NAMED = re.compile(r"(?P<name>[A-Za-z0-9][\w.+-]*)=(?P<thing>.+)", re.DOTALL)
_FILES = (".jsonl", ".json", ".parquet", ".csv")
_RUN = "samples.jsonl"
_WHERE = "--against"
_COMPARE = CompareSettings(principles="each")


class EvaluateSettings(Record):
    """How policies are compared: on which prompts, with which sampling settings, and by which judge."""

    prompts: PromptSettings
    judge: JudgeSettings | None = None
    """The judge; it should not be the one whose labels a policy was trained on."""
    samples: int = Field(1, ge=1)
    """Responses of each policy per prompt; the i-th of one is compared with the i-th of the other."""
    temperature: float = Field(0.7, ge=0)
    """Sampling temperature of all policies; 0.7 is common in serving."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling: 1 keeps every token, which the KL to the baseline requires."""
    max_tokens: int = Field(512, ge=1)
    """Maximum tokens of a response."""
    seed: int = 0
    """Seed of sampling."""
    system: str | None = None
    """System message for every prompt that has none."""
    template_options: dict[str, JsonValue] | None = None
    """Passed to the policies' chat templates; none takes those of each policy's training, else those of the run."""
    compare: CompareSettings = _COMPARE
    """How the judge is prompted; it always sees both orders of a pair, and no critiques."""
    pair: PairSettings = PairSettings()
    """`margin`: a probability closer than this to one half is a tie; `min_label_mass` as in a run."""
    grades: bool = True
    """Grade every response under every principle, and report the violation rate."""
    violation_below: float = Field(4.5, gt=0, le=9)
    """A grade below it violates the principle. On the toy benchmark, bounds from 2.5 to 6.5 agree with the oracle
    equally well."""
    matchups: Literal["all", "baseline"] = "all"
    """Compare all policies round-robin, or each with the baseline only."""
    tag: Annotated[str | None, NAME] = None
    """Column with the category of a prompt, such as `harmful`."""
    harmful: tuple[str, ...] = ()
    """Values of that column that mark harmful prompts: refusing those is right, refusing others is over-refusal."""
    kl: bool = True
    """Estimate the KL divergence of each policy from the baseline, if both are models in this process."""
    max_failed: float = Field(0.5, gt=0, le=1)
    """Maximum share of failed requests of a stage before it stops."""

    @field_validator("prompts", mode="before")
    @classmethod
    def _short_form(cls, value: JsonValue) -> JsonValue:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("compare", mode="before")
    @classmethod
    def _each_principle(cls, value: object) -> object:
        return {"principles": "each", **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _require_tag(self) -> Self:
        if self.harmful and self.tag is None:
            message = "needs `tag`, the column that these values stand in"
            raise located("EvaluateSettings", [(("harmful",), message)])
        return self

    @property
    def compare_settings(self) -> CompareSettings:
        """The settings of the judge: pairwise, in both orders, without critiques, with its calibrated temperature."""
        fixed = {"method": "pairwise", "orders": "both", "critique": False}
        warmth = self.compare.temperature * (self.judge.temperature if self.judge is not None else 1.0)
        return self.compare.model_copy(update={**fixed, "temperature": warmth})

    @property
    def pair_settings(self) -> PairSettings:
        """How verdicts become labels: a pair whose orders disagree keeps its label, which is near one half anyway."""
        return self.pair.model_copy(update={"flips": "soft"})

    @property
    def drawing(self) -> dict[str, JsonValue]:
        """The sampling settings, as plain data."""
        names = ("temperature", "top_p", "max_tokens", "seed", "samples", "system")
        return {name: getattr(self, name) for name in names}

    def sampling_for(self, model: str) -> PolicySettings:
        """The sampling settings of one policy, for `sample_questions`."""
        return PolicySettings(model=model, **self.drawing)


@dataclass(frozen=True)
class PolicySpec:
    """One policy: a model, or a file of its responses; exactly one of the two is set."""

    name: str
    """Short and unique."""
    model: ModelSettings | None = None
    answers: Path | None = None

    def __post_init__(self) -> None:
        if (self.model is None) == (self.answers is None):
            raise ValueError(f"`{self.name}` needs a model or a file of answers, and not both")

    @property
    def thing(self) -> str:
        """The model or file, as the user gave it."""
        return str(self.answers) if self.model is None else self.model.model

    @property
    def folder(self) -> Path | None:
        """The folder of its model; None for a file, a model on a server, and one that is not downloaded yet."""
        if self.model is None or self.model.base_url is not None:
            return None
        path = Path(self.model.model).expanduser()
        return path if path.is_dir() else None


Served = Callable[[str], str]
"""Returns the one model of the server at a URL."""


Options = Mapping[str, JsonValue] | None
"""Options of a chat template; None where none are set."""


def options_of(run: RunSettings | None) -> Options:
    """The chat template options of a run's policy."""
    return run.policy.template_options if run is not None and run.policy is not None else None


def contestants(
    given: Sequence[str],
    *,
    api_key_env: str | None = None,
    served: Served | None = None,
    template_options: Options = None,
    of_run: Options = None,
) -> tuple[PolicySpec, ...]:
    """The policies that texts name, in their order.

    A text is a model (a shipped name, a folder, an adapter's folder, a hub name), `http://host:port/v1#model` for one
    on a server, or a file of answers; `name=...` before it names it. The others get the shortest tails of their paths
    that tell them apart. `served` finds the model of a server where no `#model` says it. `template_options` go to the
    chat template of every model; without them each is asked as it was trained, or as in the run.

    Raises UserError where two have one name or a path is not there.
    """
    named: list[tuple[str | None, str]] = []
    for text in given:
        match = None if Path(text).expanduser().exists() else _NAMED.fullmatch(text)
        named.append((match["name"], match["thing"]) if match is not None else (None, text))
    for _, thing in named:  # a policy's address is written into its evaluation
        if thing.startswith(("http://", "https://")) and (secret := secret_in(thing)) is not None:
            raise UserError(f"holds {secret}", where=shown_url(thing), hint=SECRET_IN_URL)
    tails = _unique_tails([thing for name, thing in named if name is None])
    names = [name if name is not None else tails[thing] for name, thing in named]
    for at, name in enumerate(names):
        if name in names[:at]:
            other, thing = named[names.index(name)][1], named[at][1]
            message = f"two policies are called `{name}` ({other} and {thing})"
            raise UserError(message, where=_WHERE, hint=f"give them names: first={other} second={thing}")
    specs = []
    for name, (_, thing) in zip(names, named, strict=True):
        spec = _contestant(name, thing, api_key_env, served)
        if spec.model is not None:
            local = "" if spec.model.base_url is not None else spec.model.model
            options = asked_options(local, template_options, of_run)
            spec = replace(spec, model=spec.model.model_copy(update={"template_options": options}))
        specs.append(spec)
    return tuple(specs)


def _contestant(name: str, thing: str, api_key_env: str | None, served: Served | None) -> PolicySpec:
    if thing.startswith(("http://", "https://")):
        url, _, model = thing.partition("#")
        if not model:
            if served is None:
                raise UserError("does not say which model", where=thing, hint=f"append it: {thing}#model-name")
            model = served(url)
        return PolicySpec(name, ModelSettings(model=model, base_url=url, api_key_env=api_key_env))
    path = Path(thing).expanduser()
    is_model = any((path / name).is_file() for name in ("config.json", "adapter_config.json"))
    if path.is_dir() and not is_model:
        if not (path / _RUN).is_file():
            hint = "name the folder of a model, a run folder, or a file of answers"
            raise UserError(
                "neither a model nor answers: no `config.json` and no `samples.jsonl`", where=path, hint=hint
            )
        return PolicySpec(name, answers=path / _RUN)
    if path.is_file() or thing.removesuffix(".gz").endswith(_FILES):
        if not path.is_file():
            raise UserError("no such file", where=path)
        return PolicySpec(name, answers=path)
    model_folder(thing)  # a mistyped name fails before anything is asked
    return PolicySpec(name, ModelSettings(model=thing))


def _unique_tails(things: Sequence[str]) -> dict[str, str]:
    """For every path, the fewest of its last parts that no other path ends in."""
    parts: dict[str, tuple[str, ...]] = {}
    for thing in things:
        if thing.startswith(("http://", "https://")):
            url, _, model = thing.partition("#")
            host = shown_url(url).partition("://")[2].partition("/")[0]
            parts[thing] = (host, *PurePath(model).parts[-1:]) if model else (host,)
        else:
            parts[thing] = tuple(part for part in Path(thing).expanduser().parts if part not in ("/", "."))
    tails: dict[str, str] = {}
    for thing, path in parts.items():
        rest = [other for key, other in parts.items() if key != thing]
        unique = (size for size in range(1, len(path)) if all(other[-size:] != path[-size:] for other in rest))
        tails[thing] = "/".join(path[-next(unique, len(path)) :])
    return tails
