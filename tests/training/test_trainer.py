"""Steps and whole trainings of tiny models, beside what plain calls of the model say."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlaif.errors import ModelError, UserError
from rlaif.training import reference
from rlaif.training.loading import without_dropout
from rlaif.training.losses import PairLogps, dpo
from rlaif.training.tokenize import Group
from tests.data.made import write_jsonl
from tests.training.runs import (
    Heard,
    begin,
    furthest,
    gradients,
    groups_of,
    make_model,
    pair_rows,
    run,
    trainer_of,
    weights,
    write_pairs,
)

LN2 = math.log(2)


def with_references(groups: list[Group]) -> list[Group]:
    """Made-up log-probabilities of a reference, so that all losses and gradients differ."""
    return [
        dataclasses.replace(
            group,
            values={**group.values, **{f"reference/{k}": -40.0 - 3 * at - k for k in range(len(group.completions))}},
        )
        for at, group in enumerate(groups)
    ]


def ready(method: str, folder: Path) -> list[Group]:
    kind: Any = {"sft": "demonstrations", "reward": "pairs", "dpo": "pairs", "kto": "judged"}[method]
    return with_references(groups_of(folder, kind))[:10]


def close(one: dict[str, Tensor], other: dict[str, Tensor], limit: float = 1e-6) -> None:
    largest = max(float(each.abs().max()) for each in other.values())
    assert furthest(one, other) <= limit * max(1.0, largest)


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses_of(folder: Path) -> list[float]:
    return [line["loss"] for line in history(folder) if "loss" in line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama and twelve pairs; trainings of a test write elsewhere."""
    return begin(tmp_path_factory.mktemp("trainer"))


@pytest.mark.parametrize("method", ["sft", "reward", "dpo", "kto"])
def test_a_step_depends_neither_on_memory_nor_on_the_order(method: str, folder: Path) -> None:
    """All rows in one pass, a few at a time, and each alone: the same gradient; so too with the rows turned round."""
    groups = ready(method, folder)
    loss = {"loss": "kto"} if method == "kto" else {}
    known: Any = "dpo" if method == "kto" else method
    with trainer_of(known, folder, groups, max_tokens_per_pass=100_000, **loss) as trainer:
        assert len(trainer._parts(groups)) == 1
        wanted_loss, wanted = gradients(trainer, groups)
        again, turned = gradients(trainer, groups[::-1])
        assert again == pytest.approx(wanted_loss, rel=1e-6)
        close(turned, wanted)
        for tokens in (150, 64, 1):
            trainer.tokens = tokens
            assert len(trainer._parts(groups)) > 2
            found_loss, found = gradients(trainer, groups)
            assert found_loss == pytest.approx(wanted_loss, rel=1e-5)
            close(found, wanted)


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def logps_of(model: Any, group: Group) -> list[Tensor]:
    """log p of every token of each completion, by the model's own call."""
    found = []
    for completion in group.completions:
        logits = model(input_ids=torch.tensor([[*group.prompt, *completion]])).logits[0, len(group.prompt) - 1 : -1]
        found.append(logits.log_softmax(-1).gather(1, torch.tensor(list(completion))[:, None]).squeeze(1))
    return found


def test_sft_is_the_mean_over_the_tokens_of_the_step(folder: Path) -> None:
    """Not the mean of the rows' means, nor of the means of what fits into memory."""
    groups = ready("sft", folder)
    model = loaded(folder / "model")
    each = [logps_of(model, group)[0] for group in groups]
    wanted = -torch.cat(each).mean()
    wanted.backward()
    wanted, each = wanted.detach(), [row.detach() for row in each]
    with trainer_of("sft", folder, groups, max_tokens_per_pass=64) as trainer:
        loss, found = gradients(trainer, groups)
    assert loss == pytest.approx(float(wanted), rel=1e-5)
    assert float(-torch.stack([row.mean() for row in each]).mean()) != pytest.approx(loss, rel=1e-3)
    close(found, {name: weight.grad for name, weight in model.named_parameters()}, 1e-5)


