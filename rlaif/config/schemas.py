"""The settings of a run: the same keys in YAML, as flags (`--policy-samples`) and in the environment
(`RLAIF_POLICY_SAMPLES`). The text under a field documents all three.

Precedence: flag, then environment, then file, then default. Secrets are never settings: only the *name* of an
environment variable is.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, JsonValue, SerializerFunctionWrapHandler, field_serializer, field_validator, model_validator

from rlaif.config.secrets import SECRET_IN_URL, secret_in
from rlaif.config.yaml import located
from rlaif.records import Record


class Metavar(NamedTuple):
    """A mark on the annotation of a setting: what the command line's help shows as its type, instead of `TEXT`."""

    text: str


PATH, MODEL, URL, NAME = Metavar("PATH"), Metavar("MODEL"), Metavar("URL"), Metavar("NAME")


class ModelSettings(Record):
    """A model, and where it runs: in process, on a server, or on a vLLM server started for the run."""

    model: Annotated[str, MODEL] = Field(min_length=1)
    """Name on the server; without `base_url` or `launch`, a local folder, a hub name, or a shipped model."""
    base_url: Annotated[str | None, URL] = None
    """OpenAI-compatible server, for instance http://127.0.0.1:8000/v1; none runs the model in process. ${NAME} stands
    for the value of the environment variable NAME."""
    api_key_env: Annotated[str | None, NAME] = None
    """Environment variable that holds the API key; with `launch`, the server requires this key."""
    launch: Literal["vllm"] | None = None
    """Start `vllm serve` for this run, and stop it afterwards."""
    launch_args: tuple[str, ...] = ()
    """Additional arguments for the launched server."""
    concurrency: int = Field(128, ge=1)
    """Maximum concurrent requests; lowered while the server signals overload."""
    timeout: float = Field(120.0, gt=0)
    """Timeout of a request, in seconds."""
    template_options: dict[str, JsonValue] = Field(default_factory=dict)
    """Passed to the chat template, for instance {enable_thinking: false}."""
    device: str = "auto"
    """Device of a model in process: auto, cpu, cuda, cuda:1, ..."""

    @model_validator(mode="after")
    def _one_place(self) -> ModelSettings:
        served = self.base_url is not None or self.launch is not None
        for wrong, what in (
            (self.base_url and self.launch, "`base_url` and `launch` exclude each other: remove one of them"),
            (self.launch_args and not self.launch, "`launch_args` go with `launch: vllm`: set it, or remove them"),
            (served and self.device != "auto", "`device` is for a model in process, and this one is served: remove it"),
        ):
            if wrong:
                raise ValueError(what)
        return self

    @field_validator("launch_args")
    @classmethod
    def _not_ours(cls, arguments: tuple[str, ...]) -> tuple[str, ...]:
        if (flag := placing(arguments)) is not None:
            raise ValueError(f"must not hold {flag}: where the server is asked, and by which name, is the run's to say")
        if (flag := _first_of(arguments, ("--api-key", "--hf-token"))) is not None:
            raise ValueError(
                f"must not hold {flag}: everybody can read the arguments of a process; "
                "name a variable that holds the server's key in `api_key_env`, and set HF_TOKEN for the hub"
            )
        return arguments

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("http://", "https://", "${")):
            raise ValueError("must start with http:// or https://")
        return without_secret(url)


def without_secret(url: str | None) -> str | None:
    """The address of a server. Raises ValueError where it holds a secret: settings are saved, shown and passed on."""
    secret = None if url is None else secret_in(url)
    if secret is not None:
        raise ValueError(f"holds {secret}, and settings are stored with every run: {SECRET_IN_URL}")
    return url


def placing(arguments: Iterable[str]) -> str | None:
    """The first of a launched server's arguments that would move or rename it, unknown to those who ask it."""
    return _first_of(arguments, ("--host", "--port", "--served-model-name"))


