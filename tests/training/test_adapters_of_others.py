"""Adapters that others made: added to their models as they were trained, by all that load them, or refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlaif.errors import UserError
from rlaif.inference import adapters
from rlaif.inference.model_folder import identity, load_tokenizer, model_folder
from rlaif.inference.transformers_model import read_model
from rlaif.training import reward_model
from rlaif.training.loading import find_start, load_policy, load_reward_model
from tests.training.runs import begin, make_model, run, settings_for
from tests.training.scorers import save_scorer

IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tied", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "apart")


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=ids).logits
    return found


def saved(base: Path, to: Path, kind: str, *, more_tokens: int = 0, **settings: Any) -> tuple[Path, Any]:
    """An adapter that changes much, saved by PEFT, and the model with it beside its weights."""
    import peft
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(1)
    if more_tokens:
        model.resize_token_embeddings(len(model.get_input_embeddings().weight) + more_tokens, mean_resizing=False)
    config = getattr(peft, f"{kind}Config")(**{"task_type": "CAUSAL_LM", **settings})
    model = peft.get_peft_model(model, config)
    for each in model.parameters():
        if each.requires_grad:
            each.data += 0.1 * torch.randn_like(each)
    model.eval().save_pretrained(to)
    told(to, base_model_name_or_path=str(base))
    return to, model


def told(adapter: Path, **more: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def renamed(adapter: Path, rename: Callable[[str], str]) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({rename(name): each for name, each in load_file(path).items()}, path)


def by_all(adapter: Path, *, template: Path | None = None) -> list[Any]:
    """The model with an adapter, as it is asked and as it is trained."""
    del template
    asked = read_model(adapter, torch.device("cpu"))[1]
    return [asked, load_policy(settings_for("sft", adapter, model=str(adapter)))]


def refused_by_all(adapter: Path, message: str) -> None:
    for load in (
        lambda: read_model(adapter, torch.device("cpu")),
        lambda: load_policy(settings_for("sft", adapter, model=str(adapter))),
        lambda: load_reward_model(settings_for("reward", adapter, model=str(adapter)), 0),
    ):
        with pytest.raises(UserError, match=message) as caught:
            load()
        assert "\n" not in str(caught.value) and caught.value.exit_code == 2


QV = ["q_proj", "v_proj"]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "head": ("Lora", {"target_modules": ["lm_head"]}),
    "embeddings": ("Lora", {"target_modules": ["embed_tokens"]}),
    "head and embeddings": ("Lora", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "whole head": ("Lora", {"target_modules": QV, "modules_to_save": ["lm_head"]}),
    "whole embeddings": ("Lora", {"target_modules": QV, "modules_to_save": ["embed_tokens"]}),
    "both whole": ("Lora", {"target_modules": QV, "modules_to_save": ["embed_tokens", "lm_head"]}),
    "by pattern": ("Lora", {"target_modules": r"model\.layers.*q_proj|lm_head"}),
    "single tokens": ("Lora", {"target_modules": QV, "trainable_token_indices": [5, 6, 7]}),
    "plain": ("Lora", {"target_modules": "all-linear"}),
    "dora": ("Lora", {"target_modules": QV, "use_dora": True}),
    "rslora": ("Lora", {"target_modules": QV, "use_rslora": True, "lora_alpha": 32}),
    "biases": ("Lora", {"target_modules": QV, "bias": "all"}),
    "ranks": ("Lora", {"target_modules": QV, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 32}}),
    "one layer": ("Lora", {"target_modules": QV, "layers_to_transform": [1]}),
    "a norm": ("Lora", {"target_modules": QV, "modules_to_save": ["norm"]}),
    "ia3": ("IA3", {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "loha": ("LoHa", {"target_modules": QV}),
    "lokr": ("LoKr", {"target_modules": QV}),
    "vera": ("Vera", {"target_modules": ["q_proj"], "r": 4}),
    "vera without projections": ("Vera", {"target_modules": ["q_proj"], "r": 4, "save_projection": False}),
    "oft": ("OFT", {"target_modules": ["q_proj"], "oft_block_size": 8}),
}


@pytest.mark.case("16-adapter-on-a-tied-head")
@pytest.mark.sibling("adapters-of-all-kinds-on-tied-and-untied-heads")
@pytest.mark.parametrize("name", KINDS)
def test_an_adapter_is_added_as_it_was_trained(name: str, tied: Path, apart: Path, tmp_path: Path) -> None:
    """To what is asked, to what is trained, and to what is saved of it and loaded again."""
    from transformers import AutoModelForCausalLM

    kind, settings = KINDS[name]
    for base in (tied, apart):
        adapter, trained = saved(base, tmp_path / base.name, kind, **settings)
        wanted = logits(trained)
        load_tokenizer(base).save_pretrained(adapter)
        asked, learning = by_all(adapter)
        most = 1e-4 * float(wanted.abs().max())
        assert (logits(asked) - wanted).abs().max() < most and (logits(learning) - wanted).abs().max() < most
        learning.save_pretrained(tmp_path / f"{base.name}-merged")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / f"{base.name}-merged", dtype=torch.float32)
        assert (logits(again) - wanted).abs().max() < most
        assert all(each.requires_grad for each in learning.parameters())


@pytest.mark.case("16-adapter-on-a-tied-head")
@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_a_tied_head_is_untied_by_the_training_that_changes_it(target: str, tmp_path: Path) -> None:
    """Trained once, saved once as an adapter and once merged: one model."""
    from transformers import AutoModelForCausalLM

    folder = begin(tmp_path, tie_word_embeddings=True)
    base = logits(AutoModelForCausalLM.from_pretrained(folder / "model"))
    found = []
    for merge in (False, True):
        lora = {"rank": 4, "targets": [target], "merge": merge}
        trained = run("sft", folder, output=str(tmp_path / str(merge)), lora=lora, learning_rate=0.1).folder
        found.append(logits(read_model(trained, torch.device("cpu"))[1]))
    assert torch.allclose(*found, atol=1e-4) and (found[0] - base).abs().max() > 0.5
    saved_config = json.loads((tmp_path / "True" / "config.json").read_text())
    assert saved_config["tie_word_embeddings"] is False
    assert "lm_head.weight" in load_file(tmp_path / "True" / "model.safetensors")


@pytest.mark.sibling("merge-check-sees-what-merging-changes")
def test_a_merge_that_changes_answers_is_refused(tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing unties the head; and with PEFT's own tying of both, whose merge adds to their weights twice."""
    adapter, _ = saved(
        tied, tmp_path / "both", "Lora", target_modules=["lm_head", "embed_tokens"], ensure_weight_tying=True
    )
    load_tokenizer(tied).save_pretrained(adapter)
    message = r"the adapter cannot be added to the weights: what the model says changes \(logits by \d"
    with pytest.raises(UserError, match=message):
        by_all(adapter)
    adapter, _ = saved(tied, tmp_path / "head", "Lora", target_modules=["lm_head"])
    monkeypatch.setattr(adapters, "untie", lambda model: None)
    with pytest.raises(UserError, match=message):
        load_policy(settings_for("sft", adapter, model=str(adapter)))