def test_dpo_starts_at_ln_2_with_no_margin(folder: Path, tmp_path: Path) -> None:
    """Whatever the soft labels: with a margin of 0 both outcomes cost ln 2."""
    run("dpo", folder, output=str(tmp_path / "out"), reference_cache=str(tmp_path))
    first = history(tmp_path / "out")[0]
    assert first["loss"] == pytest.approx(LN2, abs=1e-6)
    assert abs(first["margin"]) < 1e-5 and abs(first["rewards/chosen"]) < 1e-5
    assert history(tmp_path / "out")[1]["margin"] != 0


@pytest.mark.slow
def test_the_loss_of_dpo_is_that_of_plain_calls(folder: Path, tmp_path: Path) -> None:
    """Held-out loss and metrics at the end, by hand from the saved model and the one it started from."""
    rows = write_pairs(tmp_path / "held.jsonl", 7, seed=5)
    trained = run(
        "dpo", folder, output=str(tmp_path / "out"), held_data=str(rows), eval_steps=3, max_tokens_per_pass=64,
        reference_cache=str(tmp_path),
    )  # fmt: skip
    made_from = tmp_path / "copy"
    made_from.mkdir()
    (made_from / "model").symlink_to(folder / "model")
    (made_from / "rows.jsonl").symlink_to(rows)
    groups = groups_of(made_from)
    assert len(groups) == 7
    with torch.no_grad():
        policy, start = loaded(tmp_path / "out"), loaded(folder / "model")
        chosen, rejected = (torch.stack([logps_of(policy, group)[k].sum() for group in groups]) for k in (0, 1))
        ref_chosen, ref_rejected = (torch.stack([logps_of(start, group)[k].sum() for group in groups]) for k in (0, 1))
    probability = torch.tensor([group.values["probability"] for group in groups])
    logps = PairLogps(chosen, rejected, ref_chosen, ref_rejected, torch.ones(7), torch.ones(7))
    margin = 0.1 * logps.delta
    wanted = {
        "eval_loss": dpo(logps, 0.1, probability).mean(),
        "eval_margin": margin.mean(),
        "eval_accuracy": (margin > 0).float().mean(),
        "eval_brier": (margin.sigmoid() - probability).square().mean(),
        "eval_rewards/chosen": 0.1 * (chosen - ref_chosen).mean(),
        "eval_logps/rejected": rejected.mean(),
    }
    for name, value in wanted.items():
        assert trained.metrics[name] == pytest.approx(float(value), rel=1e-4, abs=1e-5), name


@pytest.mark.slow
def test_held_out_rewards_are_those_of_the_saved_model(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    trained = run("reward", folder, output=str(tmp_path / "out"), holdout=0.4, eval_steps=3, max_tokens_per_pass=64)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    held = groups_of_held(folder, 0.4)
    with torch.no_grad():
        chosen, rejected = (
            torch.stack([model(input_ids=torch.tensor([[*g.prompt, *g.completions[k]]])).logits[0, 0] for g in held])
            for k in (0, 1)
        )
    probability = torch.tensor([group.values["probability"] for group in held])
    difference = chosen - rejected
    log = torch.nn.functional.logsigmoid
    loss = -(probability * log(difference) + (1 - probability) * log(-difference)).mean()
    assert trained.metrics["eval_loss"] == pytest.approx(float(loss), rel=1e-4)
    assert trained.metrics["eval_accuracy"] == pytest.approx(float((difference > 0).float().mean()))
    assert trained.metrics["eval_rewards/chosen"] == pytest.approx(float(chosen.mean()), rel=1e-4, abs=1e-5)


def groups_of_held(folder: Path, holdout: float) -> list[Group]:
    from rlaif.inference.model_folder import load_tokenizer
    from rlaif.training.dataset import prepare
    from rlaif.training.tokenize import Tokens

    return prepare(folder / "rows.jsonl", Tokens(load_tokenizer(folder / "model")), "pairs", holdout=holdout).held


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sigmoid", "kto"])
def test_held_out_loss_does_not_depend_on_memory(loss: str, folder: Path, tmp_path: Path) -> None:
    """KTO has a baseline of all answers together."""
    found = []
    for tokens in (4096, 64):
        settings = {"loss": loss, "holdout": 0.4, "max_tokens_per_pass": tokens, "reference_cache": str(tmp_path)}
        found.append(run("dpo", folder, output=str(tmp_path / str(tokens)), **settings).metrics)
    names = [name for name in found[0] if name.startswith("eval_")]
    assert "eval_loss" in names
    for name in names:
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-4, abs=1e-5), name


