"""Our losses beside TRL's own trainers, on the batches its trainers make: a tiny random model, on the CPU.

TRL computes the loss of a batch its way; here the log-probabilities come from one plain forward pass over the same
token ids, and go through our functions.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from rlaif.training import losses
from rlaif.training.config import PairLoss
from rlaif.training.losses import LossSettings, PairLogps, pair_loss

if os.environ.get("CI_REQUIRE_TRL") == "1":
    import trl
else:
    trl = pytest.importorskip("trl", reason="the extra `trl` is not installed")
pytestmark = pytest.mark.slow

PAIRS = [
    {"prompt": "Which reply is better?", "chosen": " A.", "rejected": " Neither, and I shall not say which."},
    {"prompt": "Answer with", "chosen": " one letter, which is B", "rejected": " no"},
    {"prompt": "Is it A or B?", "chosen": " It is A, with some doubt.", "rejected": " It is B, with none."},
    {"prompt": "Say", "chosen": " B", "rejected": " A"},
]


class Models(NamedTuple):
    policy: Path
    reference: Path


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The reference is the policy with a little noise on every weight, so that log-ratios are neither 0 nor huge."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("models") / "reference"
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.03)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return Models(tiny_model, folder)


def load(folder: Path, *, reward: bool = False) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.manual_seed(3)  # the reward head is not in the folder
    kind = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    return kind.from_pretrained(folder, **({"num_labels": 1} if reward else {})).eval()


def trainer(kind: Any, settings: Any, model: Any, folder: Path, rows: list[dict[str, Any]], **more: Any) -> Any:
    from datasets import Dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return kind(model=model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, **more)


def options(folder: Path, batch: int = len(PAIRS)) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "per_device_train_batch_size": batch, "report_to": [], "use_cpu": True,
        "bf16": False, "disable_tqdm": True, "max_length": 512,
    }  # fmt: skip


def one_batch(made: Any) -> tuple[dict[str, Tensor], float]:
    """The first batch, and TRL's loss of it."""
    batch = next(iter(made.get_train_dataloader()))
    with torch.no_grad():
        return batch, float(made.compute_loss(made.model, dict(batch)))


def summed_logps(folder: Path, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Σ log p of the tokens under `mask` and their number, [B] each, by the book."""
    with torch.no_grad():
        logits = load(folder)(input_ids=ids).logits[:, :-1]  # right padding: later tokens change nothing before them
    logps = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return (logps * mask[:, 1:]).sum(-1), mask[:, 1:].sum(-1)


def pair_logps(models: Models, ids: Tensor, mask: Tensor) -> PairLogps:
    """Of a batch with the chosen completions in its first half."""
    sums, tokens = summed_logps(models.policy, ids, mask)
    refs, _ = summed_logps(models.reference, ids, mask)
    return PairLogps(*sums.chunk(2), *refs.chunk(2), *tokens.chunk(2))


def dpo_batch(models: Models, folder: Path, size: int = len(PAIRS), **config: Any) -> tuple[PairLogps, float]:
    settings = trl.DPOConfig(**options(folder, size), **config)
    made = trainer(
        trl.DPOTrainer, settings, load(models.policy), models.policy, PAIRS, ref_model=load(models.reference)
    )
    batch, loss = one_batch(made)
    return pair_logps(models, batch["input_ids"], batch["completion_mask"]), loss


def same(ours: Tensor | float, theirs: float) -> None:
    assert float(ours) == pytest.approx(theirs, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("sigmoid", {"beta": 0.1}),
        ("robust", {"beta": 0.3, "label_smoothing": 0.2}),
        ("ipo", {"beta": 0.4}),
        ("hinge", {"beta": 0.2}),
        ("sigmoid_norm", {"beta": 5.0}),
    ],
)
def test_dpo_family(name: PairLoss, config: dict[str, float], models: Models, tmp_path: Path) -> None:
    logps, theirs = dpo_batch(models, tmp_path, loss_type=[name], **config)
    same(pair_loss(name, logps, None, LossSettings(**config)).mean(), theirs)
    assert logps.delta.abs().min() > 0.05, "the log-ratios must be able to tell formulas apart"


def test_label_smoothing_of_trl(models: Models, tmp_path: Path) -> None:
    """TRL 1.16 ignores it with `sigmoid`. Its `aot` has it, and on a batch of one pair that is conservative DPO."""
    config = {"beta": 0.1, "label_smoothing": 0.2}
    logps, theirs = dpo_batch(models, tmp_path / "a", loss_type=["sigmoid"], **config)
    same(losses.dpo(logps, 0.1).mean(), theirs)
    logps, theirs = dpo_batch(models, tmp_path / "b", size=1, loss_type=["aot"], **config)
    same(pair_loss("sigmoid", logps, None, LossSettings(**config)), theirs)
    assert losses.dpo(logps, 0.1).item() != pytest.approx(theirs, abs=1e-3)


def test_dpo_with_sft(models: Models, tmp_path: Path) -> None:
    """TRL's `sft` term is the mean over the tokens of the batch, and our rows say it when weighed by their tokens."""
    mixed = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}
    logps, theirs = dpo_batch(models, tmp_path, beta=0.1, **mixed)
    rows, tokens = losses.nll(logps.chosen, logps.chosen_tokens), logps.chosen_tokens
    preference = losses.dpo(logps, 0.1).mean()
    same(preference + 0.5 * (rows * tokens).sum() / tokens.sum(), theirs)
    assert float(preference + 0.5 * rows.mean()) != pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize("centering", [None, 0.01])
