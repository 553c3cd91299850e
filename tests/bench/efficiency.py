"""Label efficiency in the tiny world: what each way of judging gets right, and by how many judge calls.

    python tests/bench/efficiency.py [PROMPTS]

Every prompt has samples of the demo's policy, and the oracle knows which is best. Two numbers a way: how often its best
sample is (one of) the oracle's best, and how often `chosen` is the oracle's choice in the pairs that it makes. The
judge is the shipped one as it is; with noise on its logits; and with a liking for the first slot, both of known
strength (standard deviation and shift of the log-odds).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rlaif.config.schemas import CompareSettings, JudgeSettings, PolicySettings, PromptSettings, RunSettings  # noqa: E402
from rlaif.demo.agreement import Score, of_pairs  # noqa: E402
from rlaif.demo.oracle import quality  # noqa: E402
from rlaif.feedback.dataset import derive  # noqa: E402
from rlaif.feedback.pipeline import compare, grade, run_pipeline, sample  # noqa: E402
from rlaif.feedback.prompts import LABELS  # noqa: E402
from rlaif.feedback.run import open_run  # noqa: E402
from rlaif.inference.base import Model, Output, Question  # noqa: E402
from rlaif.inference.models import LazyModel  # noqa: E402
from rlaif.progress import Silent  # noqa: E402
from rlaif.records import PreferencePair, Prompt, Ranking, Sample  # noqa: E402
from rlaif.store import read_records, resource  # noqa: E402


class Skewed:
    """A judge whose A and B logits are made noisy, or lean to the first slot; a `ModelSource` and its model in one."""

    def __init__(self, source: LazyModel, number: int, *, noise: float = 0.0, slot: float = 0.0) -> None:
        self._source, self._number, self._noise, self._slot = source, number, noise, slot
        self._model: Model | None = None
        self.calls = 0

    @property
    def name(self) -> str:
        return f"{self._source.name} {self._number} noise {self._noise} slot {self._slot}"

    @property
    def batch_size(self) -> int:
        assert self._model is not None
        return self._model.batch_size

    @property
    def concurrency(self) -> int:
        assert self._model is not None
        return self._model.concurrency

    async def open(self) -> Model:
        self._model = await self._source.open()
        return self  # type: ignore[return-value]

    async def close(self) -> None:
        await self._source.close()

    async def answer(self, questions: Sequence[Question]) -> list[Output]:
        assert self._model is not None
        self.calls += len(questions)
        found = await self._model.answer(questions)
        return [self._skewed(question, answer) for question, answer in zip(questions, found, strict=True)]

    def _skewed(self, question: Question, answer: Output) -> Output:
        """The same label mass, shared otherwise."""
        if answer.logprobs is None or question.labels != LABELS:
            return answer
        gap = answer.logprobs[0] - answer.logprobs[1]
        gap += self._slot + random.Random(question.id).gauss(0.0, self._noise)
        mass = math.log(sum(math.exp(each) for each in answer.logprobs))
        first = mass - math.log1p(math.exp(-gap))
        return replace(answer, logprobs=(first, first - gap))


class Way(NamedTuple):
    """A way of judging."""

    name: str
    settings: dict[str, object]
    judges: int = 1


WAYS = (
    Way("pairs, one order", {"orders": "random", "position_bias": "kept"}),
    Way("pairs, one order, slot bias removed", {"orders": "random", "position_bias": "removed"}),
    Way("pairs, both orders", {}),
    Way("grades", {"method": "score"}),
    Way("one list, 2 orders", {"method": "rank"}),
    Way("one list, 6 orders", {"method": "rank", "shuffles": 6}),
    Way("tournament", {"method": "tournament"}),
    Way("panel of three, both orders", {}, judges=3),
)
JUDGES = {"as it is": {}, "noise 1": {"noise": 1.0}, "slot 2": {"slot": 2.0}}


class Result(NamedTuple):
    """What a way of judging came to."""

    best: Score
    pairs: Score
    calls: float
    """Judge calls a prompt."""


def drawn(folder: Path, prompts: int, samples: int) -> RunSettings:
    """A run whose samples are drawn, and nothing judged."""
    settings = RunSettings(
        constitution="demo",
        prompts=PromptSettings(path=str(resource("prompts") / "policy" / "demo.jsonl"), limit=prompts),
        policy=PolicySettings(model="demo-policy", samples=samples, max_tokens=96),
        judge=JudgeSettings(model="demo-judge"),
        output=str(folder),
    )
    run_pipeline(settings, ["sample"])
    return settings


def given(run: RunSettings, path: Path) -> None:
    """Its prompts with their samples as given answers, so that every way judges the same ones."""
    folder = run.folder
    answers: dict[str, list[str]] = {}
    for each in sorted(read_records(folder / "samples.jsonl", Sample), key=lambda each: each.index):
        answers.setdefault(each.prompt, []).append(each.text)
    rows = [
        {"prompt": prompt.messages[-1].content, "answers": answers[prompt.id]}
        for prompt in read_records(folder / "prompts.jsonl", Prompt)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


async def judged(folder: Path, answers: Path, forward_path: Way, skew: dict[str, float]) -> Result:
    """One way of judging by one judge."""
    compared = CompareSettings.model_validate({"principles": "all", "opponents": 7, **forward_path.settings})
    settings = RunSettings(
        constitution="demo",
        prompts=PromptSettings(path=str(answers), responses="answers"),
        judge=[JudgeSettings(model=f"judge-{number}") for number in range(forward_path.judges)],
        compare=compared,
        output=str(folder),
    )
    shipped = LazyModel(JudgeSettings(model="demo-judge"), log=folder / "judge.log", labels=LABELS)
    judges = [Skewed(shipped, number, **skew) for number in range(forward_path.judges)]
    head, *panel = judges
    with open_run(settings, None, head.name, tuple(each.name for each in panel)) as run:
        run.read_prompts()
        await sample(run, None, Silent())
        await grade(run, head, Silent())
        if compared.method in ("pairwise", "tournament"):
            await compare(run, judges, Silent())
        derive(run)
        prompts = run.prompt_count
    await shipped.close()
    best = best_picks(folder)
    return Result(
        best,
        of_pairs(read_records(folder / "pairs.jsonl", PreferencePair)),
        sum(each.calls for each in judges) / prompts,
    )


def best_picks(folder: Path) -> Score:
    """How often the sample ranked first is one of the oracle's best; an undecided first place counts as its worst."""
    score = Score()
    prompts = {each.id: each.messages[-1].content for each in read_records(folder / "prompts.jsonl", Prompt)}
    samples = {each.id: each for each in read_records(folder / "samples.jsonl", Sample)}
    for ranking in read_records(folder / "rankings.jsonl", Ranking):
        merits = {each.sample: quality(prompts[ranking.id], samples[each.sample].text) for each in ranking.samples}
        if len(set(merits.values())) > 1:
            first = [merits[each.sample] for each in ranking.samples if each.rank == 1]
            score.add(min(first) == max(merits.values()))
    return score


def main() -> None:
    """Print the table."""
    prompts = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    with tempfile.TemporaryDirectory() as folder:
        for samples in (4, 8):
            run = drawn(Path(folder) / f"drawn{samples}", prompts, samples)
            answers = Path(folder) / f"answers{samples}.jsonl"
            given(run, answers)
            print(f"\n{prompts} prompts, {samples} samples each\n")
            print(f"| way | judge | calls a prompt | best of {samples} | pairs |")
            print("|---|---|---|---|---|")
            for number, (forward_path, (judge, skew)) in enumerate(itertools.product(WAYS, JUDGES.items())):
                target = Path(folder) / f"{samples}-{number}"
                result = asyncio.run(judged(target, answers, forward_path, dict(skew)))
                row = f"| {forward_path.name} | {judge} | {result.calls:.0f} | {result.best} | {result.pairs} |"
                print(row, flush=True)


if __name__ == "__main__":
    main()
