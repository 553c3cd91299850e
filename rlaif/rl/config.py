"""The settings of online training: the same keys in a YAML file, as flags (`--kl-beta`) and with `--set`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from rlaif.config.messages import Where, located
from rlaif.config.schemas import JudgeSettings, without_secret
from rlaif.records import Record
from rlaif.training.config import CommonSettings

Rule = Literal[
    "kl", "kl_stop", "length", "distinct", "truncated", "repetition", "openings", "refusals", "empty", "entropy",
    "win_rate", "reward_hacking", "not_finite",
]  # fmt: skip
"""The rules by name. All but the last three have their bound under this name in `MonitorLimits`."""


class MonitorLimits(Record):
    """When to take a training for one that games its reward. A bound that is none leaves its rule out."""

    kl: float | None = Field(10.0, gt=0)
    """Warn above so many nats of KL divergence an answer."""
    kl_stop: float | None = Field(15.0, gt=0)
    """Stop above so many; what is learned that far from the start is mostly the reward's mistakes."""
    length: float | None = Field(1.5, gt=1)
    """Longest mean length of the answers, as a multiple of the start's."""
    distinct: float | None = Field(0.7, gt=0, lt=1)
    """Least variety (distinct pairs of words in a batch), as a share of the start's."""
    entropy: float | None = Field(0.3, gt=0, lt=1)
    """Least entropy a token, as a share of the start's."""
    truncated: float | None = Field(0.2, gt=0, lt=1)
    """How far the share of answers that were cut at the limit may rise above the start's."""
    repetition: float | None = Field(0.1, gt=0, lt=1)
    """The same of runs of four words that are repeated within an answer."""
    openings: float | None = Field(0.2, gt=0, lt=1)
    """The same of answers that begin with the commonest four words."""
    refusals: float | None = Field(0.2, gt=0, lt=1)
    """The same of answers that open like a refusal."""
    empty: float | None = Field(0.1, gt=0, lt=1)
    """The same of empty answers."""
    win_rate_falls: int | None = Field(2, ge=1)
    """Alarm after so many falls of the held-out win rate in a row that together pass `win_rate_errors`."""
    win_rate_errors: float | None = Field(3.0, gt=0)
    """How far it may fall below its best, in standard errors of the difference; none leaves the win rate alone."""
    recent: int = Field(3, ge=1)
    """Steps whose median counts; of variety and entropy four times as many."""
    on_alarm: Literal["stop", "warn"] = "stop"
    """`warn` lets the training go on whatever is seen."""
    stops: tuple[Rule, ...] = ("kl_stop", "length", "distinct", "win_rate", "reward_hacking", "not_finite")
    """Rules whose alarm stops the training; those of the others warn."""


Algorithm = Literal["ppo", "rloo", "grpo", "reinforce++", "p3o", "online-dpo"]

_CLIP_BY_LENGTH = 3e-4
"""Of GSPO, arXiv:2507.18071, section 5.1."""

COMPARING = frozenset({"rloo", "grpo", "p3o", "online-dpo"})
"""Algorithms that compare the answers to one prompt with each other, and need two of them or more."""


class KlSettings(Record):
    """What it costs to leave the start."""

    beta: float = Field(0.05, ge=0)
    """Price of a nat; for online-dpo its beta."""
    apply_to: Literal["reward", "loss"] = "reward"
    """`reward` takes it off the reward of every token (ppo, reinforce++) or answer; `loss` adds it to the loss, and is
    what `grpo` does where nothing is set, as its paper."""
    target: float | None = Field(None, gt=0)
    """Nats an answer that beta is steered to (adaptive, arXiv:1909.08593); none leaves beta as it is."""
    horizon: int = Field(10_000, ge=1)
    """Answers over which an adaptive beta moves."""


class ValueSettings(Record):
    """The value network of ppo."""

    model: str | None = None
    """What it starts from; none takes the reward if it is a reward model with the policy's tokens, else the policy."""
    learning_rate: float | None = Field(None, gt=0)
    """None takes ten times the policy's."""
    clip: float = Field(0.2, gt=0)
    """A value may move so far from what it was when the answers were sampled."""
    warmup: int = Field(0, ge=0)
    """First steps in which the value network alone learns; the policy's learning rate begins after them."""


class MismatchSettings(Record):
    """What is done about a server whose numbers are not quite the trainer's (truncated importance sampling)."""

    correct: Literal["token", "sequence", "mask", "none"] = "token"
    """Weight every token or answer by how much more probable it is to the trainer; `mask` leaves answers out."""
    cap: float = Field(2.0, gt=1)
    """Largest weight; with `mask`, answers beyond it are left out."""
    tolerance: float | None = Field(None, gt=0)
    """Nats a token between sampler and trainer above which weights count as stale; none: ten times the first step's."""


