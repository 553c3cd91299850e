"""The folder of a training: what it was started with, whether it can resume, its log and its metrics.

train.json      method, settings, hashes of data and model: written before the first step, compared on `--resume`
checkpoint-N/   to resume from
log.jsonl       every line of the log, appended as it is logged
metrics.json    the final metrics: written last, so that the file marks a finished training
"""

from __future__ import annotations

import contextlib
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue, ValidationError

from rlaif import __version__
from rlaif.errors import UserError
from rlaif.progress import first_process
from rlaif.records import Record
from rlaif.store import lock_folder, write_json, write_text
from rlaif.text import loads
from rlaif.training.tokenize import TextFormat

_STATE, _LOG, _METRICS, _LOCK = "train.json", "log.jsonl", "metrics.json", ".lock"
_SECONDS = "seconds.json"
_MAY_CHANGE = frozenset(
    {
        "output", "max_tokens_per_pass", "log_steps", "save_steps", "checkpoints_to_keep", "report_to",
        "reference_cache", "device", "gradient_checkpointing", "rollout.served_model", "rollout.weights",
        *(f"{server}.{name}" for server in ("rollout", "judge", "held_out.judge")
          for name in ("api_key_env", "concurrency", "timeout")),
    }
)  # fmt: skip
"""Settings that may change when a training goes on: the result does not depend on them."""
_ADDRESSES = frozenset({"rollout.base_url", "judge.base_url", "held_out.judge.base_url"})
"""Servers, which may stand elsewhere by then; whether there is one makes a difference."""
_AFTER_ALARM = (
    "kl.beta", "kl.target", "kl.horizon", "learning_rate", "missing_eos_penalty", "overlong_buffer", "reward_clip",
    "monitor",
)  # fmt: skip
"""What else may change where an alarm has stopped a training: what alarms ask for."""
_BY_CONTENT = ("data", "held_data", "model", "prompts")
"""Paths to what has a hash of its own."""


class TrainState(Record):
    """What a training was begun with."""

    method: str
    settings: dict[str, JsonValue]
    data_hash: str
    model_hash: str
    learned: TextFormat | None = None
    """How the texts of the data became those of the training."""
    version: str = __version__


