"""Seconds and peak memory of `rlaif data check` on a generated JSONL file. Targets: a million rows in 600 s and 2 GB.

    python tests/bench/doctor.py [ROWS]

A row holds a prompt of 12 to 60 words and two replies of 20 to 120; one row in a hundred has some defect.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def make(path: Path, rows: int) -> None:
    """Write the file."""
    source = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(source.choices(letters, k=source.randint(2, 9))) for _ in range(20_000)]

    def text(least: int, most: int) -> str:
        return " ".join(source.choices(words, k=source.randint(least, most)))

    with path.open("w", encoding="utf-8") as file:
        prompt = text(12, 60)
        for number in range(rows):
            prompt = prompt if number % 100 == 1 else text(12, 60)
            chosen, rejected = text(20, 120), text(20, 120)
            if number % 100 == 2:
                rejected = f"{chosen} indeed"
            row = {
                "prompt": [{"role": "user", "content": prompt}],
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
                "probability": 0.5 + source.random() / 2,
            }
            file.write(json.dumps(row) + "\n")


def main() -> None:
    """Measure and print."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        make(path, rows)
        size = path.stat().st_size / 1e9
        start = time.perf_counter()
        command = [sys.executable, "-m", "rlaif", "data", "check", str(path)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        assert os.waitstatus_to_exitcode(status) in (0, 1), "rlaif data check failed"
        print(f"rlaif data check, {rows:,} rows ({size:.2f} GB): {seconds:.1f} s, {usage.ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
