"""A real vLLM server that takes up adapters, and whole weights, while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rlaif.inference.launch import VllmServer
from tests.conftest import Served, require_vllm


@pytest.fixture(scope="session")
def vllm_with_adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The tiny model, open to adapters and other weights, with log-probabilities at the sampling temperature."""
    require_vllm()
    extra = ["--enable-lora", "--max-lora-rank", "8", "--logprobs-mode", "processed_logprobs"]
    extra += ["--dtype", "float32", "--enforce-eager", "--no-enable-chunked-prefill"]
    log = tmp_path_factory.mktemp("vllm") / "vllm.log"
    server = VllmServer(str(tiny_model), served_name="policy", extra=extra, log=log)
    with pytest.MonkeyPatch.context() as patch:  # only while it starts: other servers are to be other ones
        patch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "True")
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        server.start()
    try:
        yield Served(server.base_url, "policy", tiny_model)
    finally:
        server.stop()
