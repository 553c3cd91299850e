"""Reward models, loaded to score with: whole ones, adapters, ours and those of others."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rlaif.errors import UserError
from rlaif.inference.model_folder import (
    ADAPTER,
    Parts,
    load_tokenizer,
    model_folder,
    open_model,
    parts_of,
    read_json,
    require_parts,
)
from rlaif.text import loads
from rlaif.training.loading import figures_of
from rlaif.training.tokenize import TextFormat, Tokens, ends_of, pad_id, text_format_of


class Loaded(NamedTuple):
    """A reward model, ready to score."""

    model: Any
    tokenizer: Any
    ends: frozenset[int]
    """Tokens that end a reply beside the tokenizer's own."""
    learned: TextFormat
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
    folder = model_folder(name)
    parts = parts_of(folder, rewards=True)
    require_parts(parts, name)
    _require_reward(parts)
    tokenizer = load_tokenizer(parts.tokenizer)
    model, _ = open_model(parts, "reward", torch.float32, where=name)
    model.config.update(figures_of(parts))
    config = model.config.get_text_config()
    if config.pad_token_id is None:
        config.pad_token_id = pad_id(tokenizer)
    with_gpu = device == "auto" and torch.cuda.is_available()
    trained: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):  # only where the training was ours
        settings = loads((folder / "train.json").read_text(encoding="utf-8"))["settings"]
        trained = {name: settings[name] for name in ("max_length", "dtype") if name in settings}
    longest = trained.get("max_length", getattr(config, "max_position_embeddings", None))
    ends = ends_of(folder)
    dtype = trained.get("dtype", "auto")
    narrow = dtype == "bfloat16" or (dtype == "auto" and with_gpu and torch.cuda.is_bf16_supported())
    return Loaded(
        model.to("cuda" if with_gpu else "cpu").eval(), tokenizer, ends, text_format_of(folder), longest, narrow
    )


def _require_reward(parts: Parts) -> None:
    """Raise UserError for a model without a head for rewards: a new one would have random weights."""
    if parts.adapter is not None:
        kind = read_json(parts.adapter / ADAPTER).get("task_type")
        if kind != "SEQ_CLS":
            raise _no_reward_model(parts.adapter, f"is an adapter of the type {kind}, without a reward head")
        return
    config = read_json(parts.weights / "config.json")
    (kind, *_) = config.get("architectures") or [""]
    if str(kind).endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        raise _no_reward_model(parts.weights, f"is a {kind}: its reward head would be a new one, with random weights")
    labels = len(config.get("id2label") or ()) or config.get("num_labels", 2)
    if labels != 1:
        raise _no_reward_model(parts.weights, f"has {labels} outputs, not one reward")


def _no_reward_model(folder: Path, reason: str) -> UserError:
    return UserError(f"no reward model: {reason}", where=folder, hint="`rlaif train reward` trains one")
