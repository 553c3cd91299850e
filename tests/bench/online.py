"""Online training in the tiny world: what each algorithm improves, how far it goes, how long it takes.

    python tests/bench/online.py [PROMPTS] [FOLDER] [SEEDS] [ALGORITHM]

(`judge` as the algorithm is rloo with the judge as reward, which needs no reward model.)

All start from the shipped policy and answer the same prompts; the reward is the reward model that `world.py` trains on
the run's pairs, or the tiny judge itself, grading under every principle. The oracle reads answers to fresh prompts.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rlaif.progress import show_progress  # noqa: E402
from rlaif.rl.config import OnlineSettings  # noqa: E402
from rlaif.rl.run import train_online  # noqa: E402
from rlaif.store import shipped_model  # noqa: E402
from tests.bench.behaviour import behaviour, fresh_prompts  # noqa: E402
from tests.bench.world import ASKED, prompts_file, world  # noqa: E402

COMMON: dict[str, Any] = {
    "model": "demo-policy", "batch_size": 64, "samples": 4, "steps": 80, "epochs": 1, "learning_rate": 3e-4,
    "rollout": {"max_tokens": 96}, "save_steps": 0, "device": "cpu",
}  # fmt: skip
"""The shipped policy has 2 million parameters, so the rate is a hundred times the usual one."""
ALGORITHMS: dict[str, dict[str, Any]] = {
    "ppo": {"epochs": 2},
    "rloo": {},
    "grpo": {"learning_rate": 2e-4},
    "p3o": {},
    "reinforce++": {"learning_rate": 2e-4},
    "online-dpo": {"learning_rate": 2e-4, "kl": {"beta": 0.1}},
}
JUDGED: dict[str, Any] = {
    "algorithm": "rloo", "reward": "judge", "judge": {"model": "demo-judge"}, "constitution": "demo",
    "kl": {"beta": 0.02},
}  # fmt: skip
"""Grades lie between 0 and 1 and differ by less than rewards do, so a nat costs less."""


def study(folder: Path, count: int, seeds: int, only: str | None) -> Iterator[str]:
    """Lines of the table."""
    prompts_file(folder, count)
    start = shipped_model("demo-policy")
    assert start is not None
    yield f"as shipped             {behaviour(start, fresh_prompts(ASKED))}"
    for name, more in {**ALGORITHMS, "judge": JUDGED}.items():
        if only not in (None, name):
            continue
        if name != "judge":
            more = {"algorithm": name, "reward": str(world(folder, count).reward), **more}
        for seed in range(seeds):
            yield f"{name:<12} seed {seed}    {_trained(folder, name, more, seed)}"


def _trained(folder: Path, name: str, more: dict[str, Any], seed: int) -> str:
    target = folder / f"online-{name}-{seed}"
    if not (target / "metrics.json").exists():
        given = {**COMMON, "prompts": str(folder / "prompts.jsonl"), "output": str(target), "seed": seed, **more}
        with show_progress() as told:
            train_online(OnlineSettings.model_validate(given), told, resume=(target / "train.json").exists())
    figures = json.loads((target / "metrics.json").read_text(encoding="utf-8"))
    first = json.loads((target / "log.jsonl").read_text(encoding="utf-8").splitlines()[0])
    found = behaviour(target, fresh_prompts(ASKED))
    return (
        f"{found}, {found.distinct:.0%} distinct, KL {figures['kl']:.1f} nats, length "
        f"{figures['length'] / first['length']:.2f} of the start's, {figures['seconds']:.0f} s, "
        f"alarms: {len(figures['alarms'])}"
    )


def main() -> None:
    """Print the study, in a folder that is kept where one is named."""
    words = sys.argv[1:]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(words[1]) if len(words) > 1 else Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        given = dict(enumerate(words))
        for line in study(folder, int(given.get(0, 1000)), int(given.get(2, 3)), given.get(3)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
