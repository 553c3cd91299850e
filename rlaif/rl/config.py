"""The settings of online training: the same keys in a YAML file, as flags (`--kl-beta`) and with `--set`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from rlaif.config.schemas import MODEL, NAME, PATH, URL, JudgeSettings, without_secret
from rlaif.config.yaml import Where, located
from rlaif.records import Record
from rlaif.training.config import CommonSettings

Rule = Literal[
    "kl", "kl_stop", "length", "distinct", "truncated", "repetition", "openings", "refusals", "empty", "entropy",
    "win_rate", "reward_hacking", "not_finite",
]  # fmt: skip
"""The rules by name. All but the last three have their bound under this name in `MonitorLimits`."""


class MonitorLimits(Record):
    """When the monitor warns of reward hacking or stops the training. A bound of none disables its rule."""

    kl: float | None = Field(10.0, gt=0)
    """Maximum KL divergence before a warning, in nats per response."""
    kl_stop: float | None = Field(15.0, gt=0)
    """Maximum KL divergence before a stop; that far from the start, a policy mostly learns errors of the reward."""
    length: float | None = Field(1.5, gt=1)
    """Maximum mean response length, as a multiple of the start's."""
    distinct: float | None = Field(0.7, gt=0, lt=1)
    """Minimum diversity (distinct-2 of a batch), as a share of the start's."""
    entropy: float | None = Field(0.3, gt=0, lt=1)
    """Minimum entropy per token, as a share of the start's."""
    truncated: float | None = Field(0.2, gt=0, lt=1)
    """Maximum rise of the share of truncated responses above the start's."""
    repetition: float | None = Field(0.1, gt=0, lt=1)
    """Maximum rise of the share of four-word sequences repeated within a response."""
    openings: float | None = Field(0.2, gt=0, lt=1)
    """Maximum rise of the share of responses that begin with the most common four words."""
    refusals: float | None = Field(0.2, gt=0, lt=1)
    """Maximum rise of the share of responses that begin like a refusal."""
    empty: float | None = Field(0.1, gt=0, lt=1)
    """Maximum rise of the share of empty responses."""
    win_rate_falls: int | None = Field(2, ge=1)
    """Consecutive falls of the held-out win rate before an alarm, if together they exceed `win_rate_errors`."""
    win_rate_errors: float | None = Field(3.0, gt=0)
    """Maximum fall of the win rate below its best, in standard errors of the difference; none ignores the win rate."""
    recent: int = Field(3, ge=1)
    """Steps in the median that the rules read; for diversity and entropy four times as many."""
    on_alarm: Literal["stop", "warn"] = "stop"
    """`warn` never stops the training."""
    stops: tuple[Rule, ...] = ("kl_stop", "length", "distinct", "win_rate", "reward_hacking", "not_finite")
    """Rules that stop the training; the others warn."""


Algorithm = Literal["ppo", "rloo", "grpo", "reinforce++", "p3o", "online-dpo"]

_CLIP_BY_LENGTH = 3e-4
"""The clip range of GSPO, arXiv:2507.18071, section 5.1."""

COMPARING = frozenset({"rloo", "grpo", "p3o", "online-dpo"})
"""Algorithms that compare the responses to one prompt with each other, and need at least two."""


class KlSettings(Record):
    """KL regularization towards the start."""

    beta: float = Field(0.05, ge=0)
    """KL coefficient; for online-dpo its beta."""
    apply_to: Literal["reward", "loss"] = "reward"
    """`reward` subtracts the KL penalty from the reward of every token (ppo, reinforce++) or response; `loss` adds it
    to the loss, which is the default of `grpo`, as in its paper."""
    target: float | None = Field(None, gt=0)
    """Target KL of an adaptive beta, in nats per response (arXiv:1909.08593); none keeps beta constant."""
    horizon: int = Field(10_000, ge=1)
    """Responses over which an adaptive beta moves."""


class ValueSettings(Record):
    """The value network of ppo."""

    model: Annotated[str | None, MODEL] = None
    """Initial value network; none takes the reward model if it has the policy's tokenizer, else the policy."""
    learning_rate: float | None = Field(None, gt=0)
    """Learning rate of the value network; none takes ten times the policy's."""
    clip: float = Field(0.2, gt=0)
    """Value clipping: maximum change of a value since the responses were sampled."""
    warmup: int = Field(0, ge=0)
    """First steps that train the value network alone; the policy's learning rate schedule begins after them."""


