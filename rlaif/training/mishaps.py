"""What goes wrong with memory and disks in a training, in plain words instead of a traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from rlaif.errors import UserError

_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
_NOT_WRITTEN = ("PytorchStreamWriter", "No space left", "StorageFull", "inline_container")
"""Those that write in Rust and C++ raise errors of their own kinds."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or beside it."""
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY))


def first_line(error: BaseException) -> str:
    """What an error says first."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextlib.contextmanager
def enough_memory(folder: Path) -> Iterator[None]:
    """Raise UserError for memory that ran out; `folder` is that of the training."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        mend = "lower `tokens`, or set `gradient_checkpointing: true`"
        mend += " (`--resume` goes on with these)" if (folder / "train.json").exists() else ""
        raise UserError("memory ran out", mend=f"{mend}, or start again with `lora.rank`") from error


@contextlib.contextmanager
def room_to_write(folder: Path) -> Iterator[None]:
    """Raise UserError for a training's folder that cannot be written any more."""
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read our lines went away
    except Exception as error:
        if not isinstance(error, OSError) and not any(sign in str(error) for sign in _NOT_WRITTEN):
            raise
        why = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        mend = "free the place; `--resume` goes on from the last checkpoint"
        raise UserError(f"cannot be written any more: {why}", where=folder, mend=mend) from error