def _first_of(arguments: Iterable[str], wanted: tuple[str, ...]) -> str | None:
    flags = (argument.partition("=")[0].replace("_", "-") for argument in arguments)
    return next((flag for flag in flags if flag in wanted), None)


MOST_JUDGES = 5
"""Maximum judges of a panel. Nine of seven families were worth about two independent votes (arXiv:2605.29800)."""


class PolicySettings(ModelSettings):
    """The model whose responses are judged, and how it generates them."""

    samples: int = Field(4, ge=1)
    """Responses per prompt."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling: 1 keeps every token."""
    max_tokens: int = Field(512, ge=1)
    """Maximum tokens of a response."""
    system: str | None = None
    """System message for every prompt that has none."""
    seed: int = 0
    """Seed of sampling."""


class JudgeSettings(ModelSettings):
    """The model that compares, critiques and revises; of a panel, one of those that compare."""

    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Weight of this judge in a panel's label. A change does not trigger new judge calls."""
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Calibration: this judge's logits are divided by it and by `compare.temperature`. A change does not trigger new
    judge calls."""
    templates: Annotated[str | None, PATH] = None
    """Folder of your own judge templates, relative to the run file; the shipped ones fill the gaps."""


class PromptSettings(Record):
    """Where the prompts come from."""

    path: Annotated[str, PATH] = Field(min_length=1)
    """JSONL, JSON, Parquet, CSV or text file (.gz too), relative to the run file; or a `datasets` name."""
    column: Annotated[str | None, NAME] = None
    """Column of the prompts; none recognizes the known formats."""
    responses: Annotated[str | None, NAME] = None
    """Column of existing responses, to judge without changes; dots lead through lists: `answers.text`."""
    limit: int | None = Field(None, ge=1)
    """Use only the first prompts."""


class CritiqueSettings(Record):
    """The judge's critiques of every sample, under the principles that it is compared by."""

    enabled: bool = False
    """Write critiques even if the comparisons do not use them."""
    max_tokens: int = Field(256, ge=1)
    """Maximum tokens of a critique."""
    temperature: float = Field(0.0, ge=0)
    """Sampling temperature of critiques; 0 is greedy decoding."""


