"""What is wrong with a model's files, before anything is loaded from them: found in their headers, in milliseconds.

Weights that are missing are drawn at random by transformers, and left-over ones dropped, with a warning at most; files
of other kinds are unpickled, and code that lies beside them is run where somebody says yes. Nothing of that is wanted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.errors import UserError
from rlaif.jsontext import loads

ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_INDEX = "model.safetensors.index.json"
_LENGTH = 8
_LONGEST = 100 * 2**20
"""Bytes of a header, as in the safetensors library itself."""
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_UNREAD = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.npz")
"""Weights in formats that are not read: most are pickles, which may run code."""
_SAVED_WHOLE = "save it with `save_pretrained`, and copy all of its files"


class Header(NamedTuple):
    """What a file of weights says of one tensor."""

    dtype: str
    shape: tuple[int, ...]


def require_loadable(folder: Path, where: str | Path) -> None:
    """Raise UserError where a whole model's folder is not one that is loaded; `where` is how the user calls it."""
    config = read_json(folder / "config.json")
    _require_no_code(config, where)
    require_ends(folder)
    found = dict(_headers(folder, where))
    if not found:
        raise UserError("has no weights in its files", where=where, mend=_SAVED_WHOLE)
    _require_floats(found, where, packed="quantization_config" in config)


def require_loadable_adapter(folder: Path, where: str | Path) -> None:
    """Raise UserError where an adapter's folder is not one that is loaded."""
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise _no_weights(folder, where, ADAPTER_WEIGHTS)
    _require_floats(headers(path, where), where, packed=False)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, perhaps with a copy of its model's config beside it.

    Raises UserError where it holds a whole model as well: which of the two is meant, nobody can tell.
    """
    if not (folder / ADAPTER).is_file():
        return False
    if next(folder.glob("model*.safetensors"), None) is not None:
        what = "holds an adapter and a whole model"
        raise UserError(what, where=folder, mend="leave one of the two in it")
    return True


def read_json(path: Path) -> dict[str, Any]:
    """An object in a file. Raises UserError where there is none."""
    try:
        found = loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise UserError("cannot be read as a JSON object", where=path, mend=_SAVED_WHOLE)
    return found


def require_ends(folder: Path) -> frozenset[int]:
    """The tokens that end a reply, of the generation config in a folder, if there is one.

    Raises UserError where that says something else: replies would never end, or end anywhere.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return frozenset()
    told = read_json(path).get("eos_token_id")
    ends = told if isinstance(told, list) else [told]
    if any(each is not None and (isinstance(each, bool) or not isinstance(each, int) or each < 0) for each in ends):
        what = f"`eos_token_id` is {json.dumps(told)[:40]}"
        raise UserError(what, where=path, mend="set the number of the token that ends a reply, or a list of numbers")
    return frozenset(each for each in ends if each is not None)


def headers(path: Path, where: str | Path) -> dict[str, Header]:
    """The tensors of a file of weights by name. Raises UserError for one that is damaged or cut off."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH), "little")
            told: Any = loads(file.read(length)) if length <= min(_LONGEST, size) else None
        found = {name: each for name, each in told.items() if name != "__metadata__"}
        tensors = {name: Header(str(each["dtype"]), tuple(each["shape"])) for name, each in found.items()}
        wanted = _LENGTH + length + max((int(each["data_offsets"][1]) for each in found.values()), default=0)
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        what = f"{path.name} is no file of safetensors, or a damaged one"
        raise UserError(what, where=where, mend="copy or download it again") from None
    if size != wanted:
        gap = f"{wanted - size:,} bytes are missing" if size < wanted else f"{size - wanted:,} bytes are too many"
        raise UserError(f"{path.name} is damaged: {gap}", where=where, mend="copy or download it again")
    return tensors


def dtype_of(folder: Path) -> str:
    """The type of most weights of a whole model, as torch calls it."""
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    kinds = [each.dtype for _, each in _headers(folder, folder)]
    return names.get(max(set(kinds), key=kinds.count), "float32")


def _headers(folder: Path, where: str | Path) -> Iterator[tuple[str, Header]]:
    """The tensors of a whole model, in one file or in shards that an index lists."""
    single = folder / "model.safetensors"
    if single.is_file():
        paths = [single]
    elif (folder / _INDEX).is_file():
        listed = read_json(folder / _INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise UserError("does not list the files of its weights", where=folder / _INDEX, mend=_SAVED_WHOLE)
        paths = [folder / name for name in sorted(set(listed.values()))]
    else:
        raise _no_weights(folder, where, "model.safetensors")
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(f"lacks files of its weights: {', '.join(missing[:3])}{more}", where=where, mend=_SAVED_WHOLE)
    for path in paths:
        yield from headers(path, where).items()


def _no_weights(folder: Path, where: str | Path, name: str) -> UserError:
    unread = sorted(path.name for kind in _UNREAD for path in folder.glob(kind) if path.is_file())
    if unread:
        what = f"has its weights in {unread[0]}, and only safetensors are read, which run no code"
        return UserError(what, where=where, mend="convert it: load it with transformers, and `save_pretrained`")
    return UserError(f"has no weights: {name} is missing", where=where, mend=_SAVED_WHOLE)


def _require_floats(found: Mapping[str, Header], where: str | Path, *, packed: bool) -> None:
    """Numbers of a packed type, without what unpacks them, are loaded as if they were the weights themselves."""
    odd = next((name for name, each in found.items() if each.dtype not in _FLOATS), None)
    if odd is not None and not packed:
        what = f"{odd} holds {found[odd].dtype}, no floats, and no `quantization_config` says how they are packed"
        raise UserError(what, where=where, mend="save the weights as float32 or bfloat16")


def _require_no_code(config: Mapping[str, Any], where: str | Path) -> None:
    """A family that transformers does not know brings its own code, which is never run."""
    if "auto_map" not in config:
        return
    from transformers import CONFIG_MAPPING

    if config.get("model_type") not in CONFIG_MAPPING:
        what = f"needs code of its own (`auto_map` in config.json, `{config.get('model_type')}`), which is never run"
        raise UserError(what, where=where, mend="name a model of a family that transformers knows, or serve this one")
