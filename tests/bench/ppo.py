"""PPO beside TRL 1.12, the last release that had it: the same model, prompts, lengths and epochs, on a CPU in fp32.

    RLAIF_TRL_PPO_PYTHON=.trl112/bin/python python tests/bench/ppo.py [STEPS]

The variable names the Python of an environment with trl==1.12; without it, or without ../shared/bench, which makes the
model (a random one, which hardly ever ends an answer by itself: all have the full length on either side), nothing is
measured. Each side is a process of its own; samples per second are those of the loop, models loaded.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

PEER = ROOT.parent / "shared" / "bench"
DATA = ROOT.parent / "shared" / "data" / "hh-rlhf-harmless-base-test.jsonl.gz"
PYTHON = "RLAIF_TRL_PPO_PYTHON"
PLAN = {"batch": 32, "micro": 8, "tokens": 64, "epochs": 4, "steps": 3}
LONGEST = 2048
"""Characters of a prompt, its end kept."""


def compared(steps: int) -> Iterator[str]:
    """Lines of a table."""
    peer = os.environ.get(PYTHON)
    if not (PEER.is_dir() and DATA.exists() and peer):
        yield f"nothing measured: {PEER} is not there, or {PYTHON} is not set"
        return
    plan = {**PLAN, "steps": steps}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _run([sys.executable, str(PEER / "make_model.py"), str(DATA), str(root), str(plan["batch"] * steps)])
        _run([sys.executable, __file__, "start", str(root)])
        ours = _run([sys.executable, __file__, "ours", str(root), json.dumps(plan)])
        yield f"ours: {ours['samples_s']:.2f} samples/s, {ours['peak_rss_mb']:,} MB; seconds {ours['phases']}"
        theirs = _run([peer, str(Path(__file__).with_name("trl_ppo.py")), str(root), json.dumps(plan)])
        yield (
            f"TRL 1.12: {theirs['samples_s']:.2f} samples/s, {theirs['peak_rss_mb']:,} MB; ours "
            f"{ours['samples_s'] / theirs['samples_s']:.1f} times as fast, "
            f"{ours['peak_rss_mb'] / theirs['peak_rss_mb']:.2f} of its memory"
        )


def _run(line: list[str]) -> Any:
    result = subprocess.run(line, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(line)} failed:\n{result.stderr[-2000:]}")
    last = result.stdout.strip().splitlines()[-1] if result.stdout.strip() else "null"
    return json.loads(last) if last.startswith("{") else None


def start(root: Path) -> None:
    """Prompts of the pairs, and a random reward model, for both sides."""
    from rlaif.inference.model_folder import load_tokenizer
    from rlaif.training.config import RewardSettings
    from rlaif.training.loading import load_reward_model

    rows = [json.loads(line) for line in (root / "pairs.jsonl").read_text().splitlines()]
    texts = [f"{at}. {row['prompt'][-LONGEST:]}" for at, row in enumerate(rows)]
    (root / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    load_reward_model(RewardSettings(model=str(root / "model"), data="-", output="-"), 0).save_pretrained(
        root / "reward"
    )
    load_tokenizer(root / "model").save_pretrained(root / "reward")


def ours(root: Path, plan: dict[str, int]) -> dict[str, Any]:
    """Train; seconds are those of the steps."""
    from rlaif.progress import show_progress
    from rlaif.rl.config import OnlineSettings
    from rlaif.rl.run import train_online

    given: dict[str, Any] = {
        "model": str(root / "model"), "prompts": str(root / "prompts.jsonl"), "reward": str(root / "reward"),
        "output": str(root / "ours"), "device": "cpu", "dtype": "float32", "algorithm": "ppo", "samples": 1,
        "batch_size": plan["batch"], "epochs": plan["epochs"], "steps": plan["steps"], "learning_rate": 1e-5,
        "schedule": "constant", "warmup": 0.0, "save_steps": 0, "rollout": {"max_tokens": plan["tokens"]},
        "value": {"learning_rate": 1e-5}, "monitor": {"on_alarm": "warn"},
    }  # fmt: skip
    with show_progress() as told:
        train_online(OnlineSettings.model_validate(given), told)
    log = [json.loads(line) for line in (root / "ours" / "log.jsonl").read_text().splitlines()]
    names = [name for name in log[0] if name.startswith("seconds/")]
    phases = {name.partition("/")[2]: round(sum(line[name] for line in log), 2) for name in names}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    samples = plan["batch"] * plan["steps"]
    assert all(line["length"] > 0.95 * plan["tokens"] for line in log), "answers ended by themselves"
    return {"samples_s": samples / sum(phases.values()), "peak_rss_mb": peak, "phases": phases}


def main() -> None:
    """Compare, or be one of the sides."""
    if len(sys.argv) > 2 and sys.argv[1] == "start":
        start(Path(sys.argv[2]))
    elif len(sys.argv) > 3 and sys.argv[1] == "ours":
        print(json.dumps(ours(Path(sys.argv[2]), json.loads(sys.argv[3]))))
    else:
        for line in compared(int(sys.argv[1]) if len(sys.argv) > 1 else PLAN["steps"]):
            print(line, flush=True)


if __name__ == "__main__":
    main()
