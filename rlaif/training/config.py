"""The settings of a training: the same keys in a YAML file, as flags (`--learning-rate`) and with `--set`.

A flag beats the environment (`RLAIF_TRAIN_BETA`), which beats the file, which beats the default. Defaults that depend
on the method, the loss or the machine are filled in by `resolved`. `batch_size` and everything else that the result
depends on holds for the whole run, whatever the number of processes; the result does not depend on
`max_tokens_per_pass`, which says what fits into memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import (
    Annotated,
    ClassVar,
    Literal,
    Self,
    TypeVar,
    get_origin,
)

from pydantic import Field, JsonValue, field_validator, model_validator

from rlaif.config.run_file import Flags, Setting, Value, absolute, settable
from rlaif.config.schemas import MODEL, NAME, PATH
from rlaif.config.yaml import Source, Where, find_problems, key_hint, located, plain_yaml, read_yaml
from rlaif.errors import UserError
from rlaif.records import Record

_UNDER_LORA = 10
"""The learning rate of an adapter, as a multiple of that of full training, for every method."""
_BETAS = {"sigmoid_norm": 5.0, "simpo": 2.0}
_BETA = 0.1
"""Also for ipo, as in TRL: its target margin is 1 / (2 beta) nats per token, which few pairs reach."""


PairLoss = Literal["sigmoid", "robust", "ipo", "hinge", "sigmoid_norm", "gdpo", "simpo", "orpo"]
"""The losses of pairs, by the names that papers and other trainers use."""

NEEDS_REFERENCE: frozenset[PairLoss] = frozenset({"sigmoid", "robust", "ipo", "hinge", "sigmoid_norm", "gdpo"})
"""Losses that read the reference's log-probabilities. The others never look at `ref_chosen` and `ref_rejected`."""


READS: dict[PairLoss, frozenset[str]] = {
    "sigmoid": frozenset({"beta", "label_smoothing"}),
    "robust": frozenset({"beta", "label_smoothing"}),
    "ipo": frozenset({"beta"}),
    "hinge": frozenset({"beta"}),
    "sigmoid_norm": frozenset({"beta", "label_smoothing"}),
    "gdpo": frozenset({"beta"}),
    "simpo": frozenset({"beta", "gamma_beta_ratio"}),
    "orpo": frozenset({"orpo_weight"}),
}
"""Fields of `LossSettings` that each loss reads, for whoever refuses a setting that would do nothing."""


def beta_of(settings: DpoSettings) -> float:
    """The beta that is set, or the default of the loss."""
    return settings.beta if settings.beta is not None else _BETAS.get(settings.loss, _BETA)


def rate_of(settings: CommonSettings) -> float:
    """The learning rate that is set, or the default of the method."""
    if settings.learning_rate is not None:
        return settings.learning_rate
    return settings.usual_rate * (1 if settings.lora.rank is None else _UNDER_LORA)


def resolved(settings: Settings, narrow: bool) -> tuple[Settings, dict[str, float]]:
    """The settings with nothing left open that the result depends on, and the numbers among them that nobody set.

    `narrow` says whether this machine computes in bfloat16: another one may go on with the training.
    """
    defaults: dict[str, float] = {}
    if settings.learning_rate is None:
        defaults["learning_rate"] = rate_of(settings)
    if isinstance(settings, DpoSettings) and settings.beta is None and "beta" not in settings.unread:
        defaults["beta"] = beta_of(settings)
    dtype = "bfloat16" if narrow else "float32"
    return settings.model_copy(update={**defaults, "dtype": dtype}), defaults


Method = Literal["sft", "reward", "dpo"]


_PATHS = ("model", "data", "output", "held_data", "center_dataset", "reference", "reference_cache", "prompts")


class LoraSettings(Record):
    """A low-rank adapter (arXiv:2106.09685) instead of full training; the model without it is the reference."""

    rank: int | None = Field(None, ge=1)
    """Rank of the adapter; none trains all weights."""
    alpha: float | None = Field(None, gt=0)
    """The adapter's outputs are scaled by alpha / rank; none takes twice the rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of the adapter's inputs. 0 keeps policy and reference equal at the start."""
    targets: tuple[str, ...] = ()
    """Layers with an adapter, by the end of their names; none takes every linear layer except the head."""
    merge: bool = False
    """Merge the adapter into the weights when saving, so that the result is a complete model."""


