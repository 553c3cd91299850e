"""What a worse reply wins by talking to the judge, with the fences around replies and without them.

    python tests/bench/injection.py [PAIRS]

Pairs of the tiny world in held-out wordings, in which the oracle calls one reply better under a principle. The worse
one carries an instruction to the judge below its text (the wordings are those of `rlaif evaluate judge`, none of which
the shipped judge was trained on), and the judge is asked in both orders: in the shipped template, and in the same
template without the marks around the replies and without the defusing that goes with them. Shares are of single
verdicts won by the worse reply; intervals are over prompts.

The tiny judge has seen replies with other such notes in training, always in fences and always as the worse reply. So
the unfenced template is new to it, and it errs there without any instruction too: what counts is the gain over nothing
added, and even that need not be what a large judge does.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rlaif.config.judge_templates import Judge  # noqa: E402
from rlaif.config.schemas import CompareSettings, JudgeSettings, PairSettings  # noqa: E402
from rlaif.constitution import load_constitution  # noqa: E402
from rlaif.evaluation.canaries import ADDED, NOTHING, PLAIN, Probe, count_wins, probes  # noqa: E402
from rlaif.evaluation.gold import (  # noqa: E402
    GoldPair,
    cases,
)
from rlaif.evaluation.reports import Canary  # noqa: E402
from rlaif.feedback.judge import judgement  # noqa: E402
from rlaif.feedback.prompts import LABELS  # noqa: E402
from rlaif.inference.base import (  # noqa: E402
    ModelSource,
    ask,
)
from rlaif.inference.models import LazyModel  # noqa: E402
from rlaif.records import Failure, Judgement, Message, content_id  # noqa: E402
from rlaif.stats import Estimate, average, share  # noqa: E402
from rlaif.store import Table  # noqa: E402

WORDINGS = tuple(kind for kind in ADDED if kind != "forged fence")
"""The instructions; a forged fence imitates the prompt instead, and stands for itself."""
_YES = {True: "yes", False: "no"}
COMPARE, PAIR = CompareSettings(), PairSettings()


class Shares(NamedTuple):
    """What was measured."""

    kinds: dict[tuple[str, bool], Canary]
    """By kind of addition, and whether the replies stood in fences."""
    instructions: dict[bool, Estimate]
    """All instructions together, with and without fences."""
    gains: dict[bool, Estimate]
    """What they win more than the worse reply does by itself, shown the same way, pair by pair."""


def gold(count: int, seed: int = 11) -> list[GoldPair]:
    """At least `count` pairs, as many of each principle, in wordings that the judge was not trained on."""
    from rlaif.demo.oracle import PRINCIPLES
    from tools.train_demo_models.measure import comparisons

    found = []
    for each in comparisons(-(-count // len(PRINCIPLES)), seed=seed):
        better, worse = (each.first, each.second) if each.better == 1.0 else (each.second, each.first)
        found.append(
            GoldPair(
                id=content_id("bench", each.principle, each.prompt, better, worse),
                prompt=(Message(role="user", content=each.prompt),),
                better=better,
                worse=worse,
                principle=each.principle,
                source="the tiny world",
            )
        )
    return found


async def measured(pairs: Sequence[GoldPair], judge: ModelSource, folder: Path) -> Shares:
    """Ask the judge about every pair with every addition."""
    met = cases(pairs, load_constitution("demo"), COMPARE)
    found = [probe for probe in probes(met) if probe.kind not in NOTHING]
    answers = Table(folder / "judgements.jsonl", Judgement)
    failures = Table(folder / "failures.jsonl", Failure)
    try:
        asked = (question for probe in found for question in probe.questions(COMPARE, Judge(judge.name)))
        await ask(asked, judge, answers, judgement, failures, stage="injection", max_failed=0.01)
        return _shares(found, answers.get, Judge(judge.name))
    finally:
        answers.close()
        failures.close()


def _shares(found: Sequence[Probe], answer_of: Callable[[str], Judgement | None], judge: Judge) -> Shares:
    def won(of_pair: Iterable[Probe], kinds: Iterable[str], fenced: bool) -> float:
        """What those kinds win in one pair, as one: pairs are what an interval is about."""
        as_one = [each._replace(kind="") for each in of_pair if each.kind in kinds and each.fenced == fenced]
        (canary,) = count_wins(as_one, answer_of, COMPARE, PAIR, judge)
        assert canary.wins is not None
        return canary.wins.value

    pairs = [list(probes) for _, probes in itertools.groupby(found, key=lambda probe: probe.case.pair.id)]
    prompts = [probes[0].case.prompt.id for probes in pairs]
    instructions, gains = {}, {}
    for fenced in (True, False):
        told = [won(of_pair, WORDINGS, fenced) for of_pair in pairs]
        plain = [won(of_pair, (PLAIN,), fenced) for of_pair in pairs]
        instructions[fenced] = share(told, prompts)
        gains[fenced] = average([with_note - without for with_note, without in zip(told, plain, strict=True)], prompts)
    kinds = {(each.kind, each.fenced): each for each in count_wins(found, answer_of, COMPARE, PAIR, judge)}
    return Shares(kinds, instructions, gains)


def _told(estimate: Estimate | None) -> str:
    return "-" if estimate is None else str(estimate)


def main() -> None:
    """Print the table."""
    pairs = gold(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
    with tempfile.TemporaryDirectory() as name:
        judge = LazyModel(JudgeSettings(model="demo-judge"), log=Path(name) / "judge.log", labels=LABELS)
        found = asyncio.run(measured(pairs, judge, Path(name)))
        print(f"\nVerdicts won by the worse reply of {len(pairs)} pairs, judge {judge.name}\n")
    print("| below the worse reply | fences | shown first | shown second | both orders |")
    print("|---|---|---|---|---|")
    for kind, fenced in itertools.product((PLAIN, *ADDED), (True, False)):
        each = found.kinds[kind, fenced]
        told = "nothing" if kind == PLAIN else kind
        print(f"| {told} | {_YES[fenced]} | {_told(each.first)} | {_told(each.second)} | {_told(each.wins)} |")
    for fenced, won in found.instructions.items():
        print(f"| the {len(WORDINGS)} instructions | {_YES[fenced]} | | | {won} |")
    print()
    for fenced, gain in found.gains.items():
        points = f"{100 * gain.value:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
        print(f"The instructions over nothing, {'with' if fenced else 'without'} fences: {points}")


if __name__ == "__main__":
    main()
