"""Real preference data, all of it read and tokenized, and a few steps of each method on it."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import DATA
from tests.training.runs import Heard, make_model, run, weights

HH = DATA / "hh-rlhf-harmless-base-test.jsonl.gz"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not HH.exists(), reason="the shared data is not here")]
TRAIN, HELD = 2_000, 312


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 2,312 pairs as 2,000 to train on and 312 held out, and a model with room for their lengths."""
    made = tmp_path_factory.mktemp("real")
    with gzip.open(HH, "rt", encoding="utf-8") as file:
        lines = file.readlines()
    assert len(lines) == TRAIN + HELD
    (made / "rows.jsonl").write_text("".join(lines[:TRAIN]), encoding="utf-8")
    (made / "held.jsonl").write_text("".join(lines[TRAIN:]), encoding="utf-8")
    make_model(made / "model", max_position_embeddings=1024, initializer_range=0.02)
    return made


@pytest.mark.parametrize("method", ["sft", "reward", "dpo"])
def test_a_few_steps_on_real_text(method: Any, folder: Path, tmp_path: Path) -> None:
    """Byte by byte, nearly, these are long rows: many parts a step, and every row of the held-out file counts."""
    heard = Heard()
    more = {"reference_cache": str(tmp_path / "cache")} if method == "dpo" else {}
    trained = run(
        method, folder, held_data=str(folder / "held.jsonl"), output=str(tmp_path / "out"), max_steps=6, batch_size=16,
        eval_steps=6, learning_rate=3e-3 if method == "sft" else 3e-4, heard=heard, **more,
    )  # fmt: skip
    assert trained.finished and trained.steps == 6
    told = " ".join(heard.notes)
    assert "rows.jsonl: 2,000 rows" in told and "held.jsonl: 312 rows" in told
    assert all(torch.isfinite(each).all() for each in weights(trained.folder).values())
    # ln 300 nats a token, ln 2 a pair: what a model knows that has learned nothing
    assert trained.metrics["eval_loss"] < {"sft": 5.7, "reward": 0.75, "dpo": 0.72}[method]
    if method == "dpo":
        assert heard.begun[0][0] == "reference" and heard.begun[0][1] > 2_000
