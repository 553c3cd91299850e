"""Models that are trained here go on elsewhere, and the other way round."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from rlaif.inference.vllm_process import PYTHON_VARIABLE
from tests.training.runs import begin, groups_of, pair_rows, run, weights

if os.environ.get("CI_REQUIRE_TRL") == "1":
    import trl
else:
    trl = pytest.importorskip("trl", reason="the extra `trl` is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return begin(tmp_path_factory.mktemp("interchange"))


def loaded(folder: Path, kind: str) -> Any:
    """By transformers alone, every weight found and none left over."""
    import transformers

    model, found = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    return model


def rows() -> Any:
    from datasets import Dataset

    return Dataset.from_list([{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in pair_rows(8)])


def steps_of_trl(kind: str, model: Any, folder: Path, out: Path) -> Any:
    """Two steps by TRL's trainer, saved with the tokenizer; returns its log."""
    from transformers import AutoTokenizer

    config = getattr(trl, f"{kind}Config")(
        output_dir=str(out), per_device_train_batch_size=4, max_steps=2, learning_rate=1e-2, report_to=[], use_cpu=True,
        bf16=False, save_strategy="no", logging_steps=1, disable_tqdm=True, max_length=512,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folder)
    made = getattr(trl, f"{kind}Trainer")(model=model, args=config, train_dataset=rows(), processing_class=tokenizer)
    made.train()
    made.save_model(str(out))
    return made.state.log_history


@pytest.mark.slow
def test_trl_goes_on_with_a_policy(folder: Path, tmp_path: Path) -> None:
    trained = run("dpo", folder, output=str(tmp_path / "ours"), reference_cache=str(tmp_path / "cache"))
    model = loaded(trained.folder, "CausalLM")
    assert torch.equal(model.lm_head.weight, weights(trained.folder)["lm_head.weight"])
    log = steps_of_trl("DPO", model, trained.folder, tmp_path / "theirs")
    assert log[0]["loss"] == pytest.approx(0.6931, abs=1e-3)


@pytest.mark.slow
def test_trl_goes_on_with_a_reward_model(folder: Path, tmp_path: Path) -> None:
    """It starts from the rewards that were learned here, so it has a head already."""
    trained = run("reward", folder, output=str(tmp_path / "ours"))
    model = loaded(trained.folder, "SequenceClassification")
    head = model.score.weight.detach().clone()
    assert head.shape == (1, 32) and torch.equal(head, weights(trained.folder)["score.weight"])
    log = steps_of_trl("Reward", model, trained.folder, tmp_path / "theirs")
    assert 0 < log[0]["loss"] < 10 and not torch.equal(model.score.weight, head)


@pytest.mark.slow
def test_a_policy_of_trl_goes_on_here(folder: Path, tmp_path: Path) -> None:
    steps_of_trl("DPO", loaded(folder / "model", "CausalLM"), folder / "model", tmp_path / "theirs")
    trained = run(
        "dpo", folder, model=str(tmp_path / "theirs"), output=str(tmp_path / "ours"),
        reference_cache=str(tmp_path / "cache"),
    )  # fmt: skip
    assert trained.finished and not torch.equal(
        weights(trained.folder)["lm_head.weight"], weights(tmp_path / "theirs")["lm_head.weight"]
    )


@pytest.mark.slow
def test_a_reward_model_of_trl_goes_on_here(folder: Path, tmp_path: Path) -> None:
    """With its own head: the first rewards are those that its weights give, not those of a new head."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    start = AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=1)
    steps_of_trl("Reward", start, folder / "model", tmp_path / "theirs")
    trained = run(
        "reward", folder, model=str(tmp_path / "theirs"), output=str(tmp_path / "ours"), batch_size=12, max_steps=1,
        eval_steps=1, learning_rate=1e-9, max_grad_norm=0,
    )  # fmt: skip
    model = loaded(tmp_path / "theirs", "SequenceClassification")
    with torch.no_grad():
        rewards = [
            float(model(input_ids=torch.tensor([[*group.prompt, *group.completions[0]]])).logits)
            for group in groups_of(folder)
        ]
    assert trained.metrics["rewards/chosen"] == pytest.approx(sum(rewards) / 12, rel=1e-4, abs=1e-5)


_CLASSIFIES = """
import json, sys
from vllm import LLM
if __name__ == "__main__":
    model = LLM(sys.argv[1], runner="pooling", convert="classify", dtype="float32", enforce_eager=True,
                max_model_len=256, pooler_config={"use_activation": False}, enable_prefix_caching=False)
    given = model.classify([{"prompt_token_ids": ids} for ids in json.loads(sys.argv[2])])
    print("REWARDS", json.dumps([each.outputs.probs for each in given]), flush=True)
"""


@pytest.mark.server
@pytest.mark.slow
def test_vllm_gives_the_same_rewards(tmp_path: Path) -> None:
    """As a classifier with one label and no squashing of its output."""
    import json

    python = os.environ.get(PYTHON_VARIABLE)
    if not python:
        reason = f"{PYTHON_VARIABLE} does not name a Python that has vLLM"
        if os.environ.get("CI_REQUIRE_VLLM") == "1":
            pytest.fail(f"CI_REQUIRE_VLLM=1, but {reason}")
        pytest.skip(reason)
    begin(tmp_path, hidden_size=64, num_attention_heads=2, num_key_value_heads=2)
    trained = run("reward", tmp_path)
    model = loaded(trained.folder, "SequenceClassification")
    ids = [[*group.prompt, *group.completions[0]] for group in groups_of(tmp_path)[:4]]
    script = tmp_path / "classify.py"
    script.write_text(_CLASSIFIES)
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    env.pop("OMP_NUM_THREADS", None)
    ended = subprocess.run(
        [python, script, trained.folder, json.dumps(ids)], env=env, capture_output=True, text=True, timeout=400
    )
    # Its exit code says nothing of them: vLLM 0.32 leaves threads behind that abort the interpreter's end now and then.
    said = [line for line in ended.stdout.splitlines() if line.startswith("REWARDS ")]
    assert len(said) == 1, ended.stderr[-3000:]
    (line,) = said
    with torch.no_grad():
        wanted = [float(model(input_ids=torch.tensor([each])).logits) for each in ids]
    assert [reward for (reward,) in json.loads(line.partition(" ")[2])] == pytest.approx(wanted, abs=1e-3)
