"""Models for the tests: a tiny random one in process, and a real vLLM server where there is one."""

from __future__ import annotations

import base64
import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from filelock import FileLock

from rlaif.inference.vllm_process import PYTHON_VARIABLE, VllmServer
from rlaif.store import shipped_model
from rlaif.training import curves
from tests.inference.tiny import make_tiny_model


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests that take long come first: where processes share them, quick ones even out their ends."""
    files = {item: item.nodeid.partition("::")[0] for item in items}
    long = {files[item] for item in items if item.get_closest_marker("slow") or item.get_closest_marker("server")}
    items.sort(key=lambda item: files[item] not in long)


def pytest_collection_finish() -> None:
    """What is loaded by now stays: the garbage collector need not look through torch and transformers again."""
    gc.collect()
    gc.freeze()


_BLANK = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
)
"""One pixel."""


def _blank(panels: Sequence[object], path: Path, step: str) -> None:
    if panels:
        path.write_bytes(_BLANK)


_DRAW = curves.draw
curves.draw = _blank  # before anybody imports it by name


@pytest.fixture(autouse=True)
def drawn_curves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing curves takes half of a tiny training's time: only tests marked `curves` do it, the others get a pixel."""
    if request.node.get_closest_marker("curves"):
        for name in ("rlaif.training.curves", "rlaif.rl.run"):
            if name in sys.modules:
                monkeypatch.setattr(f"{name}.draw", _DRAW)


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


def common_folder(factory: pytest.TempPathFactory) -> Path:
    """One that all processes of this test run have."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@contextlib.contextmanager
def shared(name: str, folder: Path, start: Callable[[], VllmServer]) -> Iterator[str]:
    """The address of a server that all test processes use: the first one starts it, and ends it when none is left."""
    note, lock, server = folder / f"{name}.json", FileLock(folder / f"{name}.lock"), None
    with lock:
        if not note.exists():
            server = start()
            note.write_text(json.dumps({"url": server.base_url, "users": []}))
        known = json.loads(note.read_text())
        note.write_text(json.dumps({**known, "users": [*known["users"], os.getpid()]}))
    try:
        yield known["url"]
    finally:
        _leave(note, lock)
        if server is not None:
            while not _abandoned(note, lock):
                time.sleep(0.2)
            server.stop()


def _leave(note: Path, lock: FileLock) -> None:
    with lock:
        known = json.loads(note.read_text())
        note.write_text(json.dumps({**known, "users": [each for each in known["users"] if each != os.getpid()]}))


def _abandoned(note: Path, lock: FileLock) -> bool:
    """Whether nobody uses the server any more; then nobody finds it any more either."""
    with lock:
        left = [each for each in json.loads(note.read_text())["users"] if Path(f"/proc/{each}").exists()]
        if not left:
            note.unlink()
        return not left


@pytest.fixture(scope="session")
def vllm(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The shipped judge behind vLLM, started by our own launcher; a tiny random model until weights ship."""
    require_vllm()
    folder = shipped_model("demo-judge")
    known = folder is not None and (folder / "config.json").is_file()
    extra = [
        "--enforce-eager",
        *(["--max-model-len", "2048", "--block-size", "32"] if known else ["--dtype", "float32"]),
    ]
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    common = common_folder(tmp_path_factory)

    def start() -> VllmServer:
        model = "demo-judge" if known else str(tiny_model)
        server = VllmServer(model, served_name="demo-judge", extra=extra, log=common / "vllm-judge.log")
        server.start()
        return server

    with shared("judge", common, start) as url:
        yield Served(url, "demo-judge", folder if known and folder else tiny_model)
