"""`make bench`: every benchmark in turn. What a machine lacks (a vLLM, the shared data) is said.


Absolute times drift on a shared machine; where a peer is measured, it is measured in the same run.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PARTS = {
    "start_up": "the command line's start-up time",
    "client_cpu": "client CPU per verdict, beside httpx",
    "verdict_cpu": "CPU per verdict of a whole `rlaif compare`",
    "planning": "starting again on a full table",
    "doctor": "`rlaif data check` on a million rows",
    "efficiency": "what each way of judging gets right, and by how many calls",
    "injection": "what instructions to the judge win inside a reply, with and without fences",
    "training": "training beside TRL: speed, memory, losses",
    "ppo": "PPO beside TRL's: samples per second by phase, memory",
    "world": "what each way of training mends in the tiny world, and on which labels",
    "online": "what each online algorithm mends in the tiny world, and how far it goes",
    "vllm": "verdicts per second and prefix cache on a real vLLM server",
}


def main() -> int:
    """Run the parts named on the command line, or all of them. Returns how many failed."""
    failed = 0
    for name in sys.argv[1:] or PARTS:
        print(f"\n== {name}: {PARTS[name]}", flush=True)
        failed += subprocess.run([sys.executable, HERE / f"{name}.py"], cwd=HERE.parents[1]).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
