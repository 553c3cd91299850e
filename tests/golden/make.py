"""What the program computes on the tiny models, kept, so that moving code around is seen to change nothing.

    python -m tests.golden.make         writes tests/golden/results.json

One `rlaif run` (generate, revise, five trainings), then the judge, the reward model and policies evaluated. Kept are
the texts and numbers of its files, and of every weight tensor its norm and its product with a fixed vector. Times,
costs, paths, versions and fingerprints are left out.

Processors round sums differently, and a trained model's fingerprint is part of the seeds of its responses. So no
trained policy is sampled from: the policies that are evaluated are files of responses.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from rlaif.data.prompts import read_prompts
from tests.support import ROOT, lines, rlaif

RESULTS = Path(__file__).parent / "results.json"
TRAIN: dict[str, dict[str, Any]] = {
    "sft": {"learning_rate": 3e-4, "max_steps": 3, "holdout": 0, "batch_size": 4},
    "reward": {"learning_rate": 1e-3, "max_steps": 4, "holdout": 0, "batch_size": 4},
    "dpo": {"learning_rate": 2e-4, "max_steps": 3, "holdout": 0, "batch_size": 4},
    "ppo": {"reward": "reward", "learning_rate": 3e-4, "steps": 2, "batch_size": 8, "rollout": {"max_tokens": 48}},
    "rloo": {
        "method": "ppo", "algorithm": "rloo", "reward": "judge", "principles": "all", "learning_rate": 3e-4, "steps": 2,
        "batch_size": 8, "rollout": {"max_tokens": 48},
    },
}  # fmt: skip
UNSTEADY = {
    "seconds", "created", "finished", "started", "time", "version", "versions", "software", "fingerprint", "device",
    "revision", "folder", "path", "output", "peak_memory", "memory", "host", "id", "run", "digest", "hash", "cost",
    "concurrency", "rate", "judgements", "runtime", "second", "files",
}  # fmt: skip
"""Keys that hold times, places or fingerprints, as parts of their names."""


def run_file(folder: Path) -> Path:
    """The whole loop, as small as it gets."""
    prompts = "demo.jsonl"
    shutil.copy(ROOT / "prompts/policy" / prompts, folder)
    settings = {
        "constitution": "demo",
        "prompts": {"path": prompts, "limit": 8},
        "policy": {"model": "demo-policy", "samples": 3, "max_tokens": 64},
        "judge": {"model": "demo-judge"},
        "compare": {"principles": "each"},
        "pair": {"select": "all", "per_prompt": 3},
        "revise": {"enabled": True, "samples": 2, "temperature": 0.3, "max_tokens": 64},
        "output": "run",
        "train": {name: ({**more, "prompts": prompts} if "steps" in more else more) for name, more in TRAIN.items()},
    }  # fmt: skip
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def steady(value: Any) -> Any:
    """A document without what differs from run to run."""
    if isinstance(value, dict):
        return {
            key: steady(each)
            for key, each in value.items()
            if not UNSTEADY & {*key.lower().replace("/", "_").split("_")} and not str(each).startswith("/")
        }
    if isinstance(value, list):
        return [steady(each) for each in value]
    return re.sub(r"@[0-9a-f]{8}$", "", value) if isinstance(value, str) else value


def responses(run: Path, name: str, nth: int) -> Path:
    """The nth sample of every prompt, as the file of responses of a policy."""
    path = run.parent / f"{name}.jsonl"
    texts = {row["prompt"]: row["text"] for row in lines(run / "samples.jsonl") if row["index"] == nth}
    prompts = read_prompts(run.parent / "demo.jsonl", limit=8)
    rows = [{"prompt": prompt.messages[-1].content, "response": texts[prompt.id]} for prompt in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def weights(folder: Path) -> dict[str, list[float]]:
    """Of each tensor its norm, and its product with a vector of cosines."""
    import torch
    from safetensors.torch import load_file

    told = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            flat = tensor.double().flatten()
            told[name] = [float(flat.norm()), float(flat @ torch.cos(torch.arange(len(flat)).double()))]
    return told


def done(*words: object, cwd: Path) -> None:
    """Run a command to its end; evaluations exit with 3 or 4 for a verdict."""
    result = rlaif(*words, cwd=cwd, timeout=900)
    assert result.returncode in (0, 3, 4), result.stdout + result.stderr


def reports(folder: Path) -> Iterator[Any]:
    """The reports in a folder, by their names less the hash."""
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text())
        if "format" in document:
            yield steady(document)


@contextlib.contextmanager
def golden_folder() -> Iterator[Path]:
    """An empty folder that is called the same everywhere, for this process alone.

    Paths are part of a training's settings, those of its model's identity, and that of the seeds of its responses.
    """
    folder = Path(tempfile.gettempdir()) / "rlaif-golden"
    with FileLock(f"{folder}.lock"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


def results(folder: Path) -> dict[str, Any]:
    """Everything that is kept."""
    done("run", run_file(folder), cwd=folder)
    run = folder / "run"
    gold = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in lines(run / "pairs.jsonl")]
    (folder / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in gold))
    done(
        "evaluate", "judge", "--gold", "gold.jsonl", "--run", "run.yaml", "--no-plots", "--output", "judge", cwd=folder
    )
    done(
        "evaluate", "reward", "--model", "run/train/reward", "--gold", "gold.jsonl", "--no-plots",
        "--output", "rewards", cwd=folder,
    )  # fmt: skip
    policies = [responses(run, name, nth) for nth, name in enumerate(("one", "two", "three"))]
    done(
        "evaluate", "policy", policies[0], "--against", policies[1], "--against", policies[2],
        "--prompts", "demo.jsonl", "--prompts-limit", "8", "--judge", "demo-judge", "--constitution", "demo",
        "--compare-principles", "all", "--no-plots", "--output", "policies", cwd=folder,
    )  # fmt: skip
    tables = ("samples", "rankings", "pairs", "sft")
    return {
        **{name: steady(lines(run / f"{name}.jsonl")) for name in tables if (run / f"{name}.jsonl").exists()},
        "manifest": steady(json.loads((run / "manifest.json").read_text())),
        "logs": {name: steady(lines(run / "train" / name / "log.jsonl")) for name in TRAIN},
        "weights": {name: weights(run / "train" / name) for name in TRAIN},
        "evaluation of policies": list(reports(folder / "policies")),
        "evaluation of the judge": list(reports(folder / "judge")),
        "evaluation of the reward model": list(reports(folder / "rewards")),
    }


def main() -> int:
    """Write the results."""
    with golden_folder() as folder:
        found = results(folder)
    RESULTS.write_text(json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    print(f"{RESULTS}: {RESULTS.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
