"""The tiny judge in process: questions a second with the beginnings that questions share computed once, and without.

    python tests/bench/prefixes.py [PROMPTS]

The questions are those of a run of the demo's constitution, every principle on its own: grades of four replies to every
prompt, and comparisons of every two of them in both orders. Both ways are asked in turn, and the better of two tries
counts.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rlaif.config.judge_templates import Judge  # noqa: E402
from rlaif.config.schemas import CompareSettings  # noqa: E402
from rlaif.constitution import load_constitution  # noqa: E402
from rlaif.feedback.judge import Matchup, compare_questions, criteria_of  # noqa: E402
from rlaif.feedback.scoring import score_question  # noqa: E402
from rlaif.inference.base import Question  # noqa: E402
from rlaif.inference.transformers_model import Local  # noqa: E402
from rlaif.records import Message, Prompt, Sample  # noqa: E402
from rlaif.store import shipped_model  # noqa: E402
from tests.bench.behaviour import answers, fresh_prompts  # noqa: E402

SAMPLES, TRIES = 4, 2


def questions(judge: str, count: int) -> dict[str, list[Question]]:
    """Grades and comparisons."""
    policy = shipped_model("demo-policy")
    assert policy is not None
    texts = fresh_prompts(count)
    criteria = criteria_of(load_constitution("demo"), "each")
    grades: list[Question] = []
    compared: list[Question] = []
    replies = answers(policy, texts, SAMPLES, 1.0)
    for at, text in enumerate(texts):
        prompt = Prompt(id=str(at), messages=(Message(role="user", content=text),), source="")
        own = [
            Sample(id=f"{at}-{index}", prompt=prompt.id, index=index, text=reply, policy="")
            for index, reply in enumerate(replies[text])
        ]
        asked = Judge(judge)
        grades += [score_question(prompt, each, one, asked, max_chars=12_000) for each in own for one in criteria]
        matchups = [Matchup(one, other, criteria) for one, other in itertools.combinations(own, 2)]
        compared += compare_questions(prompt, matchups, CompareSettings(principles="each"), asked)
    return {"grades": grades, "comparisons": compared}


def rate(model: Local, asked: Sequence[Question], shared: bool) -> tuple[float, list[float]]:
    """Questions a second, and the first label's log-probabilities."""
    model._load()._prefixes.able = shared

    async def all_of_them() -> list[float]:
        found = []
        for start in range(0, len(asked), model.batch_size):
            found += await model.answer(asked[start : start + model.batch_size])
        return [answer.logprobs[0] for answer in found if answer.logprobs]

    began = time.perf_counter()
    values = asyncio.run(all_of_them())
    return len(asked) / (time.perf_counter() - began), values


def main() -> None:
    """Print a line a kind of question."""
    model = Local("demo-judge", device="cpu")
    for kind, asked in questions(model.name, int(sys.argv[1]) if len(sys.argv) > 1 else 16).items():
        rate(model, asked[: model.batch_size], shared=True)  # the first batch is computed both ways
        tries = [(rate(model, asked, shared=True), rate(model, asked, shared=False)) for _ in range(TRIES)]
        fast, slow = (max(each[side][0] for each in tries) for side in (0, 1))
        apart = max(abs(one - other) for one, other in zip(tries[0][0][1], tries[0][1][1], strict=True))
        print(f"{len(asked):,} {kind}: {fast:.0f} a second, {slow:.0f} without ({fast / slow:.1f} times)")
        print(f"  log-probabilities differ by at most {apart:.1e}", flush=True)


if __name__ == "__main__":
    main()
