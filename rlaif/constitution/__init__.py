"""The constitution: principles in a YAML file, by which a judge compares, critiques and revises replies."""

from __future__ import annotations

from rlaif.constitution.model import (
    Constitution,
    Example,
    Principle,
    constitution_problems,
    find_constitution,
    load_constitution,
    shipped_constitutions,
)

__all__ = [
    "Constitution",
    "Example",
    "Principle",
    "constitution_problems",
    "find_constitution",
    "load_constitution",
    "shipped_constitutions",
]