def test_kto_takes_its_baseline_from_the_whole_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """max(0, mean over all rows of log p / p_ref of the mismatched answers), by hand."""
    groups = ready("kto", folder)
    model = loaded(folder / "model")
    with torch.no_grad():
        second = [float(logps_of(model, group)[1].sum()) for group in groups]
    off = sum(logp - group.values["reference/1"] for logp, group in zip(second, groups, strict=True)) / len(groups)
    shift = 5.0 - off  # a mean of 5 nats, whatever the model
    groups = [
        dataclasses.replace(g, values={**g.values, "reference/1": g.values["reference/1"] - shift}) for g in groups
    ]
    for tokens in (4096, 64):
        with trainer_of("dpo", folder, groups, loss="kto", max_tokens_per_pass=tokens, beta=0.5) as trainer:
            gradients(trainer, groups)
            assert torch.cat(trainer._logged["kl"]).tolist() == pytest.approx([0.5 * 5.0] * len(groups), abs=1e-3)


class Counted:
    """How often the reference was computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes = 0
        plain = reference.compute

        def watched(*given: Any) -> Any:
            self.passes += 1
            return plain(*given)

        monkeypatch.setattr(reference, "compute", watched)


@pytest.mark.slow
def test_the_reference_is_computed_once_for_many_trainings(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, cache = Counted(monkeypatch), str(tmp_path / "cache")
    heard = Heard()
    run("dpo", folder, output=str(tmp_path / "a"), reference_cache=cache, heard=heard)
    assert counted.passes == 1 and heard.begun == [("reference", 12), ("train", 3)]
    assert ("reference", 12) in heard.done
    same = {"beta": 0.5, "loss": "ipo", "learning_rate": 1e-4, "max_tokens_per_pass": 100, "seed": 3}
    run("dpo", folder, output=str(tmp_path / "b"), reference_cache=cache, **same)
    assert counted.passes == 1, "beta, loss and seed are nothing to the reference"
    run("dpo", folder, output=str(tmp_path / "c"), reference_cache=cache, holdout=0.3)
    assert counted.passes == 2, "the same rows in another order"
    run("dpo", folder, output=str(tmp_path / "d"), reference_cache=cache, max_length=24)
    assert counted.passes == 3, "other tokens"
    run("dpo", folder, output=str(tmp_path / "e"), loss="simpo", beta=2.0)
    assert counted.passes == 3, "SimPO needs none"


@pytest.mark.slow
def test_the_default_place_of_references(folder: Path, tmp_path: Path) -> None:
    run("dpo", folder, output=str(tmp_path / "out"), reference_cache=None)
    (kept,) = (tmp_path / "cache" / "rlaif" / "references").iterdir()
    assert kept.suffix == ".safetensors"


@pytest.mark.slow
def test_a_reference_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    run("dpo", folder, output=str(tmp_path / "a"), reference_cache=str(tmp_path / "cache"))
    (kept,) = (tmp_path / "cache").iterdir()
    logps = load_file(kept)["logps"]
    logps[0] += 0.01
    save_file({"logps": logps}, kept)
    with pytest.raises(ModelError, match=r"differs from its reference by 0\.01 nats .*remove .*safetensors"):
        run("dpo", folder, output=str(tmp_path / "b"), reference_cache=str(tmp_path / "cache"))


def test_a_damaged_reference_is_refused(folder: Path, tmp_path: Path) -> None:
    run("dpo", folder, output=str(tmp_path / "a"), reference_cache=str(tmp_path / "cache"))
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(kept.read_bytes()[:-5])
    with pytest.raises(UserError, match="is damaged") as caught:
        run("dpo", folder, output=str(tmp_path / "b"), reference_cache=str(tmp_path / "cache"))
    assert "remove it" in str(caught.value)


@pytest.mark.slow
def test_another_model_as_the_reference(folder: Path, tmp_path: Path) -> None:
    """The first margins are those between the two models, by hand."""
    make_model(tmp_path / "other", "gpt2", seed=9)
    run(
        "dpo", folder, output=str(tmp_path / "out"), reference=str(tmp_path / "other"), batch_size=12, max_steps=1,
        reference_cache=str(tmp_path / "cache"),
    )  # fmt: skip
    groups = groups_of(folder)
    with torch.no_grad():
        policy, other = loaded(folder / "model"), loaded(tmp_path / "other")
        ratios = [
            [float(one.sum() - two.sum()) for one, two in zip(logps_of(policy, g), logps_of(other, g), strict=True)]
            for g in groups
        ]
    first = history(tmp_path / "out")[0]
    assert first["rewards/chosen"] == pytest.approx(0.1 * sum(chosen for chosen, _ in ratios) / 12, rel=1e-4)
    assert first["margin"] == pytest.approx(0.1 * sum(chosen - bad for chosen, bad in ratios) / 12, rel=1e-4)


def test_a_loss_that_is_no_number_stops_before_the_step(folder: Path, tmp_path: Path) -> None:
    """A margin of 1e39 is infinite in float32; the row is named."""
    rows = pair_rows(12)
    rows[5]["margin"] = 1e39
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ModelError, match=r"the loss is \w+ of the rows row-5 at step \d, and no step") as caught:
        run("reward", folder, data=str(data), output=str(tmp_path / "out"), save_steps=1, batch_size=1, max_steps=12)
    step = int(str(caught.value).partition("at step ")[2].partition(",")[0])
    assert step > 1, "the order of the rows, which the seed decides"
    (kept,) = (tmp_path / "out").glob("checkpoint-*")
    assert kept.name == f"checkpoint-{step - 1}"
    assert all(torch.isfinite(each).all() for each in weights(kept).values())


def test_weights_that_are_no_numbers_name_all_rows(folder: Path) -> None:
    groups = ready("sft", folder)[:3]
    with trainer_of("sft", folder, groups) as trainer:
        trainer.model.lm_head.weight.data[0, 0] = math.inf
        with pytest.raises(ModelError, match=r"of the rows row-\d+, row-\d+, row-\d+ at step 1"):
            trainer.training_step(trainer.model, groups)


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", {"attention_dropout": 0.5}),
        ("gpt2", {"attn_pdrop": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5}),
        ("phi", {"attention_dropout": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5}),
    ],
)
def test_dropout_is_off(family: str, config: dict[str, float], tmp_path: Path) -> None:
    begin(tmp_path, 4, family, **config)
    ids = torch.arange(10, 60)[None]
    model = loaded(tmp_path / "model").train()
    assert not torch.equal(model(ids).logits, model(ids).logits), "it was on"
    without_dropout(model)
    assert torch.equal(model(ids).logits, model(ids).logits)
    kept = {"embd_pdrop", "resid_pdrop", "attn_pdrop", "attention_dropout"} & config.keys()
    assert all(getattr(model.config, name) == 0.5 for name in kept), "the saved config is the model's own"
    groups = groups_of(tmp_path)
    with trainer_of("sft", tmp_path, groups) as trainer:
        one, other = (gradients(trainer, groups)[1] for _ in range(2))
    assert furthest(one, other) == 0.0


def test_dropout_that_stays_on_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a kind that nobody has thought of: the policy is then not the reference before the first step."""
    begin(tmp_path, 4, attention_dropout=0.5)
    monkeypatch.setattr("rlaif.training.loading.without_dropout", lambda model: None)
    with pytest.raises(ModelError, match="it is not the same function twice"):
        run("dpo", tmp_path)


