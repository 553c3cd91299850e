"""`rlaif evaluate judge` on what real judges once wrote: the published figures come out, to three digits."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlaif.evaluation.reports import JudgeReport
from rlaif.feedback.agreement import cohen_kappa, coincidences, krippendorff_alpha
from tests.evaluation.replay import Recorded, ReplayServer
from tests.support import DATA, lines, rlaif, write_run

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared data")


def loaded(path: Path) -> Any:
    with gzip.open(path, "rt") as file:
        return json.load(file)


def plain(text: str) -> str:
    """Whatever white space stands at the ends of lines or of a text."""
    return " ".join(text.split())


def write_gold(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluated(gold: Path, recorded: Recorded, folder: Path) -> tuple[JudgeReport, list[dict[str, Any]], int]:
    """The report, what was said about each pair, and the exit code; every pair is asked once in either order."""
    with ReplayServer(recorded) as server:
        judge = {"model": "recorded", "base_url": server.url}
        run = write_run(folder, server.url, judge=judge, compare={"reasoning": "reply"})
        done = rlaif(
            "evaluate", "judge", "--gold", gold, "--run", run, "--no-plots",
            "--no-canaries", "--principles", "all", "--output", folder / "out",
            cwd=folder,
        )  # fmt: skip
        assert server.unknown == []
        assert done.returncode in (0, 3, 4), done.stderr
        (path,) = [each for each in (folder / "out").glob("recorded*.json") if not each.name.endswith("pairs.json")]
        report = JudgeReport.model_validate_json(path.read_text())
        three = report.measures.three_way
        assert server.asked == 2 * (report.measures.pairs + (three.ties if three else 0)), done.stderr
    return report, lines(path.with_suffix(".pairs.jsonl")), done.returncode


def llmbar(subset: str, judge: str, folder: Path) -> tuple[JudgeReport, list[dict[str, Any]], int]:
    """A subset with what a judge wrote about it, once with `output_1` shown first and once with it second."""
    rows = loaded(DATA / f"llmbar/judged-{subset}-{judge}.json.gz")
    known: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for row in rows:
        one, two, (said,) = plain(row["output_1"]), plain(row["output_2"]), row["results"]
        for swapped, shown in (("swap = False", (one, two)), ("swap = True", (two, one))):
            answer = said[swapped]
            verdict = {None: "", "12"[shown == (two, one)]: "\nVerdict: A"}.get(answer["winner"], "\nVerdict: B")
            known.setdefault(shown, []).append((plain(row["input"]), answer["completion"][0] + verdict))
    gold = [
        {
            "prompt": row["input"],
            "chosen": row[f"output_{row['label']}"],
            "rejected": row[f"output_{3 - row['label']}"],
        }
        for row in rows
    ]

    def recorded(question: str, first: str, second: str) -> str:
        (text,) = {text for prompt, text in known[plain(first), plain(second)] if prompt in plain(question)}
        return text

    return evaluated(write_gold(folder / "gold.jsonl", gold), recorded, folder)


@pytest.mark.parametrize(
    ("subset", "judge", "accuracy", "flips"),
    [
        ("natural", "gpt-4-vanilla", 0.955, 0.05),
        ("natural", "gpt-4-cot", 0.945, 0.09),
        ("natural", "chatgpt-cot", 0.742, 0.354),
        ("neighbor", "chatgpt-vanilla", 0.194, 0.284),
    ],
)
def test_llmbar(subset: str, judge: str, accuracy: float, flips: float, tmp_path: Path) -> None:
    """LLMBar's accuracy is the mean of both orders, and its agreement 1 - flips."""
    report, _, code = llmbar(subset, judge, tmp_path)
    found = report.measures
    assert found.single_order is not None and found.flips is not None
    assert (round(found.single_order.value, 3), round(found.flips.value, 3)) == (accuracy, flips)
    if subset == "neighbor":
        assert (report.verdict.level, code) == ("unfit", 4)
    else:
        assert code in (0, 3), report.verdict


