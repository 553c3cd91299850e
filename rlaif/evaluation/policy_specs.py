"""The policies of an evaluation (models, models on servers, files of responses), each with a short name, and the
settings: the keys of `evaluate:` in a run file, and flags of the same names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from rlaif.config.messages import located
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
from rlaif.errors import UserError
from rlaif.inference.model_folder import model_folder
from rlaif.records import Record
from rlaif.training.text_format import asked_options

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
    def _harm_has_a_column(self) -> Self:
        if self.harmful and self.tag is None:
            what = "needs `tag`, the column that these values stand in"
            raise located("EvaluateSettings", [(("harmful",), what)])
        return self

    @property
    def asked(self) -> CompareSettings:
        """How pairs are put to the judge: side by side, in both orders, without critiques; its logits calibrated."""
        fixed = {"method": "pairwise", "orders": "both", "critique": False}
        warmth = self.compare.temperature * (self.judge.temperature if self.judge is not None else 1.0)
        return self.compare.model_copy(update={**fixed, "temperature": warmth})

    @property
    def read(self) -> PairSettings:
        """How its answers are read: a pair whose orders disagree keeps its label, which is near one half anyway."""
        return self.pair.model_copy(update={"flips": "soft"})

    @property
    def drawing(self) -> dict[str, JsonValue]:
        """How answers are drawn, as plain data."""
        names = ("temperature", "top_p", "max_tokens", "seed", "samples", "system")
        return {name: getattr(self, name) for name in names}

    def drawn_from(self, model: str) -> PolicySettings:
        """How this policy is asked for its answers, for `sample_questions`."""
        return PolicySettings(model=model, **self.drawing)


_NAMED = re.compile(r"(?P<name>[A-Za-z0-9][\w.+-]*)=(?P<thing>.+)", re.DOTALL)
_FILES = (".jsonl", ".json", ".parquet", ".csv")
_RUN = "samples.jsonl"
_WHERE = "--against"


@dataclass(frozen=True)
class PolicySpec:
    """One policy: a model to sample from, or a file of its responses. Exactly one of the two is set."""

    name: str
    """Short and unique."""
    model: ModelSettings | None = None
    answers: Path | None = None

    def __post_init__(self) -> None:
        if (self.model is None) == (self.answers is None):
            raise ValueError(f"`{self.name}` needs a model or a file of answers, and not both")

    @property
    def thing(self) -> str:
        """The model or the file, as the user named it."""
        return str(self.answers) if self.model is None else self.model.model

    @property
    def folder(self) -> Path | None:
        """Where its model lies on this machine; None for a file, a model on a server, and one that is not here yet."""
        if self.model is None or self.model.base_url is not None:
            return None
        path = Path(self.model.model).expanduser()
        return path if path.is_dir() else None


class _Given(NamedTuple):
    name: str | None
    thing: str


Served = Callable[[str], str]
"""Returns the one model of the server at a URL."""


Options = Mapping[str, JsonValue] | None
"""Options of a chat template; None takes the default."""


def options_of(run: RunSettings | None) -> Options:
    """The options of the chat template of a run's policy."""
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
    parsed = [_parsed(text) for text in given]
    for each in parsed:
        _require_no_secret(each.thing)
    tails = _tails([each.thing for each in parsed if each.name is None])
    names = [each.name if each.name is not None else tails[each.thing] for each in parsed]
    for at, name in enumerate(names):
        if name in names[:at]:
            other = parsed[names.index(name)].thing
            what = f"two policies are called `{name}` ({other} and {parsed[at].thing})"
            raise UserError(what, where=_WHERE, hint=f"give them names: first={other} second={parsed[at].thing}")
    found = (_contestant(name, each.thing, api_key_env, served) for name, each in zip(names, parsed, strict=True))
    return tuple(_with_options(each, template_options, of_run) for each in found)


def _with_options(contestant: PolicySpec, given: Options, of_run: Options) -> PolicySpec:
    if contestant.model is None:
        return contestant
    local = "" if contestant.model.base_url is not None else contestant.model.model
    options = asked_options(local, given, of_run)
    return replace(contestant, model=contestant.model.model_copy(update={"template_options": options}))


def _parsed(text: str) -> _Given:
    match = _NAMED.fullmatch(text)
    if match is None or Path(text).expanduser().exists():
        return _Given(None, text)
    return _Given(match["name"], match["thing"])


def _require_no_secret(thing: str) -> None:
    """A policy's address is written into its evaluation."""
    if thing.startswith(("http://", "https://")) and (secret := secret_in(thing)) is not None:
        raise UserError(f"holds {secret}", where=shown_url(thing), hint=SECRET_IN_URL)


def _contestant(name: str, thing: str, api_key_env: str | None, served: Served | None) -> PolicySpec:
    if thing.startswith(("http://", "https://")):
        url, _, model = thing.partition("#")
        if not model:
            if served is None:
                raise UserError("does not say which model", where=thing, hint=f"append it: {thing}#model-name")
            model = served(url)
        return PolicySpec(name, ModelSettings(model=model, base_url=url, api_key_env=api_key_env))
    path = Path(thing).expanduser()
    if path.is_dir() and not _is_model(path):
        if not (path / _RUN).is_file():
            hint = "name the folder of a model, a run folder, or a file of answers"
            raise UserError(
                "neither a model nor answers: no `config.json` and no `samples.jsonl`", where=path, hint=hint
            )
        return PolicySpec(name, answers=path / _RUN)
    if _is_file(thing):
        if not path.is_file():
            raise UserError("no such file", where=path)
        return PolicySpec(name, answers=path)
    model_folder(thing)  # a mistyped name is told before anything is asked
    return PolicySpec(name, ModelSettings(model=thing))


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def _is_file(thing: str) -> bool:
    return Path(thing).expanduser().is_file() or thing.removesuffix(".gz").endswith(_FILES)


def _tails(things: Sequence[str]) -> dict[str, str]:
    """For every path, the fewest of its last parts that no other path ends in."""
    parts = {thing: _parts(thing) for thing in things}
    found: dict[str, str] = {}
    for thing, own in parts.items():
        others = [other for key, other in parts.items() if key != thing]
        size = next(
            (size for size in range(1, len(own)) if all(other[-size:] != own[-size:] for other in others)), len(own)
        )
        found[thing] = "/".join(own[-size:])
    return found


def _parts(thing: str) -> tuple[str, ...]:
    if thing.startswith(("http://", "https://")):
        url, _, model = thing.partition("#")
        place = shown_url(url).partition("://")[2].partition("/")[0]
        return (place, *PurePath(model).parts[-1:]) if model else (place,)
    return tuple(part for part in Path(thing).expanduser().parts if part not in ("/", "."))
