"""The documents of a run folder that say what the run was, as far as they have the form that we write.

A folder may come from another program, or from another version of this one. What has another form than ours is left out
here, once, so that whoever reads a value finds either one of the right type or none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlaif.page.reading import document

_COUNTS = {"*": int}
_SESSION = {
    "seconds": float,
    "stages": {
        "*": {
            "asked": int, "answered": int, "on_disk_already": int, "failed": _COUNTS, "seconds": float,
        }
    },
}  # fmt: skip
_MANIFEST = {
    "made_by": str,
    "schema": int,
    "constitution": {"name": str, "hash": str},
    "judge": str,
    "policy": str,
    "templates": {"*": str},
    "prompts": {"path": str, "sha256": str, "oddities": _COUNTS},
    "settings": {"*": object},
    "counts": _COUNTS,
    "failures": _COUNTS,
    "principles": {"*": _COUNTS},
    "panel": {
        "judges": [
            {
                "judge": str, "agrees": int, "opposes": int, "abstains": int, "flips": int,
                "dawid_skene_accuracy": float,
            }
        ],
        "comparisons": int, "cohen_kappa": float, "krippendorff_alpha": float, "correlation": float,
        "effective_judges": float, "effective_judges_at_least": float,
    },
    "slot_bias": {"*": {"removed": float}},
    "healed_lines": int,
    "session": _SESSION,
    "files": {"*": str},
}  # fmt: skip
"""By key the type of a value; `*` stands for any key, a list for each of its items. Other keys are let through."""
_WRONG = object()


def manifest_in(folder: Path) -> dict[str, Any]:
    """The manifest of a finished run; empty where there is none, or none that can be read."""
    return _document(folder / "manifest.json")


def revised_in(folder: Path) -> dict[str, Any]:
    """What `rlaif revise` noted; empty as above."""
    return _document(folder / "revised.json")


def loop_in(folder: Path) -> dict[str, Any]:
    """What `rlaif run` noted of its stages; empty as above."""
    found = _shaped(document(folder / "loop.json"), {"command": str, "finished": bool})
    return found if isinstance(found, dict) else {}


def _document(path: Path) -> dict[str, Any]:
    found = _shaped(document(path), _MANIFEST)
    return found if isinstance(found, dict) else {}


def _shaped(value: Any, shape: Any) -> Any:
    """`value` without the parts whose type is another one; `_WRONG` where it is that itself."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return _WRONG
        every = shape.get("*", object)
        read = {str(name): _shaped(part, shape.get(name, every)) for name, part in value.items()}
        return {name: part for name, part in read.items() if part is not _WRONG}
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _WRONG
        return [part for part in (_shaped(each, shape[0]) for each in value) if part is not _WRONG]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = number if shape is float else number and isinstance(value, int) if shape is int else isinstance(value, shape)
    return value if fits else _WRONG
