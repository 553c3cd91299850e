"""Groups as rows, beside tensors that are written out by hand, and cut into parts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlaif.training.batches import PADDING, Batch, Layout, column, lay_out, split
from rlaif.training.tokenize import Group

PAIR = Group("pair", (10, 11, 12), ((20, 21), (30, 31, 32)))
ALONE = Group("alone", (40,), ((50, 51),))
LAYOUTS: tuple[Layout, ...] = ("shared", "apart")


def same(found: Tensor, wanted: list[int] | list[list[int]]) -> None:
    assert found.dtype == torch.int64
    assert found.tolist() == wanted


def test_a_row_for_each_group() -> None:
    batch = lay_out([PAIR, ALONE])
    same(batch.input_ids, [[10, 11, 12, 20, 21, 30, 31, 32], [40, 50, 51, 0, 0, 0, 0, 0]])
    same(batch.position_ids, [[0, 1, 2, 3, 4, 3, 4, 5], [0, 1, 2, 0, 0, 0, 0, 0]])
    same(batch.branch, [[0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 1, -1, -1, -1, -1, -1]])
    # 20 and 30 are both predicted from 12, which stands at 2; the second row begins at 8.
    same(batch.sources, [2, 3, 2, 5, 6, 8, 9])
    same(batch.targets, [20, 21, 30, 31, 32, 50, 51])
    same(batch.owners, [0, 0, 1, 1, 1, 2, 2])
    same(batch.ends, [4, 7, 10])
    same(batch.lengths, [2, 3, 2])


def test_a_row_for_each_completion() -> None:
    batch = lay_out([PAIR, ALONE], "apart")
    same(batch.input_ids, [[10, 11, 12, 20, 21, 0], [10, 11, 12, 30, 31, 32], [40, 50, 51, 0, 0, 0]])
    same(batch.position_ids, [[0, 1, 2, 3, 4, 0], [0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 0, 0]])
    same(batch.branch, [[0, 0, 0, 1, 1, -1], [0, 0, 0, 1, 1, 1], [0, 1, 1, -1, -1, -1]])
    same(batch.sources, [2, 3, 8, 9, 10, 12, 13])
    same(batch.targets, [20, 21, 30, 31, 32, 50, 51])
    same(batch.owners, [0, 0, 1, 1, 1, 2, 2])
    same(batch.ends, [4, 11, 14])
    same(batch.lengths, [2, 3, 2])


def test_sums_of_tokens_are_those_of_their_completion() -> None:
    batch = lay_out([PAIR, ALONE])
    assert batch.summed(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0])).tolist() == [3.0, 28.0, 96.0]


def test_a_column_of_values() -> None:
    groups = [Group("a", (1,), ((2,),), {"margin": 0.25}), Group("b", (1,), ((2,),))]
    found = column(groups, "margin", 1.0)
    assert found.tolist() == [0.25, 1.0] and found.dtype == torch.float32


def test_another_device() -> None:
    moved = lay_out([PAIR]).to(torch.device("meta"))
    assert {each.device.type for each in moved} == {"meta"}


ids = st.lists(st.integers(0, 99), min_size=1, max_size=7).map(tuple)
groups_of_all_kinds = st.lists(
    st.builds(Group, st.just("row"), ids, st.lists(ids, min_size=1, max_size=4).map(tuple)), min_size=1, max_size=6
)


def recovered(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Prompt and completion of every completion, by nothing but the marks that attention goes by."""
    found = []
    width = batch.input_ids.shape[1]
    for end in batch.ends.tolist():
        row, at = divmod(end, width)
        ids, branch = batch.input_ids[row], batch.branch[row]
        prompt, own = ids[branch == 0], ids[branch == branch[at]]
        found.append((prompt.tolist(), own.tolist()))
    return found


