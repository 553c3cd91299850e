"""`rlaif demo`: what it shows and leaves, and that judge and oracle agree on the policies that it trains."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rlaif.evaluation.reports import PolicyReport
from tests.page.browser import chromium
from tests.support import rlaif

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("demo") / "demo"
    result = rlaif("demo", "--output", folder, "--prompts", 6, timeout=900)
    assert result.returncode == 0, result.stderr
    return folder, result


def evaluated(folder: Path) -> PolicyReport:
    (path,) = (path for path in (folder / "evaluation").glob("*.json") if "-against-" in path.name)
    return PolicyReport.model_validate_json(path.read_text())


def test_it_shows_what_it_promises(demo: tuple[Path, Any]) -> None:
    shown = demo[1].stdout
    for text in ("The constitution `demo`", "Responses, best first", "critique (", "P(A) = ", "comparisons labelled",
                 "The judge against the oracle", "after round 2", "confirms", "pairs.jsonl"):  # fmt: skip
        assert text in shown, text
    assert re.search(r"^ +base +sft +dpo +ppo *$", shown, re.MULTILINE)
    for row in (
        "better",
        "worse",
        "win rate",
        "preference",
        "length-controlled win rate",
        "faulty (oracle)",
        "violation rate (judge)",
        "KL",
        "length",
    ):
        assert re.search(rf"^{re.escape(row)}", shown, re.MULTILINE), row
    assert "Report in" in shown


def test_judge_and_oracle_agree_on_every_policy(demo: tuple[Path, Any]) -> None:
    """The win rate by the judge, and that of the same answers by the oracle, lie within each other's intervals."""
    report = evaluated(demo[0])
    assert [match.policy for match in report.matches] == ["sft", "dpo", "ppo"]
    for match in report.matches:
        seen, truth = match.win_rate, match.metrics["quality (oracle)"]
        assert seen is not None
        assert seen.low <= truth.value <= seen.high and truth.low <= seen.value <= truth.high, match.policy
    for policy in report.policies:
        seen, truth = policy.violations[0].share, policy.metrics["faulty (oracle)"]
        assert seen.low <= truth.value <= seen.high, policy.name


def test_the_report_opens_in_a_browser(demo: tuple[Path, Any], tmp_path: Path) -> None:
    report = evaluated(demo[0])
    with chromium(tmp_path / "profile") as browser:
        browser.get((demo[0] / "report.html").as_uri())
        assert browser.get_log("browser") == []
        rows = browser.find_elements("css selector", "#summary .wide-table tbody tr")
        told = {row.text.split()[0]: row.text for row in rows}
        assert list(told) == ["sft", "dpo", "ppo", "base"]
        for match in report.matches:
            assert match.win_rate and f"{match.win_rate.value:.1%}" in told[match.policy]
        assert len(browser.find_elements("css selector", "svg")) > 10
    assert json.loads((demo[0] / "loop.json").read_text())["steps"].keys() == {"sft", "dpo", "ppo"}
