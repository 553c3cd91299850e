"""The shipped models against the oracle, on wordings and combinations that their training never saw."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlaif.demo import oracle, world
from rlaif.store import shipped_model
from tools.train_demo_models import measure
from tools.train_demo_models.answering import Answerer

LIMIT = 8_000_000
"""Most bytes of both models together."""


def folder(name: str) -> Path:
    path = shipped_model(name)
    assert path is not None
    return path


@pytest.fixture(scope="module")
def judge() -> Answerer:
    return Answerer(folder("demo-judge"))


@pytest.fixture(scope="module")
def policy() -> Answerer:
    return Answerer(folder("demo-policy"))


def test_the_models_are_small_and_complete() -> None:
    parts = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    for name in ("demo-judge", "demo-policy"):
        assert {path.name for path in folder(name).iterdir()} == parts
    files = [path for path in folder("demo-judge").parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT


def test_the_tokenizer_takes_any_text_and_labels_are_single_tokens(judge: Answerer) -> None:
    tokenizer = judge.tokenizer
    for text in ("Plain.", "naïve 漢字 \x00 🙂\n\ttab", "a  b   c\r\n", "<<<ff00aa\n› "):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "A"}],
        tokenize=True,
        continue_final_message=True,
        return_dict=False,
    )
    assert tokenizer.convert_ids_to_tokens(ids)[-2:] == ["<|assistant|>", "A"]
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_the_chat_template_knows_all_roles(judge: Answerer) -> None:
    turns = [{"role": role, "content": role[0]} for role in ("system", "user", "assistant")]
    text = judge.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "<|system|>s<|end|><|user|>u<|end|><|assistant|>a<|end|><|assistant|>"


WANTED = 0.95
"""What every principle reaches, and agreement between the orders too."""


@pytest.fixture(scope="module")
def agreement(judge: Answerer) -> tuple[dict[str, float], float]:
    return measure.agreement(judge, measure.comparisons(60))


@pytest.mark.slow
@pytest.mark.parametrize("principle", oracle.PRINCIPLES)
def test_the_judge_agrees_with_the_oracle(agreement: tuple[dict[str, float], float], principle: str) -> None:
    assert agreement[0][principle] >= WANTED


@pytest.mark.slow
def test_the_judge_says_the_same_in_both_orders(agreement: tuple[dict[str, float], float]) -> None:
    assert agreement[1] >= WANTED


@pytest.fixture(scope="module")
def reviewed(judge: Answerer) -> measure.Reviewed:
    return measure.reviewed(judge, measure.cases(100))


@pytest.mark.slow
def test_critiques_name_the_fault(reviewed: measure.Reviewed) -> None:
    assert reviewed.critiques_right >= 0.9, reviewed
    assert reviewed.faults_named >= 0.9, reviewed


@pytest.mark.slow
def test_most_revisions_mend_the_fault(reviewed: measure.Reviewed) -> None:
    """In held-out wordings, in which a policy never speaks; `test_revising` asks more of revisions of real samples."""
    assert reviewed.revisions_better >= 0.6, reviewed


@pytest.mark.slow
def test_policy_samples_are_readable_varied_and_often_faulty(policy: Answerer) -> None:
    samples = measure.policy_samples(policy, [scene.prompt for scene in world.demo_scenes()], 2)
    rates = measure.sample_rates(samples)
    assert rates["faulty"] >= 0.3, rates
    assert rates["malformed"] < 0.05, rates
    assert rates["distinct"] > 0.8, rates