class MismatchSettings(Record):
    """Correction for a server whose log-probabilities differ from the trainer's (truncated importance sampling)."""

    correct: Literal["token", "sequence", "mask", "none"] = "token"
    """Importance weights per token or sequence (trainer against sampler); `mask` leaves responses out instead."""
    cap: float = Field(2.0, gt=1)
    """Maximum importance weight; `mask` leaves out responses beyond it."""
    tolerance: float | None = Field(None, gt=0)
    """Maximum difference of sampler and trainer before the server's weights count as stale, in nats per token; none
    takes ten times the first step's."""


class RolloutSettings(Record):
    """How the policy generates its responses."""

    max_tokens: int = Field(256, ge=1)
    """Maximum tokens of a response."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature, also of the trainer's log-probabilities."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling: 1 keeps every token, and the log-probabilities exact."""
    base_url: Annotated[str | None, URL] = None
    """vLLM server that generates the responses. Every step sends it new weights: with `lora.rank` the adapter, else
    all of them."""
    served_model: Annotated[str | None, NAME] = None
    """Name of the model on the server; none takes the server's first model."""
    weights: Annotated[str | None, PATH] = None
    """Folder for the weights that the server loads, visible to both (/dev/shm/...); none takes one in the output."""
    async_rollout: bool = False
    """Generate a step's responses while the policy learns from the previous ones: faster, but one update off-policy."""
    concurrency: int = Field(64, ge=1)
    """Maximum concurrent prompts on a server."""
    timeout: float = Field(300.0, gt=0)
    """Timeout of a request to the server, in seconds."""
    api_key_env: Annotated[str | None, NAME] = None
    """Environment variable that holds the server's API key."""

    _no_secret = field_validator("base_url")(without_secret)


class HeldOutSettings(Record):
    """Held-out evaluation: another judge than the reward compares the policy with its start."""

    every: int = Field(0, ge=0)
    """Steps between comparisons; 0 never compares."""
    prompts: int = Field(64, ge=2)
    """Prompts held out from training; the split is deterministic."""
    judge: JudgeSettings | None = None
    """The judge; none takes `judge`, which is not independent if it is also the reward."""


