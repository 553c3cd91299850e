"""Callbacks around the steps of a training: progress, the log on disk, a clock, a clean stop, a warning."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from rlaif.progress import Progress
from rlaif.training.folder import add_to_log, keep_seconds, seconds_of, write_log
from rlaif.training.trainer import GroupTrainer

_FALLING = 20
"""Lines of the log in a row in which the chosen completions are less likely than at the start."""


_SHOWN = {
    "loss": "loss", "accuracy": "accuracy", "eval_loss": "held-out loss", "eval_accuracy": "held-out accuracy",
    "reward": "reward", "kl": "KL",
}  # fmt: skip


def shown_metrics(logs: Mapping[str, float]) -> str:
    """The metrics that stand beside the progress of a training."""
    return ", ".join(f"{name} {logs[key]:.3f}" for key, name in _SHOWN.items() if key in logs)


class Callback(TrainerCallback):
    """A callback that knows its trainer: transformers makes the callbacks first."""

    trainer: GroupTrainer


class StoppedError(Exception):
    """Raised where a training is stopped before its first step."""


class ProgressCallback(Callback):
    """Shows how far the training is."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._logs: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Begin with the number of steps."""
        self.progress.begin("train", state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:  # noqa: ARG002
        """Keep the last metrics."""
        self._logs |= {name: value for name, value in (logs or {}).items() if isinstance(value, float)}

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Say how many are done: only now is the last one logged, and evaluated where it was its turn."""
        if state.global_step:
            self.progress.advance("train", state.global_step, shown_metrics(self._logs))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """End with the last metrics."""
        metrics = shown_metrics(self._logs)
        summary = f"{state.global_step} of {state.max_steps}{', ' if metrics else ''}{metrics}"
        self.progress.end("train", summary)


class LogFile(Callback):
    """Keeps the log on disk while it grows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """What a resumed training has logged up to its checkpoint; what it logged after that comes again."""
        if state.is_world_process_zero:
            write_log(self.folder, state.log_history)

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Add the last line."""
        if state.is_world_process_zero:
            add_to_log(self.folder, state.log_history[-1])


class Clock(Callback):
    """Counts the seconds of a training, those before its checkpoint included."""

    def __init__(self, folder: Path, checkpoint: Path | None) -> None:
        self.folder = folder
        self._before = seconds_of(checkpoint)
        self.start()

    def start(self) -> None:
        """Count from here on."""
        self._began = time.monotonic()

    def seconds(self) -> float:
        """Up to now."""
        return self._before + time.monotonic() - self._began

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Write them into the checkpoint, for who goes on from it."""
        checkpoint_folder = self.folder / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and checkpoint_folder.is_dir():
            keep_seconds(checkpoint_folder, self.seconds())


class StopCleanly(Callback):
    """Ctrl-C finishes the step, saves a checkpoint and stops; a second one stops at once.

    A request to end (SIGTERM) is heard as well: launchers of many processes pass Ctrl-C on like that, and so does a
    cluster that wants its machine back; both wait a while before they kill.
    """

    def __init__(self, note: Callable[[str], None] | None = None) -> None:
        self.asked = False
        self._note = note
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Listen, where Python lets us: signals come to the main thread."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._note is not None and not self.asked:
            again = "; press again to stop at once" if number == signal.SIGINT else ""
            with contextlib.suppress(RuntimeError):  # the signal came in the midst of another line
                self._note(f"stopping after this step{again}")
        self.asked = True
        if number == signal.SIGINT:
            self._restore(number)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Save and stop, all processes after the same step, where it was asked for and is not the end anyway."""
        self.asked = self.trainer.any_process(self.asked)
        if self.asked and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True

    def restore(self) -> None:
        """Leave the signals to whom they were before."""
        for number in list(self._before):
            self._restore(number)

    def _restore(self, number: int) -> None:
        if number in self._before:
            signal.signal(number, self._before.pop(number))


class Falling(Callback):
    """Warns when chosen completions stay less likely than at the start: the policy learns to avoid, not to prefer.

    The margin grows all the same (likelihood displacement, Razin et al. 2024, arXiv:2410.08847).
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self.note = note
        self._lows = 0
        self._last = 0.0
        self._warned = False

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:  # noqa: ARG002
        """Look at the reward of the chosen completions: below 0 they are less likely than at the start."""
        reward = (logs or {}).get("rewards/chosen")
        if reward is None:
            return
        self._lows = self._lows + 1 if reward < min(0.0, self._last) or (reward < 0 and self._lows) else 0
        self._last = reward
        if self._lows >= _FALLING and not self._warned:
            self._warned = True
            self.note(
                f"the chosen answers have been less likely than at the start for {_FALLING} lines of the log: "
                "`sft_weight: 1` holds them, a smaller learning rate or larger beta helps too"
            )