@pytest.mark.case("17-adapter-with-other-names")
def test_names_of_a_compiled_model_are_read_and_other_names_refused(apart: Path, tmp_path: Path) -> None:
    adapter, trained = saved(apart, tmp_path / "adapter", "Lora", target_modules=QV)
    load_tokenizer(apart).save_pretrained(adapter)
    wanted = logits(trained)
    renamed(adapter, lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."))
    assert all((logits(each) - wanted).abs().max() < 1e-3 for each in by_all(adapter))
    renamed(adapter, lambda name: name.replace("_orig_mod.model.layers", "transformer.h"))
    lacking = (
        r"the adapter lacks weights: model\.layers\.0\.self_attn\.q_proj\.lora_A\.weight and 7 more \(its file has "
        r"transformer\.h\.0\.self_attn\.q_proj\.lora_A\.weight in their place\); is apart the model"
    )
    with pytest.raises(UserError, match=lacking):
        read_model(adapter, torch.device("cpu"))
    with pytest.raises(UserError, match=lacking):
        load_policy(settings_for("sft", adapter, model=str(adapter)))
    with pytest.raises(UserError, match=r"the adapter lacks weights: model\.layers\.0\.self_attn\.q_proj"):
        load_reward_model(settings_for("reward", adapter, model=str(adapter)), 0)


@pytest.mark.sibling("adapter-with-some-weights-missing-or-left-over")
def test_an_adapter_has_all_of_its_weights_and_no_other(apart: Path, tmp_path: Path) -> None:
    adapter, _ = saved(apart, tmp_path / "adapter", "Lora", target_modules=QV)
    load_tokenizer(apart).save_pretrained(adapter)
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    first = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    save_file({name: each for name, each in weights.items() if name != first}, path)
    refused_by_all(adapter, r"the adapter lacks weights: model\.layers\.1\.self_attn\.v_proj\.lora_B\.weight; is apart")
    save_file(weights | {first.replace("v_proj", "o_proj"): weights[first].clone()}, path)
    refused_by_all(adapter, r"have no place in apart: model\.layers\.1\.self_attn\.o_proj\.lora_B\.weight; is")


@pytest.mark.sibling("adapter-of-another-model")
def test_an_adapter_of_another_model_does_not_fit(apart: Path, tmp_path: Path) -> None:
    adapter, _ = saved(apart, tmp_path / "adapter", "Lora", target_modules=QV)
    load_tokenizer(apart).save_pretrained(adapter)
    wide = make_model(tmp_path / "wide", hidden_size=96)
    told(adapter, base_model_name_or_path=str(wide))
    refused_by_all(
        adapter, r"does not fit wide: model\.layers\.0\.self_attn\.q_proj\.lora_A\.weight is 8x\d+, not 8x96"
    )
    deep = make_model(tmp_path / "deep", num_hidden_layers=3)
    told(adapter, base_model_name_or_path=str(deep))
    refused_by_all(
        adapter, r"the adapter lacks weights: model\.layers\.2\.self_attn\.q_proj\.lora_A\.weight and 3 more;"
    )


@pytest.mark.sibling("adapters-that-cannot-become-weights")
@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (
            "PromptTuning",
            {"num_virtual_tokens": 4},
            "is an adapter of the kind PROMPT_TUNING; those that can be loaded",
        ),
        ("PrefixTuning", {"num_virtual_tokens": 4}, "is an adapter of the kind PREFIX_TUNING"),
        ("AdaLora", {"target_modules": QV, "total_step": 10}, "is an adapter of the kind ADALORA"),
        (
            "Lora",
            {"target_modules": QV, "init_lora_weights": "pissa"},
            "began as `pissa`, which changed the weights of",
        ),
        (
            "Lora",
            {"target_modules": QV, "init_lora_weights": "olora"},
            "began as `olora`, which changed the weights of",
        ),
    ],
)
def test_other_kinds_are_refused_by_name(
    kind: str, settings: dict[str, Any], message: str, apart: Path, tmp_path: Path
) -> None:
    adapter, _ = saved(apart, tmp_path / "adapter", kind, **settings)
    load_tokenizer(apart).save_pretrained(adapter)
    refused_by_all(adapter, message)


