"""Runs a command and ends it when the process that started this script is gone.

    python vllm_watch.py COMMAND ARGUMENT ...

The starter holds the other end of this script's standard input. That pipe closes when the starter closes it, exits or
is killed in any way; the command then gets SIGTERM, and SIGKILL ten seconds later. The command and its children share
this script's process group. The script is run by its path and imports nothing of the package.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

_GRACE_SECONDS = 10.0


def main(command: list[str]) -> int:
    """Run `command`; returns its exit code."""
    for caught in (signal.SIGINT, signal.SIGTERM):
        signal.signal(caught, lambda *_: None)  # not SIG_IGN, which the command would inherit
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def end_with_starter() -> None:
        while os.read(0, 1024):  # not sys.stdin, whose lock this thread would hold when the interpreter ends
            pass
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(0, signal.SIGKILL)

    threading.Thread(target=end_with_starter, daemon=True).start()
    code = child.wait()
    os.killpg(0, signal.SIGTERM)  # child processes that the command may have left behind
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
