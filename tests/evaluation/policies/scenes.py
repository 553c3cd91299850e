"""Small evaluations of policies: files of answers, and judges in process whose taste is known."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif.constitution import Constitution, load_constitution
from rlaif.evaluation.policy import EvaluatedPolicies, evaluate_policies
from rlaif.evaluation.policy_metrics import Compared
from rlaif.evaluation.policy_specs import EvaluateSettings, PolicySpec
from rlaif.feedback.prompts import DIGITS
from rlaif.inference.base import ModelSource, Output, Question, blocking
from rlaif.progress import Silent
from tests.evaluation.judges import Judge, Opinion

__all__ = ["Grader", "compared", "evaluated", "evaluated_now", "write_answers", "write_prompts"]


class Grader(Judge):
    """A judge that grades too: a reply with `bad` in it gets 1, any other 8."""

    def __init__(self, opinion: Opinion, *, name: str = "synthetic") -> None:
        super().__init__(opinion, name=name)
        self.failing: set[str] = set()
        """Words that make a question fail."""

    def _answer(self, question: Question) -> Output:
        text = question.messages[-1].content
        if any(word in text for word in self.failing):
            return Output(failure="timeout")
        if question.labels != DIGITS:
            return super()._answer(question)
        grade = 1 if "bad" in text.partition("The reply:")[2] else 8
        logprobs = tuple(math.log(0.99 if digit == grade else 0.001) for digit in range(10))
        return Output(logprobs=logprobs, prompt_tokens=50, completion_tokens=1)


def write_prompts(path: Path, count: int, **columns: Sequence[object]) -> Path:
    """`What about matter N?`, each with a cell of every column."""
    rows = [
        {"prompt": f"What about matter {at}?", **{name: cells[at % len(cells)] for name, cells in columns.items()}}
        for at in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_answers(path: Path, answers: Mapping[int, object]) -> Path:
    """Answers to the prompts with those numbers, in the order given; a list is several."""
    rows = [
        {"prompt": f"What about matter {at}?", "responses" if isinstance(text, list) else "response": text}
        for at, text in answers.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluated_now(
    settings: EvaluateSettings, constitution: Constitution, policies: Sequence[PolicySpec], judge: ModelSource,
    folder: Path, **more: Any,
) -> EvaluatedPolicies:  # fmt: skip
    """As the command does it, the judge closed at the end."""
    return blocking(evaluate_policies(settings, constitution, policies, judge, folder, **more), judge)


def evaluated(
    judge: Judge, prompts: Path, files: Mapping[str, Path], folder: Path, **more: object
) -> EvaluatedPolicies:
    """Files of answers put to a judge under `harmless`; the last one is the baseline. Without grades or plots."""
    settings = EvaluateSettings.model_validate(
        {"prompts": str(prompts), "grades": False, "compare": {"principles": "all"}} | more
    )
    policies = [PolicySpec(name, answers=path) for name, path in files.items()]
    constitution = load_constitution("harmless")
    return evaluated_now(settings, constitution, policies, judge, folder, progress=Silent(), plots=False)


def compared(prompt: str, probability: float | None, **more: object) -> Compared:
    """A comparison of `a` and `b`, both answers of 10 characters, judged without a flip."""
    told: dict[str, object] = {
        "policy": "a",
        "baseline": "b",
        "prompt": prompt,
        "index": 0,
        "tag": None,
        "samples": ("x", "y"),
        "status": "labelled" if probability is not None else "unparsed",
        "probability": probability,
        "flip": False,
        "principles": {"kind": probability},
        "lengths": (10, 10),
    }
    return Compared.model_validate(told | more)
