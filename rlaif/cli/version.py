"""`rlaif version`: the versions that a bug report needs."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path

import click

import rlaif
from rlaif.cli.terminal import echo

_PACKAGES = ("torch", "transformers", "vllm")


@click.command()
def version() -> None:
    """Show the versions of rlaif, Python, torch, transformers and vLLM, and the folder of the package."""
    rows = [("rlaif", rlaif.__version__), ("python", platform.python_version())]
    rows += [(name, _installed(name)) for name in _PACKAGES]
    for name, text in (*rows, ("location", str(Path(rlaif.__file__).parent))):
        echo(f"{name:<14}{text}")


def _installed(package: str) -> str:
    try:
        return version_of(package)
    except PackageNotFoundError:
        return "not installed"
