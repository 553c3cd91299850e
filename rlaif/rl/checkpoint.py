"""The state of an online training, saved and restored, random generators among it.

The generators of random numbers that a process has: a reward that draws from them goes on where it was.

What an online training keeps on disk: checkpoints to go on from, the log, every answer with its score.

checkpoint-N/       policy.safetensors, value.safetensors: what is trained, with its optimizer; trainer_state.json last
best-N/             the weights that the held-out judge liked best when so many steps were done
log.jsonl           figures, a line a step
responses.jsonl     every answer: prompt, text, score, the rewards it is made of, the version of the weights
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
from rlaif.rl.trainer import Loop, Step
from rlaif.store import write_json, write_text
from rlaif.text import loads
from rlaif.training.session import first_line, out_of_memory


def random_state() -> dict[str, JsonValue]:
    """The state of Python's, numpy's and torch's as plain JSON data."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(kind), np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state().tolist(),
        "cuda": torch.cuda.get_rng_state().tolist() if torch.cuda.is_available() else None,
    }


def restore_random(state: Mapping[str, Any]) -> None:
    """Go on from a state; a GPU that was not there before keeps what it has."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8))


LOG, RESPONSES = "log.jsonl", "responses.jsonl"
_STATE, _POLICY, _VALUE = "trainer_state.json", "policy.safetensors", "value.safetensors"


def save_checkpoint(
    folder: Path, done: int, loop: Loop, more: Mapping[str, JsonValue], *, best: int | None, keep: int
) -> None:
    """Keep everything that step `done` (so many are done) goes on with, and the last `checkpoints_to_keep` ones only.

    `best` is the step of the best weights so far: those go on too.
    """
    made = folder / f"checkpoint-{done}"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    loop.networks.policy.save(made / _POLICY)
    if loop.networks.value is not None:
        loop.networks.value.save(made / _VALUE)
    state: dict[str, JsonValue] = {
        "step": done,
        "best": best,
        "beta": loop.beta,
        "mismatch": loop.mismatch,
        "drift": loop.drift,
        "reward": {**loop.networks.reward.state()},
        "random": random_state(),
        **more,
    }
    write_json(made / _STATE, state)  # last: without it the checkpoint does not count
    found = _numbered(folder, "checkpoint")
    for number in found[:-keep]:
        shutil.rmtree(folder / f"checkpoint-{number}", ignore_errors=True)
    wanted = {_best_of(folder / f"checkpoint-{number}") for number in found[-keep:]}
    _drop_best(folder, [number for number in _numbered(folder, "best") if number not in wanted])


def load_checkpoint(made: Path, loop: Loop) -> dict[str, Any]:
    """Go on from a checkpoint; returns its state. Raises UserError where it is damaged."""
    from safetensors import SafetensorError

    try:
        state: dict[str, Any] = loads((made / _STATE).read_text(encoding="utf-8"))
        loop.networks.policy.restore(made / _POLICY)
        if loop.networks.value is not None:
            loop.networks.value.restore(made / _VALUE)
        if loop.settings.kl.target is not None:  # else the price is the setting, which may be another by now
            loop.beta = float(state["beta"])
        loop.mismatch, loop.drift = state["mismatch"], state["drift"]
        loop.networks.reward.restore(state["reward"])
        restore_random(state["random"])
        done = int(state["step"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, ModelError) as error:
        if out_of_memory(error):
            raise
        hint = "remove it: `--resume` takes the one before, or without one starts from the beginning"
        raise UserError(f"is damaged: {first_line(error)}", where=made, hint=hint) from error
    loop.networks.sampler.update(done)
    return state


def _numbered(folder: Path, name: str) -> list[int]:
    """The N of all `name-N` in a folder, in order."""
    ends = (path.name.removeprefix(f"{name}-") for path in folder.glob(f"{name}-*"))
    return sorted(int(end) for end in ends if end.isdecimal())


def _best_of(made: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        best: int | None = loads((made / _STATE).read_text(encoding="utf-8")).get("best")
        return best
    return None


def save_best(folder: Path, done: int, loop: Loop) -> None:
    """Keep the policy's weights as they are after `done` steps; a checkpoint may still go on with older ones."""
    (folder / f"best-{done}").mkdir(exist_ok=True)
    loop.networks.policy.save(folder / f"best-{done}" / _POLICY)


def take_best(folder: Path, done: int, loop: Loop) -> bool:
    """Give the policy the best weights, those after `done` steps, if they are there."""
    path = folder / f"best-{done}" / _POLICY
    if not path.exists():
        return False
    loop.networks.policy.restore(path)
    return True


def remove_best(folder: Path) -> None:
    """Of a finished training, whose model they are."""
    _drop_best(folder, _numbered(folder, "best"))


def _drop_best(folder: Path, numbers: Sequence[int]) -> None:
    for number in numbers:
        shutil.rmtree(folder / f"best-{number}", ignore_errors=True)


def cut_back(folder: Path, done: int) -> list[dict[str, Any]]:
    """Drop what was written after step `done`, which comes again; returns the lines of the log that stay."""
    _drop_best(folder, [number for number in _numbered(folder, "best") if number > done])
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


def add_responses(folder: Path, number: int, found: Step) -> None:
    """Add the answers of a step, those of all processes, to those that are kept; every process has to ask."""
    lines = gather_object([_line(number, found, at) for at in range(len(found.responses))])
    if first_process():
        with (folder / RESPONSES).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(lines)


def _line(number: int, found: Step, at: int) -> str:
    response = found.responses[at]
    line = {
        "step": number + 1,
        "prompt": [message.model_dump(mode="json") for message in response.asked.messages],
        "index": response.index,
        "response": response.text,
        "reward": found.scores.total[at],
        "parts": {name: part[at] for name, part in found.scores.parts.items()},
        "finished": response.finished,
        "tokens": len(response.ids),
        "version": response.version,
    }
    return json.dumps(line, ensure_ascii=False) + "\n"
