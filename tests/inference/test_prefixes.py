"""Sequences that begin alike: grouped as well as can be, and computed as if each went through the model alone."""

from __future__ import annotations

import itertools
from threading import Event
from typing import Any

import pytest
import torch  # noqa: TID253
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.inference.transformers_model import Alike, Loaded, PrefixPass, Row, alike, alone, batches
from rlaif.store import shipped_model
from tests.inference.questions import label_question
from tests.training.families import make


def test_groups_by_hand() -> None:
    """Two pairs that begin alike, with little in common between them, and one on its own."""
    sequences = [[1, 2, 3, 4, 5], [9, 9], [1, 2, 3, 4, 6, 7], [1, 8, 8, 8, 1], [1, 8, 8, 8, 2]]
    assert alike(sequences) == [Alike(4, (0, 2)), Alike(4, (3, 4)), Alike(0, (1,))]
    # Together they would save 2 tokens, apart the second and the third save 3.
    assert alike([[1, 2], [1, 3, 4, 5, 6], [1, 3, 4, 7]]) == [Alike(3, (1, 2)), Alike(0, (0,))]


def test_equal_sequences_keep_a_token_of_their_own() -> None:
    assert alike([[4, 5, 6], [4, 5, 6]]) == [Alike(2, (0, 1))]
    assert alike([[4], [4]]) == [Alike(0, (0,)), Alike(0, (1,))]
    assert alike([[4], [4, 5]]) == [Alike(0, (1,)), Alike(0, (0,))]
    assert alike([]) == []


few = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=7)


def computed(groups: list[Alike], sequences: list[list[int]]) -> int:
    return sum(group.prefix + sum(len(sequences[at]) - group.prefix for at in group.members) for group in groups)


def common(sequences: list[list[int]]) -> int:
    """Tokens in common, where one is left to each, by comparing them column by column."""
    if len(sequences) < 2:
        return 0
    least = min(map(len, sequences)) - 1
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False))
    return min(least, len(list(same)))


def cheapest(sequences: list[list[int]]) -> int:
    """The fewest tokens over all ways to cut the sorted sequences."""
    rows = sorted(sequences)
    ways = []
    for cuts in itertools.product((False, True), repeat=len(rows) - 1):
        groups: list[list[list[int]]] = [[rows[0]]]
        for cut, row in zip(cuts, rows[1:], strict=True):
            groups = [*groups, [row]] if cut else [*groups[:-1], [*groups[-1], row]]
        ways.append(sum(common(each) + sum(len(row) - common(each) for row in each) for each in groups))
    return min(ways)


@settings(max_examples=200, deadline=None)
@given(few)
def test_no_way_to_cut_computes_fewer_tokens(sequences: list[list[int]]) -> None:
    found = alike(sequences)
    assert sorted(at for group in found for at in group.members) == list(range(len(sequences)))
    for group in found:
        assert len({tuple(sequences[at][: group.prefix]) for at in group.members}) == 1
        assert all(len(sequences[at]) > group.prefix for at in group.members)
    assert computed(found, sequences) == cheapest(sequences)


def test_batches_hold_their_bounds_and_one_kind() -> None:
    sequences = [[1, 2, at] for at in range(3, 8)] + [[4, 4, at] for at in range(2)] + [[9, 9, 9, 9]]
    groups = alike(sequences)
    assert [group.prefix for group in groups] == [2, 2, 0]
    found = list(batches(groups, sequences, 4, 1000))
    assert [[len(group.members) for group in batch] for batch in found] == [[4], [1, 2], [1]]
    found = list(batches(groups, sequences, 8, 9))
    assert [[len(group.members) for group in batch] for batch in found] == [[5], [2], [1]], "9 tokens hold 3 rows of 3"
    assert list(batches([], [], 4, 9)) == []


