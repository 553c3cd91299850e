"""Folders of models that others made, whole and broken: what is loaded is what was saved, or nothing, for everybody."""

from __future__ import annotations

import ast
import json
import os
import pty
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlaif.errors import UserError
from rlaif.inference.model_folder import load_tokenizer, require_ends
from rlaif.inference.transformers_model import read_model
from rlaif.training import reward_model
from rlaif.training.loading import cast_files, load_frozen, load_policy, load_reward_model
from tests.support import ROOT, command, environment, rlaif
from tests.training.runs import make_model, settings_for
from tests.training.scorers import save_scorer

UP, NORM = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_scorer(tmp_path_factory.mktemp("models") / "scorer")


def as_judge(folder: Path) -> Any:
    return read_model(folder, torch.device("cpu"))[1]


def as_policy(folder: Path) -> Any:
    return load_policy(settings_for("sft", folder, model=str(folder)))


def as_reference(folder: Path) -> Any:
    return load_frozen(settings_for("sft", folder, model=str(folder)), torch.float32)


def as_value(folder: Path) -> Any:
    return load_reward_model(settings_for("reward", folder, model=str(folder)), 0)


def as_scorer(folder: Path) -> Any:
    return reward_model.load(str(folder), "cpu").model


def changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Weights as somebody else has left them."""

    def work(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return work


def config(**more: Any) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | more))

    return work


def renamed(weights: dict[str, Any]) -> None:
    weights[UP.replace("up_proj", "up_projection")] = weights.pop(UP)


def in_shards(folder: Path) -> None:
    """Two files and their index, as a model of many gigabytes has them."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, some in parts.items():
        save_file({name: weights[name] for name in some}, folder / file, metadata={"format": "pt"})
    where = {name: file for file, some in parts.items() for name in some}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def without_a_shard(folder: Path) -> None:
    in_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_gguf(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model-Q4_1.gguf").write_bytes(b"GGUF")


def cut(size: int) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:size])

    return work


def written(name: str, text: str) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        (folder / name).write_text(text)

    return work


def with_an_empty_index(folder: Path) -> None:
    in_shards(folder)
    (folder / "model.safetensors.index.json").write_text("[]")


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "renamed": (changed(renamed), rf"lacks weights of a \w+ model: {re.escape(UP)}; name a model that was saved whole"),
    "left over": (
        changed(lambda weights: weights.update({UP.replace("weight", "bias"): torch.ones(4)})),
        r"has weights that are no part of a \w+ model of its kind: model\.layers\.0\.mlp\.up_proj\.bias;",
    ),
    "a layer too few": (
        config(num_hidden_layers=5),
        r"lacks weights of a \w+ model: model\.layers\.\d.* and \d+ more;",
    ),
    "a layer too many": (config(num_hidden_layers=1), r"no part of a \w+ model of its kind: model\.layers\.1"),
    "of another width": (
        changed(lambda weights: weights.update({NORM: torch.ones(7)})),
        r"model\.norm\.weight is 7 in its files, and its config\.json asks for \d+; name a model",
    ),
    "whole numbers": (
        changed(lambda weights: weights.update({NORM: (weights[NORM] * 100).to(torch.int8)})),
        r"model\.norm\.weight holds I8, no floats, and no `quantization_config`",
    ),
    "no numbers": (
        changed(lambda weights: weights[UP].view(-1)[3].fill_(float("nan"))),
        rf"that are no numbers: {re.escape(UP)}",
    ),
    "a shard is missing": (without_a_shard, r"lacks files of its weights: model-00002-of-00002\.safetensors; save it"),
    "an index that lists nothing": (
        with_an_empty_index,
        r"model\.safetensors\.index\.json: cannot be read as a JSON object",
    ),
    "cut off": (cut(10_000), r"model\.safetensors is damaged: [\d,]+ bytes are missing; copy or download it again"),
    "cut off in its header": (cut(100), r"model\.safetensors is no file of safetensors, or a damaged one"),
    "a pointer to another place": (
        written("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 7\n"),
        r"model\.safetensors is no file of safetensors",
    ),
    "empty": (written("model.safetensors", ""), r"model\.safetensors is no file of safetensors"),
    "pickled": (pickled, r"has its weights in pytorch_model\.bin, and only safetensors are read, which run no code"),
    "another format": (as_gguf, r"has its weights in model-Q4_1\.gguf, and only safetensors are read"),
    "code": (
        config(model_type="custom", auto_map={"AutoConfig": "custom.C", "AutoModelForCausalLM": "custom.M"}),
        r"needs code of its own \(`auto_map` in config\.json, `custom`\), which is never run",
    ),
    "no config": (written("config.json", "{"), r"config\.json: cannot be read as a JSON object"),
    "a list for a config": (written("config.json", "[1]"), r"config\.json: cannot be read as a JSON object"),
    "an unknown family": (config(model_type="llama9"), r"cannot be loaded: .*llama9"),
    "ends that are words": (
        written("generation_config.json", '{"eos_token_id": "</s>"}'),
        r"generation_config\.json: `eos_token_id` is \"</s>\"; set the number of the token",
    ),
    "half a generation config": (
        written("generation_config.json", '{"eos'),
        r"generation_config\.json: cannot be read",
    ),
}


