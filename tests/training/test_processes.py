"""Two processes are one: the same losses, held-out figures and weights, whatever the number of processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rlaif.training.folder import last_checkpoint
from tests.support import environment, rlaif, zygote
from tests.training.runs import begin, furthest, weights

pytestmark = pytest.mark.slow

ROWS = 12
"""Nine to train on in batches of four, three held out: of a last batch of one row, one process gets none."""
FLAGS = [
    "--device", "cpu", "--holdout", "0.25", "--batch-size", "4", "--max-steps", "6", "--learning-rate", "1e-2",
    "--max-tokens-per-pass", "100",
]  # fmt: skip
SHARDED = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}  # fmt: skip
"""What `accelerate launch` sets for `fsdp_version: 2` and its own defaults."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return begin(tmp_path_factory.mktemp("processes"), ROWS)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def launched(module: str, *arguments: object) -> list[str]:
    """The command line of two processes."""
    port = str(free_port())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    return [*launcher, "-m", module, *map(str, arguments)]


def finish(line: list[str], **env: str) -> str:
    """Run to a good end; returns what it said."""
    ended = subprocess.run(
        line, env=environment(OMP_NUM_THREADS="1", **env), capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


def alone(*arguments: object) -> None:
    """One process, to a good end."""
    ended = rlaif(*arguments, timeout=300, OMP_NUM_THREADS="1")
    assert ended.returncode == 0, ended.stderr[-3000:]


def together(module: str, *arguments: object, **env: str) -> list[subprocess.CompletedProcess[str]]:
    """Two processes with what a launcher tells each of them, to their ends."""
    zygote()
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with ThreadPoolExecutor(2) as pool:
        ended = [
            pool.submit(rlaif, *arguments, module=module, timeout=300, OMP_NUM_THREADS="1", **world, **rank, **env)
            for rank in ranks
        ]
        return [each.result() for each in ended]


def both(module: str, *arguments: object, **env: str) -> None:
    """The same, to a good end."""
    for ended in together(module, *arguments, **env):
        assert ended.returncode == 0, ended.stderr[-3000:]


def flags(method: str, folder: Path, out: Path, *more: object) -> list[object]:
    cache = ["--reference-cache", out.parent / f"{out.name}-references"] if method == "dpo" else []
    start = ["--model", folder / "model", "--data", folder / "rows.jsonl", "--output", out]
    return ["train", method, *start, *FLAGS, *cache, *more]


def curve(folder: Path) -> list[dict[str, float]]:
    """The log without what a clock says."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "train_runtime" not in line]


def same_curve(one: Path, other: Path) -> None:
    ours, theirs = curve(one), curve(other)
    assert [sorted(line) for line in ours] == [sorted(line) for line in theirs]
    assert sum("eval_loss" in line for line in ours) == 6
    for line, wanted in zip(ours, theirs, strict=True):
        for name, value in wanted.items():
            assert line[name] == pytest.approx(value, rel=1e-4, abs=1e-4), name


@pytest.mark.parametrize(
    ("method", "more"),
    [("dpo", ()), ("dpo", ("--loss", "kto")), ("sft", ())],
    ids=["dpo", "kto", "sft"],
)
def test_two_processes_are_one(method: str, more: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    alone(*flags(method, folder, one, *more))
    if method == "sft":  # by a real launcher
        said = finish(launched("rlaif", *flags(method, folder, two, *more)))
        assert said.count(f"Model in {two}") == 1, "one of them speaks"
    else:
        both("rlaif", *flags(method, folder, two, *more))
    same_curve(two, one)
    assert furthest(weights(one), weights(two)) <= 1e-4


@pytest.mark.parametrize(
    ("method", "more"),
    [("dpo", ()), ("dpo", ("--lora-rank", "4")), ("reward", ()), ("sft", ("--lora-rank", "4", "--lora-merge", "true"))],
    ids=["dpo", "dpo-adapter", "reward", "sft-merged"],
)
def test_a_model_in_shards_is_the_same(method: str, more: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    """Checkpoints are in shards, and the finished model is whole."""
    one, two = tmp_path / "one", tmp_path / "two"
    alone(*flags(method, folder, one, *more))
    both("tests.training.sharded", *flags(method, folder, two, *more), **SHARDED)
    same_curve(two, one)
    assert furthest(weights(one), weights(two)) <= 1e-4


def test_tied_embeddings_in_shards(tmp_path: Path) -> None:
    """The head is the table of embeddings: one set of weights that two places use."""
    from transformers import AutoModelForCausalLM

    begin(tmp_path, ROWS, tie_word_embeddings=True)
    alone(*flags("dpo", tmp_path, tmp_path / "one"))
    both("tests.training.sharded", *flags("dpo", tmp_path, tmp_path / "two"), **SHARDED)
    same_curve(tmp_path / "two", tmp_path / "one")
    one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("one", "two"))
    assert two.lm_head.weight is two.model.embed_tokens.weight
    assert furthest(one.state_dict(), two.state_dict()) <= 1e-4


@pytest.mark.parametrize("sharded", [False, True])
def test_interrupted_processes_stop_after_the_same_step_and_go_on(sharded: bool, folder: Path, tmp_path: Path) -> None:
    """The launcher passes Ctrl-C on as it sees fit; every process saves, and the resumed ones end as one process."""
    longer = ["--max-steps", "60", "--save-steps", "10"]
    module, env = ("tests.training.sharded", SHARDED) if sharded else ("rlaif", {})
    out = tmp_path / "broken"
    arguments = flags("dpo", folder, out, *longer)
    process = subprocess.Popen(
        launched(module, *arguments), env=environment(OMP_NUM_THREADS="1", **env), stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    with process:
        deadline = time.monotonic() + 120
        while last_checkpoint(out) is None and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the launcher and to both processes
        _, told = process.communicate(timeout=120)
    found = last_checkpoint(out)
    assert process.returncode != 0 and found is not None, told[-3000:]
    step = int(found.name.partition("-")[2])
    assert told.count(f"Stopped after step {step};") == 1 and step < 60, told[-3000:]
    both(module, *arguments, "--resume", **env)
    alone(*flags("dpo", folder, tmp_path / "calm", *longer))
    ends: list[Any] = [curve(each)[-1] for each in (out, tmp_path / "calm")]
    assert ends[0]["eval_loss"] == pytest.approx(ends[1]["eval_loss"], rel=1e-3, abs=1e-4)


def test_a_batch_that_cannot_be_dealt_out(folder: Path, tmp_path: Path) -> None:
    for ended in together("rlaif", *flags("sft", folder, tmp_path / "out", "--batch-size", "5")):
        assert ended.returncode == 2
        assert "`batch_size: 5` cannot be shared out evenly among 2 processes" in ended.stderr
