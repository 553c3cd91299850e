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


def masks(batch: Batch, config: Any, dtype: torch.dtype) -> Any:
    """What to pass as `attention_mask`: one mask, or one for each kind of layer that the model's config names.

    A boolean tensor [rows, 1, length, length] for SDPA, an additive one of `dtype` for eager attention, a BlockMask for
    FlexAttention.
    """
    window = getattr(config, "sliding_window", None)
    kinds = {_FULL: None, _SLIDING: window}
    present = [kind for kind in kinds if kind in (getattr(config, "layer_types", None) or ())]
    if len(present) > 1:
        return {kind: _mask(batch, config, kinds[kind], dtype) for kind in present}
    return _mask(batch, config, kinds[present[0]] if present else window, dtype)


def _mask(batch: Batch, config: Any, window: int | None, dtype: torch.dtype) -> Any:
    if config._attn_implementation == "flex_attention":
        return _block_mask(batch, window)
    seen = visible(batch, window)
    if config._attn_implementation == "sdpa":
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
