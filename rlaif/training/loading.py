"""Models to train: loaded without dropout, with a scalar head for rewards, with an adapter where one is asked for."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlaif.errors import UserError
from rlaif.inference.folder import model_folder
from rlaif.inference.quiet import quiet
from rlaif.training.settings import LoraSettings, TrainSettings


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model's folder. Raises UserError where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError("no tokenizer here", where=folder, mend="save the model together with its tokenizer") from error


def load_policy(settings: TrainSettings) -> Any:
    """A causal language model, ready to be trained."""
    from transformers import AutoModelForCausalLM

    _require_trainable(settings)
    model = _load(AutoModelForCausalLM, settings, {})
    return _ready(model, settings, "CAUSAL_LM")


def load_frozen(settings: TrainSettings) -> Any:
    """A causal language model that is not trained."""
    from transformers import AutoModelForCausalLM

    model = _load(AutoModelForCausalLM, settings, {})
    without_dropout(model)
    return model.requires_grad_(False)


def load_reward_model(settings: TrainSettings, pad: int) -> Any:
    """A model with one number for an output, ready to be trained.

    Where the model has no such head yet, it gets one with weights from N(0, 1 / (hidden + 1)): rewards start around 0
    with a spread near 1 (Stiennon et al. 2020, arXiv:2009.01325; Huang et al. 2024, arXiv:2403.17031, detail 12).
    """
    from transformers import AutoModelForSequenceClassification

    _require_trainable(settings)
    folder = model_folder(settings.model)
    with _fixed_seed(settings.seed):
        model, found = _load(
            AutoModelForSequenceClassification, settings, {"num_labels": 1, "output_loading_info": True}, folder
        )
        head = getattr(model, "score", None)
        if isinstance(head, nn.Linear) and any("score" in name for name in found["missing_keys"]):
            nn.init.normal_(head.weight, std=1 / math.sqrt(head.in_features + 1))
    model.config.get_text_config().pad_token_id = pad
    model.config.id2label, model.config.label2id = {0: "reward"}, {"reward": 0}
    return _ready(model, settings, "SEQ_CLS")


def _require_trainable(settings: TrainSettings) -> None:
    if settings.four_bit and settings.lora.rank is None:
        raise UserError("4-bit weights cannot be trained themselves", mend="set `lora.rank`, for instance 16")


def _load(kind: Any, settings: TrainSettings, options: dict[str, Any], folder: Path | None = None) -> Any:
    folder = folder or model_folder(settings.model)
    if settings.attention != "auto":
        options = options | {"attn_implementation": settings.attention}
    if settings.four_bit:
        options = options | {"quantization_config": _four_bit()}
    try:
        with quiet():
            return kind.from_pretrained(folder, dtype=torch.float32, **options)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().partition("\n")[0]
        raise UserError(f"cannot be loaded: {first}", where=settings.model, mend="name another model") from error


def _four_bit() -> Any:
    from transformers import BitsAndBytesConfig

    try:
        import bitsandbytes  # type: ignore[import-not-found, unused-ignore] # noqa: F401 - transformers only says that it fails
    except ImportError as error:
        raise UserError("`four_bit` needs bitsandbytes", mend="pip install bitsandbytes") from error
    kind: Any = BitsAndBytesConfig
    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return kind(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, **options)


def _ready(model: Any, settings: TrainSettings, task: str) -> Any:
    without_dropout(model)
    if settings.gradient_checkpointing:
        model.enable_input_require_grads()  # gives a frozen embedding's output a gradient to be checkpointed with
    if settings.lora.rank is None:
        return model
    with _fixed_seed(settings.seed):
        return with_adapter(model, settings.lora, task)


def without_dropout(model: nn.Module) -> None:
    """Turn all dropout off: policy and reference must be the same function, and a resumed run the same run."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):  # `attention_dropout`, `hidden_dropout`, `attn_dropout_p`
                setattr(module, name, 0.0)


def with_adapter(model: Any, lora: LoraSettings, task: str) -> Any:
    """The model with a LoRA adapter in its linear layers, everything else frozen but a reward model's head."""
    from peft import LoraConfig, get_peft_model

    assert lora.rank is not None
    kind: Any = LoraConfig  # its alpha may be a fraction, whatever its type says
    config = kind(
        r=lora.rank,
        lora_alpha=lora.alpha if lora.alpha is not None else 2 * lora.rank,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) or "all-linear",
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
        task_type=task,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        what = str(error).partition(". ")[0]
        raise UserError(f"no adapter fits: {what}", where="lora.targets", mend="name layers of the model") from error


def merged(model: Any) -> Any:
    """The whole model with its adapter added to the weights."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


@contextlib.contextmanager
def _fixed_seed(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
