"""A real vLLM server that takes up adapters, and whole weights, while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from rlaif.inference.vllm_process import VllmServer
from tests.conftest import Served, common_folder, require_vllm, shared


@pytest.fixture(scope="session")
def one_for_all(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The tiny model, open to adapters and other weights, with log-probabilities at the sampling temperature."""
    require_vllm()
    extra = ["--enable-lora", "--max-lora-rank", "8", "--logprobs-mode", "processed_logprobs"]
    extra += ["--dtype", "float32", "--enforce-eager", "--no-enable-chunked-prefill"]
    common = common_folder(tmp_path_factory)

    def start() -> VllmServer:
        server = VllmServer(str(tiny_model), served_name="policy", extra=extra, log=common / "vllm-policy.log")
        with pytest.MonkeyPatch.context() as patch:  # only while it starts: other servers are to be other ones
            patch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "True")
            patch.setenv("VLLM_SERVER_DEV_MODE", "1")
            patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
            server.start()
        return server

    with shared("policy", common, start) as url:
        yield Served(url, "policy", tiny_model)


@pytest.fixture
def vllm_with_adapters(one_for_all: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The same for one test at a time, as a test may change its weights."""
    with FileLock(common_folder(tmp_path_factory) / "policy-in-use.lock"):
        yield one_for_all
