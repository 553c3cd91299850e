"""Where the files that travel with the package lie: beside it in a checkout, inside it in an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource(name: str) -> Path:
    """The folder `constitutions`, `prompts` or `examples`; a wheel carries `rlaif/_shipped/NAME` (pyproject.toml)."""
    shipped = _PACKAGE / "_shipped" / name
    return shipped if shipped.is_dir() else _PACKAGE.parent / name


def shipped_model(name: str) -> Path | None:
    """The folder of a model that ships with the package (`demo-judge`, `demo-policy`), or None for any other name."""
    folders = {"demo-judge": "judge", "demo-policy": "policy"}
    return _PACKAGE / "demo" / "models" / folders[name] if name in folders else None
