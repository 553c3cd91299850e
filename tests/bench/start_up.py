"""Seconds of `rlaif --help`, best of ten, beside an empty Python. Target: under 0.2 s."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def best(*arguments: str) -> float:
    """Least seconds of ten runs."""
    times = []
    for _ in range(10):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    print(f"rlaif --help: {best('-m', 'rlaif', '--help'):.3f} s; an empty Python: {best('-c', ''):.3f} s")