@pytest.mark.sibling("adapter-files-that-cannot-be-read")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"peft_type": "SUPER_LORA"}, "is an adapter of the kind SUPER_LORA"),
        (
            {"use_super_scaling": True},
            "has settings that this PEFT does not know: use_super_scaling; pip install --upg",
        ),
        ({"base_model_name_or_path": None}, "does not say which model the adapter belongs to"),
        ({"base_model_name_or_path": 7}, "does not say which model the adapter belongs to"),
        ({"target_modules": ["nothing"]}, "cannot be loaded: Target modules"),
        ({"r": -3}, "cannot be loaded: .*r"),
    ],
)
def test_settings_that_nobody_can_follow(more: dict[str, Any], message: str, apart: Path, tmp_path: Path) -> None:
    adapter, _ = saved(apart, tmp_path / "adapter", "Lora", target_modules=QV)
    load_tokenizer(apart).save_pretrained(adapter)
    told(adapter, **more)
    refused_by_all(adapter, message)


@pytest.mark.sibling("adapter-pickled-or-cut-off")
def test_an_adapters_file_is_checked_like_a_models(apart: Path, tmp_path: Path) -> None:
    adapter, _ = saved(apart, tmp_path / "adapter", "Lora", target_modules=QV)
    load_tokenizer(apart).save_pretrained(adapter)
    path = adapter / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    refused_by_all(adapter, r"adapter_model\.safetensors is damaged: 50 bytes are missing")
    path.unlink()
    torch.save({}, adapter / "adapter_model.bin")
    refused_by_all(adapter, r"has its weights in adapter_model\.bin, and only safetensors are read")
    (adapter / "adapter_model.bin").unlink()
    refused_by_all(adapter, r"has no weights: adapter_model\.safetensors is missing")
    (adapter / "adapter_config.json").write_text("[")
    refused_by_all(adapter, r"adapter_config\.json: cannot be read as a JSON object")


