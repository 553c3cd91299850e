"""Where a training starts from: a whole model, or a LoRA adapter with the model that it was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from rlaif.inference.files import ADAPTER, read_json
from rlaif.inference.folder import Parts, has_tokenizer, model_folder, parts_of
from rlaif.inference.opening import require_parts
from rlaif.records import content_id
from rlaif.resources import shipped_model
from rlaif.store import sha256_of
from rlaif.training.reference import weights_hash


class Start(NamedTuple):
    """The folders of a model."""

    weights: Path
    """Of a whole model."""
    adapter: Path | None = None
    """Of what is added to it."""

    @property
    def tokenizer(self) -> Path:
        """The folder with the tokenizer: an adapter may have its own."""
        return self.adapter if self.adapter is not None and has_tokenizer(self.adapter) else self.weights

    @property
    def has_tokenizer(self) -> bool:
        """Whether it was saved with one."""
        return has_tokenizer(self.tokenizer)

    @property
    def parts(self) -> Parts:
        """The same for those that load it."""
        return Parts(self.weights, self.adapter, self.tokenizer)

    @property
    def size(self) -> int:
        """Bytes of weights."""
        return sum(path.stat().st_size for path in self.weights.glob("*.safetensors"))

    def hash(self) -> str:
        """A hash of all weights by content."""
        whole = weights_hash(self.weights)
        if self.adapter is None:
            return whole
        # Where it lies is nothing to what it is.
        about = read_json(self.adapter / ADAPTER) | {"base_model_name_or_path": ""}
        files = [sha256_of(path) for path in sorted(self.adapter.glob("adapter_model.*"))]
        return content_id(whole, json.dumps(about, sort_keys=True), *files)


def find_start(model: str) -> Start:
    """The folders of a model: shipped, local or on the hub. Raises UserError where there is none that can be loaded."""
    parts = parts_of(model_folder(model), rewards=True)
    require_parts(parts, model)
    return Start(parts.weights, parts.adapter)


def lasting_name(model: str) -> str:
    """What an adapter calls the model that it belongs to: a name of the hub as it is, a folder by its whole path."""
    local = shipped_model(model) or Path(model).expanduser()
    return str(local.resolve()) if local.is_dir() else model