def majority(row: dict[str, Any]) -> int:
    """What most of the three people say: 0 for a tie, else the better response."""
    return Counter(row[f"annotator{at}"] for at in (1, 2, 3)).most_common(1)[0][0]


def pandalm(judge: str, results: list[str], folder: Path) -> tuple[JudgeReport, list[tuple[str, str]]]:
    """All pairs of people and judge, each as `1`, `2`, `0` for a tie or nothing, in the order of the file's responses.

    A tenth of the pairs are in the file more than once, with verdicts of their own: the number keeps them apart.
    """
    rows = loaded(DATA / "pandalm/testset-v1.json.gz")
    gold, known = [], {}
    for row, result in zip(rows, results, strict=True):
        best = majority(row)
        one, two = (str(row[f"response{at}"]).strip() or "(no text)" for at in (1, 2))
        chosen, rejected = (two, one) if best == 2 else (one, two)
        prompt = f"(No. {row['idx']}) {row['instruction']}\n\n{row['input']}".strip()
        gold.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, "tie": best == 0})
        said = {"1": (plain(one), plain(two)), "2": (plain(two), plain(one))}.get(result)
        known[row["idx"]] = "Tie" if result == "0" else said

    def recorded(question: str, first: str, second: str) -> str:
        found = re.search(r"\(No\. (\d+)\)", question)
        assert found is not None
        verdict = known[int(found[1])]
        if verdict is None:
            return "Both have their merits."
        if isinstance(verdict, tuple):
            verdict = "A" if verdict == (plain(first), plain(second)) else "B"
        return f"As was recorded.\nVerdict: {verdict}"

    report, judged, _ = evaluated(write_gold(folder / "gold.jsonl", gold), recorded, folder)
    both = []
    for row, each in zip(rows, judged, strict=True):
        best = majority(row)
        better = {1: ("1", "2"), 2: ("2", "1"), 0: ("1", "2")}[best]
        said = "" if each["logit"] is None else "0" if each["status"] == "tie" else better[each["logit"] < 0]
        both.append((str(best), said))
    return report, both


@pytest.mark.parametrize(
    ("judge", "agreement", "kappa", "silent"),
    [("gpt-3.5-turbo", 0.698, 0.476, 25), ("pandalm-7b", 0.668, 0.435, 0)],
)
def test_pandalm(judge: str, agreement: float, kappa: float, silent: int, tmp_path: Path) -> None:
    """999 pairs, of which 105 are a tie to most of three people; a judge without a verdict agrees with nothing."""
    name = "gpt_result" if judge.startswith("gpt") else "pandalm_result"
    words = {"Tie": "0", "garbage": ""}
    said = [str(row[name]) for row in loaded(DATA / f"pandalm/{judge}-testset-v1.json.gz")]
    report, both = pandalm(judge, [words.get(each, each) for each in said], tmp_path)
    found = report.measures.three_way
    assert found is not None and found.kappa is not None
    assert (found.ties, found.agreement.pairs, report.measures.pairs) == (105, 999, 894)
    assert round(found.agreement.value, 3) == agreement
    assert sum(value == "" for _, value in both) == silent
    table = cohen_kappa(Counter(both))
    assert table is not None and round(table, 3) == kappa
    assert found.kappa == pytest.approx(kappa, abs=1.5e-3), "either response may be called the first"


def test_the_three_people_of_pandalm() -> None:
    table: Counter[tuple[str, str]] = Counter()
    for row in loaded(DATA / "pandalm/testset-v1.json.gz"):
        for pair, count in coincidences([str(row[f"annotator{at}"]) for at in (1, 2, 3)]).items():
            table[pair] += count  # type: ignore[assignment]
    alpha = krippendorff_alpha(table)
    assert alpha is not None and round(alpha, 3) == 0.864
