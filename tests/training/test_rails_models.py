"""Models that a training starts from: adapters, narrow ones, broken ones; and what is saved of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlaif.errors import UserError
from rlaif.training.loading import cast_files, find_start, load_frozen, load_policy, load_reward_model, type_of
from tests.training.runs import (
    Heard,
    begin,
    furthest,
    groups_of,
    make_model,
    run,
    settings_for,
    trainer_of,
    weights,
)

pytestmark = pytest.mark.slow  # whole trainings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return begin(tmp_path_factory.mktemp("rails"))


def without(folder: Path, to: Path, *names: str) -> Path:
    shutil.copytree(folder, to)
    kept = {name: each for name, each in load_file(to / "model.safetensors").items() if name not in names}
    save_file(kept, to / "model.safetensors", metadata={"format": "pt"})
    return to


def narrowed(folder: Path, to: Path) -> Path:
    """A copy of a model in bfloat16."""
    shutil.copytree(folder, to)
    cast_files(to, torch.bfloat16)
    assert type_of(to) == torch.bfloat16
    return to


def test_weights_that_are_missing(folder: Path, tmp_path: Path) -> None:
    """They would be random; a reward model may lack the head that it is given anew."""
    headless = without(folder / "model", tmp_path / "headless", "lm_head.weight")
    for method in ("sft", "dpo"):
        with pytest.raises(
            UserError, match=r"headless: lacks weights of a language model: lm_head\.weight; name a mod"
        ):
            load_policy(settings_for(method, folder, model=str(headless)))  # type: ignore[arg-type]
    assert load_reward_model(settings_for("reward", folder, model=str(headless)), 0).score.out_features == 1
    holed = without(folder / "model", tmp_path / "holed", "model.norm.weight")
    with pytest.raises(UserError, match=r"lacks weights of a reward model: model\.norm\.weight"):
        load_reward_model(settings_for("reward", folder, model=str(holed)), 0)


def test_a_head_that_is_the_table_of_embeddings_is_there(tmp_path: Path) -> None:
    make_model(tmp_path / "model", tie_word_embeddings=True)
    assert "lm_head.weight" not in weights(tmp_path / "model")
    assert load_policy(settings_for("sft", tmp_path)) is not None


def test_models_that_cannot_be_loaded(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "model", tmp_path / "torn")
    torn = tmp_path / "torn" / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"torn: model\.safetensors is damaged: 100 bytes are missing") as caught:
        run("sft", folder, model=str(tmp_path / "torn"), output=str(tmp_path / "out"))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    from transformers import AutoModelForSequenceClassification

    two = AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=2)
    two.save_pretrained(tmp_path / "two")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "model" / name, tmp_path / "two")
    with pytest.raises(UserError, match="is a classifier with 2 outputs, not one reward"):
        run("reward", folder, model=str(tmp_path / "two"), output=str(tmp_path / "out"))


def test_data_that_do_not_fit_the_model(folder: Path, tmp_path: Path) -> None:
    make_model(tmp_path / "model", vocab_size=120)
    with pytest.raises(UserError, match=r"has 120 embeddings, and the tokenizer gives ids up to \d+"):
        run("sft", folder, model=str(tmp_path / "model"), output=str(tmp_path / "out"))
    make_model(tmp_path / "learned", "gpt2", n_positions=16)
    with pytest.raises(UserError, match=r"tokens, and the model was made for 16; set `max_length: 16`"):
        run("sft", folder, model=str(tmp_path / "learned"), output=str(tmp_path / "out"))
    make_model(tmp_path / "turned", max_position_embeddings=16)
    heard = Heard()
    run("sft", folder, model=str(tmp_path / "turned"), output=str(tmp_path / "out"), max_steps=1, heard=heard)
    assert any("the model was made for 16: `max_length: 16` cuts what is longer" in note for note in heard.notes)


def test_a_reference_of_another_vocabulary(folder: Path, tmp_path: Path) -> None:
    make_model(tmp_path / "other")
    from tests.training.small import CHATML, bpe

    bpe(["other words than those that the model knows"] * 4, CHATML, size=300).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="has another vocabulary than the model"):
        run("dpo", folder, reference=str(tmp_path / "other"), output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def adapter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `rlaif train sft --lora-rank 4` leaves."""
    out = tmp_path_factory.mktemp("adapter") / "sft"
    return run("sft", folder, output=str(out), lora={"rank": 4}, learning_rate=0.1, max_steps=2).folder