class OnlineSettings(CommonSettings):
    """Training on the policy's own responses: ppo and other algorithms."""

    method, usual_rate = "ppo", 1e-6

    prompts: Annotated[str, PATH] = Field(min_length=1)
    """Prompts: a file (JSONL, Parquet, CSV, text), a `datasets` name, or a run folder's prompts.jsonl."""
    reward: str = Field(min_length=1)
    """A reward model's folder, `judge`, a URL, or a function (`file.py:function`, `module:function`) from two lists,
    conversations and responses, to a list of rewards; several with commas, weighted as in `judge*0.5,rm`."""
    algorithm: Algorithm = "ppo"
    """`ppo` has a value network; `rloo`, `grpo`, `reinforce++` and `p3o` have none; `online-dpo` applies DPO to the
    best and worst response."""
    judge: JudgeSettings | None = None
    """The judge, if it is the reward."""
    constitution: Annotated[str, PATH] = "harmless"
    """Constitution of the judge: a shipped name or a file."""
    principles: Literal["each", "all"] = "each"
    """Grade under `each` principle separately, or under `all` in one prompt."""
    limit: int | None = Field(None, ge=1)
    """Use only the first prompts."""
    max_prompt: int = Field(1024, ge=8)
    """Maximum tokens of a prompt; longer ones are left out."""
    steps: int = Field(100, ge=1)
    """Training steps: each generates responses and learns from them."""
    batch_size: int = Field(64, ge=1)
    """Responses per step, over all processes."""
    samples: int = Field(4, ge=1)
    """Responses per prompt."""
    minibatches: int = Field(1, ge=1)
    """Optimizer steps per pass over a step's responses."""
    epochs: int = Field(2, ge=1)
    """Passes over a step's responses."""
    clip: float = Field(0.2, gt=0)
    """Clip range of the probability ratio; with `ratio: sequence` the default is 3e-4."""
    clip_high: float | None = Field(None, gt=0)
    """Upper clip range (DAPO takes 0.28); none takes `clip`."""
    dual_clip: float | None = Field(None, gt=1)
    """Dual clipping: maximum probability ratio of responses with a negative advantage (for instance 3); none disables
    it."""
    ratio: Literal["token", "sequence"] = "token"
    """grpo: probability ratio per token, or one length-normalized ratio per response (GSPO)."""
    p3o_clip: Literal["separate", "joint"] = "joint"
    """p3o: clip the ratios of the two responses separately, or jointly."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount factor per token."""
    lam: float = Field(0.95, ge=0, le=1)
    """Lambda of GAE: 1 relies on the returns, 0 on the value network."""
    whiten: bool = True
    """ppo, reinforce++: standardize the advantages over the step's tokens."""
    scale: Literal["group", "batch", "none"] = "group"
    """grpo: divide advantages by the standard deviation of the rewards of the prompt (`group`), of the step (`batch`),
    or by nothing (Dr. GRPO)."""
    loss_normalization: Literal["token", "sequence", "constant"] = "token"
    """Normalization of the loss: mean over tokens (DAPO), over sequences (GRPO's paper), or sum over tokens divided by
    a constant (Dr. GRPO)."""
    group_baseline: bool = False
    """reinforce++: subtract the mean reward of the prompt's responses first."""
    missing_eos_penalty: float = Field(1.0, ge=0)
    """Penalty on the reward of a response without an end token; the default is 0 with `overlong_buffer`, whose own
    penalty is 1."""
    overlong_buffer: int = Field(0, ge=0)
    """Last tokens before `rollout.max_tokens` over which a length penalty grows from 0 to 1 (DAPO); 0 disables it."""
    reward_clip: float | None = Field(None, gt=0)
    """Maximum absolute reward (clipping)."""
    normalise: bool = True
    """Several rewards: standardize each component by its running mean and deviation before the sum."""
    value: ValueSettings = ValueSettings()
    kl: KlSettings = KlSettings()
    rollout: RolloutSettings = RolloutSettings()
    mismatch: MismatchSettings = MismatchSettings()
    held_out: HeldOutSettings = HeldOutSettings()
    monitor: MonitorLimits = MonitorLimits()

    @model_validator(mode="before")
    @classmethod
    def _set_defaults(cls, given: Any) -> Any:
        """Set the defaults that depend on other settings."""
        if not isinstance(given, Mapping):
            return given
        values: dict[str, Any] = dict(given)
        if values.get("algorithm") == "grpo":
            kl = values.get("kl", {})
            kl = kl.model_dump(exclude_unset=True) if isinstance(kl, KlSettings) else kl
            values["kl"] = {"apply_to": "loss", **kl} if isinstance(kl, Mapping) else kl
            if values.get("ratio") == "sequence":  # it moves far less than one of tokens, and 0.2 would never bind
                values.setdefault("clip", _CLIP_BY_LENGTH)
        if values.get("overlong_buffer"):  # it already takes 1 off a truncated response
            values.setdefault("missing_eos_penalty", 0.0)
        return values

    @field_validator("reward")
    @classmethod
    def _no_secrets(cls, reward: str) -> str:
        for part in re.split(r"(?=https?://)", reward):
            without_secret(part)
        return reward

    @property
    def unread(self) -> dict[str, str]:
        """Settings (`name`, `group.name` or a whole `group`) that have no effect here, and why."""
        why = f"for `algorithm: {self.algorithm}`"
        reasons = {name: why for name, readers in _READERS.items() if self.algorithm not in readers}
        if self.ratio == "sequence" and self.kl.apply_to == "reward":  # in the loss, KL counts tokens
            reasons.setdefault("loss_normalization", "with `ratio: sequence`")
        if self.kl.target is None:
            reasons["kl.horizon"] = "without `kl.target`"
        if self.rollout.base_url is None:
            reasons |= dict.fromkeys(_SERVER_SETTINGS, "without `rollout.base_url`")
        return reasons

    def plain(self) -> dict[str, JsonValue]:
        """The settings as plain data that can be read again, without those that do nothing."""
        return _without(super().plain(), self.unread.keys())

    @model_validator(mode="after")
    def _require_effect(self) -> Self:
        unread = self.unread
        reasons = ((name, unread.get(name) or unread.get(name.partition(".")[0])) for name in sorted(_given(self)))
        errors: list[tuple[Where, str]] = [
            (tuple(name.split(".")), f"`{name}` does nothing {why}: leave it out") for name, why in reasons if why
        ]
        if errors:
            raise located(type(self).__name__, errors)
        return self

    @model_validator(mode="after")
    def _require_consistent(self) -> Self:
        errors: list[tuple[Where, str]] = []
        if self.batch_size % self.samples:
            what = f"`batch_size: {self.batch_size}` is no multiple of `samples: {self.samples}`"
            errors.append((("batch_size" if "batch_size" in self.model_fields_set else "samples",), what))
        elif self.batch_size // self.samples < self.minibatches:
            prompts = self.batch_size // self.samples
            what = f"`minibatches: {self.minibatches}` are more than the {prompts} prompts of a step"
            errors.append((("minibatches",), what))
        if self.algorithm in COMPARING and self.samples < 2:
            what = f"`algorithm: {self.algorithm}` compares answers to one prompt: set 2 or more"
            errors.append((("samples",), what))
        if self.value.warmup >= self.steps:
            what = f"`value.warmup: {self.value.warmup}` leaves the policy none of {self.steps} steps: set fewer"
            errors.append((("value", "warmup"), what))
        if self.lora.dropout:
            what = "`lora.dropout` makes the policy that learns another one than the one that answered: leave it out"
            errors.append((("lora", "dropout"), what))
        if self.overlong_buffer > self.rollout.max_tokens:
            most = self.rollout.max_tokens
            what = f"`overlong_buffer: {self.overlong_buffer}` is longer than the longest answer, {most} tokens"
            errors.append((("overlong_buffer",), what))
        if self.rollout.async_rollout and self.rollout.base_url is None:
            what = (
                "answers are drawn ahead on a server only: set `rollout.base_url`, or leave `rollout.async_rollout` out"
            )
            errors.append((("rollout", "async_rollout"), what))
        if self.algorithm == "online-dpo" and self.kl.beta == 0:
            errors.append((("kl", "beta"), "`algorithm: online-dpo` needs a beta above 0, for instance 0.1"))
        if errors:
            raise located(type(self).__name__, errors)
        return self


