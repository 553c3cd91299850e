"""A trained model's files in the type of the model that it started from.

Weights are trained in float32, and checkpoints keep it. What is saved at the end is as large as what was loaded: of a
bfloat16 model a bfloat16 model, its config saying so. The head of a reward model stays in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rlaif.jsontext import loads
from rlaif.store import draft_of, write_json

_HEAD = "score."
"""Rewards have three digits in bfloat16, too few for a difference of two."""


def type_of(folder: Path) -> torch.dtype:
    """The type that a saved model's config tells; float32 where it tells none, or one that nobody trains in."""
    config = loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else {}
    told = next((at[key] for at in (config, text) for key in ("dtype", "torch_dtype") if at.get(key)), "float32")
    found = getattr(torch, str(told).removeprefix("torch."), None)
    return found if found in (torch.bfloat16, torch.float16) else torch.float32


def round_to(model: Any, dtype: torch.dtype) -> None:
    """Give every weight the value that it will be saved with, so that what is measured of the model holds."""
    for name, each in model.named_parameters():
        if each.is_floating_point() and not name.startswith(_HEAD):
            each.data.copy_(each.data.to(dtype))


def cast_files(folder: Path, dtype: torch.dtype) -> None:
    """Rewrite a folder's float32 weights in a narrower type, and its config."""
    from safetensors.torch import load_file, save_file

    if dtype == torch.float32:
        return
    size = 0
    for path in sorted(folder.glob("*.safetensors")):
        narrow = {name: each.to(dtype) if _narrowed(name, each) else each for name, each in load_file(path).items()}
        size += sum(each.nbytes for each in narrow.values())
        with draft_of(path) as draft:
            save_file(narrow, draft, metadata={"format": "pt"})
    config = loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", _named(config, str(dtype).removeprefix("torch.")))
    index = folder / "model.safetensors.index.json"
    if index.exists():
        listed = loads(index.read_text(encoding="utf-8"))
        listed.setdefault("metadata", {})["total_size"] = size
        write_json(index, listed)


def _narrowed(name: str, weight: torch.Tensor) -> bool:
    return weight.dtype == torch.float32 and not name.startswith(_HEAD)


def _named(config: Any, dtype: str) -> Any:
    """A config, with those inside of it, that tells another type."""
    if not isinstance(config, dict):
        return config
    named = {name: _named(value, dtype) for name, value in config.items()}
    return named | {name: dtype for name in ("dtype", "torch_dtype") if isinstance(named.get(name), str)}
