"""Training in the tiny world, where an oracle knows what a policy does: what each method improves, on which labels.

    python tests/bench/world.py [PROMPTS] [FOLDER]

Pairs come from `rlaif generate` (tiny policy, tiny judge, every principle, both orders), demonstrations from
`rlaif revise`. Policies answer prompts that are in no training; shares are by the oracle. Reward models start from the
fine-tuned policy, as is usual, and are compared with the oracle twice: on the run's own pairs of prompts that were held
out, and on all pairs of the shipped policy's answers to fresh prompts, which are more, and harder. The noisy judge is
the tiny one with noise added to the log-odds of every pair; its labels are calibrated with the temperature that
`rlaif evaluate judge` would fit.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rlaif.config.schemas import (  # fmt: skip  # noqa: E402
    CompareSettings,
    JudgeSettings,
    PairSettings,
    PolicySettings,
    PromptSettings,
    ReviseSettings,
    RunSettings,
)
from rlaif.data.conversations import Turn  # noqa: E402
from rlaif.demo.oracle import prefer_overall  # noqa: E402
from rlaif.demo.world import demo_scenes  # noqa: E402
from rlaif.feedback.pipeline import STAGES, run_pipeline  # noqa: E402
from rlaif.progress import show_progress  # noqa: E402
from rlaif.records import Messages, PreferencePair  # noqa: E402
from rlaif.stats import (  # noqa: E402
    fit_temperature,
    wilson,
)
from rlaif.store import read_records, shipped_model, write_records  # noqa: E402
from rlaif.training.config import SETTINGS, Method  # noqa: E402
from rlaif.training.examples import Example  # noqa: E402
from rlaif.training.reward_model import load  # noqa: E402
from rlaif.training.score import rewards_of  # noqa: E402
from rlaif.training.session import train  # noqa: E402
from rlaif.training.tokenize import Tokens  # noqa: E402
from tests.bench.behaviour import answers, behaviour, fresh_prompts  # noqa: E402

ASKED = 200
"""Fresh prompts, each answered twice."""
NOISE = 1.0
"""Standard deviation of what is added to a pair's log-odds; the tiny judge's own are 0.6 in size on average."""
SFT: dict[str, Any] = {"learning_rate": 3e-4, "epochs": 3}
REWARD: dict[str, Any] = {"learning_rate": 1e-3, "batch_size": 16, "epochs": 4}
DPO: dict[str, dict[str, Any]] = {"DPO": {}, "IPO": {"loss": "ipo", "beta": 0.5, "learning_rate": 3e-4}}
"""What each method is trained with, beside what is common to all."""
COMMON: dict[str, Any] = {"batch_size": 32, "epochs": 2, "save_steps": 0, "learning_rate": 2e-4}
"""Of every training here; the shipped policy has 2 million parameters, so rates are a hundred times the usual ones."""


def prompts_file(folder: Path, count: int) -> Path:
    """Prompts to make pairs from; none of them is asked when policies are measured."""
    asked = set(fresh_prompts(ASKED))
    scenes = demo_scenes(11, {"ordinary": count, "harm": count // 2, "upset": count // 2})
    rows = [json.dumps({"prompt": scene.prompt}) for scene in scenes if scene.prompt not in asked]
    path = folder / "prompts.jsonl"
    path.write_text("".join(f"{row}\n" for row in rows[:count]), encoding="utf-8")
    return path


def run_settings(folder: Path, count: int) -> RunSettings:
    """A run with every pair above the margin, and revisions of the first sample of every prompt."""
    return RunSettings(
        constitution="demo",
        prompts=PromptSettings(path=str(prompts_file(folder, count))),
        policy=PolicySettings(model="demo-policy", samples=4, max_tokens=96),
        judge=(JudgeSettings(model="demo-judge"),),
        compare=CompareSettings(principles="each"),
        pair=PairSettings(select="all", per_prompt=6),
        revise=ReviseSettings(enabled=True, rounds=2, samples=1, temperature=0.3, max_tokens=96),
        output=str(folder / "run"),
    )


def trained(
    folder: Path, name: str, method: Method, data: Path, model: str | Path = "demo-policy", **more: Any
) -> Path:
    """Train unless it is there already; returns the model's folder."""
    target = folder / name
    if not (target / "metrics.json").exists():
        given = {"model": str(model), "data": str(data), "output": str(target), **COMMON, **more}
        if method == "dpo":
            given["reference_cache"] = str(folder / "references")
        with show_progress() as told:
            train(method, SETTINGS[method](**given), told, resume=(target / "train.json").exists())
    return target