@pytest.mark.parametrize("margins", [None, [1.0, 1 / 3, 0.0, 2 / 3]])
def test_reward(centering: float | None, margins: list[float] | None, models: Models, tmp_path: Path) -> None:
    rows = PAIRS if margins is None else [row | {"margin": m} for row, m in zip(PAIRS, margins, strict=True)]
    settings = trl.RewardConfig(**options(tmp_path), center_rewards_coefficient=centering)
    made = trainer(trl.RewardTrainer, settings, load(models.policy, reward=True), models.policy, rows)
    batch, theirs = one_batch(made)
    with torch.no_grad():
        model = load(models.policy, reward=True)
        found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    chosen, rejected = found.chunk(2)
    margin = batch["margin"] if margins else 0.0
    same(losses.bradley_terry(chosen, rejected, None, margin, centering or 0.0).mean(), theirs)


@pytest.mark.parametrize("turned", [False, True])
def test_kto(turned: bool, models: Models, tmp_path: Path) -> None:
    """Two desirable and two undesirable completions; each baseline completion belongs to another prompt.

    The noisy model gives the mismatched completions more than the other does, so that z0 is clamped one way round only.
    """
    models = Models(models.reference, models.policy) if turned else models
    rows = [
        {"prompt": row["prompt"], "completion": row["chosen" if good else "rejected"], "label": good}
        for row, good in zip(PAIRS, (True, False, True, False), strict=True)
    ]
    settings = trl.KTOConfig(**options(tmp_path), beta=0.2, desirable_weight=1.2, undesirable_weight=0.8)
    ref = load(models.reference)
    batch, theirs = one_batch(
        trainer(trl.KTOTrainer, settings, load(models.policy), models.policy, rows, ref_model=ref)
    )
    ratios, mismatched = (
        [summed_logps(folder, batch[f"{kind}input_ids"], batch[f"{kind}completion_mask"])[0] for folder in models]
        for kind in ("", "KL_")
    )
    baseline = (mismatched[0] - mismatched[1]).mean().clamp(min=0)
    desirable = torch.as_tensor(batch["label"], dtype=torch.bool)
    same(losses.kto(ratios[0] - ratios[1], desirable, baseline, 0.2, 1.2, 0.8).mean(), theirs)
    assert desirable.tolist().count(True) == 2 and (baseline.item() > 0.1) is turned


def both(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, completion mask and attention mask of the batches of the older trainers, chosen first."""
    from torch.nn import functional

    width = max(batch[f"{side}_input_ids"].shape[1] for side in ("chosen", "rejected"))

    def joined(name: str, padding: int) -> Tensor:
        sides = [batch[f"{side}_{name}"] for side in ("chosen", "rejected")]
        return torch.cat([functional.pad(each, (0, width - each.shape[1]), value=padding) for each in sides])

    return joined("input_ids", 0), (joined("labels", -100) != -100).long(), joined("attention_mask", 0)


def test_orpo(models: Models, tmp_path: Path) -> None:
    """TRL's NLL is the mean over all tokens of prompts and chosen completions; the odds ratio is ours."""
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    settings = ORPOConfig(**options(tmp_path), beta=0.3)
    batch, theirs = one_batch(trainer(ORPOTrainer, settings, load(models.policy), models.policy, PAIRS))
    ids, mask, attention = both(batch)
    logps = pair_logps(models, ids, mask)
    whole = pair_logps(models, ids, attention)
    odds = losses.odds_ratio(*(losses.mean_logps(logps[at], logps[at + 4]) for at in (0, 1))).mean()
    same(0.3 * odds - whole.chosen.sum() / whole.chosen_tokens.sum(), theirs)
    ours = losses.nll(logps.chosen, logps.chosen_tokens).mean() + 0.3 * odds
    same(pair_loss("orpo", logps, None, LossSettings(orpo_weight=0.3)).mean(), float(ours))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_simpo(smoothing: float, models: Models, tmp_path: Path) -> None:
    """The same with hard labels. Smoothed, TRL's other side keeps the lead of the first: log σ(-(βd - γ))."""
    from torch.nn import functional
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    beta, gamma = 2.0, 1.2
    settings = CPOConfig(
        **options(tmp_path), loss_type="simpo", cpo_alpha=0.0, beta=beta, simpo_gamma=gamma, label_smoothing=smoothing
    )
    batch, theirs = one_batch(trainer(CPOTrainer, settings, load(models.policy), models.policy, PAIRS))
    logps = pair_logps(models, *both(batch)[:2])
    inputs = logps.chosen, logps.rejected, logps.chosen_tokens, logps.rejected_tokens
    if not smoothing:
        chosen = LossSettings(beta=beta, gamma_beta_ratio=gamma / beta)
        same(pair_loss("simpo", logps, None, chosen).mean(), theirs)
        return
    hard, turned = losses.simpo(*inputs, beta, gamma), losses.simpo(*inputs, beta, gamma, torch.zeros(4))
    lead = beta * (losses.mean_logps(*inputs[0::2]) - losses.mean_logps(*inputs[1::2]))
    same(((1 - smoothing) * hard - smoothing * functional.logsigmoid(gamma - lead)).mean(), theirs)
    same(turned.mean(), float(-functional.logsigmoid(-lead - gamma).mean()))


def test_odds_at_certainty() -> None:
    """A completion of probability 1: TRL's gradient is no number there, ours is."""
    from trl.experimental.orpo.orpo_trainer import log1mexp

    theirs = torch.zeros(1, requires_grad=True)
    (theirs - log1mexp(theirs)).sum().backward()
    assert theirs.grad is not None and theirs.grad.isnan().all()
    ours = torch.zeros(1, requires_grad=True)
    losses.odds_ratio(ours, torch.tensor([-1.0])).sum().backward()
    assert ours.grad is not None and ours.grad.isfinite().all()