class CommonSettings(Record):
    """The settings of every training, on rows of data or on a policy's own responses."""

    method: ClassVar[str]
    """The command of `rlaif train`."""
    usual_rate: ClassVar[float]
    """The default learning rate of full training."""

    model: Annotated[str, MODEL] = Field(min_length=1)
    """Model to start from: a folder, a hub name, or a shipped model."""
    output: Annotated[str, PATH] = Field(min_length=1)
    """Folder for the trained model, its card, curves and checkpoints."""
    template_options: dict[str, JsonValue] = Field(default_factory=dict)
    """Passed to the chat template, for instance {enable_thinking: false}; none takes those of the data's run."""
    max_tokens_per_pass: int = Field(8192, ge=64)
    """Maximum tokens per forward pass of a process. More need more memory; the result does not change."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate; none takes 2e-5 for sft, 1e-5 for reward, 1e-6 else, and ten times that under LoRA."""
    schedule: Literal["linear", "cosine", "constant", "cosine_with_min_lr"] = "linear"
    """Learning rate schedule after the warmup."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises linearly."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of AdamW."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Maximum gradient norm (clipping); 0 disables it."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`bfloat16` is mixed precision with float32 weights and sums; auto takes it on GPUs that support it."""
    attention: Literal["auto", "sdpa", "eager", "flex_attention"] = "auto"
    """Attention implementation; auto takes the one that transformers selects for the model."""
    lora: LoraSettings = LoraSettings()
    four_bit: bool = False
    """Load the weights in 4 bits (QLoRA, arXiv:2305.14314; needs bitsandbytes and a LoRA rank)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: a third more time, much less memory."""
    save_steps: int | None = Field(None, ge=0)
    """Steps between checkpoints; none saves ten times per run, 0 saves only on Ctrl-C."""
    checkpoints_to_keep: int = Field(1, ge=1)
    """Maximum checkpoints on disk: older ones are deleted, and all of them when the training is finished."""
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Loggers besides log.jsonl."""
    seed: int = 0
    """Seed of data order, new weights and sampling."""
    device: Literal["auto", "cpu"] = "auto"
    """`cpu` does not use a GPU."""

    @field_validator(*_PATHS, check_fields=False)
    @classmethod
    def _from_home(cls, path: str | None) -> str | None:
        if path is None or not path.startswith("~"):
            return path
        try:
            return str(Path(path).expanduser())
        except RuntimeError:
            raise ValueError("nobody on this machine has that home folder") from None

    def plain(self) -> dict[str, JsonValue]:
        """The settings as plain data that can be read again."""
        return self.model_dump(mode="json", exclude_none=True)

    @property
    def folder(self) -> Path:
        """The output folder."""
        return Path(self.output)


Settings = TypeVar("Settings", bound=CommonSettings)


class TrainSettings(CommonSettings):
    """The settings of the trainers on rows of data."""

    method: ClassVar[Method]

    data: Annotated[str, PATH] = Field(min_length=1)
    """A run folder, a file of rows (JSONL, Parquet, ...), or a `datasets` name."""
    held_data: Annotated[str | None, PATH] = None
    """Held-out rows to evaluate on; none sets `holdout` of the prompts aside."""
    holdout: float = Field(0.05, ge=0, lt=1)
    """Share of the prompts for evaluation instead of training; the split is deterministic."""
    limit: int | None = Field(None, ge=1)
    """Use only the first examples. Rows without an example do not count; for KTO a pair is two examples."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """`auto`: the chat template for messages, none for plain texts; `chat`: always; `plain`: never."""
    max_length: int = Field(1024, ge=8)
    """Maximum tokens of a row: longer prompts lose their beginning, completions that alone are longer are left out."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the data."""
    max_steps: int | None = Field(None, ge=1)
    """Maximum optimizer steps, whatever the epochs."""
    batch_size: int = Field(16, ge=1)
    """Rows per optimizer step, over all processes."""
    eval_steps: int | None = Field(None, ge=1)
    """Optimizer steps between evaluations; none evaluates ten times per run."""
    patience: int | None = Field(None, ge=1)
    """Early stopping after so many evaluations without a better held-out loss; the best weights are kept, and each
    evaluation saves a checkpoint."""
    optimizer: Annotated[str, NAME] = "adamw_torch_fused"
    """Optimizer by its name in transformers' TrainingArguments: adamw_torch, adamw_torch_fused, adafactor, ..."""
    log_steps: int = Field(1, ge=1)
    """Optimizer steps between log lines."""

    @model_validator(mode="after")
    def _saves_where_it_evaluates(self) -> Self:
        if self.patience is not None and self.save_steps is not None:
            message = "`patience` saves at every evaluation, so that the best weights are there: leave `save_steps` out"
            raise located(type(self).__name__, [(("save_steps",), message)])
        return self


