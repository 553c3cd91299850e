"""A process that has imported everything, and forks for every command: imports cost seconds, and tests run hundreds.

What runs is `python -m rlaif` as ever, in a process, folder and environment of its own, with the streams that it is
given; only its modules are there already. What is about processes themselves (kills, interrupts, start-up) starts real
ones instead, by `tests.support.command`.

    python tests/zygote.py serve SOCKET        # until standard input ends
    python tests/zygote.py call SOCKET WORDS   # `rlaif WORDS`; light, as it stands for `rlaif` in a shell
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Mapping, Sequence

_MODULES = (
    "torch", "transformers", "transformers.models.llama.modeling_llama", "peft", "datasets", "accelerate", "matplotlib",
    "pyarrow.parquet", "rlaif.cli.main", "rlaif.cli.generate", "rlaif.cli.workflow", "rlaif.cli.train",
    "rlaif.cli.constitution", "rlaif.cli.data", "rlaif.api.evaluate", "rlaif.workflow.run", "rlaif.report.page",
    "rlaif.inference.transformers_model", "rlaif.feedback.pipeline", "rlaif.training.session", "rlaif.rl.run",
    "rlaif.evaluation.reward_model",
)  # fmt: skip
_SIZE, _CODE = struct.Struct("!I"), struct.Struct("!i")


def call(
    address: str,
    words: Sequence[str],
    env: Mapping[str, str],
    cwd: str,
    streams: Sequence[int],
    *,
    module: str = "rlaif",
    timeout: float | None = None,
) -> int:
    """Run `python -m MODULE WORDS` with three open files as its streams; its exit code.

    Raises TimeoutError where it says nothing for so many seconds. Whatever interrupts the call ends the command.
    """
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(timeout)
        line.connect(address)
        told = json.dumps({"words": [*words], "env": {**env}, "cwd": cwd, "module": module}).encode()
        socket.send_fds(line, [_SIZE.pack(len(told))], list(streams))
        line.sendall(told)
        worker = _CODE.unpack(_exactly(line, _CODE.size))[0]
        try:
            return int(_CODE.unpack(_exactly(line, _CODE.size))[0])
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
            raise


def _exactly(line: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        more = line.recv(size - len(found))
        if not more:
            raise EOFError("the process that forks has gone")
        found += more
    return found


def serve(address: str) -> None:
    """Answer calls until standard input ends."""
    for name in _MODULES:
        __import__(name)
    gc.collect()
    gc.freeze()  # what is loaded stays: a fork need not look through it, and its pages stay shared
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who serve a call
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(address)
        door.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([door, sys.stdin], [], [])[0]:
            line, _ = door.accept()
            if os.fork() == 0:
                door.close()
                _answer(line)
            line.close()


def _answer(line: socket.socket) -> None:
    """Fork once more for the command, and tell how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, streams, _, _ = socket.recv_fds(line, _SIZE.size, 3)
    asked = json.loads(_exactly(line, _SIZE.unpack(head)[0]))
    worker = os.fork()
    if worker == 0:
        line.close()
        _work(asked, streams)
    with contextlib.suppress(BrokenPipeError):
        line.sendall(_CODE.pack(worker))
        line.sendall(_CODE.pack(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])))
    os._exit(0)


def _work(asked: Mapping[str, object], streams: Sequence[int]) -> None:
    for target, given in enumerate(streams):
        os.dup2(given, target)
        os.close(given)
    env, words = asked["env"], asked["words"]
    assert isinstance(env, dict) and isinstance(words, list)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(str(asked["cwd"]))
    sys.argv, sys.path[0] = ["-m", *words], str(asked["cwd"])
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(at, "w" if at else "r", closefd=False) for at in range(3))
    code = 0
    try:
        runpy.run_module(str(asked["module"]), run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:  # noqa: BLE001 - as the interpreter does
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        _leave(code)


def _leave(code: int) -> None:
    import atexit

    with contextlib.suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        sys.exit(call(sys.argv[2], sys.argv[3:], os.environ, os.path.realpath("."), (0, 1, 2)))
