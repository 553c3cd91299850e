"""Files of an online training: checkpoints, best weights, the log, and every response with its score.

checkpoint-N/       policy.safetensors, value.safetensors: trained weights with optimizer state; trainer_state.json last
best-N/             the policy's weights after N steps, the best so far by the held-out judge
log.jsonl           metrics, a line a step
responses.jsonl     every response: prompt, text, score, parts of the score, version of the weights

A checkpoint holds the state of the random generators of the process, so that a reward that draws from them continues
as if the training had not been interrupted.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from pydantic import JsonValue

from rlaif.errors import ModelError, UserError
from rlaif.progress import first_process
from rlaif.rl.trainer import OnlineTrainer, StepResult
from rlaif.store import write_json, write_text
from rlaif.text import loads
from rlaif.training.trainer import first_line, out_of_memory

LOG, RESPONSES = "log.jsonl", "responses.jsonl"
_STATE, _POLICY, _VALUE = "trainer_state.json", "policy.safetensors", "value.safetensors"


def save_checkpoint(
    folder: Path, done: int, trainer: OnlineTrainer, extra: Mapping[str, JsonValue], *, best: int | None, keep: int
) -> None:
    """Save the state after `done` steps, and delete all but the last `keep` checkpoints.

    `best` is the step of the best weights so far. Of the `best-N` folders, those that a checkpoint refers to stay.
    """
    checkpoint = folder / f"checkpoint-{done}"
    shutil.rmtree(checkpoint, ignore_errors=True)
    checkpoint.mkdir(parents=True)
    trainer.networks.policy.save(checkpoint / _POLICY)
    if trainer.networks.value is not None:
        trainer.networks.value.save(checkpoint / _VALUE)
    state: dict[str, JsonValue] = {
        "step": done,
        "best": best,
        "beta": trainer.beta,
        "mismatch": trainer.mismatch,
        "drift": trainer.drift,
        "reward": {**trainer.networks.reward.state()},
        "random": _random_state(),
        **extra,
    }
    write_json(checkpoint / _STATE, state)  # last: without it the checkpoint does not count
    numbers = _numbered(folder, "checkpoint")
    for number in numbers[:-keep]:
        shutil.rmtree(folder / f"checkpoint-{number}", ignore_errors=True)
    referenced = set()
    for number in numbers[-keep:]:
        with contextlib.suppress(OSError, ValueError):
            saved = loads((folder / f"checkpoint-{number}" / _STATE).read_text(encoding="utf-8"))
            referenced.add(saved.get("best"))
    _remove_best(folder, [number for number in _numbered(folder, "best") if number not in referenced])


def load_checkpoint(checkpoint: Path, trainer: OnlineTrainer) -> dict[str, Any]:
    """Restore a checkpoint, and return its state. Raises UserError where it is damaged."""
    from safetensors import SafetensorError

    try:
        state: dict[str, Any] = loads((checkpoint / _STATE).read_text(encoding="utf-8"))
        trainer.networks.policy.restore(checkpoint / _POLICY)
        if trainer.networks.value is not None:
            trainer.networks.value.restore(checkpoint / _VALUE)
        if trainer.settings.kl.target is not None:  # else the coefficient is the setting, which may have changed
            trainer.beta = float(state["beta"])
        trainer.mismatch, trainer.drift = state["mismatch"], state["drift"]
        trainer.networks.reward.restore(state["reward"])
        _restore_random(state["random"])
        done = int(state["step"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, ModelError) as error:
        if out_of_memory(error):
            raise
        hint = "remove it: `--resume` takes the one before, or without one starts from the beginning"
        raise UserError(f"is damaged: {first_line(error)}", where=checkpoint, hint=hint) from error
    trainer.networks.sampler.update(done)
    return state


def _numbered(folder: Path, name: str) -> list[int]:
    """The N of all `name-N` in a folder, in order."""
    ends = (path.name.removeprefix(f"{name}-") for path in folder.glob(f"{name}-*"))
    return sorted(int(end) for end in ends if end.isdecimal())


def save_best(folder: Path, done: int, trainer: OnlineTrainer) -> None:
    """Save the policy's weights after `done` steps as the best; older ones stay, as a checkpoint may need them."""
    (folder / f"best-{done}").mkdir(exist_ok=True)
    trainer.networks.policy.save(folder / f"best-{done}" / _POLICY)


def restore_best(folder: Path, done: int, trainer: OnlineTrainer) -> bool:
    """Load the best weights, those after `done` steps, into the policy; False where there are none."""
    path = folder / f"best-{done}" / _POLICY
    if not path.exists():
        return False
    trainer.networks.policy.restore(path)
    return True


def remove_best(folder: Path) -> None:
    """Delete the best weights of a finished training, whose model they are."""
    _remove_best(folder, _numbered(folder, "best"))


def _remove_best(folder: Path, numbers: Sequence[int]) -> None:
    for number in numbers:
        shutil.rmtree(folder / f"best-{number}", ignore_errors=True)


def truncate_logs(folder: Path, done: int) -> list[dict[str, Any]]:
    """Drop everything written after step `done`, as those steps run again; returns the lines of the log that stay."""
    _remove_best(folder, [number for number in _numbered(folder, "best") if number > done])
    for name in (LOG, RESPONSES):
        path = folder / name
        if path.exists():
            lines = [json.dumps(line, ensure_ascii=False) for line in _lines(path) if line.get("step", 0) <= done]
            write_text(path, "".join(f"{line}\n" for line in lines))
    return list(_lines(folder / LOG)) if (folder / LOG).exists() else []


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file; the last one may have been cut off in the middle."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                yield loads(line)


def add_responses(folder: Path, number: int, result: StepResult) -> None:
    """Append the responses of step `number`, those of all processes; every process has to call this."""
    scores = result.scores
    lines = [
        {
            "step": number + 1,
            "prompt": [message.model_dump(mode="json") for message in response.prompt.messages],
            "index": response.index,
            "response": response.text,
            "reward": scores.total[at],
            "parts": {name: part[at] for name, part in scores.parts.items()},
            "finished": response.finished,
            "tokens": len(response.ids),
            "version": response.version,
        }
        for at, response in enumerate(result.responses)
    ]
    gathered = gather_object([json.dumps(line, ensure_ascii=False) + "\n" for line in lines])
    if first_process():
        with (folder / RESPONSES).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(gathered)


def _random_state() -> dict[str, JsonValue]:
    """The state of the generators of Python, numpy and torch, as plain JSON data."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(kind), np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state().tolist(),
        "cuda": torch.cuda.get_rng_state().tolist() if torch.cuda.is_available() else None,
    }


def _restore_random(state: Mapping[str, Any]) -> None:
    """Continue from a state; the generators of a GPU that it does not hold stay as they are."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8))
