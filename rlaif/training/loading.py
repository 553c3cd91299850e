"""Models to train: where a training starts from, how its weights are loaded, and in which type they are saved.

A training starts from a whole model, or from a LoRA adapter with the model that it was trained on (`Start`). Models are
loaded without dropout, with a scalar head for rewards, and with a new adapter where the settings name a rank. Weights
that are trained are float32, and checkpoints keep that. Weights that are not trained (under an adapter, or of another
model as the reference) are bfloat16 where the training computes in it: half the memory. The saved model is as large as
the one that was loaded: a bfloat16 model stays one, and its config says so. The head of a reward model stays float32.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from rlaif.errors import UserError
from rlaif.inference import adapters
from rlaif.inference.model_folder import (
    ADAPTER,
    Parts,
    has_tokenizer,
    model_folder,
    open_model,
    parts_of,
    read_json,
    require_parts,
    untie,
)
from rlaif.records import content_id
from rlaif.store import draft_of, sha256_of, shipped_model, write_json
from rlaif.text import loads
from rlaif.training.config import CommonSettings, LoraSettings
from rlaif.training.tokenize import Group
from rlaif.training.trainer import narrow

_HEAD = "score."
"""Rewards have three digits in bfloat16, too few for a difference of two."""


def type_of(folder: Path) -> torch.dtype:
    """The type that a saved model's config tells; float32 where it tells none, or one that nobody trains in."""
    config = loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else {}
    named = next((at[key] for at in (config, text) for key in ("dtype", "torch_dtype") if at.get(key)), "float32")
    dtype = getattr(torch, str(named).removeprefix("torch."), None)
    return dtype if dtype in (torch.bfloat16, torch.float16) else torch.float32


def round_to(model: Any, dtype: torch.dtype) -> None:
    """Give every weight the value that it will be saved with, so that what is measured of the model holds."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not name.startswith(_HEAD):
            weight.data.copy_(weight.data.to(dtype))


def cast_files(folder: Path, dtype: torch.dtype) -> None:
    """Rewrite a folder's float32 weights in a narrower type, and its config."""
    from safetensors.torch import load_file, save_file

    if dtype == torch.float32:
        return
    size = 0
    for path in sorted(folder.glob("*.safetensors")):
        weights = load_file(path)
        for name, weight in weights.items():
            if weight.dtype == torch.float32 and not name.startswith(_HEAD):
                weights[name] = weight.to(dtype)
        size += sum(weight.nbytes for weight in weights.values())
        with draft_of(path) as draft:
            save_file(weights, draft, metadata={"format": "pt"})
    config = loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", _with_dtype(config, str(dtype).removeprefix("torch.")))
    index = folder / "model.safetensors.index.json"
    if index.exists():
        listed = loads(index.read_text(encoding="utf-8"))
        listed.setdefault("metadata", {})["total_size"] = size
        write_json(index, listed)


def _with_dtype(config: Any, dtype: str) -> Any:
    """A config, with those inside of it, that tells another type."""
    if not isinstance(config, dict):
        return config
    renamed = {name: _with_dtype(value, dtype) for name, value in config.items()}
    return renamed | {name: dtype for name in ("dtype", "torch_dtype") if isinstance(renamed.get(name), str)}


class Start(NamedTuple):
    """The folders of a model."""

    weights: Path
    """Of a whole model."""
    adapter: Path | None = None
    """Of what is added to it."""

    @property
    def tokenizer(self) -> Path:
        """The folder with the tokenizer: an adapter may have its own."""
        return self.adapter if self.adapter is not None and has_tokenizer(self.adapter) else self.weights

    @property
    def has_tokenizer(self) -> bool:
        """Whether it was saved with one."""
        return has_tokenizer(self.tokenizer)

    @property
    def parts(self) -> Parts:
        """The same for those that load it."""
        return Parts(self.weights, self.adapter, self.tokenizer)

    @property
    def size(self) -> int:
        """Bytes of weights."""
        return sum(path.stat().st_size for path in self.weights.glob("*.safetensors"))

    def hash(self) -> str:
        """A hash of all weights by content."""
        whole = weights_hash(self.weights)
        if self.adapter is None:
            return whole
        # Where it lies is nothing to what it is.
        about = read_json(self.adapter / ADAPTER) | {"base_model_name_or_path": ""}
        files = [sha256_of(path) for path in sorted(self.adapter.glob("adapter_model.*"))]
        return content_id(whole, json.dumps(about, sort_keys=True), *files)


