"""Groups as tensors: which tokens share a row, what each may attend to, and which hidden state predicts which token.

A group is one row, `[prompt | completion 1 | completion 2 | ...]`: the prompt is computed once. A completion sees the
prompt and itself, its positions continue from the prompt's end, and its first token is predicted from the prompt's
last one, so every number is the same as for prompt and completion alone (Wang and Hegde 2024, "Accelerating Direct
Preference Optimization with Prefix Sharing", arXiv:2410.20305). With P, C and R tokens it saves P of 2P + C + R.

The layout `apart` gives every completion a row of its own, for models that cannot branch.

A sliding window reaches back in positions, not in columns: other completions may stand between a completion and its
prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlaif.training.tokenize import Group

Layout = Literal["shared", "apart"]

PADDING = -1
"""The branch of a token that fills up a row."""

_LARGE, _SIMILAR = 8, 0.85
"""A part of an eighth of the budget is large enough to be computed well: from there on, much shorter rows, which would
be filled up to its width, begin a part of their own. Of 32 dialogues of hh-rlhf with replies of 64 tokens, at 8,192
tokens a pass, that leaves 6,116 tokens of 9,500, where 5,382 are no padding."""

_FULL, _SLIDING = "full_attention", "sliding_attention"
_REST = frozenset({"linear_attention", "conv", "moe"})
"""Kinds of layers without a mask: what comes first cannot see what follows, and a branch sees the ones before it."""


class Batch(NamedTuple):
    """Groups laid out in rows. Completions are numbered through the batch, in the order of the groups."""

    input_ids: Tensor
    """[rows, length] token ids."""
    position_ids: Tensor
    """[rows, length]; a token's place in its own conversation."""
    branch: Tensor
    """[rows, length]; 0 in a prompt, k in the k-th completion after it, PADDING elsewhere."""
    sources: Tensor
    """[tokens]; for every completion token, where (row * length + column) the hidden state is that predicts it."""
    targets: Tensor
    """[tokens]; the completion tokens themselves."""
    owners: Tensor
    """[tokens]; the completion that each belongs to."""
    ends: Tensor
    """[completions]; where the last token of each completion is."""
    lengths: Tensor
    """[completions]; tokens of each completion."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))

    def summed(self, per_token: Tensor) -> Tensor:
        """[tokens] -> [completions]: what the tokens of each completion add up to."""
        return per_token.new_zeros(len(self.lengths)).index_add(0, self.owners, per_token)


def column(groups: Sequence[Group], name: str, default: float) -> Tensor:
    """[groups] float32: a number of every group."""
    return torch.tensor([group.values.get(name, default) for group in groups], dtype=torch.float32)


def lay_out(groups: Sequence[Group], layout: Layout = "shared") -> Batch:
    """The tensors of some groups."""
    rows = _Rows()
    for group in groups:
        parts = [(completion,) for completion in group.completions] if layout == "apart" else [group.completions]
        for completions in parts:
            rows.add(group.prompt, completions)
    return rows.batch()


def _ids(tokens: Sequence[int]) -> Tensor:
    """Token ids as a tensor; by way of numpy, which takes an `array` as it lies in memory."""
    return torch.as_tensor(np.asarray(tokens, dtype=np.int32))


class _Rows:
    """Rows being filled; places are noted as (row, column) until the length of the longest row is known."""

    def __init__(self) -> None:
        self.rows: list[list[Tensor]] = []
        self.lengths: list[int] = []
        self.sources: list[tuple[int, Tensor]] = []
        self.targets: list[Tensor] = []
        self.ends: list[tuple[int, int]] = []

    def add(self, prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> None:
        """A row with a prompt and its completions. Columns are ids, positions, branch."""
        self.rows.append([])
        self.lengths.append(0)
        self._append(_ids(prompt), 0, branch=0)
        cue = self.lengths[-1] - 1
        for at, completion in enumerate(completions, 1):
            ids = _ids(completion)
            start = self.lengths[-1]
            self._append(ids, len(prompt), branch=at)
            places = torch.arange(start - 1, start - 1 + len(ids))
            places[0] = cue
            row = len(self.rows) - 1
            self.sources.append((row, places))
            self.targets.append(ids.long())
            self.ends.append((row, self.lengths[-1] - 1))

    def _append(self, ids: Tensor, first_position: int, branch: int) -> None:
        size = len(ids)
        positions = torch.arange(first_position, first_position + size)
        self.rows[-1].append(torch.vstack([ids.long(), positions, torch.full((size,), branch)]))
        self.lengths[-1] += size

    def batch(self) -> Batch:
        """The rows as tensors."""
        width = max(self.lengths)
        table = torch.zeros(len(self.rows), 3, width, dtype=torch.long)
        table[:, 2] = PADDING
        for at, parts in enumerate(self.rows):
            table[at, :, : self.lengths[at]] = torch.hstack(parts)
        counts = torch.tensor([len(ids) for ids in self.targets])
        ids, positions, branch = table.unbind(1)
        return Batch(
            input_ids=ids,
            position_ids=positions,
            branch=branch,
            sources=torch.cat([row * width + places for row, places in self.sources]),
            targets=torch.cat(self.targets),
            owners=torch.arange(len(counts)).repeat_interleave(counts),
            ends=torch.tensor([row * width + column for row, column in self.ends]),
            lengths=counts,
        )


def split(groups: Sequence[Group], budget: int, layout: Layout = "shared", least: int = 1) -> list[list[int]]:
    """Cut a batch into parts of similar length, each at most `budget` tokens with its padding: what fits in memory.

    Returns indices into `groups`, longest first (an allocator's blocks are then reused, and a batch that does not fit
    fails at once), in at least `least` parts. A group longer than the budget is a part of its own.
    """
    order = sorted(range(len(groups)), key=lambda at: -_length(groups[at], layout))
    parts = list(_pack(order, groups, budget, layout))
    while len(parts) < min(least, len(groups)):
        largest = max(range(len(parts)), key=lambda at: len(parts[at]))
        part = parts[largest]
        parts[largest : largest + 1] = [part[: len(part) // 2], part[len(part) // 2 :]]
    return parts


def _pack(order: Sequence[int], groups: Sequence[Group], budget: int, layout: Layout) -> Iterator[list[int]]:
    """The groups in `order`, cut into parts of at most `budget` tokens."""
    part: list[int] = []
    cost = width = 0
    for at in order:
        rows = len(groups[at].completions) if layout == "apart" else 1
        length = _length(groups[at], layout)
        wasteful = cost >= budget / _LARGE and length < _SIMILAR * width
        if part and (cost + rows * max(width, length) > budget or wasteful):
            yield part
            part, cost, width = [], 0, 0
        width = max(width, length)
        cost += rows * width
        part.append(at)
    if part:
        yield part


def _length(group: Group, layout: Layout) -> int:
    """Tokens of the longest row of a group."""
    longest = max(map(len, group.completions))
    return len(group.prompt) + longest if layout == "apart" else group.tokens


def windows(config: Any) -> dict[str, int | None]:
    """How many positions back each kind of attention layer of a model's config sees; None is all of them.

    Raises ValueError for kinds that see something else, for instance the chunk that they are in.
    """
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    # Families that name no kinds have one; where there is no window, it is full attention under another name.
    reach = {_FULL: None, _SLIDING: window}
    kinds = dict.fromkeys(getattr(text, "layer_types", None) or [_SLIDING])
    if unknown := kinds.keys() - reach.keys() - _REST:
        raise ValueError(f"no mask is known for layers of {', '.join(sorted(unknown))}")
    return {kind: reach[kind] for kind in reach if kind in kinds}


def masks(batch: Batch, config: Any, dtype: torch.dtype) -> Any:
    """What to pass as `attention_mask`: one mask, or one for each kind of layer that the model's config names.

    A boolean tensor [rows, 1, length, length] for SDPA, an additive one of `dtype` for eager attention, a BlockMask for
    FlexAttention. Raises ValueError for kinds of layers that none of them fits.
    """
    implementation = config.get_text_config()._attn_implementation
    by_kind = {kind: _mask(batch, implementation, window, dtype) for kind, window in windows(config).items()}
    return by_kind if len(by_kind) > 1 else next(iter(by_kind.values()), None)


def _mask(batch: Batch, implementation: str, window: int | None, dtype: torch.dtype) -> Any:
    if implementation == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        rows, length = batch.input_ids.shape
        device = batch.input_ids.device
        return create_block_mask(_rule(batch, window), B=rows, H=None, Q_LEN=length, KV_LEN=length, device=device)
    seen = visible(batch, window)
    if implementation == "sdpa":
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


def _rule(batch: Batch, window: int | None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """`visible` as FlexAttention takes it: for one query and one key."""
    branch, position = batch.branch, batch.position_ids

    def rule(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001 - FlexAttention's signature
        seen = (branch[row, key] == 0) | (branch[row, key] == branch[row, query])
        seen = seen & (query >= key)
        if window is not None:
            seen = seen & (position[row, query] - position[row, key] < window)
        return seen

    return rule
