"""Who sees whom, beside two loops that follow the rule in words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlaif.training import batches
from rlaif.training.batches import Batch, Layout, lay_out, masks, visible
from rlaif.training.tokenize import Group

GROUPS = [
    Group("three", (1, 2, 3, 4), ((5, 6, 7), (8, 9), (10, 11, 12, 13))),
    Group("one", (1, 2), ((3,),)),
    Group("two", (1,), ((2, 3), (4,))),
]
LAYOUTS: tuple[Layout, ...] = ("shared", "apart")


def conversations(layout: Layout) -> list[list[tuple[int, str, int] | None]]:
    """Every row as (conversation, part, place in the conversation); None is padding. Written without `lay_out`."""
    rows: list[list[tuple[int, str, int] | None]] = []
    number = 0
    for group in GROUPS:
        together = [[each] for each in group.completions] if layout == "apart" else [list(group.completions)]
        for completions in together:
            row: list[tuple[int, str, int] | None] = [(number, "prompt", at) for at in range(len(group.prompt))]
            for name, completion in enumerate(completions):
                start = len(group.prompt)
                row += [(number, f"completion {name}", start + at) for at in range(len(completion))]
            number += 1
            rows.append(row)
    width = max(map(len, rows))
    return [row + [None] * (width - len(row)) for row in rows]


def sees(one: tuple[int, str, int], other: tuple[int, str, int], window: int | None) -> bool:
    """A token sees itself and what stands before it in its own conversation: the prompt, and its own completion."""
    conversation, part, place = one
    of, where, at = other
    if of != conversation or at > place:
        return False
    if where not in ("prompt", part):
        return False
    return window is None or place - at < window


@pytest.mark.parametrize("window", [None, 3, 1])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_visible_follows_the_rule(layout: Layout, window: int | None) -> None:
    """A window counts places in the conversation: between a completion and its prompt there may stand other ones."""
    seen = visible(lay_out(GROUPS, layout), window)
    rows = conversations(layout)
    assert seen.shape == (len(rows), 1, len(rows[0]), len(rows[0])) and seen.dtype == torch.bool
    for row, tokens in enumerate(rows):
        for query, one in enumerate(tokens):
            for key, other in enumerate(tokens):
                found = bool(seen[row, 0, query, key])
                if one is not None:
                    wanted = other is not None and sees(one, other, window)
                    assert found == wanted, (row, one, other)


def test_padding_sees_something_of_its_row() -> None:
    """A row of a mask without any place to look at gives NaN, which the backward pass spreads to all weights."""
    for window in (None, 2):
        assert visible(lay_out(GROUPS), window).any(-1).all()


def every_place(batch: Batch, window: int | None) -> Tensor:
    """The rule of FlexAttention asked for each pair of places, as `visible` has them."""
    rows, length = batch.input_ids.shape
    rule = batches._rule(batch, window)
    row, query, key = torch.meshgrid(
        torch.arange(rows), torch.arange(length), torch.arange(length), indexing="ij"
    )  # fmt: skip
    return rule(row, torch.zeros_like(row), query, key).unsqueeze(1)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_rule_of_flex_attention_is_the_same(layout: Layout, window: int | None) -> None:
    batch = lay_out(GROUPS, layout)
    assert torch.equal(every_place(batch, window), visible(batch, window))


def test_the_block_mask_is_made_by_the_rule() -> None:
    """Of blocks of 128 places: the row of 300 tokens has three, and what no token of a block sees is left out."""
    long = [Group("long", tuple(range(100)), (tuple(range(150)), tuple(range(50))))]
    batch = lay_out(long)
    block = masks(batch, config_of("flex_attention", sliding_window=None, layer_types=None), torch.float32)
    seen = visible(batch)
    wanted = torch.stack(
        [torch.stack([part.any() for part in rows.split(128, -1)]) for rows in seen[0, 0].split(128, 0)]
    )
    assert torch.equal(block.to_dense()[0, 0].bool(), wanted)
    assert block.mask_mod(0, 0, torch.tensor(260), torch.tensor(90)).item() is True
    assert block.mask_mod(0, 0, torch.tensor(260), torch.tensor(200)).item() is False


def config_of(kind: str, **more: Any) -> Any:
    config = SimpleNamespace(_attn_implementation=kind, **more)
    return SimpleNamespace(get_text_config=lambda: config)  # of a model that also sees, it is inside of another one


def test_one_mask_or_one_for_each_kind_of_layer() -> None:
    batch = lay_out(GROUPS)
    every, near = visible(batch), visible(batch, 3)
    assert not torch.equal(every, near)
    assert torch.equal(masks(batch, config_of("sdpa"), torch.float32), every)
    assert torch.equal(masks(batch, config_of("sdpa", sliding_window=3), torch.float32), near)
    mixed = config_of("sdpa", sliding_window=3, layer_types=["full_attention", "sliding_attention"])
    found = masks(batch, mixed, torch.float32)
    assert sorted(found) == ["full_attention", "sliding_attention"]
    assert torch.equal(found["full_attention"], every) and torch.equal(found["sliding_attention"], near)
    full = config_of("sdpa", sliding_window=3, layer_types=["full_attention"] * 2)
    assert torch.equal(masks(batch, full, torch.float32), every)
    slid = config_of("sdpa", sliding_window=3, layer_types=["sliding_attention"] * 2)
    assert torch.equal(masks(batch, slid, torch.float32), near)


def test_kinds_of_layers_that_no_mask_is_known_for() -> None:
    """Recurrent layers take none, and those beside them their own; of chunks that a token is in we know nothing."""
    batch = lay_out(GROUPS)
    beside = config_of("sdpa", sliding_window=3, layer_types=["linear_attention", "conv", "full_attention"])
    assert torch.equal(masks(batch, beside, torch.float32), visible(batch))
    assert masks(batch, config_of("sdpa", layer_types=["linear_attention"]), torch.float32) is None
    with pytest.raises(ValueError, match="no mask is known for layers of chunked_attention"):
        masks(batch, config_of("sdpa", layer_types=["full_attention", "chunked_attention"]), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eager_attention_gets_a_mask_to_add(dtype: torch.dtype) -> None:
    batch = lay_out(GROUPS)
    added = masks(batch, config_of("eager"), dtype)
    assert added.dtype == dtype
    assert torch.equal(added == 0, visible(batch))
    assert (added[~visible(batch)] == torch.finfo(dtype).min).all()
