"""How many of our files and functions a command enters: what a reader has to open to follow it.

    python tests/bench/entered.py

Counted are functions that are called at least once, and the files that they stand in, in one small run of each command
on the tiny models. Module bodies and what they call for their constants, class bodies, lambdas and comprehensions are
not. Exit code 1 where a command enters more files than it should.
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import CodeType, FrameType

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = str(ROOT / "rlaif") + "/"
PROMPTS = ROOT / "prompts/policy/demo.jsonl"
RUN = f"""constitution: demo
prompts: {{path: {PROMPTS}, limit: 2}}
policy: {{model: demo-policy, samples: 3, max_tokens: 32}}
judge: {{model: demo-judge}}
output: run
"""
COMMANDS: dict[str, tuple[str, int]] = {
    "generate, 2 prompts x 3": ("generate run.yaml", 35),
    "train dpo, 1 step": (
        "train dpo --model demo-policy --data run --output dpo --max-steps 1 --holdout 0 --device cpu",
        30,
    ),
    "train ppo with the judge, 1 step": (
        f"train ppo --model demo-policy --prompts {PROMPTS} --reward judge --judge-model demo-judge "
        "--constitution demo --principles all --steps 1 --batch-size 4 --samples 2 --rollout-max-tokens 16 "
        "--output ppo --device cpu",
        45,
    ),
    "evaluate policy, 2 prompts": (
        f"evaluate policy dpo --against demo-policy --prompts {PROMPTS} --prompts-limit 2 --judge demo-judge "
        "--constitution demo --max-tokens 32 --output evaluation",
        40,
    ),
}
"""A command of each kind, and the most files of ours that it should enter."""


def importing(frame: FrameType | None) -> bool:
    """Whether the call is one that a module of ours makes while it is imported."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_code.co_filename.startswith(PACKAGE):
            return True
        frame = frame.f_back
    return False


def entered(words: list[str]) -> dict[str, list[str]]:
    """Run `rlaif WORDS` in this process; by file the functions that were called."""
    codes: set[CodeType] = set()

    def seen(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code not in codes and not importing(frame):
            codes.add(frame.f_code)

    sys.path.insert(0, str(ROOT))
    from rlaif.cli.main import main

    sys.argv = ["rlaif", *words]
    threading.setprofile(seen)
    sys.setprofile(seen)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            main()
    except SystemExit as end:
        if end.code not in (None, 0, 3, 4):
            raise
    finally:
        sys.setprofile(None)
    files: dict[str, list[str]] = {}
    for code in codes:
        if code.co_filename.startswith(PACKAGE) and not code.co_name.startswith("<") and code.co_flags & 2:
            files.setdefault(code.co_filename.removeprefix(PACKAGE), []).append(code.co_qualname)
    return files


def main() -> int:
    """Print the table; returns 1 where a command enters too many files."""
    if sys.argv[1:2] == ["--run"]:
        print(json.dumps(entered(sys.argv[2:])))
        return 0
    over = 0
    print("| command | files | functions | files at most |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "run.yaml").write_text(RUN)
        for name, (command, most) in COMMANDS.items():
            done = subprocess.run(
                [sys.executable, __file__, "--run", *shlex.split(command)], cwd=folder, capture_output=True, text=True
            )
            if done.returncode:
                print(done.stderr[-2000:], file=sys.stderr)
                return 1
            files: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
            over += len(files) > most
            print(f"| {name} | {len(files)} | {sum(map(len, files.values()))} | {most} |", flush=True)
            if "--files" in sys.argv:
                for file in sorted(files):
                    print(f"    {file}: {', '.join(sorted(files[file]))}")
    return int(over > 0)


if __name__ == "__main__":
    sys.exit(main())
