"""Who may attend to whom in a batch, in the form that a model's attention takes.

A token sees what stands before it in its own branch, and in the prompt that the branches share. Models with a sliding
window see that far in positions, not in columns: between a completion and its prompt there may stand other completions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlaif.training.batches import Batch

_FULL, _SLIDING = "full_attention", "sliding_attention"
_REST = frozenset({"linear_attention", "conv", "moe"})
"""Kinds of layers without a mask: what comes first cannot see what follows, and a branch sees the ones before it."""


def windows(config: Any) -> dict[str, int | None]:
    """How many positions back each kind of attention layer of a model's config sees; None is all of them.

    Raises ValueError for kinds that see something else, for instance the chunk that they are in.
    """
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    # Families that name no kinds have one; where there is no window, it is full attention under another name.
    known = {_FULL: None, _SLIDING: window}
    kinds = dict.fromkeys(getattr(text, "layer_types", None) or [_SLIDING])
    if unknown := kinds.keys() - known.keys() - _REST:
        raise ValueError(f"no mask is known for layers of {', '.join(sorted(unknown))}")
    return {kind: known[kind] for kind in known if kind in kinds}


def masks(batch: Batch, config: Any, dtype: torch.dtype) -> Any:
    """What to pass as `attention_mask`: one mask, or one for each kind of layer that the model's config names.

    A boolean tensor [rows, 1, length, length] for SDPA, an additive one of `dtype` for eager attention, a BlockMask for
    FlexAttention. Raises ValueError for kinds of layers that none of them fits.
    """
    how = config.get_text_config()._attn_implementation
    found = {kind: _mask(batch, how, window, dtype) for kind, window in windows(config).items()}
    return found if len(found) > 1 else next(iter(found.values()), None)


def _mask(batch: Batch, how: str, window: int | None, dtype: torch.dtype) -> Any:
    if how == "flex_attention":
        return _block_mask(batch, window)
    seen = visible(batch, window)
    if how == "sdpa":
        return seen
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)


def visible(batch: Batch, window: int | None = None) -> Tensor:
    """[rows, 1, length, length] boolean: whether the token of the third axis sees the one of the fourth."""
    length = batch.input_ids.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=batch.branch.device).tril_()
    one, other = batch.branch.unsqueeze(2), batch.branch.unsqueeze(1)
    seen = earlier & ((other == 0) | (one == other))
    if window is not None:
        seen &= batch.position_ids.unsqueeze(2) - batch.position_ids.unsqueeze(1) < window
    return seen.unsqueeze(1)


def _block_mask(batch: Batch, window: int | None) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    rows, length = batch.input_ids.shape
    device = batch.input_ids.device
    return create_block_mask(_rule(batch, window), B=rows, H=None, Q_LEN=length, KV_LEN=length, device=device)


def _rule(batch: Batch, window: int | None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The same as `visible`, for one pair of places."""
    branch, position = batch.branch, batch.position_ids

    def rule(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001 - FlexAttention's signature
        seen = (branch[row, key] == 0) | (branch[row, key] == branch[row, query])
        seen = seen & (query >= key)
        if window is not None:
            seen = seen & (position[row, query] - position[row, key] < window)
        return seen

    return rule
