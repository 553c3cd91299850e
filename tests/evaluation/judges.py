"""Synthetic judges in process, whose bias is known, and gold pairs for them."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from rlaif.constitution import Constitution, load_constitution
from rlaif.evaluation.gold import JudgedPair
from rlaif.evaluation.judge import EvaluatedJudge, Evaluation, evaluate_judge
from rlaif.inference.base import Output, Question
from rlaif.progress import Silent
from rlaif.records import content_id
from tests.fakes import unit

_FENCED = re.compile(r"Reply ([AB]):\n(?:<<<|<text_)(\w+)>?\n(.*?)\n(?:</text_)?\2>", re.DOTALL)
_BARE = re.compile(r"Reply A:\n(.*?)\n\nReply B:\n(.*)\n\n[^\n]*\nAnswer A or B\.$", re.DOTALL)

Opinion = Callable[[str, str], float | None]
"""Log-odds of the first reply against the second; None for an answer that is neither label."""


def shown(question: Question) -> tuple[str, str, bool]:
    """The two replies of a question, and whether they stand in fences."""
    text = question.messages[-1].content
    fenced = {slot: reply for slot, _, reply in _FENCED.findall(text)}
    if len(fenced) == 2:
        return fenced["A"], fenced["B"], True
    bare = _BARE.search(text)
    assert bare, text
    return bare[1], bare[2], False


class Judge:
    """A model and its source in one: it answers by an opinion about two texts."""

    batch_size, concurrency = 16, 2

    def __init__(self, opinion: Opinion, *, name: str = "synthetic", mass: float = 0.9) -> None:
        self.opinion, self.name, self.mass = opinion, name, mass
        self.asked: list[Question] = []

    async def open(self) -> Judge:
        return self

    async def probe(self, labels: tuple[str, ...]) -> list[str]:
        return []

    async def close(self) -> None:
        pass

    async def answer(self, questions: Sequence[Question]) -> list[Output]:
        self.asked += [question for question in questions if question.kind != "probe"]  # how it is to be asked
        return [self._answer(question) for question in questions]

    def _answer(self, question: Question) -> Output:
        first, second, _ = shown(question)
        logit = 0.0 if question.kind == "probe" else self.opinion(first, second)
        if logit is None:
            return Output(logprobs=(math.log(0.01), math.log(0.01)), prompt_tokens=100, completion_tokens=1)
        p = 1 / (1 + math.exp(-logit))
        logprobs = math.log(self.mass * p), math.log(self.mass * (1 - p))
        return Output(logprobs=logprobs, prompt_tokens=100, cached_tokens=40, completion_tokens=1)


def first_slot(first: str, second: str) -> float:
    """Two for whatever stands first."""
    return 2.0


def longer_wins(first: str, second: str) -> float:
    return 3.0 if len(first) > len(second) else -3.0


def right_by_hash(share: float, *, bias: float = 0.0) -> Opinion:
    """Right about that share of the pairs, the same ones in both orders, by ln 4; it likes the first slot by `bias`.

    The better replies begin with `good`.
    """

    def opinion(first: str, second: str) -> float:
        right = 1.0 if first.startswith("good") else -1.0
        if unit("right", sorted((first, second))) >= share:
            right = -right
        return right * math.log(4) + bias

    return opinion


def write_gold(path: Path, pairs: int, *, seed: int = 1) -> list[dict[str, str]]:
    """Gold pairs of random lengths, in two subsets; the better replies begin with `good`, the worse with `poor`."""
    rng = random.Random(seed)
    rows = [
        {
            "prompt": f"What about matter {at}?",
            "chosen": f"good {at} " + "x" * rng.randint(1, 200),
            "rejected": f"poor {at} " + "x" * rng.randint(1, 200),
            "subset": ("left", "right")[at % 2],
        }
        for at in range(pairs)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def constitution(name: str = "harmless") -> Constitution:
    return load_constitution(name)


def evaluated(judge: Judge, gold: Path, folder: Path, *, plots: bool = False, **more: object) -> EvaluatedJudge:
    """A judge put to the gold pairs of a file, without canaries unless `canary_pairs` is given."""
    options = {"canary_pairs": 0, "constitution": constitution()} | more
    wanted = Evaluation(str(gold), **options)  # type: ignore[arg-type]
    return asyncio.run(evaluate_judge(wanted, judge, folder, progress=Silent(), plots=plots))


def pair(
    key: object,
    *orders: float,
    lengths: tuple[int, int] = (10, 10),
    subset: str | None = None,
    status: str = "labelled",
    **more: object,
) -> JudgedPair:
    """A judged pair by the log-odds of its better reply: shown first, and shown second. None given: no label."""
    logit = sum(orders) / len(orders) if orders else None
    told: dict[str, object] = {
        "id": content_id(key),
        "source": "by hand",
        "prompt": content_id("prompt", key),
        "subset": subset,
        "status": status if orders else "unparsed",
        "logit": logit,
        "orders": orders,
        "better_first": 0.5,
        "flip": bool(orders) and min(orders) < 0 < max(orders),
        "own": {"kind": logit},
        "slots": tuple(each if at == 0 else -each for at, each in enumerate(orders)),
        "masses": (),
        "lengths": lengths,
    }
    return JudgedPair(**(told | more))  # type: ignore[arg-type]
