"""Starting again on a full table: a million judgements planned and found, and 100,000 of them paired anew.

    python tests/bench/planning.py [JUDGEMENTS]

Makes a run of given answers with every judgement on disk, then runs `rlaif compare` and `rlaif pair` on it as
processes of their own, and prints their seconds and peak memory. Targets: a million planned under 60 s and 1 GB.
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
sys.path.insert(0, str(ROOT))

from rlaif.config.run_file import load_run  # noqa: E402
from rlaif.feedback.judge import judgement  # noqa: E402
from rlaif.feedback.pipeline import run_pipeline  # noqa: E402
from rlaif.feedback.run import open_run  # noqa: E402
from rlaif.inference.base import Output  # noqa: E402

PER_PROMPT = 12
"""Four answers, six pairs, two orders."""


def make(folder: Path, judgements: int) -> Path:
    """A run folder whose every question is answered."""
    words = ["please", "could", "the", "station", "train", "home", "letter", "answer", "kind", "slow", "morning"]
    source = random.Random(0)

    def text(length: int) -> str:
        return " ".join(source.choice(words) for _ in range(length))

    prompts = folder / "prompts.jsonl"
    with prompts.open("w") as file:
        for number in range(-(-judgements // PER_PROMPT)):
            row = {"prompt": f"{number} {text(30)}", "responses": [text(50) for _ in range(4)]}
            file.write(json.dumps(row) + "\n")
    run_file = folder / "run.yaml"
    run_file.write_text(
        f"constitution: harmless\nprompts: {{path: {prompts}, responses: responses}}\n"
        f"judge: {{model: judge, base_url: 'http://127.0.0.1:9/v1'}}\noutput: {folder}/run\n"
    )
    settings = load_run(run_file)
    run_pipeline(settings, ["sample"])
    with open_run(settings, None, "judge") as run:
        batch = []
        for question in run.compare_questions():
            answer = Output("A", (-0.1 - source.random(), -0.9), "length", prompt_tokens=300, completion_tokens=1)
            batch.append(judgement(question, answer))
            if len(batch) == 1000:
                run.judgements.append(batch)
                batch = []
        run.judgements.append(batch)
    return run_file


def measure(*arguments: object) -> tuple[float, float]:
    """Seconds and peak gigabytes of one `rlaif` process."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "rlaif", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"rlaif {arguments} failed"
    return time.perf_counter() - start, usage.ru_maxrss / 1e6


def main() -> None:
    """Measure and print."""
    judgements = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    for count, command in ((judgements, "compare"), (min(judgements, 100_000), "pair")):
        with tempfile.TemporaryDirectory() as folder:
            run_file = make(Path(folder), count)
            seconds, memory = measure(command, run_file)
            print(f"rlaif {command} with {count:,} judgements on disk: {seconds:.1f} s, {memory:.2f} GB")


if __name__ == "__main__":
    main()
