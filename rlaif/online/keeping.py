"""What an online training keeps on disk: checkpoints to go on from, the log, every answer with its score.

checkpoint-N/       policy.safetensors, value.safetensors: what is trained, with its optimizer; trainer_state.json last
best/               the weights that the held-out judge liked best
log.jsonl           figures, a line a step
responses.jsonl     every answer: prompt, text, score, the rewards it is made of, the version of the weights
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from pydantic import JsonValue

from rlaif.errors import UserError
from rlaif.online.loop import Loop, Step
from rlaif.store import write_json, write_text
from rlaif.training.folder import first_process

LOG, RESPONSES = "log.jsonl", "responses.jsonl"
_STATE, _POLICY, _VALUE, _BEST = "trainer_state.json", "policy.safetensors", "value.safetensors", "best"


def save_checkpoint(folder: Path, done: int, loop: Loop, more: Mapping[str, JsonValue], keep: int) -> None:
    """Keep everything that step `done` (so many are done) goes on with, and the last `keep` checkpoints only."""
    made = folder / f"checkpoint-{done}"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    loop.players.policy.save(made / _POLICY)
    if loop.players.value is not None:
        loop.players.value.save(made / _VALUE)
    state: dict[str, JsonValue] = {
        "step": done,
        "beta": loop.beta,
        "mismatch": loop.mismatch,
        "reward": {**loop.players.reward.state()},
        **more,
    }
    write_json(made / _STATE, state)  # last: without it the checkpoint does not count
    others = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for old in others[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(made: Path, loop: Loop) -> dict[str, Any]:
    """Go on from a checkpoint; returns its state. Raises UserError where it is damaged."""
    try:
        state: dict[str, Any] = json.loads((made / _STATE).read_text(encoding="utf-8"))
        loop.players.policy.restore(made / _POLICY)
        if loop.players.value is not None:
            loop.players.value.restore(made / _VALUE)
        loop.beta, loop.mismatch = float(state["beta"]), state["mismatch"]
        loop.players.reward.restore(state["reward"])
        loop.players.sampler.update(int(state["step"]))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"is damaged: {error}", where=made, mend="remove it; `--resume` takes the one before"
        ) from error
    return state


def save_best(folder: Path, loop: Loop) -> None:
    """Keep the policy's weights as they are."""
    (folder / _BEST).mkdir(exist_ok=True)
    loop.players.policy.save(folder / _BEST / _POLICY)


def take_best(folder: Path, loop: Loop) -> bool:
    """Give the policy the best weights, if there are any kept, and remove them."""
    path = folder / _BEST / _POLICY
    if not path.exists():
        return False
    loop.players.policy.restore(path)
    return True


def remove_best(folder: Path) -> None:
    """Of a finished training, whose model they are."""
    shutil.rmtree(folder / _BEST, ignore_errors=True)


def cut_back(folder: Path, done: int) -> list[dict[str, Any]]:
    """Drop what was written after step `done`, which comes again; returns the lines of the log that stay."""
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
                yield json.loads(line)


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
