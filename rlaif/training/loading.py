"""Models to train: loaded without dropout, with a scalar head for rewards, with an adapter where one is asked for.

Weights that are trained are float32. Those that are not (under an adapter, of another model as the reference) are
bfloat16 where the training computes in it: half the memory.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlaif.errors import UserError
from rlaif.inference import merging
from rlaif.inference.files import read_json
from rlaif.inference.opening import open_model, untie
from rlaif.training.arguments import narrow
from rlaif.training.rewardmodel import figures_of
from rlaif.training.saving import type_of
from rlaif.training.settings import CommonSettings, LoraSettings
from rlaif.training.starts import Start, find_start, lasting_name


def load_policy(settings: CommonSettings) -> Any:
    """A causal language model, ready to be trained."""
    _require_trainable(settings)
    return _ready(_causal(settings, weights_type(settings)), settings, "CAUSAL_LM")


def load_frozen(settings: CommonSettings, dtype: torch.dtype) -> Any:
    """A causal language model that is not trained."""
    model = _causal(settings, dtype)
    without_dropout(model)
    return model.requires_grad_(False)


def weights_type(settings: CommonSettings) -> torch.dtype:
    """The type of the weights in memory; under an adapter of those that stay as they are.

    Where they are saved again with the adapter added, no digit of theirs may be lost.
    """
    if settings.lora.rank is None or not narrow(settings):
        return torch.float32
    whole = settings.lora.merge and type_of(find_start(settings.model).weights) != torch.bfloat16
    return torch.float32 if whole else torch.bfloat16


def _causal(settings: CommonSettings, dtype: torch.dtype) -> Any:
    start = find_start(settings.model)
    model, _ = open_model(start.parts, "language", dtype, where=settings.model, options=_options(settings, start))
    return _trainable(model, start)


def _trainable(model: Any, start: Start) -> Any:
    """The model after PEFT, which froze all of it, has added an adapter to its weights."""
    return model.requires_grad_(True) if start.adapter is not None else model


def load_reward_model(settings: CommonSettings, pad: int) -> Any:
    """A model with one number for an output, ready to be trained.

    Where the model has no such head yet, it gets one with weights from N(0, 1 / (hidden + 1)): rewards start around 0
    with a spread near 1 (Stiennon et al. 2020, arXiv:2009.01325; Huang et al. 2024, arXiv:2403.17031, detail 12). The
    head is float32 whatever the rest is.
    """
    _require_trainable(settings)
    start, dtype = find_start(settings.model), weights_type(settings)
    _require_one_output(start.weights)
    with _fixed_seed(settings.seed):
        model, fresh = open_model(
            start.parts, "reward", dtype, where=settings.model, new_head=True, options=_options(settings, start)
        )
        head = getattr(model, "score", None)
        if isinstance(head, nn.Linear):
            head.float()
            if fresh:  # whatever its class makes of one
                nn.init.normal_(head.weight, std=1 / math.sqrt(head.in_features + 1))
            elif start.adapter is None and (kept := _kept_head(start.weights)) is not None:
                head.weight.data.copy_(kept)
    config = model.config
    config.get_text_config().pad_token_id = pad
    config.id2label, config.label2id = {0: "reward"}, {"reward": 0}
    config.update(figures_of(start.parts))
    return _ready(_trainable(model, start), settings, "SEQ_CLS")


def _require_trainable(settings: CommonSettings) -> None:
    if settings.four_bit and settings.lora.rank is None:
        raise UserError("4-bit weights cannot be trained themselves", mend="set `lora.rank`, for instance 16")


def _require_one_output(folder: Path) -> None:
    config = read_json(folder / "config.json")
    (kind, *_) = config.get("architectures") or [""]
    labels = len(config.get("id2label") or ()) or config.get("num_labels", 2)
    if kind.endswith("ForSequenceClassification") and labels != 1:
        mend = "start from a language model, or from a reward model"
        raise UserError(f"is a classifier with {labels} outputs, not one reward", where=folder, mend=mend)


def _kept_head(folder: Path) -> torch.Tensor | None:
    """A reward head with all digits that its file has, whatever type the rest is loaded in."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            if "score.weight" in file.keys():  # noqa: SIM118 - not a mapping
                return torch.as_tensor(file.get_tensor("score.weight")).float()
    return None


def _options(settings: CommonSettings, start: Start) -> dict[str, Any]:
    """How the weights are loaded."""
    options: dict[str, Any] = {}
    if settings.attention != "auto":
        options["attn_implementation"] = settings.attention
    if settings.four_bit and start.adapter is not None:
        mend = "save it with `lora.merge: true`, or leave `four_bit` out"
        raise UserError("is an adapter, which 4-bit weights cannot take up", where=settings.model, mend=mend)
    if settings.four_bit:
        options["quantization_config"] = _four_bit()
    return options


def _four_bit() -> Any:
    from transformers import BitsAndBytesConfig

    try:
        import bitsandbytes  # type: ignore[import-not-found, unused-ignore] # noqa: F401 - transformers only says that it fails
    except ImportError as error:
        raise UserError("`four_bit` needs bitsandbytes", mend="pip install bitsandbytes") from error
    kind: Any = BitsAndBytesConfig
    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return kind(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, **options)


def _ready(model: Any, settings: CommonSettings, task: str) -> Any:
    without_dropout(model)
    if settings.gradient_checkpointing:
        _recompute(model, settings)
    if settings.lora.rank is None:
        return model
    with _fixed_seed(settings.seed):
        made = with_adapter(model, settings.lora, task)
    made.peft_config["default"].base_model_name_or_path = lasting_name(settings.model)
    return made


def _recompute(model: Any, settings: CommonSettings) -> None:
    """Let its layers forget what they computed until it is asked for again; only while it learns, in training mode."""
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        what = f"{type(model).__name__} knows no `gradient_checkpointing`"
        raise UserError(what, where=settings.model, mend="leave it out, and lower `tokens`") from error
    model.enable_input_require_grads()  # gives a frozen embedding's output a gradient to be checkpointed with


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
    if lora.targets and any(_is_target(model, table, lora.targets) for table in ("input", "output")):
        untie(model)  # or what is added to the one were added to both when they are merged
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


def _is_target(model: Any, table: str, targets: Sequence[str]) -> bool:
    """Whether a model's embeddings, or its head, are among the layers that get an adapter."""
    wanted = getattr(model, f"get_{table}_embeddings")()
    name = next((name for name, each in model.named_modules() if each is wanted), "")
    return any(name == target or name.endswith(f".{target}") for target in targets)


def merged(model: Any) -> Any:
    """The whole model with its adapter added to the weights. Raises UserError where that makes another model of it."""
    if not hasattr(model, "merge_and_unload"):
        return model
    return merging.merged(model, "lora.merge", mend="leave it out: the adapter is saved as it is")


@contextlib.contextmanager
def _fixed_seed(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