@pytest.mark.sibling("folder-with-adapter-and-model")
def test_a_folder_that_could_be_two_things(apart: Path, tmp_path: Path) -> None:
    """A copy of the model's config beside an adapter is common, and changes nothing; a copy of the model does."""
    adapter, trained = saved(apart, tmp_path / "adapter", "Lora", target_modules=QV)
    load_tokenizer(apart).save_pretrained(adapter)
    shutil.copy(apart / "config.json", adapter)
    assert all((logits(each) - logits(trained)).abs().max() < 1e-3 for each in by_all(adapter))
    shutil.copy(apart / "model.safetensors", adapter)
    refused_by_all(adapter, "holds an adapter and a whole model; leave one of the two in it")
    with pytest.raises(UserError, match="holds an adapter and a whole model"):
        identity(str(adapter))


@pytest.mark.sibling("several-adapters-in-one-folder")
def test_one_of_several_adapters_has_to_be_named(apart: Path, tmp_path: Path) -> None:
    for name in ("polite", "rude"):
        saved(apart, tmp_path / "several" / name, "Lora", target_modules=QV)
    with pytest.raises(UserError, match=r"several: holds adapters in folders of their own: polite, rude; name one of"):
        model_folder(str(tmp_path / "several"))
    assert find_start(str(tmp_path / "several" / "rude")).weights == apart


@pytest.mark.case("18-adapter-with-more-tokens")
@pytest.mark.parametrize("settings", [{"target_modules": QV}, {"target_modules": [*QV, "lm_head", "embed_tokens"]}])
def test_added_tokens_come_with_the_adapter(settings: dict[str, Any], tied: Path, apart: Path, tmp_path: Path) -> None:
    for base in (tied, apart):
        adapter, trained = saved(base, tmp_path / base.name, "Lora", more_tokens=2, **settings)
        tokenizer = load_tokenizer(base)
        rows = len(tokenizer)
        tokenizer.add_tokens(["<|left|>", "<|right|>"])
        tokenizer.save_pretrained(adapter)
        ids = torch.tensor([[5, rows, 6, rows + 1, 7]])
        wanted = logits(trained, ids)
        for model in by_all(adapter):
            assert model.config.vocab_size == rows + 2
            assert (logits(model, ids) - wanted).abs().max() < 1e-3
            model.save_pretrained(tmp_path / f"{base.name}-again")
        load_tokenizer(adapter).save_pretrained(tmp_path / f"{base.name}-again")
        assert (
            logits(read_model(tmp_path / f"{base.name}-again", torch.device("cpu"))[1], ids) - wanted
        ).abs().max() < 1e-3


