"""Starts a vLLM server as a subprocess, waits until it is healthy, and never leaves it behind.

vLLM is never imported: it may live in another Python environment. The server runs under `vllm_watch.py` in a process
group of its own, so it ends with this process even if this process is killed, and Ctrl-C arrives here first.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from rlaif.config.schemas import placing
from rlaif.errors import ModelError, UserError
from rlaif.inference import vllm_watch
from rlaif.store import shipped_model

PYTHON_VARIABLE = "RLAIF_VLLM_PYTHON"
"""Environment variable with the path of a Python whose environment holds vLLM."""

_POLL_SECONDS = 0.5
_STOP_SECONDS = 20.0
_LOG_LINES = 20

Progress = Callable[[float, str], None]
"""Called while the server starts with the seconds so far and the latest line of its log."""


def find_vllm() -> list[str]:
    """The command that serves a model, up to the model's name. Raises UserError where vLLM is not installed."""
    python = os.environ.get(PYTHON_VARIABLE)
    if python:
        if shutil.which(python) is None:
            raise UserError(f"no Python at {python}", where=PYTHON_VARIABLE, hint="name one that has vLLM installed")
        return [python, "-m", "vllm.entrypoints.openai.api_server", "--model"]
    beside = Path(sys.executable).with_name("vllm")  # this Python's environment, which need not be activated
    command = str(beside) if beside.is_file() else shutil.which("vllm")
    if command is None:
        hint = f"install it (`pip install vllm`), or set {PYTHON_VARIABLE} to the Python of an environment that has it"
        raise UserError("vLLM is not installed here", hint=hint)
    return [command, "serve"]


def serve_command(
    model: str,
    *,
    host: str,
    port: int,
    served_name: str | None = None,
    max_model_len: int | None = None,
    extra: Sequence[str] = (),
) -> list[str]:
    """The whole command. Later arguments win, so `extra` can change everything but the server's host, port and served
    name (UserError).

    Prefix caching is on and reported. The model's own sampling defaults are off: they would apply wherever a request
    sets no value. A shipped model is small: it runs in fp32, starts without compilation and leaves most of a GPU free.
    """
    if (flag := placing(extra)) is not None:
        hint = "remove it; `rlaif judge serve` has --host, --port and --name of its own"
        raise UserError(f"`{flag}` cannot be among vLLM's arguments: nobody else would know of it", hint=hint)
    folder = shipped_model(model)
    if folder is not None and not (folder / "config.json").is_file():
        raise UserError(f"`{model}` is missing from this installation", where=folder)
    command = [*find_vllm(), model if folder is None else str(folder)]
    command += ["--served-model-name", served_name or model, "--host", host, "--port", str(port)]
    command += ["--enable-prefix-caching", "--enable-prompt-tokens-details", "--generation-config", "vllm"]
    if folder is not None:
        command += ["--dtype", "float32", "--enforce-eager", "--gpu-memory-utilization", "0.3"]
    if max_model_len is not None:
        command += ["--max-model-len", str(max_model_len)]
    return [*command, *extra]


class VllmServer:
    """A vLLM server: start and stop it, or use it as a context manager (plain or async)."""

    def __init__(
        self,
        model: str,
        *,
        served_name: str | None = None,
        host: str = "127.0.0.1",
        port: int | None = None,
        max_model_len: int | None = None,
        extra: Sequence[str] = (),
        log: Path | None = None,
        timeout: float = 600.0,
        progress: Progress | None = None,
        api_key: str | None = None,
    ) -> None:
        """`port` None takes a free one. Without a `log` file, the server writes to this process's output. With an
        `api_key`, it accepts only requests that carry the key."""
        if port is None:
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                port = int(listener.getsockname()[1])
        self.port = port
        self.served_name = served_name or model
        self._host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        self.base_url = f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{self.port}/v1"
        self.log = log
        self._command = serve_command(
            model,
            host=host,
            port=port,
            served_name=served_name,
            max_model_len=max_model_len,
            extra=extra,
        )
        self._timeout, self._progress, self._key = timeout, progress, api_key
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it is healthy. Raises ModelError, with the end of its log, if it is not."""
        try:
            self._spawn()
            self._await_health()
        except BaseException:
            self.stop()
            raise

    def wait(self) -> int:
        """Wait until the server ends by itself; its exit code."""
        assert self._process is not None
        return self._process.wait()

    def stop(self) -> None:
        """End the server and everything it started."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()  # the signal for vllm_watch to end the server
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def __enter__(self) -> VllmServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> VllmServer:
        try:
            await asyncio.to_thread(self.start)
        except asyncio.CancelledError:
            self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    def _spawn(self) -> None:
        out = None
        if self.log is not None:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self.log.unlink(missing_ok=True)  # a link is replaced, not followed
            out = self.log.open("xb")
        # No usage statistics leave this machine on rlaif's account; a key in the environment is for other servers.
        environment = {"VLLM_NO_USAGE_STATS": "1"} | os.environ
        environment.pop("VLLM_API_KEY", None)
        if self._key is not None:
            environment["VLLM_API_KEY"] = self._key  # not an argument, which every user of the machine can read
        try:
            self._process = subprocess.Popen(
                [sys.executable, vllm_watch.__file__, *self._command],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=None if out is None else subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        finally:
            if out is not None:
                out.close()

    def _await_health(self) -> None:
        start = time.monotonic()
        while not self._healthy():
            process, seconds = self._process, time.monotonic() - start
            if process is None:
                raise ModelError("vLLM was stopped while it started")
            if process.poll() is not None:
                message = f"vLLM ended while it started (exit code {process.returncode})"
                raise ModelError(message, log=self._end_of_log())
            if seconds > self._timeout:
                raise ModelError(f"vLLM was not ready after {seconds:.0f} s", log=self._end_of_log())
            if self._progress is not None:
                self._progress(seconds, (self._log_lines() or [""])[-1])
            time.sleep(min(_POLL_SECONDS, 0.05 + seconds / 10))

    def _healthy(self) -> bool:
        """Whether /health answers 200. The request bypasses any proxy."""
        connection = http.client.HTTPConnection(self._host, self.port, timeout=2)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _log_lines(self) -> list[str]:
        if self.log is None or not self.log.is_file():
            return []
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 16_384))
            return file.read().decode("utf-8", "replace").splitlines()[-_LOG_LINES:]

    def _end_of_log(self) -> str:
        lines = self._log_lines()
        return f"; the end of {self.log}:\n" + "\n".join(lines) if lines else ""


def serve_foreground(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    served_name: str | None = None,
    extra: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> int:
    """Serve a model until Ctrl-C or until the server ends; returns an exit code."""
    server = VllmServer(model, served_name=served_name, host=host, port=port, extra=extra, timeout=3600.0)
    say(f"starting vLLM with {model}; this can take minutes")
    try:
        with server:
            say(f"ready; in a run file: judge: {{base_url: {server.base_url}, model: {server.served_name}}}")
            return server.wait()
    except KeyboardInterrupt:
        return 130
