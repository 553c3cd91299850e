"""Starting and stopping a server process, with a stand-in for vLLM."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlaif.errors import ModelError, UserError
from rlaif.inference.client import Server
from rlaif.inference.vllm_process import PYTHON_VARIABLE, VllmServer, find_vllm, serve_command, serve_foreground
from tests.inference.questions import label_question

ROOT = Path(__file__).resolve().parents[2]

STAND_IN = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from tests.fakes import FakeServer
model, port = sys.argv[sys.argv.index("--model") + 1], int(sys.argv[sys.argv.index("--port") + 1])
print("pid", os.getpid(), flush=True)
if model == "broken":
    for line in range(50):
        print("line", line)
    sys.exit("no such weights")
if model == "slow":
    time.sleep(60)
if model == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with FakeServer(model="fake", port=port):
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `python` that runs the stand-in whatever module it is asked for."""
    script, python = tmp_path / "stand_in.py", tmp_path / "python"
    script.write_text(STAND_IN.format(root=str(ROOT)))
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv(PYTHON_VARIABLE, str(python))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]


def pid_in(log: Path) -> int:
    return int(log.read_text().split()[1])


def gone_within(seconds: float, pid: int) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not alive(pid):
            return True
        time.sleep(0.05)
    return False


def test_started_asked_and_stopped(tmp_path: Path) -> None:
    log, seen = tmp_path / "logs" / "vllm.log", []

    async def main() -> int:
        async with VllmServer("any", log=log, progress=lambda seconds, line: seen.append((seconds, line))) as launched:
            server = Server(launched.base_url, "fake")
            (answer,) = await server.answer([label_question()])
            await server.close()
            assert answer.logprobs is not None
            assert alive(pid_in(log))
            return launched.port

    port = asyncio.run(main())
    assert gone_within(1, pid_in(log)) and seen
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_a_failed_start_shows_the_end_of_the_log(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        VllmServer("broken", log=tmp_path / "log").start()
    text = str(caught.value)
    assert "exit code 1" in text and "no such weights" in text and "line 49" in text
    assert "line 30\n" not in text and "line 31\n" in text  # 19 numbered lines and the last words: 20


def test_a_start_that_takes_too_long(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not ready after"):
        VllmServer("slow", log=tmp_path / "log", timeout=0.6).start()
    assert gone_within(1, pid_in(tmp_path / "log"))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_server_ends_with_its_starter(tmp_path: Path, how: signal.Signals) -> None:
    """The starter is killed in three ways; the server is gone within seconds."""
    code = (
        "import sys, time, pathlib; sys.path.insert(0, sys.argv[1])\n"
        "from rlaif.inference.vllm_process import VllmServer\n"
        "VllmServer('any', log=pathlib.Path(sys.argv[2])).start(); print('up', flush=True); time.sleep(60)\n"
    )
    log = tmp_path / "log"
    command = [sys.executable, "-c", code, str(ROOT), str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as starter:
        assert starter.stdout is not None and starter.stdout.readline() == "up\n"
        pid = pid_in(log)
        assert alive(pid)
        starter.send_signal(how)
        starter.wait(10)
    assert gone_within(5, pid)


@pytest.mark.slow
def test_a_server_that_will_not_end_is_made_to(tmp_path: Path) -> None:
    server = VllmServer("stubborn", log=tmp_path / "log")
    server.start()
    server.stop()
    assert gone_within(1, pid_in(tmp_path / "log"))


def test_no_key_of_ours_reaches_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A VLLM_API_KEY in the environment would lock us out of our own server."""
    python = Path(os.environ[PYTHON_VARIABLE])
    python.write_text("#!/bin/sh\nenv; exit 3\n")
    monkeypatch.setenv("VLLM_API_KEY", "sk-secret")
    with pytest.raises(ModelError, match="exit code 3"):
        VllmServer("any", log=tmp_path / "log").start()
    assert "PATH=" in (tmp_path / "log").read_text() and "sk-secret" not in (tmp_path / "log").read_text()


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = os.environ[PYTHON_VARIABLE]
    command = serve_command("org/model", host="127.0.0.1", port=8123, max_model_len=2048, extra=["--seed", "1"])
    assert command[:4] == [python, "-m", "vllm.entrypoints.openai.api_server", "--model"]
    assert command[4:7] == ["org/model", "--served-model-name", "org/model"] and command[-2:] == ["--seed", "1"]
    assert {"--enable-prefix-caching", "--enable-prompt-tokens-details", "--max-model-len"} < set(command)
    assert "--dtype" not in command
    monkeypatch.delenv(PYTHON_VARIABLE)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "vllm").touch()
    assert serve_command("m", host="h", port=1)[:3] == [str(tmp_path / "vllm"), "serve", "m"]


@pytest.mark.parametrize("moved", [["--port", "9000"], ["--seed", "1", "--port=9000"], ["--served_model_name=x"]])
def test_a_server_is_where_it_is_asked(moved: list[str]) -> None:
    with pytest.raises(UserError, match=r"^`--(port|served-model-name)` cannot be among vLLM's arguments"):
        VllmServer("any", extra=moved)


@pytest.mark.parametrize(
    ("host", "url"),
    [("::1", "http://[::1]:8123/v1"), ("::", "http://[::1]:8123/v1"), ("0.0.0.0", "http://127.0.0.1:8123/v1")],
)
def test_the_address_of_a_host(host: str, url: str) -> None:
    assert VllmServer("any", host=host, port=8123).base_url == url


def test_a_shipped_model_is_served_from_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rlaif.inference.vllm_process.shipped_model", lambda name: tmp_path)
    with pytest.raises(UserError, match="missing from this installation"):
        serve_command("demo-judge", host="h", port=1)
    (tmp_path / "config.json").touch()
    command = serve_command("demo-judge", host="h", port=1)
    assert command[4:7] == [str(tmp_path), "--served-model-name", "demo-judge"]
    assert command[command.index("--dtype") + 1] == "float32"


def test_without_vllm_the_way_to_get_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(PYTHON_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=PYTHON_VARIABLE):
        find_vllm()
    monkeypatch.delenv(PYTHON_VARIABLE)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(UserError, match="pip install vllm"):
        find_vllm()


def test_serving_in_the_foreground(capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    with pytest.raises(ModelError, match="exit code 1"):
        serve_foreground("broken", port=8399, say=said.append)
    assert said == ["starting vLLM with broken; this can take minutes"]
    assert "no such weights" in capfd.readouterr().err