@pytest.mark.sibling("added-tokens-without-their-embeddings")
def test_added_tokens_without_embeddings_are_refused(tied: Path, apart: Path, tmp_path: Path) -> None:
    """The larger tokenizer alone; and a larger head, without the embeddings of what it can say."""
    adapter, _ = saved(apart, tmp_path / "tokens", "Lora", target_modules=QV)
    tokenizer = load_tokenizer(apart)
    rows = len(tokenizer)
    tokenizer.add_tokens(["<|left|>"])
    tokenizer.save_pretrained(adapter)
    with pytest.raises(UserError, match=f"has {rows:,} embeddings, and its tokenizer gives ids up to {rows:,}"):
        read_model(adapter, torch.device("cpu"))
    adapter, _ = saved(apart, tmp_path / "head", "Lora", more_tokens=2, target_modules=QV)
    path = adapter / "adapter_model.safetensors"
    save_file({name: each for name, each in load_file(path).items() if "embed_tokens" not in name}, path)
    tokenizer.save_pretrained(adapter)
    what = (
        f"has embeddings for {rows + 2:,} tokens, its model apart for {rows:,}, and lacks those of model.embed_tokens"
    )
    with pytest.raises(UserError, match=what):
        read_model(adapter, torch.device("cpu"))


# Reward models


def scored(tmp_path: Path, **settings: Any) -> tuple[Path, Any]:
    """A reward model as an adapter on a scorer, and the model with it."""
    import peft
    from transformers import AutoModelForSequenceClassification

    base = save_scorer(tmp_path / "scorer")
    model: Any = AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(target_modules=QV, task_type="SEQ_CLS", **settings)
    torch.manual_seed(2)
    model = peft.get_peft_model(model, config)
    for each in model.parameters():
        if each.requires_grad:
            each.data += 0.1 * torch.randn_like(each)
    model.eval().save_pretrained(tmp_path / "adapter")
    told(tmp_path / "adapter", base_model_name_or_path=str(base))
    return tmp_path / "adapter", model


@pytest.mark.sibling("reward-adapter-with-odd-weights")
def test_a_reward_models_adapter_is_checked_as_any(tmp_path: Path) -> None:
    adapter, trained = scored(tmp_path)
    wanted = logits(trained)
    whole = load_file(adapter / "adapter_model.safetensors")
    assert torch.allclose(logits(reward_model.load(str(adapter), "cpu").model), wanted, atol=1e-4)
    renamed(adapter, lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."))
    assert torch.allclose(logits(reward_model.load(str(adapter), "cpu").model), wanted, atol=1e-4)
    save_file(
        {name: each for name, each in whole.items() if "score" not in name}, adapter / "adapter_model.safetensors"
    )
    with pytest.raises(UserError, match=r"the adapter lacks weights: score\.weight; is scorer the model"):
        reward_model.load(str(adapter), "cpu")
    save_file(whole, adapter / "adapter_model.safetensors")
    (adapter / "reward.json").write_text('{"reward_mean": "much"}')
    with pytest.raises(UserError, match=r"reward\.json: holds other things than numbers"):
        reward_model.load(str(adapter), "cpu")


@pytest.mark.sibling("language-adapter-with-a-head-for-a-reward-model")
def test_the_head_of_a_language_models_adapter_is_of_no_use_for_rewards(apart: Path, tmp_path: Path) -> None:
    """Its layers are added, as they were trained; the reward model's head is its own."""
    adapter, trained = saved(apart, tmp_path / "adapter", "Lora", target_modules=[*QV, "lm_head"])
    load_tokenizer(apart).save_pretrained(adapter)
    model = load_reward_model(settings_for("reward", adapter, model=str(adapter)), 0)
    layer = trained.merge_and_unload().model.layers[1].self_attn.v_proj.weight
    assert torch.allclose(model.model.layers[1].self_attn.v_proj.weight, layer, atol=1e-6)
    with pytest.raises(UserError, match="is an adapter of the type CAUSAL_LM, without a reward head"):
        reward_model.load(str(adapter), "cpu")
