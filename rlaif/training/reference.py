"""Log-probabilities of the reference: computed once and cached on disk, so that no reference model sits in memory.

The reference is the policy at its start, so the model about to be trained computes them before its first step. The
cache key is a hash of what they depend on, weights and token ids; another beta, loss or learning rate reuses them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlaif.errors import UserError
from rlaif.training.batches import lay_out, split
from rlaif.training.forward import ForwardPath
from rlaif.training.tokenize import Group

_VERSION = "1"


def default_folder() -> Path:
    """Where references are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "rlaif" / "references"


def reference_key(weights: str, groups: Sequence[Group], dtype: str) -> str:
    """A hash of everything that the log-probabilities depend on."""
    digest = hashlib.blake2b(digest_size=20)
    for text in (_VERSION, weights, dtype):
        digest.update(text.encode() + b"\0")
    for group in groups:
        for ids in (group.prompt, *group.completions):
            digest.update(len(ids).to_bytes(4, "little") + np.asarray(ids, dtype=np.int32).tobytes())
        digest.update(b"\xff")
    return digest.hexdigest()


def require_writable(path: Path) -> None:
    """Raise UserError where no log-probabilities could be kept: before they are computed, not after."""
    with _writing(path), tempfile.TemporaryFile(dir=path.parent):
        pass


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Make the folder of a file that is written in the block. Raises UserError where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        hint = "set another `reference_cache`"
        raise UserError(f"cannot be written: {error.strerror}", where=path.parent, hint=hint) from error


def load(path: Path, groups: Sequence[Group]) -> list[list[float]] | None:
    """The log-probabilities of every group's completions as kept in a file, or None where it is not there.

    Raises UserError for a file that cannot be read.
    """
    if not path.exists():
        return None
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        flat = load_file(path)["logps"].tolist()
    except (SafetensorError, KeyError, OSError) as error:
        raise UserError(f"is damaged: {error}", where=path, hint="remove it") from error
    if len(flat) != sum(len(group.completions) for group in groups):
        return None
    logps = iter(flat)
    return [list(itertools.islice(logps, len(group.completions))) for group in groups]


def keep(path: Path, logps: Sequence[Sequence[float]]) -> None:
    """Write them; a file is there whole or not at all."""
    from safetensors.torch import save_file

    draft = path.with_suffix(f".{os.getpid()}.draft")
    flat = [logp for group in logps for logp in group]
    with _writing(path):
        save_file({"logps": torch.tensor(flat, dtype=torch.float32)}, draft)
        draft.replace(path)


@torch.no_grad()
def compute(
    model: Any,
    groups: Sequence[Group],
    forward_path: ForwardPath,
    tokens: int,
    accelerator: Any,
    advance: Callable[[int], None],
) -> list[list[float]]:
    """Summed log-probabilities of every group's completions, in the order of the groups, the same in every process.

    `model(batch)` has to be a batch's log-probabilities (`forward.answering`). `advance` takes how many more are done.
    """
    parts = split(groups, tokens, forward_path.layout, least=accelerator.num_processes)
    processes, rank = accelerator.num_processes, accelerator.process_index
    flat = torch.zeros(len(groups), max(len(group.completions) for group in groups), device=accelerator.device)
    was_training = model.training
    model.eval()
    # A process that has no part left repeats one: models in shards need all processes in every pass.
    for start in range(0, len(parts), processes):
        part = parts[min(start + rank, len(parts) - 1)]
        batch = lay_out([groups[at] for at in part], forward_path.layout).to(accelerator.device)
        values = torch.split(batch.summed(model(batch)), [len(groups[at].completions) for at in part])
        if start + rank < len(parts):
            for at, logps in zip(part, values, strict=True):
                flat[at, : len(logps)] = logps
        advance(sum(map(len, parts[start : start + processes])))
    model.train(was_training)
    table = accelerator.reduce(flat, "sum").cpu().tolist()
    return [row[: len(group.completions)] for row, group in zip(table, groups, strict=True)]


def with_reference(groups: Sequence[Group], logps: Sequence[Sequence[float]], name: str) -> list[Group]:
    """The groups with the reference's log-probabilities among their values."""
    return [
        dataclasses.replace(
            group, values={**group.values, **{name.format(at): logp for at, logp in enumerate(group_logps)}}
        )
        for group, group_logps in zip(groups, logps, strict=True)
    ]
