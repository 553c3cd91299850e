"""The settings of a training run: the same keys in a YAML file, as flags (`--learning-rate`) and with `--set`.

`batch_size` and everything else that the result depends on is said for the whole run, whatever the number of processes;
`tokens` says what fits into memory, and the result does not depend on it.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from rlaif.plainwords import Where, located
from rlaif.records import Record
from rlaif.training.losses import NEEDS_REFERENCE, READS

Method = Literal["sft", "reward", "dpo"]


_PATHS = ("model", "data", "output", "held_data", "center_on", "reference", "reference_cache", "prompts")


class LoraSettings(Record):
    """A low-rank adapter (arXiv:2106.09685) instead of all weights; the model without it is the reference."""

    rank: int | None = Field(None, ge=1)
    """Train an adapter of this rank; none trains all weights."""
    alpha: float | None = Field(None, gt=0)
    """Its outputs are scaled by alpha / rank; none takes twice the rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of the adapter's inputs. 0 keeps policy and reference equal at the start."""
    targets: tuple[str, ...] = ()
    """Layers that get one, by the end of their names; none takes every linear layer except the head."""
    merge: bool = False
    """Add the adapter to the weights when saving, so that the result is a whole model."""


class CommonSettings(Record):
    """What every training takes, on rows of data or on a policy's own answers."""

    method: ClassVar[str]
    """What `rlaif train` calls it."""
    usual_rate: ClassVar[float]
    """The learning rate for all weights where none is set."""

    model: str = Field(min_length=1)
    """Model to start from: a folder, a hub name, or a shipped model."""
    output: str = Field(min_length=1)
    """Folder for the trained model, its card, curves and checkpoints."""
    template_options: dict[str, JsonValue] = Field(default_factory=dict)
    """Passed to the chat template, for instance {enable_thinking: false}; none given takes those of the data's run."""
    tokens: int = Field(8192, ge=64)
    """Most tokens of one forward pass of a process: the bigger, the more memory. The result stays the same."""
    learning_rate: float | None = Field(None, gt=0)
    """Highest learning rate; none takes 2e-5 for sft, 1e-5 for reward, 1e-6 else, and ten times that under LoRA."""
    schedule: Literal["linear", "cosine", "constant", "cosine_with_min_lr"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = Field(0.0, ge=0)
    """Of AdamW."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Longer gradients are shortened to this; 0 leaves them."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`bfloat16` computes in it and keeps weights and sums in float32; auto takes it on GPUs that have it."""
    attention: Literal["auto", "sdpa", "eager", "flex_attention"] = "auto"
    """How attention is computed; auto is what transformers picks for the model."""
    lora: LoraSettings = LoraSettings()
    four_bit: bool = False
    """Load the weights in 4 bits (QLoRA, arXiv:2305.14314; needs bitsandbytes and a LoRA rank)."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: a third more time, much less memory."""
    save_steps: int | None = Field(None, ge=0)
    """Steps between checkpoints; none saves ten times in a run, 0 never but on Ctrl-C."""
    keep: int = Field(1, ge=1)
    """Checkpoints kept; older ones are removed, and all of them when the training is finished."""
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where the log goes besides log.jsonl."""
    seed: int = 0
    """Of the order of rows, of new weights and of what is drawn."""
    device: Literal["auto", "cpu"] = "auto"
    """`cpu` leaves a GPU alone."""

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
        """Where everything goes."""
        return Path(self.output)


class TrainSettings(CommonSettings):
    """What the trainers on rows of data take."""

    method: ClassVar[Method]

    data: str = Field(min_length=1)
    """A run folder, a file of rows (JSONL, Parquet, ...), or a `datasets` name."""
    held_data: str | None = None
    """Held-out rows to evaluate on; without it, `holdout` of the prompts are set aside."""
    holdout: float = Field(0.05, ge=0, lt=1)
    """Share of the prompts, drawn by hash, that is evaluated on and not trained on."""
    limit: int | None = Field(None, ge=1)
    """Only the first examples: rows that hold none are passed over, and of a pair KTO makes two."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """`auto`: messages by the chat template, texts as they are; `chat`, `plain`: all by the template, or by none."""
    max_length: int = Field(1024, ge=8)
    """Most tokens of a row: longer prompts lose their beginning, completions that alone are longer are left out."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the data."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after so many optimizer steps, whatever the epochs."""
    batch_size: int = Field(16, ge=1)
    """Rows of an optimizer step, over all processes."""
    eval_steps: int | None = Field(None, ge=1)
    """Optimizer steps between evaluations; none evaluates ten times in a run."""
    patience: int | None = Field(None, ge=1)
    """Stop after so many evaluations without a better held-out loss, and keep the best; each evaluation saves."""
    optimizer: str = "adamw_torch_fused"
    """A name that transformers' TrainingArguments take: adamw_torch, adamw_torch_fused, adafactor, ..."""
    log_steps: int = Field(1, ge=1)
    """Optimizer steps between lines of the log."""

    @model_validator(mode="after")
    def _saves_where_it_evaluates(self) -> Self:
        if self.patience is not None and self.save_steps is not None:
            what = "`patience` saves at every evaluation, so that the best weights are there: leave `save_steps` out"
            raise located(type(self).__name__, [(("save_steps",), what)])
        return self


class SftSettings(TrainSettings):
    """Supervised fine-tuning on demonstrations: revisions, chosen answers, or anybody's."""

    method, usual_rate = "sft", 2e-5

    turns: Literal["last", "all"] = "last"
    """Which replies of a conversation are learned: the last one, or all, each behind what stands before it."""


class RewardSettings(TrainSettings):
    """A reward model on preference pairs."""

    method, usual_rate = "reward", 1e-5

    soft_labels: bool = True
    """Take each pair's `probability` as its target; without it every pair counts as certain."""
    margins: bool = True
    """Ask for a difference of at least the pair's `margin` column, where there is one (arXiv:2307.09288)."""
    centering: float = Field(0.0, ge=0)
    """Weight of (r_chosen + r_rejected)^2, which keeps rewards around 0 (arXiv:2312.09244); 0.01 is usual."""
    center_on: str | None = None
    """After training, shift rewards so that these demonstrations (as for `rlaif train sft`) have a mean of 0."""


class DpoSettings(TrainSettings):
    """Direct preference optimisation and its relatives, on preference pairs or on single judged answers (KTO)."""

    method, usual_rate = "dpo", 1e-6

    loss: Literal["sigmoid", "robust", "ipo", "hinge", "sigmoid_norm", "gdpo", "simpo", "orpo", "kto"] = "sigmoid"
    """`sigmoid` is DPO (arXiv:2305.18290); `simpo` and `orpo` need no reference; `kto` takes single answers."""
    beta: float | None = Field(None, gt=0)
    """How dear it is to leave the reference; none takes 0.1, for sigmoid_norm 5, for simpo 2. For ipo it is tau."""
    soft_labels: bool = True
    """Take a pair's `probability` as its target; false takes every pair as certain, which kto always does."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of labels taken to be wrong (cDPO); robust needs it, as its epsilon."""
    gamma_beta_ratio: float = Field(0.5, ge=0)
    """SimPO: the lead that is asked for, as a share of beta."""
    orpo_weight: float = Field(0.1, ge=0)
    """ORPO: weight of the odds ratio beside the likelihood of the chosen answer."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of the likelihood of the chosen answer, a token, beside the loss (RPO, arXiv:2404.19733)."""
    desirable_weight: float = Field(1.0, ge=0)
    """KTO: weight of good answers."""
    undesirable_weight: float = Field(1.0, ge=0)
    """KTO: weight of bad answers."""
    reference: str | None = None
    """Another model as the reference; none takes the model as it is at the start."""
    reference_cache: str | None = None
    """Folder of reference log-probabilities; none takes ~/.cache/rlaif/references (XDG_CACHE_HOME is heeded)."""

    @property
    def uses_reference(self) -> bool:
        """Whether the loss reads the log-probabilities of a reference."""
        return self.loss == "kto" or self.loss in NEEDS_REFERENCE

    @property
    def unread(self) -> frozenset[str]:
        """Settings that do nothing for the loss."""
        read = _KTO_READS if self.loss == "kto" else READS[self.loss] | {"soft_labels", "sft_weight"}
        return _OF_LOSSES - read - (_OF_REFERENCES if self.uses_reference else frozenset())

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        given = (name for name in self.model_fields_set & self.unread if getattr(self, name) is not None)
        found: list[tuple[Where, str]] = [
            ((name,), f"`{name}` does nothing for `loss: {self.loss}`: leave it out") for name in sorted(given)
        ]
        if self.loss == "robust" and not self.label_smoothing:
            what = "`loss: robust` needs the share of labels that are wrong: set `label_smoothing`, for instance 0.1"
            found.append((("loss",), what))
        if found:
            raise located("DpoSettings", found)
        return self

    def plain(self) -> dict[str, JsonValue]:
        """The settings as plain data that can be read again, without those that the loss does not read."""
        return {name: value for name, value in super().plain().items() if name not in self.unread}


_OF_REFERENCES = frozenset({"reference", "reference_cache"})
_KTO_READS = frozenset({"beta", "desirable_weight", "undesirable_weight"})
_OF_LOSSES = frozenset({"soft_labels", "sft_weight"}).union(*READS.values(), _KTO_READS, _OF_REFERENCES)
"""Settings that some losses read and others do not."""

SETTINGS: dict[Method, type[TrainSettings]] = {"sft": SftSettings, "reward": RewardSettings, "dpo": DpoSettings}
