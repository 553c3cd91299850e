"""A model's files: where they lie, and the fingerprint that makes them part of a model's name.

A model in process is called `NAME@8 hex digits`. The digits hash the files that decide its answers, so a folder whose
weights, template or tokenizer changed has another name, and the questions put to it are asked anew.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.errors import UserError, nearest
from rlaif.inference.files import ADAPTER as _ADAPTER
from rlaif.inference.files import is_adapter, read_json
from rlaif.resources import SHIPPED, shipped_model

_DECIDING = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "*.txt")
_BESIDE = frozenset({"trainer_state.json", "training_args.bin", "optimizer.bin", "README.txt", "metrics.json"})
"""Files of those kinds that trainers leave, and that change no answer; some tell how long a training took."""
_WHOLE = 64 * 2**20
_PIECES, _PIECE = 256, 2**16
"""Of a larger file so many pieces are hashed, evenly spread: a training that leaves some layers as they were changes
others, and the first and last tensors of a file may well be among those that it left."""


class Parts(NamedTuple):
    """Where the parts of a model lie: they are one folder, but for a LoRA adapter."""

    weights: Path
    """The folder of a whole model."""
    adapter: Path | None
    """What is added to it; None where it is all there is."""
    tokenizer: Path


def model_folder(model: str) -> Path:
    """The folder of a shipped model, of a local one, or of one from the Hugging Face hub (downloaded if need be)."""
    path = shipped_model(model)
    if path is None and _is_path(model):
        path = Path(model).expanduser()
    if path is None:
        return _from_hub(model)
    if not any((path / name).is_file() for name in ("config.json", _ADAPTER)):
        inside = sorted(each.parent.name for each in path.glob(f"*/{_ADAPTER}")) if path.is_dir() else []
        if inside:
            what = f"holds adapters in folders of their own: {', '.join(inside[:5])}"
            raise UserError(what, where=path, mend=f"name one of them, as in {path / inside[0]}")
        raise UserError("no model here: `config.json` is missing", where=path, mend="name the folder of a saved model")
    return path


def require_model(model: str) -> None:
    """Raise UserError where no model can be behind a name. Nothing is loaded, and no hub asked.

    Old models of the hub have no owner in their names; one of those has to be on this machine already.
    """
    if shipped_model(model) is not None or _is_path(model):
        model_folder(model)
    elif "/" not in model and not _is_cached(model):
        meant = nearest(model, SHIPPED)
        mend = "name the folder of a saved model, or one of the hub as `owner/name`"
        raise UserError(f"no model is called `{model}`", mend=meant if meant.startswith("did you mean") else mend)


def _is_cached(model: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(model, "config.json"), str)
    except HFValidationError:
        return False


def parts_of(folder: Path, *, rewards: bool = False) -> Parts:
    """The parts of the language model in a folder, or with `rewards` of a reward model.

    Raises UserError where an adapter does not lead to a whole model, or belongs to a reward model that is not wanted.
    """
    if not is_adapter(folder):
        return Parts(folder, None, folder)
    about = read_json(folder / _ADAPTER)
    base = about.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError("does not say which model the adapter belongs to", where=folder / _ADAPTER)
    if about.get("task_type") == "SEQ_CLS" and not rewards:
        raise UserError("is an adapter of a reward model", where=folder, mend="name a language model")
    weights = model_folder(base)
    if is_adapter(weights):
        mend = "merge the one below first (`lora.merge: true`)"
        raise UserError("is an adapter on top of another adapter", where=folder, mend=mend)
    return Parts(weights, folder, folder if has_tokenizer(folder) else weights)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder. Raises UserError where there is none.

    We look ourselves: transformers, before 5.24 at least, makes one of special tokens alone where a folder holds none.
    """
    from transformers import AutoTokenizer

    mend = "save the model together with its tokenizer"
    if not has_tokenizer(folder):
        raise UserError("no tokenizer here", where=folder, mend=mend)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # Its Rust half raises bare exceptions for files that it cannot read.
        if "trust_remote_code" in str(error):
            what, mend = "the tokenizer here needs code of its own, which is never run", "save it as tokenizer.json"
        else:
            what = "the tokenizer here cannot be loaded"
        raise UserError(what, where=folder, mend=mend) from error


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    kinds = ("tokenizer.json", "tekken.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken")
    return any(next(folder.glob(kind), None) for kind in kinds)


def identity(model: str, *, rewards: bool = False) -> str:
    """The full name of a model in process, worked out without loading it; `rewards` as for `parts_of`."""
    folder = model_folder(model)
    shown = folder.resolve().name if _is_path(model) else model
    parts = parts_of(folder, rewards=rewards)
    digits = fingerprint(folder)
    if parts.adapter is not None:  # the model below it decides its answers too
        digits = hashlib.sha256(f"{digits}{fingerprint(parts.weights)}".encode()).hexdigest()[:8]
    return f"{shown}@{digits}"


def fingerprint(folder: Path) -> str:
    """8 hex digits over names and contents of a model's files; of a file over 64 MB its size and 16 MB of it count."""
    files = {path for pattern in _DECIDING for path in folder.glob(pattern) if path.name not in _BESIDE}
    total = hashlib.sha256()
    for path in sorted(files, key=lambda each: each.name):
        total.update(f"{path.name}\0".encode())
        total.update(_digest(path))
    return total.hexdigest()[:8]


def _digest(path: Path) -> bytes:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= _WHOLE:
            digest.update(file.read())
        else:
            for number in range(_PIECES):
                file.seek((size - _PIECE) * number // (_PIECES - 1))
                digest.update(file.read(_PIECE))
    return digest.digest()


def _is_path(model: str) -> bool:
    """Whether `model` names a folder rather than a hub model (`owner/name`)."""
    looks_like_one = model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model
    return shipped_model(model) is None and (looks_like_one or Path(model).is_dir())


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    mend = "check the name, or name the folder of a saved model"
    try:
        return Path(snapshot_download(model, allow_patterns=list(_DECIDING)))
    except LocalEntryNotFoundError:
        what = f"model `{model}` is not on this machine, and the Hugging Face hub cannot be reached"
        meant = "" if "/" in model else nearest(model, SHIPPED)  # a hub name has an owner, as a rule
        download = "download it first, or name the folder of a saved model"
        raise UserError(what, mend=meant if meant.startswith("did you mean") else download) from None
    except (OSError, ValueError) as error:  # the hub's own errors are OSErrors
        raise UserError(f"model `{model}` cannot be found: {str(error).splitlines()[0]}", mend=mend) from None