@pytest.mark.case("sec-01-model-without-weights")
@pytest.mark.sibling("model-files-refused-by-every-loader")
@pytest.mark.parametrize("name", BROKEN)
def test_a_model_that_is_not_whole_is_nobodys(name: str, model: Path, scorer: Path, tmp_path: Path) -> None:
    """In one line, whoever asks: a judge, a policy, a reference, a value network, a scorer."""
    work, message = BROKEN[name]
    for start, loaders in ((model, (as_judge, as_policy, as_reference, as_value)), (scorer, (as_scorer, as_value))):
        folder = Path(shutil.copytree(start, tmp_path / start.name))
        work(folder)
        for load in loaders:
            with pytest.raises(UserError, match=message) as caught:
                load(folder)
            assert "\n" not in str(caught.value) and str(folder) in str(caught.value), load.__name__


@pytest.mark.case("sec-01-model-without-weights")
def test_a_judge_without_weights_ends_a_check(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "judge"))
    changed(renamed)(folder)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hi"}\n')
    settings = "constitution: demo\nprompts: prompts.jsonl\npolicy: {model: demo-policy, samples: 2}\n"
    (tmp_path / "run.yaml").write_text(f"{settings}judge: {{model: ./judge}}\noutput: out\n")
    told = rlaif("check", tmp_path / "run.yaml")
    assert told.returncode == 2 and "Traceback" not in told.stderr
    assert f"lacks weights of a language model: {UP}" in told.stdout + told.stderr


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(3, 20)[None]).logits
    return found


@pytest.mark.sibling("whole-models-of-all-shapes-are-loaded")
def test_models_that_are_whole_are_loaded(model: Path, tmp_path: Path) -> None:
    """In shards, tied with the head left out, narrow, from an older version with buffers in its file, with a
    generation config of odd values."""
    wanted = logits(as_judge(model))
    folder = Path(shutil.copytree(model, tmp_path / "shards"))
    in_shards(folder)
    odd = '{"eos_token_id": [2, 5], "temperature": 0, "do_sample": true, "top_p": 7, "max_length": -1}'
    (folder / "generation_config.json").write_text(odd)
    for load in (as_judge, as_policy, as_reference):
        assert torch.equal(logits(load(folder)), wanted)
    assert require_ends(folder) == reward_model.ends_of(folder) == {2, 5}
    assert as_judge(folder).generation_config.do_sample is False
    tied = make_model(tmp_path / "tied", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    assert logits(as_judge(tied)).shape == wanted.shape
    narrow = Path(shutil.copytree(model, tmp_path / "narrow"))
    cast_files(narrow, torch.bfloat16)
    assert (logits(as_judge(narrow)) - wanted).abs().max() < 0.2


@pytest.mark.sibling("tied-in-its-config-and-not-in-its-file")
def test_a_head_of_its_own_counts_whatever_the_config_says(model: Path, tmp_path: Path) -> None:
    """A file holds a head; its config says that there is none. What is saved again can be loaded by anybody."""
    folder = Path(shutil.copytree(model, tmp_path / "two"))
    config(tie_word_embeddings=True)(folder)
    loaded = as_policy(folder)
    assert torch.equal(logits(loaded), logits(as_judge(model)))
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.sibling("reward-model-as-a-judge")
def test_a_reward_model_is_no_judge(tmp_path: Path) -> None:
    """With tied embeddings it lacks nothing that a language model has."""
    from transformers import AutoModelForSequenceClassification

    folder = make_model(tmp_path / "tied", tie_word_embeddings=True)
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).save_pretrained(folder)
    for load in (as_judge, as_policy):
        with pytest.raises(UserError, match=r"no part of a language model of its kind: score\.weight"):
            load(folder)


@pytest.mark.sibling("ends-of-a-generation-config")
@pytest.mark.parametrize(
    ("told", "ends"),
    [("2", {2}), ("[2, 7]", {2, 7}), ("null", set()), ("[]", set()), ("[2, null]", {2}), ("0", {0})],
)
def test_the_ends_of_a_reply(told: str, ends: set[int], tmp_path: Path) -> None:
    assert require_ends(tmp_path) == set()
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {told}}}')
    assert require_ends(tmp_path) == ends
    for wrong in ("true", "-1", "2.5", '["2"]', "{}"):
        (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {wrong}}}')
        with pytest.raises(UserError, match="`eos_token_id` is "):
            require_ends(tmp_path)


