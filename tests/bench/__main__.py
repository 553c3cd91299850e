"""`make bench`: every benchmark in turn. What a machine lacks (a vLLM, the shared data) is said.


Absolute times drift on a shared machine; where a peer is measured, it is measured in the same run.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PARTS = {
    "entered": "files and functions of ours that a command enters",
    "start_up": "the command line's start-up time",
    "client_cpu": "client CPU per verdict, beside httpx",
    "verdict_cpu": "CPU per verdict of a whole `rlaif compare`",
    "planning": "starting again on a full table",
    "page": "`rlaif report` on 100,000 pairs",
    "doctor": "`rlaif data check` on a million rows",
    "prefixes": "judging in process: what questions share computed once, and every time",
    "efficiency": "what each way of judging gets right, and by how many calls",
    "coverage": "how often the intervals of an evaluation of policies hold the truth",
    "injection": "what instructions to the judge win inside a reply, with and without fences",
    "training": "training beside TRL: speed, memory, losses",
    "ppo": "PPO beside TRL's: samples per second by phase, memory",
    "world": "what each way of training improves in the tiny world, and on which labels",
    "online": "what each online algorithm improves in the tiny world, and how far it goes",
    "real": "what training gains a real small model, by rules that are known",
    "vllm": "verdicts per second and prefix cache on a real vLLM server",
}


def main() -> int:
    """Run the parts named on the command line, each with the words behind its name, or all. Returns how many failed."""
    plan: list[list[str]] = []
    for word in sys.argv[1:] or PARTS:
        if word in PARTS:
            plan.append([word])
        elif plan:
            plan[-1].append(word)
        else:
            print(f"no benchmark `{word}`; there are: {', '.join(PARTS)}", file=sys.stderr)
            return 2
    failed = 0
    for name, *words in plan:
        print(f"\n== {name}: {PARTS[name]}", flush=True)
        failed += subprocess.run([sys.executable, HERE / f"{name}.py", *words], cwd=HERE.parents[1]).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
