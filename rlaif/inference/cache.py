"""transformers' caches of keys and values: what a model calls its own, and how their rows are moved about."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = ("cache", "past_key_values")
"""Since transformers 5.24, and before."""


def cache_name(model: Any) -> str:
    """What a model calls its cache of keys and values, as an argument and in what it returns; empty where it has none.

    A pure state-space model may take a cache as well, but keeps no keys and values there: a Mamba's answers from it are
    not those of its plain pass (transformers 5.24).
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    taken = inspect.signature(type(model).forward).parameters
    name = next((each for each in _NAMES if each in taken), "")
    layers = DynamicCache(config=model.config).layers if name else []
    return name if not layers or any(isinstance(layer, DynamicLayer) for layer in layers) else ""


def move_rows(cache: Any, rows: Tensor) -> bool:
    """Make row i of a cache what row rows[i] was; False where a family's cache cannot do that, and is spoilt."""
    try:
        cache.reorder_cache(rows)
    except (AttributeError, NotImplementedError, TypeError):
        return False
    return True