class RolloutSettings(Record):
    """How the policy's answers are drawn."""

    max_tokens: int = Field(256, ge=1)
    """Most tokens of an answer."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature; the trainer's log-probabilities are at it too."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling: 1 keeps every token, and the log-probabilities exact."""
    base_url: str | None = None
    """A vLLM server that samples, with the weights of every step: with `lora.rank` the adapter, else all of them."""
    served_model: str | None = None
    """What the server calls the model; none takes its first one."""
    weights: str | None = None
    """Folder for the weights that the server loads, which both see (/dev/shm/...); none takes one in the output."""
    async_rollout: bool = False
    """Draw a step's answers on the server while the one before is learned from: faster, and one update older."""
    concurrency: int = Field(64, ge=1)
    """Most prompts under way at once on a server."""
    timeout: float = Field(300.0, gt=0)
    """Seconds until a request to the server counts as lost."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the server's API key."""

    _no_secret = field_validator("base_url")(without_secret)


class HeldOutSettings(Record):
    """A judge that is not the reward compares the policy with its start, now and then."""

    every: int = Field(0, ge=0)
    """Steps between comparisons; 0 never compares."""
    prompts: int = Field(64, ge=2)
    """Prompts set aside for it, drawn by hash; they are not trained on."""
    judge: JudgeSettings | None = None
    """The judge; none takes `judge`, which is no independent witness where it is the reward too."""


class OnlineSettings(CommonSettings):
    """Training on the policy's own fresh answers: ppo and its relatives."""

    method, usual_rate = "ppo", 1e-6

    prompts: str = Field(min_length=1)
    """Prompts to answer: a file (JSONL, Parquet, CSV, text), a `datasets` name, or a run folder's prompts.jsonl."""
    reward: str = Field(min_length=1)
    """A reward model's folder, `judge`, a URL, or `file.py:function` or `module:function`, called with two lists,
    conversations and responses, for a list of numbers; several by commas, weighted as in `judge*0.5,rm`."""
    algorithm: Algorithm = "ppo"
    """`ppo` with a value network; `rloo`, `grpo`, `reinforce++`, `p3o` without; `online-dpo` on the best and worst."""
    judge: JudgeSettings | None = None
    """The judge, where it is the reward."""
    constitution: str = "harmless"
    """What the judge judges by: a shipped constitution or a file."""
    principles: Literal["each", "all"] = "each"
    """Grade under each principle on its own, or under all in one question."""
    limit: int | None = Field(None, ge=1)
    """Only the first prompts."""
    max_prompt: int = Field(1024, ge=8)
    """Longer prompts, in tokens, are left out."""
    steps: int = Field(100, ge=1)
    """Times that the policy answers and learns from its answers."""
    batch_size: int = Field(64, ge=1)
    """Answers of a step, over all processes."""
    samples: int = Field(4, ge=1)
    """Answers to each prompt of a step."""
    minibatches: int = Field(1, ge=1)
    """Optimizer steps in one pass over a step's answers."""
    epochs: int = Field(2, ge=1)
    """Passes over a step's answers."""
    clip: float = Field(0.2, gt=0)
    """How far a probability may move in a step, as a share, before its gradient is cut; with `ratio: sequence` 3e-4."""
    clip_high: float | None = Field(None, gt=0)
    """Another bound for moves upwards (DAPO takes 0.28); none takes `clip`."""
    dual_clip: float | None = Field(None, gt=1)
    """Of an answer worse than expected, nothing pushes a probability that rose above this multiple (for instance 3)."""
    ratio: Literal["token", "sequence"] = "token"
    """grpo: the ratio of each token, or one of the whole answer by its length (GSPO)."""
    p3o_clip: Literal["separate", "joint"] = "joint"
    """p3o: clip the two answers' ratios each, or what they come to together."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount of later rewards, a token."""
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's lambda: 1 trusts the returns, 0 the value network."""
    whiten: bool = True
    """ppo, reinforce++: bring advantages to mean 0 and variance 1 over the step's tokens."""
    scale: Literal["group", "batch", "none"] = "group"
    """grpo: divide by the deviation of the rewards of one prompt, of the step, or not (Dr. GRPO)."""
    loss_normalization: Literal["token", "sequence", "constant"] = "token"
    """What counts alike in the loss: tokens (DAPO), answers (GRPO's paper), or tokens over a constant (Dr. GRPO)."""
    group_baseline: bool = False
    """reinforce++: take the mean reward of the prompt's answers off first."""
    missing_eos_penalty: float = Field(1.0, ge=0)
    """Taken off the reward of an answer that did not end by itself; 0 beside `overlong_buffer`, which takes 1 off."""
    overlong_buffer: int = Field(0, ge=0)
    """Last tokens before `rollout.max_tokens` over which a penalty for length grows from 0 to 1 (DAPO); 0 has none."""
    reward_clip: float | None = Field(None, gt=0)
    """Rewards are cut to this on either side."""
    normalise: bool = True
    """Several rewards: bring each to its own running mean 0 and deviation 1 before they are added."""
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
        """Settings (`name`, `group.name` or a whole `group`) that do nothing here, and why."""
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