def by_peft(folder: Path, adapter: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    return PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()


def test_an_adapter_is_a_start(folder: Path, adapter: Path, tmp_path: Path) -> None:
    """SFT with an adapter, then DPO of what it made: the reference is the start, and all weights are trained."""
    wanted = by_peft(folder, adapter).state_dict()
    model = load_policy(settings_for("dpo", folder, model=str(adapter)))
    assert furthest(model.state_dict(), wanted) == 0.0
    assert furthest(wanted, weights(folder / "model")) > 0.01
    assert all(each.requires_grad for each in model.parameters())
    reward = load_reward_model(settings_for("reward", folder, model=str(adapter)), 0)
    assert torch.equal(reward.model.layers[0].mlp.up_proj.weight, wanted["model.layers.0.mlp.up_proj.weight"])
    trained = run("dpo", folder, model=str(adapter), output=str(tmp_path / "dpo"))
    first = json.loads((trained.folder / "log.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert (trained.folder / "tokenizer.json").exists() and not (trained.folder / "adapter_config.json").exists()
    assert 0 < furthest(weights(trained.folder), wanted) < 1


def test_the_hash_of_an_adapter_covers_both(folder: Path, adapter: Path, tmp_path: Path) -> None:
    start = find_start(str(adapter))
    assert start.weights == folder / "model" and start.tokenizer == adapter
    found = {start.hash(), find_start(str(folder / "model")).hash()}
    shutil.copytree(adapter, tmp_path / "moved")
    assert find_start(str(tmp_path / "moved")).hash() in found
    file = tmp_path / "moved" / "adapter_model.safetensors"
    save_file({name: each + 1 for name, each in load_file(file).items()}, file)
    found.add(find_start(str(tmp_path / "moved")).hash())
    assert len(found) == 3


def test_adapters_that_are_no_start(folder: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is an adapter, and another one on top of it .*set `lora\.merge: true`"):
        run("dpo", folder, model=str(adapter), output=str(tmp_path / "out"), lora={"rank": 4})
    merged = run("sft", folder, model=str(adapter), output=str(tmp_path / "both"), lora={"rank": 4, "merge": True})
    assert weights(merged.folder).keys() == weights(folder / "model").keys()
    of_rewards = run("reward", folder, output=str(tmp_path / "reward"), lora={"rank": 4}, max_steps=1).folder
    with pytest.raises(UserError, match="is an adapter of a reward model"):
        run("sft", folder, model=str(of_rewards), output=str(tmp_path / "out"))
    again = load_reward_model(settings_for("reward", folder, model=str(of_rewards)), 0)
    assert torch.equal(again.score.weight, next(each for name, each in weights(of_rewards).items() if "score" in name))
    shutil.copytree(adapter, tmp_path / "strange")
    file = tmp_path / "strange" / "adapter_model.safetensors"
    save_file({f"x.{name}": each for name, each in load_file(file).items()}, file)
    with pytest.raises(
        UserError, match=r"the adapter lacks weights: model\.layers\.0.*and 27 more \(its file has x\.b"
    ):
        load_policy(settings_for("sft", folder, model=str(tmp_path / "strange")))


def types(model: Any, word: str = "") -> set[torch.dtype]:
    return {each.dtype for name, each in model.named_parameters() if word in name}


def test_what_is_not_trained_is_narrow(folder: Path, tmp_path: Path) -> None:
    """Where the training computes in bfloat16; all that is trained is float32."""
    narrow = {"dtype": "bfloat16"}
    assert types(load_policy(settings_for("sft", folder, **narrow))) == {torch.float32}
    under = load_policy(settings_for("sft", folder, **narrow, lora={"rank": 4}))
    assert types(under, "lora_") == {torch.float32} and types(under, "base_layer") == {torch.bfloat16}
    assert types(load_policy(settings_for("sft", folder, lora={"rank": 4}))) == {torch.float32}
    reward = load_reward_model(settings_for("reward", folder, **narrow, lora={"rank": 4}), 0)
    assert types(reward, "score") == {torch.float32} and types(reward, "base_layer") == {torch.bfloat16}
    whole = load_policy(settings_for("sft", folder, **narrow, lora={"rank": 4, "merge": True}))
    assert types(whole, "base_layer") == {torch.float32}, "no digit of what is saved again may be lost"
    start = narrowed(folder / "model", tmp_path / "narrow")
    half = load_policy(settings_for("sft", folder, **narrow, model=str(start), lora={"rank": 4, "merge": True}))
    assert types(half, "base_layer") == {torch.bfloat16}
    assert types(load_frozen(settings_for("dpo", folder), torch.bfloat16)) == {torch.bfloat16}


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("sft", {}), ("reward", {}), ("sft", {"dtype": "bfloat16", "lora": {"rank": 4, "merge": True}}),
        ("reward", {"dtype": "bfloat16", "lora": {"rank": 4, "merge": True}}),
    ],
)  # fmt: skip
def test_a_narrow_model_stays_one(method: Any, more: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    """The saved weights and config have the type of the start; a reward head keeps its digits."""
    start = narrowed(folder / "model", tmp_path / "narrow")
    trained = run(method, folder, model=str(start), output=str(tmp_path / "out"), **more)
    saved = weights(trained.folder)
    assert {each.dtype for name, each in saved.items() if not name.startswith("score")} == {torch.bfloat16}
    assert type_of(trained.folder) == torch.bfloat16
    if method == "reward":
        assert saved["score.weight"].dtype == torch.float32
        from rlaif.training.reward_model import load

        assert torch.equal(load(str(trained.folder), "cpu").model.score.weight.cpu(), saved["score.weight"])
    assert not torch.equal(saved["model.norm.weight"], weights(start)["model.norm.weight"]) or more


@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_a_narrow_base_under_an_adapter_trains(method: Any, folder: Path, tmp_path: Path) -> None:
    trained = run(method, folder, output=str(tmp_path / "out"), dtype="bfloat16", lora={"rank": 4})
    saved = weights(trained.folder)
    assert {each.dtype for each in saved.values()} == {torch.float32}
    assert all(torch.isfinite(each).all() for each in saved.values())


def test_the_plain_way_goes_with_two_types(folder: Path) -> None:
    """A float32 head on bfloat16 layers."""
    groups = groups_of(folder)
    with trainer_of("reward", folder, groups, dtype="bfloat16", lora={"rank": 4}) as trainer:
        assert trainer.forward_path.fast and trainer.forward_path.difference < 0.1


@pytest.mark.parametrize("more", [{}, {"lora": {"rank": 4, "merge": True}}])
def test_a_narrow_training_goes_on_to_the_same_weights(more: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    """Its checkpoints keep float32, whatever the start and the end have."""
    from rlaif.training.trainer import GroupTrainer

    start = narrowed(folder / "model", tmp_path / "narrow")
    same: dict[str, Any] = {"model": str(start), "dtype": "bfloat16", "max_steps": 4, "save_steps": 2, **more}
    calm = run("sft", folder, output=str(tmp_path / "calm"), **same)
    plain = GroupTrainer.training_step

    def killed(self: Any, *given: Any) -> Any:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return plain(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GroupTrainer, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            run("sft", folder, output=str(tmp_path / "broken"), **same)
    kept = weights(tmp_path / "broken" / "checkpoint-2")
    assert {each.dtype for each in kept.values()} == {torch.float32}
    resumed = run("sft", folder, output=str(tmp_path / "broken"), resume=True, **same)
    found, wanted = weights(resumed.folder), weights(calm.folder)
    assert furthest(found, wanted) == 0.0 and {each.dtype for each in found.values()} == {torch.bfloat16}
