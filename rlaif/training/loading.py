"""Models to train: loaded without dropout, with a scalar head for rewards, with an adapter where one is asked for.

Weights that are trained are float32. Those that are not (under an adapter, of another model as the reference) are
bfloat16 where the training computes in it: half the memory.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlaif.errors import UserError
from rlaif.inference.quiet import quiet
from rlaif.jsontext import loads
from rlaif.training.arguments import narrow
from rlaif.training.mishaps import first_line, out_of_memory
from rlaif.training.saving import cast, type_of
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
    from transformers import AutoModelForCausalLM

    start = find_start(settings.model)
    model, missing = _load(AutoModelForCausalLM, settings, start, dtype, {})
    _require_none(missing, settings, "a language model")
    return _with_start(model, settings, start, dtype)


def load_reward_model(settings: CommonSettings, pad: int) -> Any:
    """A model with one number for an output, ready to be trained.

    Where the model has no such head yet, it gets one with weights from N(0, 1 / (hidden + 1)): rewards start around 0
    with a spread near 1 (Stiennon et al. 2020, arXiv:2009.01325; Huang et al. 2024, arXiv:2403.17031, detail 12). The
    head is float32 whatever the rest is.
    """
    from transformers import AutoModelForSequenceClassification

    _require_trainable(settings)
    start, dtype = find_start(settings.model), weights_type(settings)
    _require_one_output(start.weights)
    with _fixed_seed(settings.seed):
        model, missing = _load(AutoModelForSequenceClassification, settings, start, dtype, {"num_labels": 1})
        _require_none([name for name in missing if not name.startswith("score.")], settings, "a reward model")
        head = getattr(model, "score", None)
        if isinstance(head, nn.Linear):
            head.float()
            if missing:
                nn.init.normal_(head.weight, std=1 / math.sqrt(head.in_features + 1))
            elif (kept := _kept_head(start.weights)) is not None:
                head.weight.data.copy_(kept)
    model.config.get_text_config().pad_token_id = pad
    model.config.id2label, model.config.label2id = {0: "reward"}, {"reward": 0}
    return _ready(_with_start(model, settings, start, dtype), settings, "SEQ_CLS")


def _require_trainable(settings: CommonSettings) -> None:
    if settings.four_bit and settings.lora.rank is None:
        raise UserError("4-bit weights cannot be trained themselves", mend="set `lora.rank`, for instance 16")


def _require_none(missing: list[str], settings: CommonSettings, kind: str) -> None:
    """Weights that are missing would be random numbers."""
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        what = f"lacks weights of {kind}: {', '.join(missing[:3])}{more}"
        raise UserError(what, where=settings.model, mend="name a model that was saved whole")


def _require_one_output(folder: Path) -> None:
    config = loads((folder / "config.json").read_text(encoding="utf-8"))
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


def _load(
    kind: Any, settings: CommonSettings, start: Start, dtype: torch.dtype, options: dict[str, Any]
) -> tuple[Any, list[str]]:
    """The model in a start's folder, its adapter apart, and the names of weights that the folder does not hold."""
    from safetensors import SafetensorError

    if settings.attention != "auto":
        options = options | {"attn_implementation": settings.attention}
    if settings.four_bit:
        options = options | {"quantization_config": _four_bit()}
    if start.adapter is not None:
        dtype = torch.float32  # what comes out of adding the adapter is rounded once, afterwards
    try:
        with quiet():
            model, found = kind.from_pretrained(start.weights, dtype=dtype, output_loading_info=True, **options)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        what = f"cannot be loaded: {first_line(error)}"
        raise UserError(what, where=settings.model, mend="name another model") from error
    return model, sorted(found["missing_keys"])


def _with_start(model: Any, settings: CommonSettings, start: Start, dtype: torch.dtype) -> Any:
    """The model with the adapter that it starts from added to its weights."""
    if start.adapter is None:
        return model
    from peft import PeftConfig, PeftModel

    if settings.four_bit:
        mend = "save it with `lora.merge: true`, or leave `four_bit` out"
        raise UserError("is an adapter, which 4-bit weights cannot take up", where=settings.model, mend=mend)
    about = PeftConfig.from_pretrained(str(start.adapter))
    if about.task_type == "SEQ_CLS" and not hasattr(model, "score"):
        raise UserError("is an adapter of a reward model", where=settings.model, mend="name a language model")
    about.task_type = None  # one of a language model is added to a reward model as well: the layers are the same
    try:
        with warnings.catch_warnings(), quiet():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            model = PeftModel.from_pretrained(model, str(start.adapter), config=about).merge_and_unload()
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, UserWarning) as error:
        what = f"the adapter cannot be added to {start.weights.name}: {first_line(error)}"
        raise UserError(what, where=settings.model, mend="name another model") from error
    cast(model, dtype)
    return model.requires_grad_(True)


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