@settings(max_examples=60, deadline=None)
@given(groups_of_all_kinds, st.sampled_from(LAYOUTS))
def test_every_completion_is_found_again(groups: list[Group], layout: Layout) -> None:
    batch = lay_out(groups, layout)
    wanted = [(list(group.prompt), list(each)) for group in groups for each in group.completions]
    assert recovered(batch) == wanted
    assert [part.tolist() for part in batch.targets.split(batch.lengths.tolist())] == [each for _, each in wanted]
    flat_positions, flat_ids = batch.position_ids.flatten(), batch.input_ids.flatten()
    for owner, (prompt, completion) in enumerate(wanted):
        sources = batch.sources[batch.owners == owner]
        assert flat_ids[sources].tolist() == [prompt[-1], *completion[:-1]], "each token is predicted from the last"
        assert flat_positions[sources].tolist() == list(range(len(prompt) - 1, len(prompt) + len(completion) - 1))
        assert flat_positions[batch.ends[owner]] == len(prompt) + len(completion) - 1
    filled = (batch.branch != PADDING).sum().item()
    apart = sum(len(prompt) + len(completion) for prompt, completion in wanted)
    assert filled == (apart if layout == "apart" else sum(group.tokens for group in groups))


def padded(groups: list[Group], part: list[int], layout: Layout) -> int:
    """Places of a part's rectangle, counted from its rows."""
    return lay_out([groups[at] for at in part], layout).input_ids.numel()


@settings(max_examples=100, deadline=None)
@given(groups_of_all_kinds, st.sampled_from(LAYOUTS), st.integers(1, 60), st.integers(1, 8))
def test_parts_hold_the_budget(groups: list[Group], layout: Layout, budget: int, least: int) -> None:
    parts = split(groups, budget, layout, least)
    assert sorted(at for part in parts for at in part) == list(range(len(groups))), "every group once"
    assert len(parts) >= min(least, len(groups)) and all(parts)
    for part in parts:
        assert len(part) == 1 or padded(groups, part, layout) <= budget
    if layout != "apart":
        longest = [max(groups[at].tokens for at in part) for part in parts]
        assert longest == sorted(longest, reverse=True), "longest first"


def test_parts_by_hand() -> None:
    """Rows of 8, 3, 5 and 2 tokens; of similar ones 8, 7, 7 and 7."""
    groups = [PAIR, ALONE, Group("c", (1, 2), ((3, 4, 5),)), Group("d", (1,), ((2,),))]
    similar = [PAIR, *(Group(name, (1, 2, 3), ((4, 5, 6, 7),)) for name in "efg")]
    assert split(similar, 16) == [[0, 1], [2, 3]]  # 8 with 7 is a rectangle of 16
    assert split(similar, 15) == [[0], [1, 2], [3]]
    assert split(similar, 24) == [[0, 1, 2], [3]]
    assert split(groups, 1) == [[0], [2], [1], [3]]
    # An eighth of the budget is 8: so large is the row of 8 itself, and 5 is shorter than 0.85 of it. 5 is smaller, so
    # that 3 joins it; the two are a rectangle of 10, and 2 is shorter than 0.85 of 5.
    assert split(groups, 64) == [[0], [2, 1], [3]]
    assert split(groups, 1000) == [[0, 2, 1, 3]]
    assert split(groups, 1000, least=3) == [[0], [2], [1, 3]]
    assert split(groups, 1000, least=9) == [[0], [2], [1], [3]]
    # Apart, two rows of 6 (3 + 3) and one of 5 are 18.
    assert split(groups, 18, "apart") == [[0], [2], [1], [3]]  # 5 is shorter than 0.85 of 6
    assert split(groups, 100, "apart") == [[0, 2], [1, 3]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_more_parts_than_needed_for_equal_rows(layout: Layout) -> None:
    """20 pairs of 8 tokens (12 apart) with a budget of 48."""
    pairs = [Group(str(at), (1, 2, 3, 4), ((5, 6), (7, 8))) for at in range(20)]
    cost = 12 if layout == "apart" else 8
    assert len(split(pairs, 48, layout)) == math.ceil(20 / (48 // cost))