class SftSettings(TrainSettings):
    """Supervised fine-tuning on demonstrations: revisions, chosen responses, or your own rows."""

    method, usual_rate = "sft", 2e-5

    turns: Literal["last", "all"] = "last"
    """Which responses of a conversation the loss covers: the last one or all, each in the context of the
    turns before it."""


class RewardSettings(TrainSettings):
    """A reward model on preference pairs."""

    method, usual_rate = "reward", 1e-5

    soft_labels: bool = True
    """Take each pair's `probability` as its target; false takes hard labels."""
    margins: bool = True
    """Subtract the pair's `margin` column, if present, from the reward difference (arXiv:2307.09288)."""
    centering: float = Field(0.0, ge=0)
    """Weight of (r_chosen + r_rejected)^2, which keeps rewards near 0 (arXiv:2312.09244); 0.01 is common."""
    center_dataset: Annotated[str | None, PATH] = None
    """After training, shift rewards so that these demonstrations (as for `rlaif train sft`) have mean reward 0."""


class DpoSettings(TrainSettings):
    """Direct preference optimization and its variants, on preference pairs or on single labeled responses (KTO)."""

    method, usual_rate = "dpo", 1e-6

    loss: Literal["sigmoid", "robust", "ipo", "hinge", "sigmoid_norm", "gdpo", "simpo", "orpo", "kto"] = "sigmoid"
    """`sigmoid` is DPO (arXiv:2305.18290); `simpo` and `orpo` need no reference; `kto` takes single responses."""
    beta: float | None = Field(None, gt=0)
    """Strength of the KL regularization towards the reference; none takes 0.1, for sigmoid_norm 5, for simpo 2. For
    ipo it is tau."""
    soft_labels: bool = True
    """Take each pair's `probability` as its target; false takes hard labels, as kto always does."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Assumed share of wrong labels (cDPO); robust requires it as its epsilon."""
    gamma_beta_ratio: float = Field(0.5, ge=0)
    """SimPO: target reward margin, as a share of beta."""
    orpo_weight: float = Field(0.1, ge=0)
    """ORPO: weight of the odds ratio loss relative to the likelihood of the chosen response."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of an SFT loss per token on the chosen response (RPO, arXiv:2404.19733)."""
    desirable_weight: float = Field(1.0, ge=0)
    """KTO: weight of desirable responses."""
    undesirable_weight: float = Field(1.0, ge=0)
    """KTO: weight of undesirable responses."""
    reference: Annotated[str | None, MODEL] = None
    """Reference model; none takes the model at the start of training."""
    reference_cache: Annotated[str | None, PATH] = None
    """Folder of reference log-probabilities; none takes rlaif/references in
    $XDG_CACHE_HOME or ~/.cache."""

    @property
    def uses_reference(self) -> bool:
        """Whether the loss reads the log-probabilities of a reference."""
        return self.loss == "kto" or self.loss in NEEDS_REFERENCE

    @property
    def unread(self) -> frozenset[str]:
        """Settings that the loss ignores."""
        read = _KTO_READS if self.loss == "kto" else READS[self.loss] | {"soft_labels", "sft_weight"}
        return _OF_LOSSES - read - (_OF_REFERENCES if self.uses_reference else frozenset())

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        given = (name for name in self.model_fields_set & self.unread if getattr(self, name) is not None)
        problems: list[tuple[Where, str]] = [
            ((name,), f"`{name}` does nothing for `loss: {self.loss}`: leave it out") for name in sorted(given)
        ]
        if self.loss == "robust" and not self.label_smoothing:
            message = "`loss: robust` needs the share of labels that are wrong: set `label_smoothing`, for instance 0.1"
            problems.append((("loss",), message))
        if problems:
            raise located("DpoSettings", problems)
        return self

    def plain(self) -> dict[str, JsonValue]:
        """The settings as plain data that can be read again, without those that the loss does not read."""
        return {name: value for name, value in super().plain().items() if name not in self.unread}


_OF_REFERENCES = frozenset({"reference", "reference_cache"})
_KTO_READS = frozenset({"beta", "desirable_weight", "undesirable_weight"})
_OF_LOSSES = frozenset({"soft_labels", "sft_weight"}).union(*READS.values(), _KTO_READS, _OF_REFERENCES)
"""Settings that some losses read and others do not."""

