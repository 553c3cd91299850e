"""Where the files that travel with the package lie: beside it in a checkout, inside it in an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED = {"demo-judge": "judge", "demo-policy": "policy"}
"""Models that ship with the package, and their folders."""


def resource(name: str) -> Path:
    """The folder `constitutions`, `prompts` or `examples`; a wheel carries `rlaif/_shipped/NAME` (pyproject.toml)."""
    shipped = _PACKAGE / "_shipped" / name
    return shipped if shipped.is_dir() else _PACKAGE.parent / name


def shipped_model(name: str) -> Path | None:
    """The folder of a model that ships with the package (`demo-judge`, `demo-policy`), or None for any other name."""
    return _PACKAGE / "demo" / "models" / SHIPPED[name] if name in SHIPPED else None
