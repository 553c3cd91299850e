"""Whole trainings whose answers a real vLLM server draws: its weights are in step after every update, or it is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlaif.errors import ModelError, UserError
from rlaif.rl.weight_sync import Adapters
from tests.conftest import Served
from tests.online.runs import REWARD, log_of, run

pytestmark = pytest.mark.server


def served(server: Served, folder: Path, **more: Any) -> dict[str, Any]:
    """Settings of a training of the server's model."""
    (folder / "reward.py").write_text(REWARD)
    rows = [json.dumps({"prompt": f"Say {word}."}) for word in ("red", "green", "blue", "old")]
    (folder / "prompts.jsonl").write_text("".join(f"{row}\n" for row in rows))
    usual: dict[str, Any] = {
        "model": str(server.folder), "output": str(folder / "out"), "lora": {"rank": 8}, "learning_rate": 2e-2,
        "rollout": {"base_url": server.base_url, "max_tokens": 12}, "steps": 4,
    }  # fmt: skip
    return usual | more


def test_the_server_follows_every_update(vllm_with_adapters: Served, tmp_path: Path) -> None:
    for algorithm in ("ppo", "rloo"):
        more = served(vllm_with_adapters, tmp_path, algorithm=algorithm, output=str(tmp_path / algorithm))
        trained = run(tmp_path, **more)
        log = log_of(trained.folder)
        assert len(log) == 4 and log[-1]["kl"] > 0.1, "the policy has moved"
        assert all(line["mismatch/mean"] < 1e-4 for line in log), [line["mismatch/mean"] for line in log]
        assert all(line["mismatch/ess"] > 0.99 for line in log)
        rows = [json.loads(line) for line in (trained.folder / "responses.jsonl").open()]
        assert [row["version"] for row in rows] == [at // 8 for at in range(32)]
        assert (trained.folder / "adapter_model.safetensors").exists() and not (trained.folder / "shared").exists()


def test_a_server_takes_all_weights_where_there_is_no_adapter(vllm_with_adapters: Served, tmp_path: Path) -> None:
    more = served(vllm_with_adapters, tmp_path, algorithm="rloo", lora={}, learning_rate=2e-3, save_steps=2)
    more["rollout"] |= {"async_rollout": True, "weights": str(tmp_path / "memory")}
    trained = run(tmp_path, **more)
    log = log_of(trained.folder)
    assert log[-1]["kl"] > 0.1, "the policy has moved"
    assert log[0]["mismatch/mean"] < 1e-4
    rows = [json.loads(line) for line in (trained.folder / "responses.jsonl").open()]
    assert [row["version"] for row in rows] == [max(0, at // 8 - 1) for at in range(32)]
    assert (trained.folder / "model.safetensors").exists() and not (tmp_path / "memory").exists()
    more |= {"output": str(tmp_path / "in-step"), "rollout": {**more["rollout"], "async_rollout": False}}
    log = log_of(run(tmp_path, **more).folder)
    assert log[-1]["kl"] > 0.1 and all(line["mismatch/mean"] < 1e-4 for line in log), "from the start again"


def test_answers_drawn_ahead_are_one_update_old(vllm_with_adapters: Served, tmp_path: Path) -> None:
    more = served(vllm_with_adapters, tmp_path, algorithm="rloo", steps=5)
    more["rollout"] |= {"async_rollout": True}
    trained = run(tmp_path, **more)
    log = log_of(trained.folder)
    rows = [json.loads(line) for line in (trained.folder / "responses.jsonl").open()]
    assert [row["version"] for row in rows] == [max(0, at // 8 - 1) for at in range(40)]
    assert log[0]["mismatch/mean"] < 1e-4 < log[2]["mismatch/mean"], "an update lies between"
    assert log[2]["mismatch/ess"] < 0.9999 and log[-1]["kl"] > 0.05


def test_a_server_that_keeps_older_weights_stops_the_training(
    vllm_with_adapters: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second update is planted to fail unseen: the server is asked under the name of the first on and on."""
    plain = Adapters.load
    names: list[str] = []

    async def load(self: Adapters, line: Any, version: int) -> str:
        names.append(names[-1] if version == 2 else await plain(self, line, version))
        return names[-1]

    monkeypatch.setattr(Adapters, "load", load)
    with pytest.raises(ModelError, match="not those of version 2 of the policy"):
        run(tmp_path, **served(vllm_with_adapters, tmp_path))
    assert len(log_of(tmp_path / "out")) == 2


def test_a_server_that_is_not_there(tmp_path: Path, tiny_model: Path) -> None:
    nowhere = Served("http://127.0.0.1:9/v1", "policy", tiny_model)
    more = served(nowhere, tmp_path, rollout={"base_url": "http://127.0.0.1:9/v1", "max_tokens": 4, "timeout": 1.0})
    with pytest.raises((ModelError, UserError), match=r"127\.0\.0\.1:9"):
        run(tmp_path, **more)
