"""What may come between a training and its end: a folder, a disk, memory, Ctrl-C, a process more."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from rlaif.cli.train import score
from rlaif.cli.train import train as command
from rlaif.errors import UserError
from rlaif.store import lock_folder
from rlaif.training.folder import keep_seconds, seconds_of
from rlaif.training.trainer import GroupTrainer, StopCleanly
from tests.data.made import write_jsonl
from tests.training.runs import Heard, begin, furthest, pair_rows, run, weights

pytestmark = pytest.mark.slow  # whole trainings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return begin(tmp_path_factory.mktemp("rails"))


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"optimizer": "adamw_torhc"}, "optimizer: no optimizer `adamw_torhc`; did you mean `adamw_torch`"),
        ({"optimizer": "lomo"}, "optimizer: `lomo` cannot be used"),
        ({"optimizer": "schedule_free_adamw"}, "`schedule_free_adamw` trains other weights than those to be used"),
        ({"patience": 1}, "`patience` needs held-out rows"),
        ({"lora": {"rank": 4, "targets": ["nowhere"]}}, "no adapter fits"),
    ],
)
def test_a_mistake_in_settings_leaves_no_folder_behind(
    more: dict[str, Any], told: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=told):
        run("sft", folder, output=str(tmp_path / "out"), **more)
    assert not (tmp_path / "out").exists()


def test_what_is_not_installed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"report_to: `wandb` is not installed; pip install wandb"):
        run("sft", folder, output=str(tmp_path / "out"), report_to=["wandb"])


def test_an_output_that_cannot_be_made(folder: Path) -> None:
    with pytest.raises(UserError, match="cannot write: Not a directory"):
        run("sft", folder, output=str(folder / "rows.jsonl" / "out"))


def test_one_process_writes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one is told, before and after the first has begun; the lock goes with the first."""
    out = tmp_path / "out"
    with lock_folder(out), pytest.raises(UserError, match="another process is writing here"):
        run("sft", folder, output=str(out))
    tried: list[str] = []
    plain = GroupTrainer.training_step

    def step(self: Any, *given: Any) -> Any:
        if not tried:
            for resume in (False, True):
                with pytest.raises(UserError) as caught:
                    run("sft", folder, output=str(out), resume=resume)
                tried.append(str(caught.value))
        return plain(self, *given)

    monkeypatch.setattr(GroupTrainer, "training_step", step)
    assert run("sft", folder, output=str(out)).finished
    assert len(tried) == 2 and all("another process is writing here" in told for told in tried)
    assert not (out / ".lock").exists(), "a finished folder is published"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("x: can't allocate memory: y"), MemoryError()]
)
def test_memory_that_runs_out(error: Exception, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(GroupTrainer, "training_step", full)
        with pytest.raises(
            UserError, match=r"memory ran out; lower `max_tokens_per_pass`, or set `gradient_checkpointing: true`"
        ):
            run("sft", folder, output=str(tmp_path / "out"))
    more = {"max_tokens_per_pass": 512, "gradient_checkpointing": True}
    assert run("sft", folder, output=str(tmp_path / "out"), resume=True, **more).finished, "as it says"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")])
def test_a_disk_that_is_full(error: Exception, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any, **more: Any) -> None:
        raise error

    monkeypatch.setattr(GroupTrainer, "_save", full)
    with pytest.raises(UserError, match=r"out: cannot be written any more: (No space|Pytorch).*`--resume` goes on"):
        run("sft", folder, output=str(tmp_path / "out"), save_steps=1)


def test_a_cache_that_cannot_be_written_is_told_before_the_pass(folder: Path, tmp_path: Path) -> None:
    heard = Heard()
    with pytest.raises(UserError, match="cannot be written: Not a directory; set another `reference_cache`"):
        cache = str(folder / "rows.jsonl" / "cache")
        run("dpo", folder, output=str(tmp_path / "out"), reference_cache=cache, heard=heard)
    assert heard.passes("reference") == 0
    assert run("dpo", folder, output=str(tmp_path / "out"), resume=True).finished, "with another one it goes on"


class Pressed(Heard):
    """Ctrl-C once the reference is under way."""

    def advance(self, stage: str, done: int, note: str = "") -> None:
        super().advance(stage, done, note)
        if stage == "reference" and self.passes("train") == 0 and done < 12 and "pressed" not in self.notes:
            signal.raise_signal(signal.SIGINT)
            self.notes.append("pressed")


def test_ctrl_c_in_the_reference_pass(folder: Path, tmp_path: Path) -> None:
    """Heard at once, heeded between two parts of the pass."""
    heard = Pressed()
    cache = str(tmp_path / "cache")
    same: dict[str, Any] = {"output": str(tmp_path / "out"), "max_tokens_per_pass": 64, "reference_cache": cache}
    trained = run("dpo", folder, heard=heard, **same)
    assert not trained.finished and trained.steps == 0
    assert "stopping after this step; press again to stop at once" in heard.notes
    assert sum(stage == "reference" for stage, _ in heard.done) == 1
    assert run("dpo", folder, resume=True, **same).finished


def test_a_request_to_end_speaks_of_no_key() -> None:
    heard = Heard()
    stop = StopCleanly(heard.note)
    stop.on_train_begin(None, None, None)
    try:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    finally:
        stop.restore()
    assert heard.notes == ["stopping after this step"]


def flags(folder: Path, out: Path) -> list[str]:
    given = {"model": folder / "model", "data": folder / "rows.jsonl", "output": out, "device": "cpu", "holdout": 0}
    more = {"max_steps": 3, "save_steps": 2, "batch_size": 4, "log_steps": 1}
    return ["sft", *(f"--{name.replace('_', '-')}={value}" for name, value in (given | more).items())]


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (1, "before the first checkpoint; the same command with --resume starts again."),
        (3, "with --resume goes on from step 2, the last checkpoint."),
    ],
)
def test_an_interrupted_training_says_how_to_go_on(
    step: int, told: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = GroupTrainer.training_step

    def pressed(self: Any, *given: Any) -> Any:
        if self.state.global_step == step - 1:
            raise KeyboardInterrupt
        return plain(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(GroupTrainer, "training_step", pressed)
        ended = CliRunner().invoke(command, flags(folder, tmp_path / "out"))
    assert ended.exit_code == 130 and told in ended.output
    again = CliRunner().invoke(command, [*flags(folder, tmp_path / "out"), "--resume"])
    assert again.exit_code == 0, again.output
    assert "learning_rate 2e-05: the usual, as none is set" in again.output


def test_an_interrupt_before_anything_is_written(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*given: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rlaif.training.session.load_policy", pressed)
    ended = CliRunner().invoke(command, flags(folder, tmp_path / "out"))
    assert ended.exit_code == 130 and "before the first step; the same command starts again" in ended.output
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("rlaif.training.score.score", pressed)
    ended = CliRunner().invoke(score, ["--model", "m", "--data", "d", "--output", str(tmp_path / "o")])
    assert ended.exit_code == 130 and "nothing was written" in ended.output and not (tmp_path / "o").exists()


def test_the_log_grows_and_repeats_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 3 is logged, lost with the process, and logged again by the one that goes on from step 2."""
    out = tmp_path / "out"
    plain = GroupTrainer.training_step

    def killed(self: Any, *given: Any) -> Any:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return plain(self, *given)

    same: dict[str, Any] = {"output": str(out), "max_steps": 4, "save_steps": 2}
    with monkeypatch.context() as patch:
        patch.setattr(GroupTrainer, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            run("sft", folder, **same)
    assert [line["step"] for line in lines(out)] == [1, 2, 3]
    keep_seconds(out / "checkpoint-2", 1000.0)
    trained = run("sft", folder, resume=True, **same)
    assert [line["step"] for line in lines(out) if "loss" in line] == [1, 2, 3, 4]
    assert 1000 < trained.metrics["seconds"] < 1100, "those before the checkpoint count"


def test_seconds_that_nobody_wrote_down(tmp_path: Path) -> None:
    assert seconds_of(None) == seconds_of(tmp_path) == 0
    (tmp_path / "seconds.json").write_text("{")
    assert seconds_of(tmp_path) == 0


def test_another_machine_that_computes_otherwise_is_noticed(folder: Path, tmp_path: Path) -> None:
    """What `auto` came to is written down; the place of the weights is free."""
    out = tmp_path / "out"
    run("sft", folder, output=str(out), max_steps=1)
    for name in ("metrics.json", "model.safetensors"):
        (out / name).unlink()
    with pytest.raises(UserError, match='was begun with `dtype: "float32"`, not "bfloat16"'):
        run("sft", folder, output=str(out), max_steps=1, resume=True, dtype="bfloat16")
    assert run("sft", folder, output=str(out), max_steps=1, resume=True, device="auto").finished


def test_rows_that_take_long_to_read_are_counted(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlaif.training.session._EVERY", 0.0)
    write_jsonl(tmp_path / "rows.jsonl", pair_rows(1100))
    heard = Heard()
    run("sft", folder, data=str(tmp_path / "rows.jsonl"), output=str(tmp_path / "o"), max_steps=1, heard=heard)
    assert "1,000 rows read" in heard.notes


def test_a_resumed_reference_is_that_of_the_start(folder: Path, tmp_path: Path) -> None:
    """The whole training with its cache lost in the middle ends as one in which nothing was lost."""
    same: dict[str, Any] = {"max_steps": 4, "save_steps": 2}
    calm = run("dpo", folder, output=str(tmp_path / "calm"), **same)
    plain = GroupTrainer.training_step

    def killed(self: Any, *given: Any) -> Any:
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return plain(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GroupTrainer, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            run("dpo", folder, output=str(tmp_path / "broken"), **same)
    elsewhere = str(tmp_path / "elsewhere")
    resumed = run("dpo", folder, output=str(tmp_path / "broken"), resume=True, reference_cache=elsewhere, **same)
    assert furthest(weights(calm.folder), weights(resumed.folder)) == 0.0
