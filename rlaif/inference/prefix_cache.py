"""What the questions of a batch share is computed once.

transformers' caches of keys and values: what a model calls its own, and how their rows are moved about.

Questions that begin alike: what they have in common goes through the model once.

Our judge templates put the principle last, so that all questions about one pair of responses differ in their ends only.
A server's prefix cache gains from that; here the beginnings of a batch fill a cache of keys and values, its rows are
repeated, and the ends follow. It is the same mathematics: what comes out differs by rounding.
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

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


class Alike(NamedTuple):
    """Sequences that begin alike."""

    prefix: int
    """Tokens that all have in common; every sequence is longer. 0 for a sequence on its own."""
    members: tuple[int, ...]
    """Which sequences."""


class _Cut(NamedTuple):
    """The best groups of the first so many sequences."""

    saved: int
    """Tokens that need not be computed."""
    start: int
    """Where the last of the groups begins."""
    prefix: int
    """Tokens that this one has in common."""


def alike(sequences: Sequence[Sequence[int]]) -> list[Alike]:
    """Every sequence in one group, so that as few tokens as possible are computed. Longest common beginnings first.

    Sorted, sequences that begin alike are neighbours, and a group is a stretch of them: the best cuts are found from
    left to right (in the square of their number, which is that of one call).
    """
    order = sorted(range(len(sequences)), key=lambda at: tuple(sequences[at]))
    commons = [0, *(_common(sequences[one], sequences[other]) for one, other in itertools.pairwise(order))]
    best = [_Cut(0, 0, 0)]
    for end in range(1, len(order) + 1):
        found, prefix = _Cut(best[end - 1].saved, end - 1, 0), sys.maxsize
        for start in range(end - 2, -1, -1):
            prefix = min(prefix, commons[start + 1])
            saved = best[start].saved + (end - 1 - start) * prefix
            if saved > found.saved:
                found = _Cut(saved, start, prefix)
        best.append(found)
    groups: list[Alike] = []
    end = len(order)
    while end:
        cut = best[end]
        groups.append(Alike(cut.prefix, tuple(order[cut.start : end])))
        end = cut.start
    return sorted(reversed(groups), key=lambda group: (-group.prefix, -len(sequences[group.members[0]])))


def alone(sequences: Sequence[Sequence[int]]) -> list[Alike]:
    """Every sequence on its own, longest first."""
    return [Alike(0, (at,)) for at in sorted(range(len(sequences)), key=lambda at: -len(sequences[at]))]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with; each keeps one of its own at least."""
    most = min(len(one), len(other)) - 1
    return next((at for at in range(most) if one[at] != other[at]), most)


class PrefixPass:
    """The passes of one causal model over sequences that begin alike."""

    def __init__(self, model: Any, pad: int) -> None:
        self._model, self._pad = model, pad
        taken = inspect.signature(type(model).forward).parameters
        self._name = cache_name(model)
        self.able = bool(self._name) and "position_ids" in taken
        """Whether the model can do it; whether it does it right, `last_logits` does not tell."""
        self._short = "logits_to_keep" in taken

    def last_logits(self, sequences: Sequence[Sequence[int]], groups: Sequence[Alike], device: Any) -> Tensor:
        """[members, vocabulary]: the logits after every sequence, group by group. Every group has a prefix.

        Raises RuntimeError where this family's cache cannot be repeated.
        """
        import torch

        beginnings = [sequences[group.members[0]][: group.prefix] for group in groups]
        ends = [sequences[at][group.prefix :] for group in groups for at in group.members]
        first, mask = _padded(beginnings, self._pad, left=True)
        second, more = _padded(ends, self._pad, left=False)
        first, mask, second, more = (each.to(device) for each in (first, mask, second, more))
        out = self._call(first, mask, None, [first.shape[1] - 1])
        spread = torch.tensor([at for at, group in enumerate(groups) for _ in group.members], device=device)
        cache = out[self._name]
        if not move_rows(cache, spread):
            raise RuntimeError("a cache whose rows cannot be repeated")
        lasts = [len(each) - 1 for each in ends]
        kept = sorted(set(lasts)) if self._short else list(range(second.shape[1]))
        logits: Tensor = self._call(second, torch.cat([mask[spread], more], 1), cache, kept).logits
        place = {position: at for at, position in enumerate(kept)}
        return logits[list(range(len(ends))), [place[last] for last in lasts]]

    def _call(self, ids: Tensor, mask: Tensor, cache: Any, kept: list[int]) -> Any:
        """`mask` is over the cache as well; `kept` are the places whose logits are wanted."""
        import torch

        positions = (mask.cumsum(-1) - 1)[:, -ids.shape[1] :].clamp_(min=0)
        options: dict[str, Any] = {self._name: cache, "position_ids": positions}
        if self._short:
            options["logits_to_keep"] = torch.tensor(kept, device=ids.device)
        return self._model(input_ids=ids, attention_mask=mask, use_cache=True, **options)


def _padded(rows: Sequence[Sequence[int]], pad: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """[rows, width] ids, and 1 where they are no padding."""
    import torch

    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width, dtype=torch.long)
    for at, row in enumerate(rows):
        places = slice(width - len(row), width) if left else slice(0, len(row))
        ids[at, places], mask[at, places] = torch.tensor(row), 1
    return ids, mask


def batches(
    groups: Sequence[Alike], sequences: Sequence[Sequence[int]], rows: int, tokens: int
) -> Iterator[list[Alike]]:
    """Groups that go through the model together: of one kind (with a prefix or alone), at most `rows` sequences and
    `tokens` tokens with padding in either pass, if one group alone does not take more.
    """
    for _, kind in itertools.groupby(groups, key=lambda group: group.prefix > 0):
        batch: list[Alike] = []
        for group in (part for whole in kind for part in _parts(whole, rows)):
            if batch and not _fits([*batch, group], sequences, rows, tokens):
                yield batch
                batch = []
            batch.append(group)
        yield batch


def _parts(group: Alike, rows: int) -> Iterator[Alike]:
    """A group of more sequences than go at once, in parts."""
    for start in range(0, len(group.members), rows):
        yield Alike(group.prefix, group.members[start : start + rows])


def _fits(batch: Sequence[Alike], sequences: Sequence[Sequence[int]], rows: int, tokens: int) -> bool:
    members = sum(len(group.members) for group in batch)
    longest = max(len(sequences[at]) for group in batch for at in group.members)
    return members <= rows and members * longest <= tokens
