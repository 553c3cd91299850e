"""Models for the tests: a tiny random one in process, and a real vLLM server where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from rlaif.inference.launch import PYTHON_VARIABLE, VllmServer
from rlaif.resources import shipped_model
from tests.inference.tiny import make_tiny_model


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests that take long come first: where processes share them, quick ones even out their ends."""
    files = {item: item.nodeid.partition("::")[0] for item in items}
    long = {files[item] for item in items if item.get_closest_marker("slow") or item.get_closest_marker("server")}
    items.sort(key=lambda item: files[item] not in long)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


class Served(NamedTuple):
    """A model behind a real vLLM server."""

    base_url: str
    name: str
    folder: Path


def require_vllm() -> None:
    """Skip where there is no vLLM; fail where there has to be one."""
    if not os.environ.get(PYTHON_VARIABLE):
        reason = f"{PYTHON_VARIABLE} does not name a Python that has vLLM"
        if os.environ.get("CI_REQUIRE_VLLM") == "1":
            pytest.fail(f"CI_REQUIRE_VLLM=1, but {reason}")
        pytest.skip(reason)


@pytest.fixture(scope="session")
def vllm(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The shipped judge behind vLLM, started by our own launcher; a tiny random model until weights ship."""
    require_vllm()
    folder = shipped_model("demo-judge")
    shipped = folder is not None and (folder / "config.json").is_file()
    extra = [
        "--enforce-eager",
        *(["--max-model-len", "2048", "--block-size", "32"] if shipped else ["--dtype", "float32"]),
    ]
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    log = tmp_path_factory.mktemp("vllm") / "vllm.log"
    model = "demo-judge" if shipped else str(tiny_model)
    with VllmServer(model, served_name="demo-judge", extra=extra, log=log) as server:
        yield Served(server.base_url, "demo-judge", folder if shipped and folder else tiny_model)