def find_start(model: str) -> Start:
    """The folders of a model: shipped, local or on the hub. Raises UserError where there is none that can be loaded."""
    parts = parts_of(model_folder(model), rewards=True)
    require_parts(parts, model)
    return Start(parts.weights, parts.adapter)


def lasting_name(model: str) -> str:
    """What an adapter calls the model that it belongs to: a name of the hub as it is, a folder by its whole path."""
    local = shipped_model(model) or Path(model).expanduser()
    return str(local.resolve()) if local.is_dir() else model


def require_fit(model: Any, groups: Sequence[Group], name: str) -> str | None:
    """Raise UserError where the model has no embedding for a token or a position of the data.

    Returns a note where rows are longer than those that the model was made for, and it can compute them all the same.
    """
    table = model.get_input_embeddings()
    highest = max(max(ids) for group in groups for ids in (group.prompt, *group.completions))
    if isinstance(table, nn.Embedding) and highest >= table.num_embeddings:
        problem = f"has {table.num_embeddings:,} embeddings, and the tokenizer gives ids up to {highest:,}"
        raise UserError(problem, where=name, hint="take the tokenizer that belongs to it, or resize its embeddings")
    positions = positions_of(model.config)
    longest = max(len(group.prompt) + max(map(len, group.completions)) for group in groups)
    if positions is None or longest <= positions:
        return None
    message = f"the longest row has {longest:,} tokens, and the model was made for {positions:,}"
    tables = (module for name, module in model.named_modules() if "pos" in name or name.endswith("wpe"))
    # Of a table of learned positions, some models use a few rows for other ends.
    if any(isinstance(module, nn.Embedding) and 0 <= module.num_embeddings - positions <= 2 for module in tables):
        raise UserError(message, where=name, hint=f"set `max_length: {positions}`")
    return f"{message}: `max_length: {positions}` cuts what is longer"


