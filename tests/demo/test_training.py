"""The training code: packed rows teach what separate rows teach, and answers are what the oracle says."""

from __future__ import annotations

import itertools
import random

import pytest

from rlaif.comparisons.questions import LABELS
from rlaif.demo.grammar import Voice
from rlaif.demo.training.examples import Example, is_held_out, judge_lessons, policy_lessons
from rlaif.demo.training.loop import Schedule, loss_of
from rlaif.demo.training.models import new_model
from rlaif.demo.training.muon import orthogonal
from rlaif.demo.training.packing import Packer, batches, collate
from rlaif.demo.training.tokenizer import load_tokenizer
from rlaif.demo.words import topics
from rlaif.resources import shipped_model


@pytest.fixture(scope="module")
def packer() -> Packer:
    folder = shipped_model("demo-judge")
    assert folder is not None
    return Packer(load_tokenizer(folder))


def lessons(count: int) -> list[list[Example]]:
    return list(itertools.islice(judge_lessons(Voice(random.Random(1))), count))


def test_a_packed_row_has_the_loss_of_separate_rows(packer: Packer) -> None:
    import torch

    torch.manual_seed(1)
    model = new_model(width=64, layers=2, inner=64)
    for group in lessons(12):
        packed = loss_of(model, collate([packer.pack(group)]))
        separate = loss_of(model, collate([packer.pack([example]) for example in group]))
        assert packed.item() == pytest.approx(separate.item(), abs=1e-4)


def test_packing_reads_the_shared_beginning_once(packer: Packer) -> None:
    group = next(each for each in lessons(50) if len(each) == 4 and each[0].answer in LABELS)
    row = packer.pack(group)
    assert len(row.ids) < 0.6 * sum(len(packer.pack([example]).ids) for example in group)
    assert max(row.parts) == 4


def test_a_tie_gives_both_labels_half_the_weight(packer: Packer) -> None:
    tie = next(each for each in itertools.chain.from_iterable(lessons(50)) if each.tie)
    first, second, end = packer.pack([tie]).targets
    assert first.at == second.at == end.at - 1
    assert first.weight == second.weight == tie.weight / 2
    assert first.token != second.token


def test_batches_keep_to_their_size(packer: Packer) -> None:
    rows = map(packer.pack, policy_lessons(Voice(random.Random(2))))
    for batch in itertools.islice(batches(rows, 2048, pool=2), 8):
        assert batch.ids.numel() <= 2048
        assert batch.mask.shape == (batch.ids.shape[0], 1, batch.ids.shape[1], batch.ids.shape[1])


def test_orthogonal_makes_singular_values_nearly_one() -> None:
    import torch

    torch.manual_seed(1)
    for shape in ((8, 20), (20, 8)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert 0.5 < values.min() < values.max() < 1.5


def test_the_schedule_by_hand() -> None:
    """Warm-up to one at step 10, half way down the cosine at 60: 0.01 + 0.99 / 2; 0.01 at the end."""
    schedule = Schedule(110, warmup=10)
    assert [schedule.rate(step) for step in (0, 9, 10, 60, 110)] == pytest.approx([0.1, 1.0, 1.0, 0.505, 0.01])


def test_about_a_tenth_of_the_combinations_is_held_out() -> None:
    share = [is_held_out(topic, fault) for topic in topics() for fault in ("polite", "concise", "on-topic", "warm")]
    assert 0.06 < sum(share) / len(share) < 0.15
