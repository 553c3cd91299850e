"""Where a training starts from: a whole model, or a LoRA adapter with the model that it was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.errors import UserError
from rlaif.inference.folder import model_folder
from rlaif.jsontext import loads
from rlaif.records import content_id
from rlaif.resources import shipped_model
from rlaif.store import sha256_of
from rlaif.training.reference import weights_hash

_ADAPTER = "adapter_config.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")


class Start(NamedTuple):
    """The folders of a model."""

    weights: Path
    """Of a whole model."""
    adapter: Path | None = None
    """Of what is added to it."""

    @property
    def tokenizer(self) -> Path:
        """The folder with the tokenizer: an adapter may have its own."""
        return self.adapter if self.adapter is not None and _has_tokenizer(self.adapter) else self.weights

    @property
    def has_tokenizer(self) -> bool:
        """Whether it was saved with one."""
        return _has_tokenizer(self.tokenizer)

    @property
    def size(self) -> int:
        """Bytes of weights."""
        return sum(path.stat().st_size for path in self.weights.glob("*.safetensors"))

    def hash(self) -> str:
        """A hash of all weights by content."""
        whole = weights_hash(self.weights)
        if self.adapter is None:
            return whole
        about = _about(self.adapter) | {"base_model_name_or_path": ""}  # where it lies is nothing to what it is
        files = [sha256_of(path) for path in sorted(self.adapter.glob("adapter_model.*"))]
        return content_id(whole, json.dumps(about, sort_keys=True), *files)


def find_start(model: str) -> Start:
    """The folders of a model: shipped, local or on the hub. Raises UserError where there is none."""
    local = Path(model).expanduser()
    folder = local if (local / _ADAPTER).is_file() else model_folder(model)
    if not (folder / _ADAPTER).is_file():
        return Start(folder)
    base = _about(folder).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError("does not say which model the adapter belongs to", where=folder / _ADAPTER)
    under = find_start(base)
    if under.adapter is not None:
        mend = "train with `lora.merge: true` what others start from"
        raise UserError("is an adapter on top of another adapter", where=folder, mend=mend)
    return Start(under.weights, folder)


def lasting_name(model: str) -> str:
    """What an adapter calls the model that it belongs to: a name of the hub as it is, a folder by its whole path."""
    local = shipped_model(model) or Path(model).expanduser()
    return str(local.resolve()) if local.is_dir() else model


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZERS)


def _about(folder: Path) -> dict[str, Any]:
    try:
        found = loads((folder / _ADAPTER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError("cannot be read", where=folder / _ADAPTER, mend="save the adapter again") from error
    return found if isinstance(found, dict) else {}
