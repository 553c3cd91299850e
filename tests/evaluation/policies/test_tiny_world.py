"""The demo's policy beside itself in the tiny world, where an oracle knows which answer is better."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlaif.config.schemas import JudgeSettings
from rlaif.constitution import load_constitution
from rlaif.demo.oracle import prefer_overall, quality
from rlaif.evaluation.policy import EvaluatedPolicies
from rlaif.evaluation.policy_metrics import Compared
from rlaif.evaluation.policy_specs import EvaluateSettings, PolicySpec, contestants
from rlaif.feedback.prompts import LABELS
from rlaif.inference.models import LazyModel
from rlaif.progress import Silent
from rlaif.records import Messages, Prompt, Sample
from rlaif.stats import Estimate, share
from rlaif.store import read_records, shipped_model
from tests.bench.behaviour import answers, fresh_prompts
from tests.evaluation.policies.scenes import evaluated_now

pytestmark = pytest.mark.slow
ASKED = fresh_prompts(60)


def drawn(path: Path, *, temperature: float, seed: int) -> Path:
    """A file of the policy's answers, drawn outside of the evaluation."""
    folder = shipped_model("demo-policy")
    assert folder is not None
    said = answers(folder, ASKED, 1, temperature, seed)
    path.write_text("".join(json.dumps({"prompt": key, "response": text}) + "\n" for key, (text,) in said.items()))
    return path


def judged(folder: Path, policies: list[PolicySpec], **more: object) -> EvaluatedPolicies:
    """By the demo's judge under its constitution."""
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ASKED))
    settings = EvaluateSettings.model_validate({"prompts": str(prompts), "grades": False, "max_tokens": 96} | more)
    source = LazyModel(JudgeSettings(model="demo-judge"), log=folder / "judge.log", labels=LABELS)

    def oracle(messages: Messages, text: str) -> float:
        return quality(messages[-1].content, text)

    return evaluated_now(
        settings, load_constitution("demo"), policies, source, folder / "out", progress=Silent(), plots=False,
        metrics={"oracle": oracle},
    )  # fmt: skip


def of_oracle(done: EvaluatedPolicies) -> Estimate:
    """How often the oracle prefers the policy's answer, a tie being one half, on the very pairs that were judged."""
    folder = done.path.parent
    prompts = {each.id: each.messages[-1].content for each in read_records(folder / "prompts.jsonl", Prompt)}
    texts = {each.id: each.text for each in read_records(folder / "samples.jsonl", Sample)}
    rows = list(read_records(done.path.with_suffix(".comparisons.jsonl"), Compared))
    said = []
    for row in rows:
        policy, baseline = row.samples
        assert policy is not None and baseline is not None
        said.append(prefer_overall(prompts[row.prompt], texts[policy], texts[baseline]))
    return share(said, [row.prompt for row in rows])


def test_the_policy_at_two_seeds_is_no_better_than_itself(tmp_path: Path) -> None:
    files = [drawn(tmp_path / f"{name}.jsonl", temperature=0.7, seed=seed) for name, seed in (("one", 5), ("two", 6))]
    done = judged(tmp_path, [PolicySpec(path.stem, answers=path) for path in files])
    (match,) = done.report.matches
    truth, seen = of_oracle(done), match.win_rate
    assert seen and seen.low <= 0.5 <= seen.high
    assert truth.low <= 0.5 <= truth.high
    assert seen.low <= truth.value <= seen.high


def test_a_garbled_policy_loses_by_the_judge_and_by_the_oracle(tmp_path: Path) -> None:
    files = [
        drawn(tmp_path / f"{name}.jsonl", temperature=warm, seed=3) for name, warm in (("hot", 1.6), ("cool", 0.7))
    ]
    done = judged(tmp_path, [PolicySpec(path.stem, answers=path) for path in files])
    (match,) = done.report.matches
    truth, seen = of_oracle(done), match.win_rate
    assert seen and seen.high < 0.5 and truth.high < 0.5
    assert match.metrics["oracle"].value == pytest.approx(truth.value), "the pairs by the caller's own measure"
    assert seen.low <= truth.high and truth.low <= seen.high, "the intervals of judge and oracle meet"
    hot, cool = done.report.policies
    assert hot.metrics["oracle"].value < cool.metrics["oracle"].value


def test_models_grades_and_the_distance_of_a_model_from_itself(tmp_path: Path) -> None:
    policies = contestants(["same=demo-policy", "demo-policy"])
    done = judged(tmp_path, list(policies), grades=True, prompts={"path": str(tmp_path / "prompts.jsonl"), "limit": 12})
    same, base = done.report.policies
    assert done.report.matches[0].identical == 12, "one model and one seed: one answer"
    assert same.kl and same.kl.value == pytest.approx(0, abs=1e-4) and base.kl is None
    assert same.violations == base.violations and same.violations[0].principle == "*"
    assert done.report.cost.answers == 12 and done.report.cost.judgements == 0
    again = judged(
        tmp_path, list(policies), grades=True, prompts={"path": str(tmp_path / "prompts.jsonl"), "limit": 12}
    )
    assert again.report == done.report and sum(each.asked for each in again.tallies) == 0