@pytest.mark.sibling("tokenizer-larger-than-the-embeddings")
def test_tokens_without_an_embedding_are_refused_before_they_are_met(model: Path, tmp_path: Path) -> None:
    """An ordinary token, and a special one that the template writes. One of images, which no text of ours has, is
    passed over: so is Gemma 3's."""
    rows = len(as_judge(model).get_input_embeddings().weight)
    for name, token, special, written_by, fits in (
        ("word", "<|left|>", False, "", False),
        ("cue", "<|cue|>", True, "<|cue|>", False),
        ("image", "<image>", True, "", True),
    ):
        folder = Path(shutil.copytree(model, tmp_path / name))
        tokenizer = load_tokenizer(folder)
        tokenizer.add_tokens([token], special_tokens=special)
        tokenizer.chat_template += written_by
        tokenizer.save_pretrained(folder)
        if fits:
            assert as_judge(folder) is not None
            continue
        wanted = re.escape(
            f"has {rows:,} embeddings, and its tokenizer gives ids up to {rows:,} (`{token}` is {rows:,})"
        )
        with pytest.raises(UserError, match=wanted):
            as_judge(folder)


@pytest.mark.sibling("tokenizer-without-a-pad-token")
def test_a_tokenizer_without_a_pad_token_is_asked_as_any(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "padless"))
    tokenizer = load_tokenizer(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    loaded_tokenizer, loaded = read_model(folder, torch.device("cpu"))
    assert loaded_tokenizer.pad_token_id is None
    assert loaded.generation_config.pad_token_id == loaded_tokenizer.eos_token_id
    assert torch.equal(logits(loaded), logits(as_judge(model)))


@pytest.mark.sibling("tokenizer-that-is-no-tokenizer")
@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model": {"type": "Nonsense"}}'])
def test_a_broken_tokenizer_is_told_in_one_line(text: str, model: Path, tmp_path: Path) -> None:
    """Some of these are bare exceptions of the Rust half."""
    folder = Path(shutil.copytree(model, tmp_path / "torn"))
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match="the tokenizer here cannot be loaded; save the model together"):
        as_judge(folder)


# Code of others


def custom(folder: Path) -> Path:
    """A model whose config names code that leaves a file behind where it runs."""
    config(model_type="custom", auto_map={"AutoConfig": "custom.C", "AutoModelForCausalLM": "custom.M"})(folder)
    (folder / "custom.py").write_text(
        f"open({str(folder / 'RAN')!r}, 'w').close()\n"
        "from transformers import LlamaConfig as C, LlamaForCausalLM as M\n"
    )
    return folder


@pytest.mark.case("sec-28-custom-code-of-a-model")
@pytest.mark.parametrize("reached", [("train", "sft"), ("train", "reward"), ("train", "ppo"), ("score",)])
def test_code_of_a_model_never_runs_and_nobody_is_asked(reached: tuple[str, ...], model: Path, tmp_path: Path) -> None:
    """On a terminal, where somebody types y all the time; the data are not even there."""
    folder = custom(Path(shutil.copytree(model, tmp_path / "model")))
    more = {
        "ppo": ("--prompts", tmp_path / "none.jsonl", "--reward", "x.py:f"),
    }.get(reached[-1], ("--data", tmp_path / "none.jsonl"))
    output = ("--output", tmp_path / "out")
    ours, theirs = pty.openpty()
    os.write(ours, b"y\ny\ny\ny\n")
    told = subprocess.run(
        command(*reached, "--model", folder, *more, *output), stdin=theirs, capture_output=True, text=True,
        env=environment(), timeout=300,
    )  # fmt: skip
    os.close(ours)
    os.close(theirs)
    assert told.returncode == 2, told.stderr
    assert "needs code of its own (`auto_map` in config.json, `custom`), which is never run" in told.stderr
    assert "[y/N]" not in told.stdout + told.stderr and "Traceback" not in told.stderr
    assert not (folder / "RAN").exists() and not (tmp_path / "out").exists()


@pytest.mark.sibling("tokenizer-with-code")
def test_code_of_a_tokenizer_never_runs(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    path = folder / "tokenizer_config.json"
    told = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["custom.T", None]}, "tokenizer_class": "T"}
    path.write_text(json.dumps(told))
    (folder / "custom.py").write_text(f"open({str(folder / 'RAN')!r}, 'w').close()\n")
    with pytest.raises(UserError, match="the tokenizer here needs code of its own, which is never run"):
        load_tokenizer(folder)
    assert not (folder / "RAN").exists()


@pytest.mark.sibling("known-family-that-also-brings-code")
def test_a_known_family_is_loaded_without_the_code_beside_it(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    config(auto_map={"AutoConfig": "custom.C", "AutoModelForCausalLM": "custom.M"})(folder)
    (folder / "custom.py").write_text(f"open({str(folder / 'RAN')!r}, 'w').close()\n")
    assert torch.equal(logits(as_policy(folder)), logits(as_judge(model)))
    assert not (folder / "RAN").exists()


@pytest.mark.case("sec-28-custom-code-of-a-model")
def test_every_loader_says_that_no_code_may_run() -> None:
    """Every call of a `from_pretrained` in the package."""
    seen = 0
    for path in sorted(path for base in ("rlaif", "tools") for path in (ROOT / base).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_pretrained":
                told = {each.arg: each.value for each in node.keywords}
                value = told.get("trust_remote_code")
                assert isinstance(value, ast.Constant) and value.value is False, f"{path}:{node.lineno}"
                seen += 1
    assert seen >= 6