_CLIPPED = frozenset({"ppo", "rloo", "grpo", "reinforce++"})
_READERS: dict[str, frozenset[str]] = {
    "value": frozenset({"ppo"}),
    "lam": frozenset({"ppo"}),
    "gamma": frozenset({"ppo", "reinforce++"}),
    "whiten": frozenset({"ppo", "reinforce++"}),
    "group_baseline": frozenset({"reinforce++"}),
    "scale": frozenset({"grpo"}),
    "ratio": frozenset({"grpo"}),
    "p3o_clip": frozenset({"p3o"}),
    "clip": _CLIPPED | {"p3o"},
    "clip_high": _CLIPPED,
    "dual_clip": _CLIPPED,
    "loss_normalization": _CLIPPED - {"rloo"},
    "kl.apply_to": _CLIPPED | {"p3o"},
    "mismatch.correct": _CLIPPED | {"p3o"},
    "mismatch.cap": _CLIPPED | {"p3o"},
}
"""Settings that only some algorithms read."""
_SERVER_SETTINGS = (
    "mismatch.correct", "mismatch.cap", "rollout.served_model", "rollout.weights", "rollout.concurrency",
    "rollout.timeout", "rollout.api_key_env",
)  # fmt: skip


def read_by(algorithm: Algorithm | str, path: Sequence[str]) -> bool:
    """Whether an algorithm reads the setting at `path`, whatever else is set."""
    readers = _READERS.get(".".join(path)) or _READERS.get(path[0])
    return readers is None or algorithm in readers


def _given(settings: Record, group: str = "") -> Iterator[str]:
    """The names of the settings that are set explicitly."""
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if isinstance(value, Record):
            yield from _given(value, f"{group}{name}.")
        elif value is not None:
            yield f"{group}{name}"


def _without(settings: Mapping[str, JsonValue], names: Collection[str], group: str = "") -> dict[str, JsonValue]:
    """The settings without some, given by their dotted names."""
    return {
        name: _without(value, names, f"{group}{name}.") if isinstance(value, dict) else value
        for name, value in settings.items()
        if f"{group}{name}" not in names
    }