@pytest.mark.slow
def test_only_the_adapter_is_saved_and_the_reference_is_without_it(folder: Path, tmp_path: Path) -> None:
    lora = {"rank": 4}
    cache = str(tmp_path / "cache")
    run("dpo", folder, output=str(tmp_path / "whole"), reference_cache=cache)
    trained = run("dpo", folder, output=str(tmp_path / "out"), lora=lora, reference_cache=cache)
    assert len(list((tmp_path / "cache").iterdir())) == 1, "the reference is the start of the whole model, found again"
    assert history(tmp_path / "out")[0]["loss"] == pytest.approx(LN2, abs=1e-6)
    saved = weights(trained.folder)
    assert saved and all("lora_" in name for name in saved)
    assert not (trained.folder / "model.safetensors").exists()
    config = json.loads((trained.folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)


@pytest.mark.slow
def test_a_merged_adapter_is_a_whole_model(folder: Path, tmp_path: Path) -> None:
    """And the same function as model and adapter: the held-out likelihood says so."""
    from peft import PeftModel

    same = {"lora": {"rank": 4}, "holdout": 0.3}
    run("sft", folder, output=str(tmp_path / "apart"), **same)
    run("sft", folder, output=str(tmp_path / "merged"), **(same | {"lora": {"rank": 4, "merge": True}}))
    whole = loaded(tmp_path / "merged")
    apart = PeftModel.from_pretrained(loaded(folder / "model"), str(tmp_path / "apart"))
    ids = torch.arange(10, 60)[None]
    with torch.no_grad():
        found, wanted, before = whole(ids).logits, apart(input_ids=ids).logits, loaded(folder / "model")(ids).logits
    assert torch.allclose(found, wanted, atol=1e-5) and not torch.allclose(found, before, atol=1e-2)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    assert weights(tmp_path / "merged").keys() == weights(folder / "model").keys()


@pytest.mark.slow
def test_an_adapter_of_a_reward_model_trains_its_head(folder: Path, tmp_path: Path) -> None:
    trained = run("reward", folder, output=str(tmp_path / "out"), lora={"rank": 4})
    assert any("score" in name for name in weights(trained.folder))
    merged = run("reward", folder, output=str(tmp_path / "merged"), lora={"rank": 4, "merge": True})
    assert "score.weight" in weights(merged.folder)


def test_a_step_without_good_answers_has_no_figure_of_them(folder: Path, tmp_path: Path) -> None:
    """Two answers a step, some of the same kind: no log-probability of several tokens is 0."""
    trained = run("dpo", folder, output=str(tmp_path / "out"), loss="kto", batch_size=2, max_steps=8)
    lines = [json.loads(line) for line in (trained.folder / "log.jsonl").read_text().splitlines()]
    found = [[line.get(f"logps/{kind}") for kind in ("good", "bad")] for line in lines if "loss" in line]
    assert len(found) == 8 and all(value is None or value < 0 for pair in found for value in pair)
    assert any(None in pair for pair in found) and not any(pair == [None, None] for pair in found)


def test_layers_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no adapter fits"):
        run("sft", folder, output=str(tmp_path / "out"), lora={"rank": 4, "targets": ["no_such_layer"]})


@pytest.mark.slow
@pytest.mark.parametrize("lora", [{}, {"rank": 4}])
def test_gradient_checkpointing_changes_nothing(lora: dict[str, int], folder: Path, tmp_path: Path) -> None:
    """The same weights after steps, so the same gradients."""
    plain = run("sft", folder, output=str(tmp_path / "plain"), lora=lora)
    saving = run("sft", folder, output=str(tmp_path / "saving"), lora=lora, gradient_checkpointing=True)
    assert furthest(weights(plain.folder), weights(saving.folder)) <= 1e-6
    assert losses_of(plain.folder) == pytest.approx(losses_of(saving.folder), rel=1e-6)


def test_a_model_that_cannot_forget(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    with pytest.raises(UserError, match="LlamaForCausalLM knows no `gradient_checkpointing`; leave it out"):
        run("sft", folder, output=str(tmp_path / "out"), gradient_checkpointing=True)
    assert not (tmp_path / "out").exists()


def test_four_bits_need_an_adapter(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="4-bit weights cannot be trained themselves"):
        run("sft", folder, output=str(tmp_path / "out"), four_bit=True)


def test_both_completions_end(folder: Path) -> None:
    """`</s>` is id 2; a pair whose sides differ in it would teach a model by that alone."""
    groups = groups_of(folder)
    assert {completion[-1] for group in groups for completion in group.completions} == {2}


@pytest.mark.slow
def test_a_reward_model_pads_with_another_token_than_the_end(tmp_path: Path) -> None:
    from transformers import AutoConfig

    begin(tmp_path, 8)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"pad_token_id": 2}))
    trained = run("reward", tmp_path)
    saved = AutoConfig.from_pretrained(trained.folder)
    assert (saved.pad_token_id, saved.eos_token_id, saved.num_labels) == (0, 2, 1)
    assert saved.id2label == {0: "reward"} and saved.architectures == ["LlamaForSequenceClassification"]