SETTINGS: dict[Method, type[TrainSettings]] = {"sft": SftSettings, "reward": RewardSettings, "dpo": DpoSettings}


_FILE_PATHS = (
    ("model",), ("data",), ("held_data",), ("reference",), ("center_dataset",), ("prompts",), ("reward",),
    ("constitution",), ("judge", "model"), ("held_out", "judge", "model"),
)  # fmt: skip
"""Settings that may be paths."""
_ENVIRONMENT = "RLAIF_TRAIN_"
_MAPPING = "template_options"
"""Settings of this name hold keys that are not ours to know."""


def load_settings(
    kind: type[Settings],
    path: Path | None,
    flags: Flags,
    pairs: Sequence[str] = (),
) -> Settings:
    """The resolved settings. `pairs` are texts `key=value` (`--set`), which beat the flags. Raises UserError.

    Paths in the file are relative to the file where something is there, all others to the working directory.
    """
    by_path = {setting.path: setting for setting in settable(kind)}
    source = Source({}, f"rlaif train {kind.method}", {}, ()) if path is None else read_yaml(path)
    if path is not None:
        source = absolute_paths(source, path.resolve().parent)
    for setting in by_path.values():
        variable = variable_of(setting)
        if (from_environment := os.environ.get(variable)) is not None:
            source = _with_text(source, setting, from_environment, variable)
    for name, given in flags.items():
        if isinstance(given, Value):
            source = source.with_value(name, *given)
        else:
            source = _with_text(source, by_path[name], given, by_path[name].flag)
    for text in pairs:
        place, value = _parse_pair(text, {".".join(name): name for name in by_path})
        where = f"--set {'.'.join(place)}"
        if place in by_path:
            source = _with_text(source, by_path[place], value, where)
        else:  # a key of a mapping, whose values are of any kind
            source = source.with_value(place, _plain(value), where)
    refuse_all(find_problems(source, kind))
    return kind.model_validate(source.data)


def variable_of(setting: Setting) -> str:
    """The environment variable of a training's setting: `RLAIF_TRAIN_BETA`."""
    return _ENVIRONMENT + "_".join(setting.path).upper()


def absolute_paths(source: Source, base: Path) -> Source:
    """Everything that exists under `base` made absolute, also the parts of a sum of rewards."""
    for path in _FILE_PATHS:
        source = absolute(source, path, base)
    reward = source.data.get("reward")
    if not isinstance(reward, str) or Path(reward).is_absolute() or {",", "*"} & set(str(base)):  # these part a sum
        return source
    parts = re.split(r"([,*])", reward)
    return source.reworded(("reward",), "".join(_absolute_reward(part, base) for part in parts))


def _absolute_reward(text: str, base: Path) -> str:
    """A function's file keeps the function's name."""
    name = text.strip()
    file, colon, function = name.rpartition(":") if ".py:" in name else (name, "", "")
    looks_like_path = "/" in file or Path(file).suffix == ".py"
    return f"{(base / file).resolve()}{colon}{function}" if looks_like_path and (base / file).exists() else text


def refuse_all(problems: Sequence[UserError]) -> None:
    """Raise the mistakes, if there are any: no command lists them, so that one line names all of them."""
    if not problems:
        return
    first, *rest = problems
    hint = "; ".join([*([first.hint] if first.hint else []), *(f"also {problem}" for problem in rest)])
    raise UserError(first.what, where=first.where, line=first.line, hint=hint)


def _parse_pair(text: str, paths: Mapping[str, tuple[str, ...]]) -> tuple[tuple[str, ...], str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"`{text}` is not key=value", where="--set", hint="for instance --set beta=0.1")
    group, dot, key = name.strip().rpartition(".")
    if dot and group in paths and paths[group][-1] == _MAPPING:
        return (*paths[group], key), value
    if name.strip() not in paths:
        raise UserError(f"no setting `{name.strip()}`", where="--set", hint=key_hint(name.strip(), paths))
    return paths[name.strip()], value


def _plain(value: str) -> object:
    try:
        return plain_yaml(value)
    except ValueError:
        return value


def _with_text(source: Source, setting: Setting, value: str, where: str) -> Source:
    """A text from outside, read as YAML where that gives a list; a list may also be written with commas alone."""
    parsed = _plain(value)
    if not isinstance(parsed, list | dict):
        listed = get_origin(setting.field.annotation) is tuple
        parsed = [part.strip() for part in value.split(",") if part.strip()] if listed else value
    return source.with_value(setting.path, parsed, where)