def positions_of(config: Any) -> int | None:
    """Most tokens of a text that a model was made for, by its config; None where that does not say."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions if isinstance(positions, int) else None


def require_same_vocabulary(tokenizer: Any, other: Any, groups: Sequence[Group], name: str) -> None:
    """Raise UserError where a token of the data is another one to the reference; what is not used may differ."""
    used = sorted({token for group in groups for ids in (group.prompt, *group.completions) for token in ids})
    size = len(other)
    for at, here in zip(used, tokenizer.convert_ids_to_tokens(used), strict=True):
        there = other.convert_ids_to_tokens(at) if at < size else here
        if there not in (here, None):
            message = f"has another vocabulary than the model: token {at} is `{there}` there, and `{here}` here"
            raise UserError(message, where=name, hint="name a reference with the same tokenizer")


def load_policy(settings: CommonSettings) -> Any:
    """A causal language model, ready to be trained."""
    _require_trainable(settings)
    return _prepared_for_training(_open_causal(settings, weights_type(settings)), settings, "CAUSAL_LM")


def load_frozen(settings: CommonSettings, dtype: torch.dtype) -> Any:
    """A causal language model that is not trained."""
    model = _open_causal(settings, dtype)
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


def _open_causal(settings: CommonSettings, dtype: torch.dtype) -> Any:
    start = find_start(settings.model)
    model, _ = open_model(start.parts, "language", dtype, where=settings.model, options=_options(settings, start))
    return _unfrozen(model, start)


def _unfrozen(model: Any, start: Start) -> Any:
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
    about = read_json(start.weights / "config.json")
    (kind, *_) = about.get("architectures") or [""]
    labels = len(about.get("id2label") or ()) or about.get("num_labels", 2)
    if kind.endswith("ForSequenceClassification") and labels != 1:
        hint = "start from a language model, or from a reward model"
        raise UserError(f"is a classifier with {labels} outputs, not one reward", where=start.weights, hint=hint)
    with _fixed_seed(settings.seed):
        model, fresh = open_model(
            start.parts, "reward", dtype, where=settings.model, new_head=True, options=_options(settings, start)
        )
        head = getattr(model, "score", None)
        if isinstance(head, nn.Linear):
            head.float()
            if fresh:  # whatever its class makes of one
                nn.init.normal_(head.weight, std=1 / math.sqrt(head.in_features + 1))
            elif start.adapter is None and (saved_weight := _saved_head(start.weights)) is not None:
                head.weight.data.copy_(saved_weight)
    config = model.config
    config.get_text_config().pad_token_id = pad
    config.id2label, config.label2id = {0: "reward"}, {"reward": 0}
    config.update(figures_of(start.parts))
    return _prepared_for_training(_unfrozen(model, start), settings, "SEQ_CLS")


def _require_trainable(settings: CommonSettings) -> None:
    if settings.four_bit and settings.lora.rank is None:
        raise UserError("4-bit weights cannot be trained themselves", hint="set `lora.rank`, for instance 16")


def _saved_head(folder: Path) -> torch.Tensor | None:
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
        hint = "save it with `lora.merge: true`, or leave `four_bit` out"
        raise UserError("is an adapter, which 4-bit weights cannot take up", where=settings.model, hint=hint)
    if settings.four_bit:
        options["quantization_config"] = _four_bit()
    return options


def _four_bit() -> Any:
    from transformers import BitsAndBytesConfig

    try:
        import bitsandbytes  # type: ignore[import-not-found, unused-ignore] # noqa: F401 - transformers only says that it fails
    except ImportError as error:
        raise UserError("`four_bit` needs bitsandbytes", hint="pip install bitsandbytes") from error
    kind: Any = BitsAndBytesConfig
    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return kind(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, **options)


def _prepared_for_training(model: Any, settings: CommonSettings, task: str) -> Any:
    without_dropout(model)
    if settings.gradient_checkpointing:
        _recompute(model, settings)
    if settings.lora.rank is None:
        return model
    with _fixed_seed(settings.seed):
        adapted = with_adapter(model, settings.lora, task)
    adapted.peft_config["default"].base_model_name_or_path = lasting_name(settings.model)
    return adapted


def _recompute(model: Any, settings: CommonSettings) -> None:
    """Let its layers forget what they computed until it is asked for again; only while it learns, in training mode."""
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        message = f"{type(model).__name__} knows no `gradient_checkpointing`"
        raise UserError(message, where=settings.model, hint="leave it out, and lower `max_tokens_per_pass`") from error
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
        message = str(error).partition(". ")[0]
        raise UserError(f"no adapter fits: {message}", where="lora.targets", hint="name layers of the model") from error


def _is_target(model: Any, table: str, targets: Sequence[str]) -> bool:
    """Whether a model's embeddings, or its head, are among the layers that get an adapter."""
    wanted = getattr(model, f"get_{table}_embeddings")()
    name = next((name for name, module in model.named_modules() if module is wanted), "")
    return any(name == target or name.endswith(f".{target}") for target in targets)


def merged(model: Any) -> Any:
    """The whole model with its adapter added to the weights. Raises UserError where that makes another model of it."""
    if not hasattr(model, "merge_and_unload"):
        return model
    return adapters.merged(model, "lora.merge", hint="leave it out: the adapter is saved as it is")


@contextlib.contextmanager
def _fixed_seed(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def weights_hash(folder: Path) -> str:
    """A hash of a model's files of weights and its config, by content."""
    digest = hashlib.blake2b(digest_size=20)
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), folder / "config.json"]):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            while part := file.read(_PART):
                digest.update(part)
    return digest.hexdigest()


def figures_of(parts: Parts) -> dict[str, float]:
    """Of a reward model's adapter, what a whole model's config.json says about its rewards."""
    path = None if parts.adapter is None else parts.adapter / ADAPTER_FILE
    if path is None or not path.is_file():
        return {}
    metrics = read_json(path)
    if not all(isinstance(value, (int, float)) for value in metrics.values()):
        raise UserError("holds other things than numbers", where=path, hint="copy it from the training again")
    return metrics


_PART = 2**24


ADAPTER_FILE = "reward.json"
"""Of an adapter, what a whole model's config.json says about its rewards."""
