"""The evaluations of judges and of reward models for callers without an event loop; they close what they opened."""

from __future__ import annotations

from pathlib import Path

from rlaif.evaluation.judging import Evaluated, Evaluation, Watch, evaluate_judge
from rlaif.evaluation.rewards.answers import Drawn
from rlaif.evaluation.rewards.evaluating import EvaluatedReward, OnAnswers, OnGold, evaluate_reward
from rlaif.evaluation.rewards.meters import Grading
from rlaif.evaluation.rewards.scorer import RewardModel
from rlaif.inference.background import blocking
from rlaif.inference.base import ModelSource


def evaluate_judge_now(
    wanted: Evaluation, judge: ModelSource, folder: Path, *, watch: Watch, plots: bool = True
) -> Evaluated:
    """`rlaif.evaluation.judging.evaluate_judge`, which see; the judge is closed at the end."""

    async def whole() -> Evaluated:
        try:
            return await evaluate_judge(wanted, judge, folder, watch=watch, plots=plots)
        finally:
            await judge.close()

    return blocking(whole())


def evaluate_reward_now(
    model: RewardModel,
    folder: Path,
    *,
    gold: OnGold | None = None,
    answers: OnAnswers | None = None,
    watch: Watch,
    plots: bool = True,
) -> EvaluatedReward:
    """`rlaif.evaluation.rewards.evaluating.evaluate_reward`, which see; all models are closed at the end."""

    async def whole() -> EvaluatedReward:
        try:
            return await evaluate_reward(model, folder, gold=gold, answers=answers, watch=watch, plots=plots)
        finally:
            model.close()
            if answers is not None and isinstance(answers.answers, Drawn):
                await answers.answers.source.close()
            if answers is not None and isinstance(answers.other, Grading):
                await answers.other.judge.close()

    return blocking(whole())
