"""The settings of a training run: the same keys in a YAML file, as flags (`--learning-rate`) and with `--set`.

`batch_size` and everything else that the result depends on is said for the whole run, whatever the number of processes;
`tokens` says what fits into memory, and the result does not depend on it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue

from rlaif.records import Record

Method = Literal["sft", "reward", "dpo"]


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


class TrainSettings(Record):
    """What every trainer takes."""

    model: str = Field(min_length=1)
    """Model to start from: a folder, a hub name, or a shipped model."""
    data: str = Field(min_length=1)
    """A run folder, a file of rows (JSONL, Parquet, ...), or a `datasets` name."""
    output: str = Field(min_length=1)
    """Folder for the trained model, its card, curves and checkpoints."""
    held_data: str | None = None
    """Held-out rows to evaluate on; without it, `holdout` of the prompts are set aside."""
    holdout: float = Field(0.05, ge=0, lt=1)
    """Share of the prompts, drawn by hash, that is evaluated on and not trained on."""
    limit: int | None = Field(None, ge=1)
    """Only the first rows."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """`auto`: messages by the chat template, texts as they are; `chat`, `plain`: all by the template, or by none."""
    max_length: int = Field(1024, ge=8)
    """Most tokens of a prompt with its completion; longer prompts lose their beginning."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the data."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after so many optimizer steps, whatever the epochs."""
    batch_size: int = Field(16, ge=1)
    """Rows of an optimizer step, over all processes."""
    tokens: int = Field(8192, ge=64)
    """Most tokens of one forward pass of a process: the bigger, the more memory. The result stays the same."""
    learning_rate: float = Field(1e-5, gt=0)
    """Highest learning rate. For a LoRA adapter, ten times as much is usual."""
    schedule: Literal["linear", "cosine", "constant", "cosine_with_min_lr"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = Field(0.0, ge=0)
    """Of AdamW."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Longer gradients are shortened to this; 0 leaves them."""
    optimizer: str = "adamw_torch_fused"
    """A name that transformers' TrainingArguments take: adamw_torch, adamw_torch_fused, adafactor, ..."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`bfloat16` computes in it and keeps weights and sums in float32; auto takes it on GPUs that have it."""
    attention: Literal["auto", "sdpa", "eager", "flex_attention"] = "auto"
    """How attention is computed; auto is what transformers picks for the model."""
    lora: LoraSettings = LoraSettings()
    four_bit: bool = False
    """Load the weights in 4 bits (QLoRA, arXiv:2305.14314; needs bitsandbytes and a LoRA rank)."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: a third more time, much less memory."""
    eval_steps: int | None = Field(None, ge=1)
    """Optimizer steps between evaluations; none evaluates ten times in a run."""
    patience: int | None = Field(None, ge=1)
    """Stop after so many evaluations without a better held-out loss, and keep the best weights."""
    save_steps: int | None = Field(None, ge=0)
    """Optimizer steps between checkpoints; none saves as often as it evaluates, 0 never but on Ctrl-C."""
    keep: int = Field(1, ge=1)
    """Checkpoints kept; older ones are removed, and all of them when the training is finished."""
    log_steps: int = Field(1, ge=1)
    """Optimizer steps between lines of the log."""
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where the log goes besides log.jsonl."""
    seed: int = 0
    """Of the order of rows and of new weights."""
    device: Literal["auto", "cpu"] = "auto"
    """`cpu` leaves a GPU alone."""

    def plain(self) -> dict[str, JsonValue]:
        """The settings as plain data that can be read again."""
        return self.model_dump(mode="json", exclude_none=True)

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        return Path(self.output)


class SftSettings(TrainSettings):
    """Supervised fine-tuning on demonstrations: revisions, chosen answers, or anybody's."""

    learning_rate: float = Field(2e-5, gt=0)
    """Highest learning rate. For a LoRA adapter, ten times as much is usual."""


class RewardSettings(TrainSettings):
    """A reward model on preference pairs."""

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

    loss: Literal["sigmoid", "robust", "ipo", "hinge", "sigmoid_norm", "gdpo", "simpo", "orpo", "kto"] = "sigmoid"
    """`sigmoid` is DPO (arXiv:2305.18290); `simpo` and `orpo` need no reference; `kto` takes single answers."""
    beta: float = Field(0.1, gt=0)
    """How dear it is to leave the reference; for ipo its tau, for simpo 2 to 10, for sigmoid_norm about 5."""
    soft_labels: bool = True
    """Take each pair's `probability` as its target; without it every pair counts as certain."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of labels taken to be wrong (cDPO); for robust its epsilon."""
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
    learning_rate: float = Field(1e-6, gt=0)
    """Highest learning rate. For a LoRA adapter, ten times as much is usual."""
    reference: str | None = None
    """Another model as the reference; none takes the model as it is at the start."""
    reference_cache: str | None = None
    """Folder of reference log-probabilities; none takes ~/.cache/rlaif/references (XDG_CACHE_HOME is heeded)."""


SETTINGS: dict[Method, type[TrainSettings]] = {"sft": SftSettings, "reward": RewardSettings, "dpo": DpoSettings}
