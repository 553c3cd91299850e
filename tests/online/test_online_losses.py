"""Losses and weights by hand, on policies whose every sample can be gone through, and beside TRL's trainers."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlaif.rl import advantages, losses
from rlaif.rl.advantages import spread, spread_sum
from rlaif.rl.losses import Correction, Per


def near(*values: float, bound: float = 1e-5) -> Any:
    return pytest.approx(list(values), abs=bound)


def whole(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


def logs(*values: float) -> Tensor:
    return torch.tensor(values).log()


def slope(loss: Tensor, at: Tensor) -> list[float]:
    """Gradient of the sum of some losses."""
    (found,) = torch.autograd.grad(loss.sum(), at)
    return list(found.flatten().tolist())


# ρ, A, with bounds 0.8 and 1.28: loss, its gradient for log π, whether it was clipped
SURROGATE = [
    (1.0, 2.0, -2.0, -2.0, False),
    (1.25, 2.0, -2.5, -2.5, False),
    (1.5, 2.0, -2.56, 0.0, True),  # 1.28 · 2
    (0.5, 2.0, -1.0, -1.0, False),  # has become worse: goes on
    (0.5, -2.0, 1.6, 0.0, True),  # 0.8 · 2
    (1.5, -2.0, 3.0, 3.0, False),
    (4.0, -2.0, 8.0, 8.0, False),
    (1.5, 0.0, 0.0, 0.0, False),
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "gradient", "clipped"), SURROGATE)
def test_surrogate_by_hand(ratio: float, advantage: float, loss: float, gradient: float, clipped: bool) -> None:
    old = torch.tensor([-3.0])
    logps = (old + math.log(ratio)).requires_grad_()
    found = losses.clipped_surrogate(logps, old, torch.tensor([advantage]), low=0.2, high=0.28)
    assert [found.loss.item(), *slope(found.loss, logps), found.ratio.item()] == near(loss, gradient, ratio)
    assert found.clipped.tolist() == [clipped]
    assert not found.ratio.requires_grad


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [*SURROGATE[:6], (4.0, -2.0, 6.0, 0.0, True), (2.5, -2.0, 5.0, 5.0, False), (4.0, 2.0, -2.56, 0.0, True)],
)
def test_dual_clip_by_hand(ratio: float, advantage: float, loss: float, gradient: float, clipped: bool) -> None:
    """No more than 3 · 2 where the advantage is -2; nothing else changes."""
    logps = logs(ratio).requires_grad_()
    found = losses.clipped_surrogate(logps, torch.zeros(1), torch.tensor([advantage]), 0.2, 0.28, dual=3.0)
    assert [found.loss.item(), *slope(found.loss, logps)] == near(loss, gradient)
    assert found.clipped.tolist() == [clipped]


def test_dual_clip_below_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"above 1, not 0\.9"):
        losses.clipped_surrogate(torch.zeros(1), torch.zeros(1), torch.ones(1), 0.2, 0.2, dual=0.9)


@pytest.mark.parametrize("advantage", [-1.0, 1.0])
@pytest.mark.parametrize("far", [-2000.0, -100.0, 100.0, 2000.0])
def test_ratios_of_long_texts_stay_finite(far: float, advantage: float) -> None:
    logps = torch.tensor([far], requires_grad=True)
    found = losses.clipped_surrogate(logps, torch.zeros(1), torch.tensor([advantage]), 0.2, 0.2)
    assert found.loss.isfinite().all()
    assert all(map(math.isfinite, slope(found.loss, logps)))


def test_only_the_policy_and_the_values_learn() -> None:
    now, old, goal = made = [torch.full((2,), value, requires_grad=True) for value in (0.1, 0.2, 0.3)]
    for loss in (losses.clipped_surrogate(now, old, goal, 0.2, 0.2).loss, losses.value_loss(now, old, goal, 0.2)):
        found = torch.autograd.grad(loss.sum(), made, allow_unused=True)
        assert [each is not None for each in found] == [True, False, False]
    assert not losses.importance_weights(now, old, whole(2), "sequence", 2.0).requires_grad
    assert [each.tolist() for each in made] == [near(value, value) for value in (0.1, 0.2, 0.3)]


# A bandit of three arms: E[r] = 0.5·1 + 0.3·4 - 0.2·2 = 1.3, and ∂E[r]/∂logit_j = p_j (r_j - E[r]).
ARMS, PAYS, TRUE = (0.5, 0.3, 0.2), (1.0, 4.0, -2.0), (-0.15, 0.81, -0.66)


def test_the_first_epoch_is_the_policy_gradient() -> None:
    """Every ratio is 1, nothing is clipped, and the mean gradient of the loss is -∂E[r], whatever the baseline."""
    for baseline in (0.0, 1.3):
        logits = logs(*ARMS).requires_grad_()
        logps = logits.log_softmax(0)
        old, gains = logps.detach(), torch.tensor(PAYS) - baseline
        found = losses.clipped_surrogate(logps, old, gains, 0.2, 0.2)
        assert slope(old.exp() * found.loss, logits) == near(*(-each for each in TRUE))
        assert found.ratio.tolist() == [1, 1, 1]
        assert not found.clipped.any()


def test_gspo_by_hand() -> None:
    """Log-ratios 0.2 and 0.4 of one text, -0.3 of another: e^0.3 and e^-0.3."""
    old = torch.tensor([-1.0, -2.0, -1.0])
    now = old + torch.tensor([0.2, 0.4, -0.3])
    lengths = whole(2, 1)
    means = losses.per_length(now, lengths), losses.per_length(old, lengths)
    assert means[1].tolist() == near(-1.5, -1.0)
    found = losses.clipped_surrogate(*means, torch.tensor([1.0, 1.0]), 0.2, 0.2)
    assert found.ratio.tolist() == near(1.349859, 0.740818)
    assert found.clipped.tolist() == [True, False]


@pytest.mark.parametrize(
    ("value", "before", "target", "clip", "loss"),
    [
        (1.0, 0.5, 2.0, 0.2, 0.845),  # moved to 1.0, counts as 0.7: ½ max(1, 1.69)
        (1.0, 0.5, 0.0, 0.2, 0.5),  # ½ max(1, 0.49): the wrong way goes on
        (0.6, 0.5, 2.0, 0.2, 0.98),  # within the bounds
    ],
)
def test_value_loss_by_hand(value: float, before: float, target: float, clip: float, loss: float) -> None:
    found = losses.value_loss(torch.tensor([value]), torch.tensor([before]), torch.tensor([target]), clip)
    assert found.tolist() == near(loss)


def test_a_value_that_has_moved_far_is_not_pushed_further() -> None:
    values = torch.tensor([1.0, 0.6], requires_grad=True)
    found = losses.value_loss(values, torch.tensor([0.5, 0.5]), torch.tensor([2.0, 2.0]), 0.2)
    assert slope(found, values) == near(0, -1.4)  # 0.6 - 2


def test_explained_variance_by_hand() -> None:
    """Returns 1 to 4 vary by 1.25. Turned round, the rest is -3, -1, 1, 3, which varies by 5: 1 - 4."""
    returns = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert losses.explained_variance(returns, returns) == 1
    assert losses.explained_variance(returns + 7, returns) == 1
    assert losses.explained_variance(torch.full((4,), 9.0), returns) == 0
    assert losses.explained_variance(returns.flip(0), returns) == pytest.approx(-3)
    assert math.isnan(losses.explained_variance(returns, torch.ones(4)))


# Texts of two, two and one token, of which trainer/sampler is 2, 1/2 | 3, 3 | 1/2: as wholes 1, 9 and 1/2.
RATIOS, LENGTHS = (2.0, 0.5, 3.0, 3.0, 0.5), (2, 2, 1)


@pytest.mark.parametrize(
    ("mode", "cap", "expected"),
    [
        ("token", 4.0, [2, 0.5, 3, 3, 0.5]),
        ("token", 2.5, [2, 0.5, 2.5, 2.5, 0.5]),
        ("sequence", 4.0, [1, 1, 4, 4, 0.5]),
        ("sequence", 9.5, [1, 1, 9, 9, 0.5]),
        ("mask", 4.0, [1, 1, 0, 0, 0.5]),
        ("mask", 9.5, [1, 1, 9, 9, 0.5]),
    ],
)
def test_importance_weights_by_hand(mode: Correction, cap: float, expected: list[float]) -> None:
    found = losses.importance_weights(logs(*RATIOS) - 1.5, torch.full((5,), -1.5), whole(*LENGTHS), mode, cap)
    assert found.tolist() == near(*expected)


def test_importance_weights_of_hopeless_texts() -> None:
    d, zero, lengths = torch.tensor([1000.0, -1000.0]), torch.zeros(2), whole(1, 1)
    assert losses.importance_weights(d, zero, lengths, "token", 2.0).tolist() == [2, 0]
    assert losses.importance_weights(d, zero, lengths, "sequence", 2.0).tolist() == [2, 0]
    assert losses.importance_weights(d, zero, lengths, "mask", 2.0).tolist() == [0, 0]


def texts_of(first: Tensor, second: Tensor) -> Tensor:
    """Log-probabilities [9, 2] of the tokens of all texts of two tokens, the second depending on the first."""
    a, b = torch.tensor(list(itertools.product(range(3), repeat=2))).unbind(1)
    return torch.stack([first.log_softmax(0)[a], second.log_softmax(1)[a, b]], 1)


def test_weighted_means_of_the_sampler_are_the_trainers() -> None:
    """Every text of two tokens, some value of it, and a sampler with other logits."""
    random = torch.Generator().manual_seed(3)
    trainer, sampler = (
        texts_of(torch.randn(3, generator=random).double(), torch.randn(3, 3, generator=random).double())
        for _ in range(2)
    )
    value, lengths = torch.randn(9, generator=random).double(), torch.full((9,), 2)
    true = (trainer.sum(1).exp() * value).sum().item()

    def weighted(mode: Correction, cap: float, at: int) -> float:
        weights = losses.importance_weights(trainer.flatten(), sampler.flatten(), lengths, mode, cap).view(9, 2)
        return (sampler.sum(1).exp() * weights[:, at] * value).sum().item()

    plain = (sampler.sum(1).exp() * value).sum().item()
    assert weighted("sequence", math.inf, 0) == pytest.approx(true, abs=1e-12)
    assert weighted("sequence", math.inf, 1) == pytest.approx(true, abs=1e-12)
    assert weighted("mask", math.inf, 1) == pytest.approx(true, abs=1e-12)
    assert abs(plain - true) > 0.1
    assert abs(weighted("sequence", 1.5, 0) - true) > 0.01, "the cap costs exactness"
    # Of single tokens the weight leaves the first one's mismatch out: the mean over first tokens of the sampler.
    mixed = ((sampler[:, 0] + trainer[:, 1]).exp() * value).sum().item()
    assert weighted("token", math.inf, 1) == pytest.approx(mixed, abs=1e-12)


def test_single_tokens_weigh_the_same_either_way() -> None:
    p, q, lengths = logs(*ARMS).log_softmax(0), logs(0.2, 0.2, 0.6), torch.ones(3, dtype=torch.long)
    for mode in get_args(Correction):
        weights = losses.importance_weights(p, q, lengths, mode, math.inf)
        assert (q.exp() * weights * torch.tensor(PAYS)).sum().item() == pytest.approx(1.3, abs=1e-5)


@pytest.mark.parametrize(
    ("weights", "share"),
    [([1, 1, 1, 1], 1), ([5, 5], 1), ([1, 0, 0, 0], 0.25), ([2, 1], 0.9), ([0, 0], 0), ([], 0)],  # 3² / (2 · 5)
)
def test_effective_sample_size_by_hand(weights: list[float], share: float) -> None:
    assert losses.effective_sample_size(torch.tensor(weights, dtype=torch.float32)) == pytest.approx(share)


def test_mismatch_by_hand() -> None:
    """0.1 and -0.3: ½ (e^0.1 - 1.1 + e^-0.3 - 0.7) = ½ (0.005171 + 0.040818)."""
    found = losses.mismatch(torch.tensor([-0.9, -1.3]), torch.tensor([-1.0, -1.0]))
    assert list(found) == near(0.2, 0.3, 0.022995)
    p, q = logs(*ARMS), logs(0.2, 0.2, 0.6)  # each arm as often as the sampler draws it, of 10
    found = losses.mismatch(p.repeat_interleave(whole(2, 2, 6)), q.repeat_interleave(whole(2, 2, 6)))
    assert found.kl == pytest.approx((q.exp() * (q - p)).sum().item(), abs=1e-6)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("token", [0.25] * 4), ("sequence", [1 / 2, 1 / 6, 1 / 6, 1 / 6]), ("constant", [1 / 16] * 4)],
)
def test_loss_weights_by_hand(mode: Per, expected: list[float]) -> None:
    found = losses.loss_weights(whole(1, 3), mode, limit=8)
    assert found.tolist() == near(*expected)
    assert found.dtype == torch.float32


@settings(deadline=None)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=9), st.integers(0, 9), st.sampled_from(get_args(Per)))
def test_parts_of_a_step_weigh_what_they_weigh_in_the_whole(lengths: list[int], cut: int, mode: Per) -> None:
    of_all = losses.loss_weights(whole(*lengths), mode, 8)
    parts = [
        losses.loss_weights(whole(*part), mode, 8, completions=len(lengths), tokens=sum(lengths))
        for part in (lengths[:cut], lengths[cut:])
    ]
    torch.testing.assert_close(torch.cat(parts), of_all)
    if mode != "constant":
        assert of_all.sum().item() == pytest.approx(1, abs=1e-5)


class FromTrl:
    """A batch of TRL's own trainer, with other old and reference log-probabilities than those of the moment."""

    def __init__(self, kind: str, model: Path, folder: Path, **more: Any) -> None:
        if os.environ.get("CI_REQUIRE_TRL") == "1":
            import trl
        else:
            trl = pytest.importorskip("trl", reason="the extra `trl` is not installed")
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.manual_seed(1)
        prompts = [{"prompt": "Is it A or B?"}, {"prompt": "Answer with one letter."}]
        config = getattr(trl, f"{kind}Config")(
            output_dir=str(folder), per_device_train_batch_size=8, num_generations=4, max_completion_length=6,
            report_to=[], use_cpu=True, bf16=False, disable_tqdm=True, epsilon=0.2, epsilon_high=0.3, **more,
        )  # fmt: skip
        trainer = getattr(trl, f"{kind}Trainer")(
            model=AutoModelForCausalLM.from_pretrained(model), args=config, train_dataset=Dataset.from_list(prompts),
            reward_funcs=lambda completions, **_: [1.0, 0.0, 3.0, 2.0, 0.5, 2.5, 0.5, 0.0],
            processing_class=AutoTokenizer.from_pretrained(model),
        )  # fmt: skip
        batch = trainer._generate_and_score_completions([prompt for prompt in prompts for _ in range(4)])
        batch["completion_mask"][1, 3:] = 0  # texts of several lengths
        batch["completion_mask"][6, 1:] = 0
        batch["num_items_in_batch"] = batch["completion_mask"].sum()
        ids, mask = batch["completion_ids"], batch["completion_mask"].bool()
        trainer.model.eval()
        with torch.no_grad():
            logps, *_ = trainer._get_per_token_logps_and_entropies(
                trainer.model, torch.cat([batch["prompt_ids"], ids], 1),
                torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1), ids.shape[1],
            )  # fmt: skip
            old, reference = (logps + torch.randn(logps.shape) * 0.4 for _ in range(2))
            batch |= {"old_per_token_logps": old, "ref_per_token_logps": reference}
            self.lengths = mask.sum(1)
            self.logps, self.old, self.reference = logps[mask], old[mask], reference[mask]
            batch["old_logps"] = spread_sum(self.old, self.lengths)
            self.advantages = batch["advantages"]
            self.loss = float(trainer._compute_loss(trainer.model, batch))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode", "times_ratio"),
    [("grpo", "sequence", False), ("dapo", "token", True), ("dr_grpo", "constant", False)],
)
def test_grpo_losses_beside_trl(name: str, mode: Per, times_ratio: bool, tiny_model: Path, tmp_path: Path) -> None:
    """With a bound for negative advantages (its delta) and k3 in the loss, plain or times the ratio."""
    more = {"loss_type": name, "beta": 0.1, "delta": 1.5, "use_bias_correction_kl": times_ratio}
    trl = FromTrl("GRPO", tiny_model, tmp_path, **more)
    gains = spread(trl.advantages, trl.lengths)
    found = losses.clipped_surrogate(trl.logps, trl.old, gains, 0.2, 0.3, dual=1.5)
    away = advantages.estimate("k3", trl.logps, trl.reference, clamp=None)
    away = away * found.ratio if times_ratio else away
    weights = losses.loss_weights(trl.lengths, mode, limit=6)
    assert (weights * (found.loss + 0.1 * away)).sum().item() == pytest.approx(trl.loss, abs=1e-5)
    assert found.clipped.any()
    assert not found.clipped.all()


@pytest.mark.slow
def test_gspo_beside_trl(tiny_model: Path, tmp_path: Path) -> None:
    trl = FromTrl("GRPO", tiny_model, tmp_path, loss_type="grpo", importance_sampling_level="sequence", beta=0.0)
    means = losses.per_length(trl.logps, trl.lengths), losses.per_length(trl.old, trl.lengths)
    found = losses.clipped_surrogate(*means, trl.advantages, 0.2, 0.3)
    assert found.loss.mean().item() == pytest.approx(trl.loss, abs=1e-5)


@pytest.mark.slow
def test_rloo_loss_beside_trl(tiny_model: Path, tmp_path: Path) -> None:
    trl = FromTrl("RLOO", tiny_model, tmp_path, beta=0.0)
    sums = spread_sum(trl.logps, trl.lengths), spread_sum(trl.old, trl.lengths)
    found = losses.clipped_surrogate(*sums, trl.advantages, 0.2, 0.3)
    assert found.loss.mean().item() == pytest.approx(trl.loss, abs=1e-5)
    assert found.clipped.any()