def noisy_pairs(pairs: Sequence[PreferencePair], path: Path) -> float:
    """Write pairs as a noisier judge would have labelled them; returns the share that is labelled right.

    The noise goes to a pair's log-odds; where they change their sign, the other reply is chosen. Probabilities are
    calibrated with the temperature that fits the oracle's choices best, as `rlaif evaluate judge` does it.
    """
    rng = random.Random(0)
    made, known = [], []
    for pair in pairs:
        logit = math.log(pair.probability / (1 - pair.probability)) if pair.probability < 1 else 30.0
        logit += rng.gauss(0, NOISE)
        sides = (pair.chosen, pair.rejected) if logit > 0 else (pair.rejected, pair.chosen)
        made.append((pair, sides, abs(logit)))
        wanted = prefer_overall(pair.prompt[-1].content, *(side[0].content for side in sides))
        if wanted != 0.5:
            known.append(abs(logit) if wanted == 1.0 else -abs(logit))
    temperature = fit_temperature(known)
    rows = [
        {"prompt": plain(pair.prompt), "chosen": plain(chosen), "rejected": plain(rejected),
         "probability": 1 / (1 + math.exp(-logit / temperature))}
        for pair, (chosen, rejected), logit in made
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return sum(each > 0 for each in known) / len(known)


def plain(messages: Messages) -> list[dict[str, str]]:
    """Messages as JSON has them."""
    return [message.model_dump(mode="json") for message in messages]


Known = tuple[str, str, str]
"""A prompt, the better reply and the worse one, by the oracle."""


def known_of(pairs: Sequence[PreferencePair]) -> list[Known]:
    """The pairs between which the oracle sees a difference."""
    found = []
    for pair in pairs:
        better, worse = pair.chosen[0].content, pair.rejected[0].content
        if (wanted := _wanted(pair)) != 0.5:
            found.append((pair.prompt[-1].content, *((better, worse) if wanted == 1.0 else (worse, better))))
    return found


def fresh_pairs() -> list[Known]:
    """All pairs of the shipped policy's answers to fresh prompts between which the oracle sees a difference."""
    start = shipped_model("demo-policy")
    assert start is not None
    found: list[Known] = []
    for prompt, replies in answers(start, fresh_prompts(ASKED), each=4, temperature=1.0).items():
        for one, other in itertools.permutations(dict.fromkeys(replies), 2):
            if prefer_overall(prompt, one, other) == 1.0:
                found.append((prompt, one, other))
    return found


def oracle_accuracy(model: Path, known: Sequence[Known]) -> str:
    """How often a reward model gives more to the better reply."""
    loaded = load(str(model))
    tokens = Tokens(loaded.tokenizer, max_length=1024)
    examples = [
        Example(str(at), (Turn("user", prompt),), (better, worse), {})
        for at, (prompt, better, worse) in enumerate(known)
    ]
    rewards = rewards_of(loaded.model, list(tokens.groups(examples)))
    right = [better > worse for better, worse in zip(rewards[0::2], rewards[1::2], strict=True)]
    share, low, high = wilson(sum(right), len(right))
    return f"{share:6.1%} ({low:.1%} to {high:.1%}) of {len(right)}"


def _wanted(pair: PreferencePair) -> float:
    return prefer_overall(pair.prompt[-1].content, pair.chosen[0].content, pair.rejected[0].content)


class World(NamedTuple):
    """What everything here is trained on."""

    run: Path
    """Folder of the run."""
    learned: Path
    """Its pairs without those kept for measuring."""
    pairs: list[PreferencePair]
    """The same, read."""
    held: list[PreferencePair]
    sft: Path
    """The policy, fine-tuned on revisions."""
    reward: Path
    """A reward model of the pairs, started from it."""


def world(folder: Path, count: int) -> World:
    """Make whatever of it is not there yet."""
    run = run_settings(folder, count)
    if not (run.folder / "revised.json").exists():
        with show_progress() as told:
            run_pipeline(run, [*STAGES, "revise"], told)
    pairs = list(read_records(run.folder / "pairs.jsonl", PreferencePair))
    names = sorted({pair.prompt_id for pair in pairs})
    away = set(names[: len(names) // 10])
    held, kept = [], []
    for pair in pairs:
        (held if pair.prompt_id in away else kept).append(pair)
    learned = folder / "learned.jsonl"
    write_records(learned, kept)
    sft = trained(folder, "sft", "sft", run.folder / "sft.jsonl", **SFT)
    reward = trained(folder, "reward-learned-soft", "reward", learned, sft, **REWARD, soft_labels=True)
    return World(run.folder, learned, kept, held, sft, reward)


def study(folder: Path, count: int) -> Iterator[str]:
    """Lines of the table."""
    made = world(folder, count)
    prompts = len({pair.prompt_id for pair in [*made.pairs, *made.held]})
    yield f"{len(made.pairs) + len(made.held):,} pairs of {prompts} prompts, {len(made.held)} kept for measuring"
    yield f"reward model        {oracle_accuracy(made.reward, known_of(made.held))}"
    yield from policies(folder, made.run, made.learned)
    yield from labels(folder, made.pairs, made.learned, made.held)


def policies(folder: Path, run: Path, learned: Path) -> Iterator[str]:
    """Answers that break a principle, of policies trained in different ways."""
    start = shipped_model("demo-policy")
    assert start is not None
    asked = fresh_prompts(ASKED)
    yield f"as shipped          {behaviour(start, asked)}"
    sft = trained(folder, "sft", "sft", run / "sft.jsonl", **SFT)
    yield f"SFT on revisions    {behaviour(sft, asked)}"
    for name, more in DPO.items():
        yield f"{name:<20}{behaviour(trained(folder, name, 'dpo', learned, **more), asked)}"
        after = trained(folder, f"sft-{name}", "dpo", learned, sft, **more)
        yield f"{'SFT, then ' + name:<20}{behaviour(after, asked)}"


def labels(
    folder: Path, pairs: Sequence[PreferencePair], learned: Path, held: Sequence[PreferencePair]
) -> Iterator[str]:
    """Soft labels against hard ones, of the judge as it is and of a noisy one."""
    asked = fresh_prompts(ASKED)
    right = noisy_pairs(pairs, folder / "noisy.jsonl")
    sft, own, fresh = folder / "sft", known_of(held), fresh_pairs()
    for judge, data in (
        (f"the judge, {_right(pairs):.1%} right", learned),
        (f"noisy, {right:.1%} right", folder / "noisy.jsonl"),
    ):
        for soft in (True, False):
            tag = f"{data.stem}-{'soft' if soft else 'hard'}"
            model = trained(folder, f"reward-{tag}", "reward", data, sft, **REWARD, soft_labels=soft)
            policy = trained(folder, f"dpo-{tag}", "dpo", data, **DPO["DPO"], soft_labels=soft)
            yield (
                f"{judge}, {'soft' if soft else 'hard'} labels: reward model {oracle_accuracy(model, own)}, "
                f"fresh {oracle_accuracy(model, fresh)}; DPO {behaviour(policy, asked)}"
            )


def _right(pairs: Sequence[PreferencePair]) -> float:
    found = [wanted == 1.0 for pair in pairs if (wanted := _wanted(pair)) != 0.5]
    return sum(found) / len(found)


def main() -> None:
    """Print the study, in a folder that is kept where one is named."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for line in study(folder, count):
            print(line, flush=True)


if __name__ == "__main__":
    main()