@pytest.mark.parametrize("family", ["llama", "qwen3-sliding", "gemma2", "gemma3", "mistral", "gpt2", "cohere"])
def test_logits_are_those_of_each_sequence_alone(family: str) -> None:
    """Beginnings and ends of different lengths, longer and shorter than the windows of four and five tokens."""
    model, drawn = make(family), torch.Generator().manual_seed(3)
    texts = [torch.randint(3, 120, (size,), generator=drawn).tolist() for size in (11, 2, 6, 3, 1, 9, 4)]
    sequences = [
        texts[0] + texts[1],
        texts[0] + texts[2],
        texts[3] + texts[4],
        texts[3] + texts[5],
        texts[3] + texts[6],
    ]
    groups = alike(sequences)
    assert [(group.prefix, len(group.members)) for group in groups] == [(11, 2), (3, 3)]
    passes = PrefixPass(model, 0)
    assert passes.able
    with torch.inference_mode():
        found = passes.last_logits(sequences, groups, torch.device("cpu"))
        for at, logits in zip((at for group in groups for at in group.members), found, strict=True):
            wanted = model(input_ids=torch.tensor([sequences[at]]), use_cache=False).logits[0, -1]
            assert torch.allclose(logits, wanted, atol=1e-4), (logits - wanted).abs().max()


def test_a_model_that_keeps_no_keys_is_not_able() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, state_size=2))
    assert not PrefixPass(model, 0).able


QUESTIONS = [
    label_question(f"Two replies: {about}. Which of them is {how}? Answer A or B.")
    for about in ("yes and no", "a long one about boats and a short one")
    for how in ("kinder", "shorter", "the more polite one")
] + [label_question("Quite another question?")]


def loaded_rows() -> tuple[Loaded, list[Row]]:
    folder = shipped_model("demo-judge")
    assert folder is not None
    loaded = Loaded(folder, "cpu", None, {})
    rows = [loaded.row(at, question) for at, question in enumerate(QUESTIONS)]
    return loaded, [row for row in rows if isinstance(row, Row)]


def values(loaded: Loaded, rows: list[Row]) -> list[float]:
    found = {row.at: answer for row, answer in loaded.labels(rows, 32, Event())}
    assert sorted(found) == list(range(len(rows)))
    return [value for at in range(len(rows)) for value in found[at].logprobs or ()]


def test_answers_are_those_of_the_plain_pass_and_cost_less(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, rows = loaded_rows()
    seen: list[int] = []
    plain = Loaded._plain

    def counted(self: Loaded, sequences: Any) -> Any:
        seen.append(len(sequences))
        return plain(self, sequences)

    monkeypatch.setattr(Loaded, "_plain", counted)
    first, second = values(loaded, rows), values(loaded, rows)
    assert seen == [6, 1, 1], "the first batch is computed both ways; what is alone goes alone"
    loaded._prefixes.able = False
    wanted = values(loaded, rows)
    assert first == pytest.approx(wanted, abs=1e-4) and second == pytest.approx(wanted, abs=1e-4)
    assert len(set(wanted)) > 10


@pytest.mark.parametrize("error", [None, RuntimeError("a cache whose rows cannot be repeated")])
def test_a_family_that_does_it_wrong_goes_the_plain_way(
    error: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, rows = loaded_rows()
    tries: list[int] = []

    def wrong(self: PrefixPass, sequences: Any, groups: Any, device: Any) -> Any:
        tries.append(1)
        if error is not None:
            raise error
        return torch.randn(sum(len(group.members) for group in groups), 1024)

    monkeypatch.setattr(PrefixPass, "last_logits", wrong)
    found = [values(loaded, rows) for _ in range(2)]
    assert tries == [1] and not loaded._prefixes.able
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    monkeypatch.undo()
    other, rows = loaded_rows()
    assert found[0] == pytest.approx(values(other, rows), abs=1e-4)


def test_alone_is_longest_first() -> None:
    assert [group.members for group in alone([[1], [1, 2, 3], [1, 2]])] == [(1,), (2,), (0,)]