class CompareSettings(Record):
    """Which samples are compared, and how the judge is prompted."""

    method: Literal["pairwise", "score", "rank", "tournament"] = "pairwise"
    """`pairwise` compares pairs; `score` grades each sample alone; `rank` orders all samples in one list; `tournament`
    grades them and compares the best with the worst."""
    shuffles: int = Field(2, ge=1, le=20)
    """Orders in which `rank` shows a list; every second order is the previous one reversed."""
    principles: Literal["one", "each", "all"] = "one"
    """`one` random principle per pair (as in the paper), `each` on its own (weighted mean), or `all` in one prompt."""
    orders: Literal["both", "random"] = "both"
    """Judge every pair in both orders, or in one random order (half the calls; see `position_bias`). The choice is
    deterministic."""
    position_bias: Literal["removed", "kept"] = "removed"
    """With `orders: random`: whether the judge's position bias, estimated over the run, is removed from its labels."""
    opponents: int = Field(3, ge=1)
    """Earlier samples that each sample is compared with: 3 is a round robin up to 4 samples."""
    reasoning: Literal["none", "reply"] = "none"
    """`none` reads the verdict from the first token; `reply` lets the judge reason before it (chain of thought)."""
    reasoning_tokens: int = Field(1024, ge=32)
    """Maximum tokens of a chain-of-thought response, thinking included; a truncated one has no verdict."""
    reasoning_temperature: float = Field(0.0, ge=0)
    """Sampling temperature of a chain-of-thought response; some reasoning models repeat themselves at 0."""
    critique: bool = False
    """Show the judge its critiques of both responses; labels are then clamped as in the paper."""
    clamp: tuple[float, float] = (0.4, 0.6)
    """Range of the label where critiques were used (arXiv:2212.08073, section 4.3)."""
    prefill: str = "auto"
    """Beginning of the judge's response, so that the label comes next; `none` prefills nothing, `auto` decides by
    what helps."""
    fence: Literal["auto", "marks", "tags"] = "auto"
    """Delimiters of the responses in the prompt: `marks` (<<< and >>>), `tags`, or `auto`: tags if the judge echoes
    the marks."""
    max_chars: int = Field(12_000, ge=100)
    """Maximum characters of a conversation or response; the judge sees longer ones without their middle."""
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Calibration of labels: the judge's logits are divided by it. `rlaif evaluate judge` fits it. A change does not
    trigger new judge calls."""

    @field_validator("prefill", mode="before")
    @classmethod
    def _nothing_begun(cls, value: object) -> object:
        if value is None or value is False:
            return "none"
        # A chat template may cut blanks off, and a label's own blank belongs to its token.
        return (value.strip() or "none") if isinstance(value, str) else value

    @model_validator(mode="after")
    def _begun_or_reasoned(self) -> CompareSettings:
        if self.reasoning != "none" and self.prefill not in ("auto", "none"):
            raise ValueError("`compare.prefill` begins an answer of one word, and `compare.reasoning` asks for more")
        return self

    @model_validator(mode="after")
    def _critiques_in_pairs(self) -> CompareSettings:
        if self.critique and self.method in ("score", "rank"):
            raise ValueError(f"`compare.critique` goes with pairs, and `method` is {self.method}: remove one of them")
        return self

    @model_validator(mode="after")
    def _reasons_in_pairs(self) -> CompareSettings:
        if self.reasoning != "none" and self.method in ("score", "rank"):
            raise ValueError(f"`compare.reasoning` goes with pairs, and `method` is {self.method}: remove one of them")
        if self.reasoning != "none" and self.critique:
            raise ValueError("`compare.critique` and `compare.reasoning` are two ways to the same end: remove one")
        return self

    @field_validator("clamp")
    @classmethod
    def _is_range(cls, clamp: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= clamp[0] < 0.5 < clamp[1] <= 1:
            raise ValueError("must be two numbers around 0.5, for instance [0.4, 0.6]")
        return clamp


class PairSettings(Record):
    """Which comparisons become preference pairs. A change does not trigger new judge calls."""

    select: Literal["best_worst", "all", "revised"] = "best_worst"
    """`best_worst`: the pair with the widest margin of every prompt; `all`: every pair above the margin; `revised`:
    existing responses against those that they revise."""
    margin: float = Field(0.05, ge=0, lt=0.5)
    """A probability closer than this to one half is a tie and produces no pair."""
    flips: Literal["drop", "soft"] = "drop"
    """Pairs whose verdict changes when the order is swapped: `drop` them, or keep them with their `soft` label."""
    min_label_mass: float = Field(0.5, ge=0, le=1)
    """Minimum probability of the two labels together; a judgement below it has no label."""
    truncated: Literal["rejected", "any"] = "rejected"
    """`rejected`: a truncated response is never chosen over a complete one; `any`: it may be, and the pair
    records it."""
    per_prompt: int = Field(3, ge=1)
    """Maximum pairs per prompt, widest margin first (`all` and `revised`)."""


class ReviseSettings(Record):
    """Critique and revision in rounds, for supervised fine-tuning (SL-CAI, arXiv:2212.08073, section 3)."""

    enabled: bool = False
    """Run the revise stage in `rlaif generate` too; `rlaif revise` always runs it."""
    rounds: int = Field(2, ge=1, le=4)
    """Rounds of critique and revision; each samples a new principle."""
    samples: int = Field(1, ge=1)
    """Number of samples per prompt to revise, the first ones."""
    skip_critique: bool = False
    """Revise without a critique."""
    shots: int = Field(0, ge=0)
    """Few-shot examples of the principle, shown as turns (with a critique: those that have a `why`)."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature of revisions; critiques have their own."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling: 1 keeps every token."""
    max_tokens: int = Field(512, ge=1)
    """Maximum tokens of a revision."""
    seed: int = 0
    """Seed of the choice of principles and of sampling."""
    principles: Literal["each", "all", "one"] = "each"
    """How the judge compares a revision with its original, as in `compare.principles`; `each` needs the most calls."""
    sft_rounds: tuple[int, ...] = ()
    """Rounds whose revisions become SFT rows; none takes all rounds."""
    helpful: PromptSettings | None = None
    """Prompts with responses to mix into the SFT dataset without changes; `path` and `responses` as in `prompts`."""

    @field_validator("helpful", mode="before")
    @classmethod
    def _short_form(cls, value: JsonValue) -> JsonValue:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known_rounds(self) -> ReviseSettings:
        for number in self.sft_rounds:
            if not 1 <= number <= self.rounds:
                raise ValueError(f"`sft_rounds` names round {number}, and there are {self.rounds}: 1 to {self.rounds}")
        return self


class RunSettings(Record):
    """One run of `rlaif generate`."""

    constitution: Annotated[str, PATH] = Field(min_length=1)
    """Constitution: a shipped name, or a path relative to the run file."""
    prompts: PromptSettings
    policy: PolicySettings | None = None
    judges: tuple[JudgeSettings, ...] = Field(alias="judge", min_length=1, max_length=MOST_JUDGES)
    """One judge, or a list of them: a panel, whose first judge also critiques, grades and revises."""
    critique: CritiqueSettings = CritiqueSettings()
    compare: CompareSettings = CompareSettings()
    revise: ReviseSettings = ReviseSettings()
    pair: PairSettings = PairSettings()
    output: Annotated[str, PATH] = Field(min_length=1)
    """Run folder, relative to the working directory."""
    max_failed: float = Field(0.5, gt=0, le=1)
    """Maximum share of failed requests of a stage, now or in earlier runs, before it stops; 1 never stops."""

    @field_validator("prompts", mode="before")
    @classmethod
    def _short_form(cls, value: JsonValue) -> JsonValue:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("judges", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        # A tuple also for a list: the strict look for truth values where numbers belong takes no list from here.
        return tuple(value) if isinstance(value, list | tuple) else (value,)

    @field_serializer("judges", mode="wrap")
    def _as_given(self, judges: tuple[JudgeSettings, ...], dump: SerializerFunctionWrapHandler) -> Any:
        found = dump(judges)
        return found if len(found) > 1 else found[0]

    @model_validator(mode="after")
    def _panel_fits(self) -> RunSettings:
        known = [(judge.model, judge.template_options) for judge in self.judges]
        taken = [
            (("judge", at, "model"), f"`{each[0]}` is judge {known.index(each) + 1} of the panel already")
            for at, each in enumerate(known)
            if each in known[:at]
        ]
        if taken:
            raise located("RunSettings", taken)
        if self.panel and self.compare.method in ("score", "rank"):
            what = f"one judge alone can judge by `{self.compare.method}`: name one, or set `pairwise` or `tournament`"
            raise located("RunSettings", [(("compare", "method"), what)])
        return self

    @property
    def judge(self) -> JudgeSettings:
        """The judge, or the first of a panel: it also critiques, grades and revises."""
        return self.judges[0]

    @property
    def panel(self) -> tuple[JudgeSettings, ...]:
        """The panel's other judges; none where one judge judges alone."""
        return self.judges[1:]

    def compared_by(self, judge: JudgeSettings) -> CompareSettings:
        """How that judge's verdicts are read: `compare`, with the judge's own calibration in its temperature."""
        temperature = self.compare.temperature * judge.temperature
        return self.compare.model_copy(update={"temperature": temperature})

    def plain(self) -> dict[str, JsonValue]:
        """The settings as plain data that can be read again."""
        return self.model_dump(mode="json", exclude_none=True, by_alias=True)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output)

    @property
    def writes_critiques(self) -> bool:
        """Whether a whole run has a critique stage."""
        return self.critique.enabled or self.compare.critique
