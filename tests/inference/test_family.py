"""Which models are relatives, by name."""

from __future__ import annotations

import pytest

from rlaif.inference.models import family, related, same_family

NAMES = {
    "Qwen/Qwen3-0.6B": "qwen",
    "Qwen/Qwen2.5-7B-Instruct": "qwen",
    "qwen3:8b": "qwen",
    "meta-llama/Llama-3.1-8B-Instruct": "llama",
    "meta-llama/Meta-Llama-3-8B": "llama",
    "llama3.1:8b": "llama",
    "mistralai/Mistral-7B-Instruct-v0.3": "mistral",
    "mistralai/Mistral-Nemo-Instruct-2407": "mistral",
    "mistralai/Mixtral-8x7B-v0.1": "mixtral",
    "google/gemma-2-9b-it": "gemma",
    "microsoft/Phi-4": "phi",
    "HuggingFaceTB/SmolLM2-135M": "smollm",
    "deepseek-ai/DeepSeek-R1": "deepseek",
    "gpt-4o-mini": "gpt",
    "openai/gpt-oss-20b": "gpt oss",
    "claude-3-5-sonnet": "claude",
    "claude-opus-4": "claude",
    "demo-judge": "demo judge",
    "./runs/my-policy/": "my policy",
    "meta": "meta",
    "7b": "",
    "v2": "",
}


@pytest.mark.parametrize(("name", "words"), NAMES.items())
def test_the_family_of_a_name(name: str, words: str) -> None:
    assert " ".join(family(name)) == words


RELATED = [
    ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B", True),
    ("Qwen/Qwen2.5-7B-Instruct", "someone/qwen3-32b-dpo", True),
    ("meta-llama/Meta-Llama-3-8B", "llama3.1:8b", True),
    ("openai/gpt-oss-20b", "gpt-4o-mini", True),
    ("claude-opus-4", "claude-3-5-haiku", True),
    ("demo-policy", "demo-policy", True),
    ('Qwen/Qwen3-8B {"mode":"a/b"}', "Qwen/Qwen3-8B", True),
    ("7b", "7b", True),
    ("Qwen/Qwen3-8B", "meta-llama/Llama-3.1-8B", False),
    ("mistralai/Mistral-7B-v0.3", "mistralai/Mixtral-8x7B-v0.1", False),
    ("demo-policy", "demo-judge", False),
    ("7b", "13b", False),
    ("7b", "Qwen/Qwen3-8B", False),
]


@pytest.mark.parametrize(("one", "other", "kin"), RELATED)
def test_relatives(one: str, other: str, kin: bool) -> None:
    assert related(one, other) is related(other, one) is kin


def test_one_sentence_for_all_judges() -> None:
    judges = ["Qwen/Qwen3-8B", "meta-llama/Llama-3.1-8B", "Qwen/Qwen2.5-7B"]
    assert same_family(None, judges) is None
    assert same_family("google/gemma-2-2b", judges) is None
    told = same_family("Qwen/Qwen3-0.6B", judges)
    assert told is not None
    assert told.startswith("the judges Qwen/Qwen3-8B and Qwen/Qwen2.5-7B are of the policy's own family")
    assert "the judge Qwen/Qwen3-8B is of" in str(same_family("Qwen/Qwen3-0.6B", judges[:2]))
