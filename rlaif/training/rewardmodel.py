"""Reward models, loaded to score with: whole ones, adapters, ours and those of others."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rlaif.errors import UserError
from rlaif.inference.folder import load_tokenizer, model_folder
from rlaif.inference.quiet import quiet
from rlaif.training.forward import bare
from rlaif.training.learned import Learned, learned_of
from rlaif.training.tokens import Tokens, end_ids, pad_id

ADAPTER_FILE = "reward.json"
"""Of an adapter, what a whole model's config.json says about its rewards."""


class Loaded(NamedTuple):
    """A reward model, ready to score."""

    model: Any
    tokenizer: Any
    ends: frozenset[int]
    """Tokens that end a reply beside the tokenizer's own."""
    learned: Learned
    """How texts became tokens when it was trained; of models of others nothing is known."""
    max_length: int | None
    narrow: bool
    """Computes in bfloat16, as its training did; weights and rewards stay in float32."""

    def tokens(self, max_length: int | None = None, template_options: Mapping[str, Any] | None = None) -> Tokens:
        """Turns texts into what it scores, as in its training unless something else is given."""
        options = self.learned.template_options if template_options is None else template_options
        longest = max_length or self.max_length
        return Tokens(self.tokenizer, max_length=longest, ends=self.ends, template_options=options)


def load(name: str, device: str = "auto") -> Loaded:
    """The reward model in a folder or on the hub, whole or as an adapter, on the GPU where there is one.

    Raises UserError for a model that is none.
    """
    folder = _adapter(name) or model_folder(name)
    tokenizer = load_tokenizer(folder)
    try:
        with quiet():
            model = _adapted(folder) if (folder / "adapter_config.json").is_file() else _whole(folder)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().partition("\n")[0]
        raise UserError(f"cannot be loaded: {first}", where=name, mend="name a reward model") from error
    config = model.config.get_text_config()
    if config.pad_token_id is None:
        config.pad_token_id = pad_id(tokenizer)
    with_gpu = device == "auto" and torch.cuda.is_available()
    trained = _trained_with(folder)
    longest = trained.get("max_length", getattr(config, "max_position_embeddings", None))
    ends = ends_of(folder)
    dtype = trained.get("dtype", "auto")
    narrow = dtype == "bfloat16" or (dtype == "auto" and with_gpu and torch.cuda.is_bf16_supported())
    return Loaded(model.to("cuda" if with_gpu else "cpu").eval(), tokenizer, ends, learned_of(folder), longest, narrow)


def _adapter(name: str) -> Path | None:
    folder = Path(name).expanduser()
    return folder if (folder / "adapter_config.json").is_file() else None


def _whole(folder: Path) -> Any:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(folder)
    kind = next(iter(config.architectures or ()), "")
    if kind.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        raise _no_reward_model(folder, f"is a {kind}: its reward head would be a new one, with random weights")
    if config.num_labels != 1:
        raise _no_reward_model(folder, f"has {config.num_labels} outputs, not one reward")
    kinds = AutoModelForSequenceClassification
    model, found = kinds.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if found["missing_keys"]:
        missing = ", ".join(sorted(found["missing_keys"])[:3])
        raise _no_reward_model(folder, f"lacks weights of a reward model ({missing})")
    return model


def _adapted(folder: Path) -> Any:
    """An adapter added to the weights that it was trained on."""
    from peft import PeftConfig, PeftModel
    from transformers import AutoConfig, AutoModelForSequenceClassification

    about = PeftConfig.from_pretrained(str(folder))
    if about.task_type != "SEQ_CLS":
        raise _no_reward_model(folder, f"is an adapter of the type {about.task_type}, without a reward head")
    base = model_folder(str(about.base_model_name_or_path))
    config = AutoConfig.from_pretrained(base, num_labels=1)
    with contextlib.suppress(FileNotFoundError):
        config.update(json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8")))
    model = AutoModelForSequenceClassification.from_pretrained(base, config=config, dtype=torch.float32)
    return PeftModel.from_pretrained(model, folder).merge_and_unload()


def _no_reward_model(folder: Path, what: str) -> UserError:
    return UserError(f"no reward model: {what}", where=folder, mend="`rlaif train reward` trains one")


def _trained_with(folder: Path) -> dict[str, Any]:
    """The settings of the training that made a model, where it was ours."""
    with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
        settings: dict[str, Any] = json.loads((folder / "train.json").read_text(encoding="utf-8"))["settings"]
        return {name: settings[name] for name in ("max_length", "dtype") if name in settings}
    return {}


def ends_of(folder: Path) -> frozenset[int]:
    """The tokens that end a reply, of the generation config in a folder, if there is one."""
    from transformers import GenerationConfig

    with contextlib.suppress(OSError):
        return end_ids(GenerationConfig.from_pretrained(folder))
    return frozenset()


def mean_of(model: Any) -> float:
    """The mean that a model was centred on (see `centering`); 0 where it was not."""
    return float(getattr(bare(model).config, "reward_mean", None) or 0.0)
