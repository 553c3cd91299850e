"""A training that was stopped and goes on ends with the weights of one that was left alone."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from rlaif.errors import UserError
from rlaif.training.folder import last_checkpoint
from rlaif.training.trainer import StopCleanly
from tests.support import command, environment, rlaif
from tests.training.runs import Heard, begin, furthest, run, weights, write_pairs

STEPS = 9
WHOLE: dict[str, Any] = {"max_steps": STEPS, "save_steps": 2, "batch_size": 5, "warmup": 0.2}
"""Nine steps of five of twelve rows: three epochs, their last batches of two rows."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return begin(tmp_path_factory.mktemp("resume"))


def stop_after(step: int, patch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C does in that step."""
    plain = StopCleanly.on_step_end

    def asked(self: StopCleanly, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.asked = self.asked or state.global_step == step
        plain(self, args, state, control, **more)

    patch.setattr(StopCleanly, "on_step_end", asked)


def stopped(method: Any, folder: Path, step: int, **more: Any) -> None:
    """Train up to a step, save, and stop."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(step, patch)
        trained = run(method, folder, **(WHOLE | more))
    assert not trained.finished and trained.steps == step
    out = Path(more["output"])
    assert not (out / "metrics.json").exists() and not (out / "model.safetensors").exists()
    assert (out / f"checkpoint-{step}" / "trainer_state.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 6])
@pytest.mark.parametrize("method", ["dpo", "reward", "sft"])
def test_resumed_weights_are_those_of_one_piece(method: Any, step: int, folder: Path, tmp_path: Path) -> None:
    """Stopped within the second epoch, and at its end; the loss of every step is the same too."""
    cache = {"reference_cache": str(tmp_path / "cache")} if method == "dpo" else {}
    calm = run(method, folder, output=str(tmp_path / "calm"), **WHOLE, **cache)
    stopped(method, folder, step, output=str(tmp_path / "broken"), **cache)
    resumed = run(method, folder, output=str(tmp_path / "broken"), resume=True, **WHOLE, **cache)
    assert resumed.finished and resumed.steps == STEPS
    assert furthest(weights(calm.folder), weights(resumed.folder)) <= 1e-6
    logs = [[json.loads(line) for line in (each.folder / "log.jsonl").open()] for each in (calm, resumed)]
    one, other = ([line["loss"] for line in log if "loss" in line] for log in logs)
    assert len(one) == STEPS and one == pytest.approx(other, abs=1e-6)


@pytest.mark.slow
def test_an_adapter_goes_on_as_well(folder: Path, tmp_path: Path) -> None:
    same: dict[str, Any] = {"lora": {"rank": 4}, "reference_cache": str(tmp_path / "cache")}
    calm = run("dpo", folder, output=str(tmp_path / "calm"), **WHOLE, **same)
    stopped("dpo", folder, 4, output=str(tmp_path / "broken"), **same)
    resumed = run("dpo", folder, output=str(tmp_path / "broken"), resume=True, **WHOLE, **same)
    assert furthest(weights(calm.folder), weights(resumed.folder)) <= 1e-6


@pytest.mark.slow
def test_what_the_result_does_not_depend_on_may_change(folder: Path, tmp_path: Path) -> None:
    calm = run("sft", folder, output=str(tmp_path / "calm"), **WHOLE)
    stopped("sft", folder, 4, output=str(tmp_path / "broken"))
    other = WHOLE | {
        "max_tokens_per_pass": 64,
        "log_steps": 4,
        "save_steps": 5,
        "checkpoints_to_keep": 2,
        "device": "auto",
    }
    resumed = run("sft", folder, output=str(tmp_path / "broken"), resume=True, **other)
    assert furthest(weights(calm.folder), weights(resumed.folder)) <= 1e-6


@pytest.mark.slow
def test_early_stopping_goes_on_counting(folder: Path, tmp_path: Path) -> None:
    """The best loss and how long ago it was are part of the state."""
    same: dict[str, Any] = {
        "learning_rate": 0.3, "holdout": 0.3, "max_steps": 30, "eval_steps": 1, "patience": 4, "schedule": "constant",
        "max_grad_norm": 0, "batch_size": 4,
    }  # fmt: skip
    calm = run("sft", folder, output=str(tmp_path / "calm"), **same)
    assert 3 < calm.steps < 30
    stopped("sft", folder, calm.steps - 2, output=str(tmp_path / "broken"), **same, save_steps=None, warmup=0.0)
    resumed = run("sft", folder, output=str(tmp_path / "broken"), resume=True, **same)
    assert resumed.steps == calm.steps
    assert furthest(weights(calm.folder), weights(resumed.folder)) <= 1e-6


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    """A folder of a training stopped after three steps."""
    out = tmp_path / "broken"
    stopped("dpo", folder, 3, output=str(out), reference_cache=str(tmp_path / "references"))
    return out


def again(folder: Path, out: Path, **more: Any) -> Any:
    """Go on with `broken`."""
    same = WHOLE | {"output": str(out), "reference_cache": str(out.parent / "references")}
    return run("dpo", folder, resume=True, **(same | more))


def test_other_settings_are_refused(folder: Path, broken: Path, tmp_path: Path) -> None:
    """Every one that differs is named, with its value then and now."""
    with pytest.raises(UserError, match=r"was begun with `beta: 0\.1`, not 0\.3; `seed: 0`, not 7") as caught:
        again(folder, broken, beta=0.3, seed=7)
    assert "train.json" in str(caught.value) and "set it back" in str(caught.value)
    with pytest.raises(UserError, match="`max_steps: 9`, not null"):
        again(folder, broken, max_steps=None)
    other = write_pairs(tmp_path / "other.jsonl", 12, seed=4)
    with pytest.raises(UserError, match="was begun with other data"):
        again(folder, broken, data=str(other))
    with pytest.raises(UserError, match="was begun with another model"):
        again(folder, broken, model=str(begin(tmp_path / "second", seed=3) / "model"))
    with pytest.raises(UserError, match="`rlaif train dpo`"):
        run("sft", folder, output=str(broken), resume=True, **WHOLE)
    assert (broken / "checkpoint-3").exists(), "whatever was refused took nothing away"


def test_the_same_data_elsewhere_are_the_same(folder: Path, broken: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "model", tmp_path / "moved")
    copy = shutil.copy(folder / "rows.jsonl", tmp_path / "copied.jsonl")
    assert again(folder, broken, data=str(copy), model=str(tmp_path / "moved")).finished


def test_folders_that_are_taken(folder: Path, broken: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds an unfinished training"):
        run("sft", folder, output=str(broken), **WHOLE)
    finished = again(folder, broken).folder
    for resume in (False, True):
        with pytest.raises(UserError, match="holds a finished training"):
            run("sft", folder, output=str(finished), resume=resume, **WHOLE)
    with pytest.raises(UserError, match="holds no training to go on with"):
        run("sft", folder, output=str(tmp_path / "new"), resume=True, **WHOLE)
    with pytest.raises(UserError, match="is not empty"):
        run("sft", folder, output=str(folder), **WHOLE)
    with pytest.raises(UserError, match="is a file"):
        run("sft", folder, output=str(folder / "rows.jsonl"), **WHOLE)


def test_a_torn_checkpoint_is_passed_over(folder: Path, broken: Path) -> None:
    """Its state is written last; one without it was not written to the end."""
    torn = broken / "checkpoint-7"
    torn.mkdir()
    shutil.copy(broken / "checkpoint-3" / "model.safetensors", torn)
    assert last_checkpoint(broken) == broken / "checkpoint-3"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(5, patch)
        assert again(folder, broken).steps == 5
    assert last_checkpoint(broken) == broken / "checkpoint-5" and not torn.exists(), "it counts as none of those kept"
    assert again(folder, broken).finished


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_a_damaged_checkpoint_is_named(name: str, folder: Path, broken: Path) -> None:
    """Its end is missing; once it is deleted, the training goes on from the one before."""
    path = broken / "checkpoint-3" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"checkpoint-3: {name} is damaged \(.*delete this folder; `--resume`"):
        again(folder, broken)
    shutil.rmtree(broken / "checkpoint-3")
    if name == "optimizer.pt":
        assert again(folder, broken).finished


@pytest.mark.slow
def test_without_a_checkpoint_it_begins_again(folder: Path, broken: Path, tmp_path: Path) -> None:
    shutil.rmtree(broken / "checkpoint-3")
    for old in broken.glob("checkpoint-*"):
        shutil.rmtree(old)
    assert last_checkpoint(broken) is None
    resumed = again(folder, broken)
    calm = run("dpo", folder, output=str(tmp_path / "calm"), reference_cache=str(tmp_path / "references"), **WHOLE)
    assert resumed.steps == STEPS
    assert furthest(weights(resumed.folder), weights(calm.folder)) == 0.0


def test_checkpoints_are_ordered_by_number(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11"):
        (tmp_path / name).mkdir()
    for name in ("checkpoint-9", "checkpoint-10"):
        (tmp_path / name / "trainer_state.json").touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_a_reference_that_is_gone(folder: Path, broken: Path, tmp_path: Path) -> None:
    """The resumed model is no reference any more: it is computed by the start, which is on disk."""
    (kept,) = (tmp_path / "references").iterdir()
    before = kept.read_bytes()
    shutil.rmtree(tmp_path / "references")
    assert again(folder, broken).finished
    assert kept.read_bytes() == before


@pytest.mark.slow
def test_another_reference_can_be_computed_again(folder: Path, tmp_path: Path) -> None:
    """It did not change in the meantime."""
    start, cache = str(folder / "model"), tmp_path / "references"
    same: dict[str, Any] = {"reference": start, "reference_cache": str(cache), "output": str(tmp_path / "out")}
    stopped("dpo", folder, 3, **same)
    shutil.rmtree(cache)
    heard = Heard()
    assert run("dpo", folder, resume=True, heard=heard, **WHOLE, **same).finished
    assert heard.passes("reference") == 1


def test_signals_are_given_back(folder: Path, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run("sft", folder, output=str(tmp_path / "out"), max_steps=1)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_interrupt_is_not_held_back() -> None:
    stop = StopCleanly()
    before = signal.getsignal(signal.SIGINT)
    stop.on_train_begin(None, None, None)
    try:
        signal.raise_signal(signal.SIGINT)
        assert stop.asked
        signal.raise_signal(signal.SIGTERM)  # launchers send it right after, and wait
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        stop.restore()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_thread_may_train(folder: Path, tmp_path: Path) -> None:
    """Signals go to the main thread alone; a service trains in another one."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run, "sft", folder, output=str(tmp_path / "out"), max_steps=1).result().finished


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_interrupted_goes_on(number: signal.Signals, folder: Path, tmp_path: Path) -> None:
    """Exit code 130, a word on how to go on, and the weights of one piece at the end."""
    flags = [
        "train", "dpo", "--model", folder / "model", "--data", folder / "rows.jsonl", "--device", "cpu",
        "--holdout", "0", "--batch-size", "5", "--max-steps", "300", "--learning-rate", "1e-3", "--save-steps", "100",
        "--reference-cache", tmp_path / "references",
    ]  # fmt: skip
    env = environment(OMP_NUM_THREADS="1")
    out = tmp_path / "broken"
    with subprocess.Popen(command(*flags, "--output", out), env=env, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (out / "checkpoint-100").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "the same command with --resume goes on from there" in told
    state = last_checkpoint(out)
    assert state is not None and 100 <= int(state.name.partition("-")[2]) < 300
    ended = rlaif(*flags, "--output", out, "--resume", OMP_NUM_THREADS="1")
    assert ended.returncode == 0, ended.stderr
    calm = rlaif(*flags, "--output", tmp_path / "calm", OMP_NUM_THREADS="1")
    assert calm.returncode == 0, calm.stderr
    assert furthest(weights(out), weights(tmp_path / "calm")) <= 1e-6


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_the_program_with_1(tmp_path: Path) -> None:
    begin(tmp_path, 8)
    from tests.data.made import write_jsonl
    from tests.training.runs import pair_rows

    rows = pair_rows(8)
    rows[3]["margin"] = 1e39
    write_jsonl(tmp_path / "rows.jsonl", rows)
    flags = ["--model", tmp_path / "model", "--data", tmp_path / "rows.jsonl", "--output", tmp_path / "out"]
    more = ["--device", "cpu", "--holdout", "0", "--batch-size", "8"]
    ended = rlaif("train", "reward", *flags, *more)
    assert ended.returncode == 1, ended.stderr
    assert "of the rows row-3 at step 1, and no step was taken" in ended.stderr and "Traceback" not in ended.stderr
    assert (tmp_path / "out" / "train.json").exists() and torch.isfinite(
        weights(tmp_path / "model")["lm_head.weight"]
    ).all()