def test_a_new_reward_head_is_drawn_by_the_seed(folder: Path) -> None:
    """N(0, 1 / 33) for 32 hidden numbers; the same seed, the same head."""
    groups = ready("reward", folder)
    heads = []
    for seed in (1, 1, 2):
        with trainer_of("reward", folder, groups, seed=seed) as trainer:
            heads.append(trainer.model.score.weight.detach().clone())
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert 0.5 < float(heads[0].std() * math.sqrt(33)) < 1.6


@pytest.mark.slow
def test_early_stopping_keeps_the_best_weights(folder: Path, tmp_path: Path) -> None:
    """With a learning rate that ruins the model, the held-out loss is best early on, and that is what is saved."""
    trained = run(
        "sft", folder, output=str(tmp_path / "out"), learning_rate=0.3, holdout=0.3, max_steps=30, eval_steps=1,
        patience=2, schedule="constant", max_grad_norm=0,
    )  # fmt: skip
    evaluated = [line["eval_loss"] for line in history(trained.folder) if "eval_loss" in line]
    best = min(evaluated)
    assert trained.steps < 30 and len(evaluated) == evaluated.index(best) + 3, "two more without an improvement"
    from rlaif.inference.model_folder import load_tokenizer
    from rlaif.training.dataset import prepare
    from rlaif.training.tokenize import Tokens

    tokens = Tokens(load_tokenizer(folder / "model"))
    held = prepare(folder / "rows.jsonl", tokens, "demonstrations", holdout=0.3).held
    model = loaded(trained.folder)
    with torch.no_grad():
        loss = -torch.cat([logps_of(model, group)[0] for group in held]).mean()
    assert float(loss) == pytest.approx(best, rel=1e-5)


