"""Client CPU per verdict, all in: planning, hashing, HTTP and storing, by `rlaif compare` as a process.

    python tests/bench/verdict_cpu.py [STUB.py]

The stub (default ../shared/bench/stub_server.py) answers at once. Given answers stand in for a policy. The CPU of a
run without questions is taken off, so that imports and the reading of the input do not count. Target: 0.6 ms.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.client_cpu import stub  # noqa: E402

PROMPTS = 600
"""Twelve verdicts each."""


def cpu_seconds(*arguments: object) -> float:
    """User and system seconds of one `rlaif` process on the first core."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rlaif", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, {0}),
    )
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"rlaif {arguments} failed"
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measure and print."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "../shared/bench/stub_server.py"
    if not path.exists():
        print(f"left out: no stub server at {path}")
        return
    with tempfile.TemporaryDirectory() as name, stub(path.resolve()) as url:
        folder = Path(name)
        rows = [
            {"prompt": f"How do I get to station {at}? " * 5, "answers": [f"Take tram {k}. " * 15 for k in range(4)]}
            for at in range(PROMPTS)
        ]
        (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        run_file = folder / "run.yaml"
        run_file.write_text(
            f"constitution: harmless\nprompts: {{path: p.jsonl, responses: answers}}\n"
            f"judge: {{model: bench, base_url: '{url}'}}\noutput: {folder}/run\n"
        )
        cpu_seconds("sample", run_file)
        idle = cpu_seconds("sample", run_file)
        full = cpu_seconds("compare", run_file)
    verdicts = PROMPTS * 12
    print(f"rlaif compare, {verdicts:,} verdicts: {(full - idle) / verdicts * 1000:.3f} ms of client CPU each")


if __name__ == "__main__":
    main()
