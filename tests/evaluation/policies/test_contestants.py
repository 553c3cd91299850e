"""Who is compared, and what they are called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlaif.errors import UserError
from rlaif.evaluation.policy_specs import contestants


def folder(path: Path, name: str = "config.json") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / name).write_text("{}")
    return path


def test_the_shortest_tails_that_differ(tmp_path: Path) -> None:
    a, b, c = (folder(tmp_path / each) for each in ("one/dpo", "two/dpo", "one/ppo"))
    found = contestants([str(a), str(b), str(c), "demo-policy", "mine=demo-judge"])
    assert [each.name for each in found] == ["one/dpo", "two/dpo", "ppo", "demo-policy", "mine"]
    assert [each.thing for each in found] == [str(a), str(b), str(c), "demo-policy", "demo-judge"]
    assert all(each.answers is None for each in found)


def test_servers_and_files(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    file.write_text("{}\n")
    run = folder(tmp_path / "run", "samples.jsonl")
    texts = ["http://127.0.0.1:8000/v1#org/big-7b", "http://127.0.0.1:9000/v1", str(file), str(run)]
    big, only, given, sampled = contestants(texts, api_key_env="KEY", served=lambda url: f"only at {url}")
    assert big.name == "big-7b" and big.model and (big.model.base_url, big.model.model, big.model.api_key_env) == (
        "http://127.0.0.1:8000/v1", "org/big-7b", "KEY"
    )  # fmt: skip
    assert only.name == "127.0.0.1:9000" and only.model and only.model.model == "only at http://127.0.0.1:9000/v1"
    assert (given.name, given.answers, given.model) == ("out.jsonl", file, None)
    assert (sampled.answers, sampled.folder) == (run / "samples.jsonl", None)


def test_an_adapters_folder_is_a_model(tmp_path: Path) -> None:
    (found,) = contestants([str(folder(tmp_path / "lora", "adapter_config.json"))])
    assert found.model is not None and found.folder == tmp_path / "lora"


@pytest.mark.parametrize(
    ("texts", "what"),
    [
        (["demo-policy", "demo-policy"], "two policies are called `demo-policy`"),
        (["a=demo-policy", "a=demo-judge"], "two policies are called `a`"),
        (["gone.jsonl"], "gone.jsonl: no such file"),
        (["http://127.0.0.1:1/v1"], "does not say which model"),
    ],
)
def test_mistakes(texts: list[str], what: str) -> None:
    with pytest.raises(UserError, match=what):
        contestants(texts)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a model nor answers"):
        contestants([str(tmp_path)])


def test_a_reward_models_adapter_answers_nothing(tmp_path: Path) -> None:
    from rlaif.inference.model_folder import identity

    lora = folder(tmp_path / "rm", "adapter_config.json")
    about = {"base_model_name_or_path": "demo-policy", "task_type": "SEQ_CLS"}
    (lora / "adapter_config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="is an adapter of a reward model"):
        identity(str(lora))
