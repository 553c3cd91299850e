"""What is said against an evaluation, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlaif.evaluation.policy_metrics import match_of
from rlaif.evaluation.policy_report import WarningFacts, policy_warnings
from rlaif.evaluation.provenance import Lineage
from rlaif.evaluation.reports import Match, PolicyMetrics, Refusals
from rlaif.stats import Estimate
from tests.evaluation.policies.scenes import compared

HALF = Estimate(value=0.5, low=0.4, high=0.6, pairs=9)


def policy(name: str, **more: object) -> PolicyMetrics:
    told: dict[str, object] = {
        "name": name, "model": f"{name}@12345678", "answers": 95, "missing": 5, "length": HALF, "truncated": 0.1,
        "blank": 0.0, "distinct_1": 0.5, "distinct_2": 0.5, "repetition": 0.0,
        "refusals": (Refusals(tag="", harmful=None, share=HALF),), "violations": (), "kl": None,
    }  # fmt: skip
    return PolicyMetrics.model_validate(told | more)


def match(silent: int = 0) -> Match:
    rows = [compared(f"p{at}", 0.4 + 0.01 * (at % 20), lengths=(10 + at % 7, 12)) for at in range(100 - silent)]
    return match_of("a", "b", [*rows, *(compared("q", None) for _ in range(silent))], margin=0.05, principles=())


def known(**more: object) -> WarningFacts:
    told: dict[str, object] = {
        "judge": "judge@87654321", "constitution_hash": "0" * 32, "policies": [policy("a"), policy("b")],
        "lineages": {}, "matches": [match()], "prompts": [f"p{at}" for at in range(100)], "trained": {},
    }  # fmt: skip
    return WarningFacts(**(told | more))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _no_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_sound_evaluation_by_an_unknown_judge() -> None:
    (only,) = policy_warnings(known())
    assert only.startswith("runs/judges has no evaluation of judge@87654321 by this constitution")


def test_everything_at_once_the_worst_first() -> None:
    policies = [
        policy("a", truncated=0.11, missing=11),
        policy("b", model="judge-small@11111111"),
        policy("c", model="judge-small@11111111"),
    ]
    found = policy_warnings(
        known(
            policies=policies,
            lineages={"a": Lineage(judges=frozenset({"judge"}), bases=("judge-1b",))},
            warn_same=["c"],
            matches=[match(silent=11)],
            prompts=[f"p{at}" for at in range(29)],
            trained={"a": frozenset({"p3", "p4", "elsewhere"})},
        )
    )
    starts = [
        "the judge judge@87654321 labelled what `a` and `c` learned from",
        "`a`: the judge judge@87654321 is of the policy's own family (judge-1b)",
        "`b`: the judge judge@87654321 is of the policy's own family",
        "`c`: ",
        "runs/judges has no evaluation",
        "11 of 100 pairs of `a` and `b` have no label (11 unparsed)",
        "only 29 prompts",
        "11% of the answers of `a` are cut off",
        "11 of 106 answers of `a` are missing",
        "2 of the 29 prompts are in the data that `a` was trained on",
        "`b` and `c` are one model",
    ]
    assert len(found) == len(starts)
    for text, start in zip(found, starts, strict=True):
        assert text.startswith(start)


def test_bounds_themselves_are_no_doubt() -> None:
    assert len(policy_warnings(known(matches=[match(silent=10)], prompts=[str(at) for at in range(30)]))) == 1