@contextlib.contextmanager
def locked(folder: Path, resume: bool) -> Iterator[None]:
    """Hold a training's folder for this process alone, made if need be; see `require_usable`.

    Of several processes the first one does, as the others may come when it has begun to write.
    """
    if not first_process():
        yield
        return
    if not (folder / _STATE).exists() or (folder / _METRICS).exists():
        require_usable(folder, resume)  # what is not ours to write into gets no lock either
    with lock_folder(folder):
        require_usable(folder, resume)
        try:
            yield
        finally:
            if not (folder / _STATE).exists() or (folder / _METRICS).exists():
                (folder / _LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()  # nothing was begun


def require_usable(folder: Path, resume: bool) -> None:
    """Make sure that a training may write here. Raises UserError where another one, finished or not, has."""
    if folder.exists() and not folder.is_dir():
        raise UserError("is a file", where=folder, hint="name a folder")
    started, finished = (folder / _STATE).exists(), (folder / _METRICS).exists()
    if finished and not (resume and stopped(folder)):
        raise UserError(
            "holds a finished training", where=folder, hint="name another folder with `output`, or remove it"
        )
    if resume and not started:
        raise UserError("holds no training to go on with", where=folder, hint="leave `--resume` out")
    if started and not resume:
        raise UserError("holds an unfinished training", where=folder, hint="go on with `--resume`, or remove it")
    if not started and folder.exists() and any(path.name != _LOCK for path in folder.iterdir()):
        raise UserError("is not empty", where=folder, hint="name another folder with `output`")


def begin(folder: Path, state: TrainState) -> None:
    """Write down what a training is begun, or goes on, with: from here on it can be gone on with."""
    if first_process():
        write_json(folder / _STATE, state.model_dump(mode="json"))
        (folder / _METRICS).unlink(missing_ok=True)  # of one that an alarm had stopped


def resume_checkpoint(folder: Path, state: TrainState) -> Path | None:
    """The last checkpoint of an unfinished training, or None where it has none; torn ones are removed.

    Raises UserError where the settings or the data are not those that it was begun with, and for a damaged checkpoint.
    """
    try:
        before = TrainState.model_validate_json((folder / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise UserError("is damaged", where=folder / _STATE, hint="start again in another folder") from error
    changed = _differences(before, state, _AFTER_ALARM if stopped(folder) else ())
    if changed:
        hint = "set it back, or start again in another folder"
        raise UserError(f"was begun with {'; '.join(changed)}", where=folder / _STATE, hint=hint)
    if first_process():
        for path in set(folder.glob("checkpoint-*")) - set(_complete_checkpoints(folder)):
            shutil.rmtree(path, ignore_errors=True)  # of a later step, it would count as one of those that are kept
    checkpoint = last_checkpoint(folder)
    if checkpoint is not None:
        _require_readable(checkpoint)
    return checkpoint


def _require_readable(checkpoint: Path) -> None:
    """A disk that ran full, or a copy that broke off, leaves files without their ends."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(checkpoint.iterdir()):
        try:
            match path.suffix:
                case ".json":
                    loads(path.read_text(encoding="utf-8"))
                case ".safetensors":
                    safe_open(path, "np")
                case ".pt" | ".pth":
                    zipfile.ZipFile(path).close()
        except (OSError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
            hint = "delete this folder; `--resume` then goes on from the one before, or from the start"
            raise UserError(f"{path.name} is damaged ({error})", where=checkpoint, hint=hint) from error


def leave_processes() -> None:
    """End the exchange between processes, if there is one; torch is loaded by then.

    Left to the interpreter's exit, the threads of the exchange may still let go of tensors while the interpreter is
    being taken down, which aborts a process whose work is done.
    """
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def binding(settings: Mapping[str, JsonValue], more: Sequence[str] = (), group: str = "") -> dict[str, JsonValue]:
    """Settings without those, and `more`, that may change when a training goes on; groups are inner mappings.

    Of a server's address there stays that there is one.
    """
    bound: dict[str, JsonValue] = {}
    for name, value in settings.items():
        path = f"{group}{name}"
        if isinstance(value, dict) and path not in more:
            bound[name] = binding(value, more, f"{path}.")
        elif path not in _MAY_CHANGE and path not in more:
            bound[name] = "a server" if path in _ADDRESSES and value is not None else value
    return bound


def _differences(before: TrainState, now: TrainState, more: Sequence[str]) -> list[str]:
    one, other = (_flat(binding(state.settings, (*more, *_BY_CONTENT))) for state in (before, now))
    differences = [
        f"`{name}: {json.dumps(one.get(name))}`, not {json.dumps(other.get(name))}"
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    ]
    differences += ["other data"] if before.data_hash != now.data_hash else []
    differences += ["another model"] if before.model_hash != now.model_hash else []
    return differences + ([f"`rlaif train {before.method}`"] if before.method != now.method else [])


def _flat(settings: Mapping[str, JsonValue], group: str = "") -> dict[str, JsonValue]:
    flat: dict[str, JsonValue] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{group}{name}.") if isinstance(value, dict) else {f"{group}{name}": value}
    return flat


def is_started(folder: Path) -> bool:
    """Whether an unfinished training is here."""
    return (folder / _STATE).exists() and not (folder / _METRICS).exists()


def is_finished(folder: Path) -> bool:
    """Whether a finished training is here."""
    return (folder / _METRICS).exists()


def stopped(folder: Path) -> bool:
    """Whether an alarm stopped the training here, and left checkpoints to go on from with other settings."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return bool(loads((folder / _METRICS).read_text(encoding="utf-8")).get("stopped"))
    return False


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps that is there whole."""
    return max(_complete_checkpoints(folder), key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _complete_checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").exists()]


def remove_checkpoints(folder: Path) -> None:
    """Of a finished training: nothing goes on from them, and each holds the weights three times over."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)


def write_log(folder: Path, lines: Sequence[Mapping[str, JsonValue]]) -> None:
    """Write the log, whatever there is of it."""
    write_text(folder / _LOG, "".join(json.dumps(line) + "\n" for line in lines))


def add_to_log(folder: Path, line: Mapping[str, JsonValue]) -> None:
    """Add a line to the log."""
    with (folder / _LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def keep_seconds(checkpoint: Path, seconds: float) -> None:
    """Write down how long a training took up to a checkpoint."""
    write_json(checkpoint / _SECONDS, seconds)


def seconds_of(checkpoint: Path | None) -> float:
    """How long a training took up to a checkpoint; 0 where nobody wrote it down."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return float(loads((checkpoint / _SECONDS).read_text(encoding="utf-8"))) if checkpoint else 0.0
    return 0.0


def finish(folder: Path, metrics: Mapping[str, JsonValue]) -> None:
    """Write what the training came to."""
    write_json(folder / _METRICS, dict(metrics))
