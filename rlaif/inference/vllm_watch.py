"""Runs a command, and ends it when whoever started this script is gone.

    python watch.py COMMAND ARGUMENT ...

The starter holds the other end of our standard input. It closes when the starter closes it, exits, or is killed in
whatever way, and then the command is asked to end, and made to end ten seconds later. The command and its children
share this script's process group. This file imports nothing of the package: it is run by its path.
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
    threading.Thread(target=_end_with_starter, args=(child,), daemon=True).start()
    code = child.wait()
    os.killpg(0, signal.SIGTERM)  # what the command may have left behind
    return code if code >= 0 else 128 - code


def _end_with_starter(child: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1024):  # not sys.stdin, whose lock this thread would hold when the interpreter ends
        pass
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