def test_patience_needs_something_to_evaluate_on(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`patience` needs held-out rows"):
        run("sft", folder, output=str(tmp_path / "out"), patience=1)


@pytest.mark.slow
def test_every_row_is_trained_on_once_an_epoch(folder: Path, tmp_path: Path) -> None:
    """12 rows in batches of 5: steps of 5, 5 and 2, in another order in the second epoch."""
    from rlaif.training.trainer import GroupTrainer

    seen: list[list[str]] = []
    plain = GroupTrainer.training_step

    def watched(self: Any, model: Any, inputs: Any, number: Any = None) -> Tensor:
        seen.append([group.id for group in inputs])
        return plain(self, model, inputs, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GroupTrainer, "training_step", watched)
        trained = run("sft", folder, output=str(tmp_path / "out"), batch_size=5, max_steps=None, epochs=2)
    assert trained.steps == 6 and list(map(len, seen)) == [5, 5, 2, 5, 5, 2]
    epochs = [[name for batch in part for name in batch] for part in (seen[:3], seen[3:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(f"row-{at}" for at in range(12))
    assert epochs[0] != epochs[1]


def test_fewer_rows_than_a_batch(folder: Path, tmp_path: Path) -> None:
    heard = Heard()
    trained = run("sft", folder, output=str(tmp_path / "out"), batch_size=13, max_steps=1, heard=heard)
    assert trained.steps == 1
    assert "only 12 rows: each step takes all of them, not 13" in heard.notes


@pytest.mark.slow
def test_bfloat16_keeps_weights_in_float32(folder: Path, tmp_path: Path) -> None:
    trained = run("dpo", folder, output=str(tmp_path / "out"), dtype="bfloat16", reference_cache=str(tmp_path / "c"))
    assert {each.dtype for each in weights(trained.folder).values()} == {torch.float32}
    assert history(trained.folder)[0]["loss"] == pytest.approx(LN2, abs=0.02)


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    begin(tmp_path, 4)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).unlink()
    with pytest.raises(UserError, match="no tokenizer here"):
        run("sft", tmp_path)


@pytest.mark.curves
@pytest.mark.slow
def test_what_is_saved_has_its_tokenizer(folder: Path, tmp_path: Path) -> None:
    trained = run("sft", folder, output=str(tmp_path / "out"))
    names = {path.name for path in trained.folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "train.json"} <= names
    assert {"README.md", "curves.png", "log.jsonl", "metrics.json"} <= names
    assert "training_args.bin" not in names and not list(trained.folder.glob("checkpoint-*"))
