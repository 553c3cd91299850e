"""Tiny random models of many families, large enough in their weights that attention matters."""

from __future__ import annotations

from typing import Any

VOCABULARY = 120
_SIZE = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_MLP = {"intermediate_size": 48, "max_position_embeddings": 256, "initializer_range": 0.3}
_COMMON = {**_SIZE, **_IDS, **_MLP}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_MIXED = ["sliding_attention", "full_attention"]

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _GROUPED),
    "qwen3": ("Qwen3", {**_GROUPED, "head_dim": 8}),
    "qwen3-sliding": (
        "Qwen3",
        {**_GROUPED, "head_dim": 8, "use_sliding_window": True, "sliding_window": 5, "layer_types": _MIXED},
    ),
    "gemma2": (
        "Gemma2",
        {
            **_GROUPED, "head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0,
        },
    ),
    "gemma3": ("Gemma3Text", {**_GROUPED, "head_dim": 8, "sliding_window": 5, "layer_types": _MIXED}),
    "mistral": ("Mistral", {**_GROUPED, "sliding_window": 4}),
    "gpt2": (
        "GPT2",
        {**_IDS, "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256,
         "initializer_range": 0.3},
    ),
    "phi": ("Phi", _COMMON),
    "phi3": ("Phi3", _GROUPED),
    "cohere": ("Cohere", {**_GROUPED, "logit_scale": 0.25}),
    "granite": ("Granite", {**_GROUPED, "logits_scaling": 3.0, "embedding_multiplier": 2.0}),
    "olmo2": ("Olmo2", _GROUPED),
}  # fmt: skip
"""Class prefix and config."""


def make(family: str, kind: str = "CausalLM", **more: Any) -> Any:
    """A model of a family: `CausalLM`, or `SequenceClassification` with one output."""
    import torch
    import transformers

    prefix, options = FAMILIES[family]
    labels = {"num_labels": 1} if kind == "SequenceClassification" else {}
    config = getattr(transformers, f"{prefix}Config")(**{**options, **labels, **more})
    torch.manual_seed(4)
    maker = "AutoModelFor" + kind
    return getattr(transformers, maker).from_config(config).eval()
