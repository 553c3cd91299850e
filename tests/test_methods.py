"""The ways of judging over a whole run: what each asks, and that the best reply wins under all of them."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest

from rlaif.config.run_file import load_run
from rlaif.errors import UserError
from rlaif.feedback.pipeline import Report, run_pipeline
from tests.fakes import FakeServer, Trouble, unit
from tests.support import lines, rlaif, write_run


def run(path: Path, **flags: str) -> Report:
    return run_pipeline(load_run(path, {tuple(name.split("__")): value for name, value in flags.items()}))


def merits(folder: Path) -> dict[str, list[float]]:
    """Of every prompt, the merits of its distinct replies."""
    found: dict[str, dict[str, float]] = {}
    for row in lines(folder / "samples.jsonl"):
        found.setdefault(row["prompt"], {})[row["text"]] = unit("merit", row["text"])
    return {prompt: list(texts.values()) for prompt, texts in found.items()}


def asked(report: Report) -> dict[str, int]:
    return {tally.stage: tally.asked for tally in report.tallies}


@pytest.mark.parametrize("method", ["pairwise", "score", "rank", "tournament"])
def test_the_best_reply_is_chosen_and_the_worst_rejected(tmp_path: Path, method: str) -> None:
    with FakeServer() as fake:
        report = run(write_run(tmp_path, fake.url, compare={"method": method, "principles": "all"}))
    assert report.outcome is not None and not report.outcome.failures
    of_prompt = merits(tmp_path / "run")
    pairs = lines(tmp_path / "run" / "pairs.jsonl")
    assert len(pairs) == 10
    for pair in pairs:
        chosen, rejected = (unit("merit", pair[side][0]["content"]) for side in ("chosen", "rejected"))
        assert (chosen, rejected) == (max(of_prompt[pair["prompt_id"]]), min(of_prompt[pair["prompt_id"]]))
        assert 0.5 < pair["probability"] <= 1
        assert pair["judgements"]


def test_a_grade_a_sample(tmp_path: Path) -> None:
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url, compare={"method": "score", "principles": "all"})
        assert asked(run(path)) == {"sample": 40, "score": 40}
        assert asked(run(path)) == {"sample": 0, "score": 0}
        assert asked(run(path, policy__samples="6")) == {"sample": 20, "score": 20}
    texts = {row["id"]: row["text"] for row in lines(tmp_path / "run" / "samples.jsonl")}
    for row in lines(tmp_path / "run" / "scores.jsonl"):
        merit = unit("merit", texts[row["sample"]])
        bell = [math.exp(-((digit - 9 * merit) ** 2) / 2) for digit in range(10)]
        assert row["value"] == pytest.approx(sum(d * b for d, b in enumerate(bell)) / sum(bell), abs=1e-6)
        assert row["label_mass"] == pytest.approx(0.96)
    assert not (tmp_path / "run" / "orders.jsonl").exists()


def test_a_pair_is_decided_by_the_two_distributions(tmp_path: Path) -> None:
    with FakeServer() as fake:
        run(write_run(tmp_path, fake.url, compare={"method": "score", "principles": "all"}))
    rows = lines(tmp_path / "run/scores.jsonl")
    scores = {row["sample"]: [math.exp(each) for each in row["logprobs"]] for row in rows}
    for pair in lines(tmp_path / "run" / "pairs.jsonl"):
        one, other = scores[pair["chosen_id"]], scores[pair["rejected_id"]]
        win = sum(a * b for i, a in enumerate(one) for j, b in enumerate(other) if i > j)
        tie = sum(a * b for a, b in zip(one, other, strict=True))
        assert pair["raw_probability"] == pytest.approx((win + tie / 2) / (sum(one) * sum(other)), abs=1e-6)


def test_grades_under_each_principle(tmp_path: Path) -> None:
    constitution = str(Path(__file__).parent / "revisions" / "two.yaml")
    with FakeServer() as fake:
        compare = {"method": "score", "principles": "each"}
        report = run(write_run(tmp_path, fake.url, constitution=constitution, compare=compare))
    assert asked(report)["score"] == 80
    assert Counter(row["principle"] for row in lines(tmp_path / "run/scores.jsonl")) == {"kind": 40, "short": 40}


def test_a_list_is_shown_in_several_orders(tmp_path: Path) -> None:
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url, compare={"method": "rank", "principles": "all", "shuffles": 3})
        assert asked(run(path)) == {"sample": 40, "rank": 30}
        assert asked(run(path, compare__shuffles="4")) == {"sample": 0, "rank": 10}
    shown = [tuple(row["shown"]) for row in lines(tmp_path / "run" / "orders.jsonl")]
    assert len(set(shown)) == 40
    assert sum(order[::-1] in shown for order in shown) == 40


def test_unreadable_rankings_are_counted_and_never_guessed(tmp_path: Path) -> None:
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url, compare={"method": "rank", "principles": "all"}, policy={"samples": 3})
        run(path)
        journal = tmp_path / "run" / "orders.jsonl"
        rows = [json.dumps({**row, "ranking": None}, separators=(",", ":")) for row in lines(journal)]
        journal.write_text("\n".join(rows) + "\n")
        report = run(path)
    assert report.outcome is not None
    assert report.outcome.counts["ranks_unparsed"] == 20
    assert report.outcome.counts["comparisons_unparsed"] == 30
    assert not lines(tmp_path / "run" / "pairs.jsonl")


def test_a_tournament_grades_all_and_compares_four(tmp_path: Path) -> None:
    with FakeServer() as fake:
        compare = {"method": "tournament", "principles": "all"}
        path = write_run(tmp_path, fake.url, policy={"samples": 8}, compare=compare)
        report = run(path)
        assert asked(report) == {"sample": 80, "score": 80, "compare": 10 * 6 * 2}
        assert asked(run(path)) == {"sample": 0, "score": 0, "compare": 0}
    compared = {row["id"]: set[str]() for row in lines(tmp_path / "run" / "prompts.jsonl")}
    texts = {row["id"]: row["text"] for row in lines(tmp_path / "run" / "samples.jsonl")}
    for row in lines(tmp_path / "run" / "judgements.jsonl"):
        compared[row["prompt"]] |= {texts[row["first"]], texts[row["second"]]}
    for prompt, of_all in merits(tmp_path / "run").items():
        ranked = sorted(of_all)
        assert sorted(unit("merit", text) for text in compared[prompt]) == [*ranked[:2], *ranked[-2:]]


def test_a_small_tournament_is_a_round_robin(tmp_path: Path) -> None:
    with FakeServer() as fake:
        compare = {"method": "tournament", "principles": "all"}
        assert asked(run(write_run(tmp_path, fake.url, compare=compare))) == {"sample": 40, "score": 0, "compare": 120}


def test_a_missing_grade_leaves_the_pair_without_a_label(tmp_path: Path) -> None:
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url, compare={"method": "score", "principles": "all"})
        run_pipeline(load_run(path), ["sample"])
        fake.troubles.append(Trouble("400", contains="station number 3?"))
        report = run(path)
        assert report.outcome is not None
        assert report.outcome.failures == {"score: bad_request": 4}
        assert report.outcome.counts["comparisons_failed"] == 6
        assert report.outcome.counts["pairs"] == 9
        fake.troubles.clear()
        again = run(path)
    assert asked(again)["score"] == 4
    assert again.outcome is not None and not again.outcome.failures


@pytest.mark.parametrize("command", [("diff", "two", "two", "--run"), ("coverage",)])
def test_what_rests_on_pairs_says_so(tmp_path: Path, command: tuple[str, ...]) -> None:
    constitution = str(Path(__file__).parent / "revisions" / "two.yaml")
    with FakeServer() as fake:
        compare = {"method": "score", "principles": "each"}
        run(write_run(tmp_path, fake.url, constitution=constitution, compare=compare))
    words = [constitution if word == "two" else word for word in command]
    done = rlaif("constitution", *words, tmp_path / "run")
    assert done.returncode == 2
    assert "was judged by `score`" in done.stderr


def test_critiques_are_for_pairs(tmp_path: Path) -> None:
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url, compare={"method": "rank", "critique": True})
        with pytest.raises(UserError, match="goes with pairs"):
            load_run(path)


@pytest.mark.parametrize(
    ("method", "shown"), [("score", " of 9"), ("rank", ", shown as response "), ("tournament", "P(A) = ")]
)
def test_a_preview_of_every_way(tmp_path: Path, method: str, shown: str) -> None:
    """All prompts are previewed: what is told of the tokens is what the run takes."""
    with FakeServer() as fake:
        compare = {"method": method, "principles": "all"}
        path = write_run(tmp_path, fake.url, prompts=["Why?", "How?"], policy={"samples": 6}, compare=compare)
        told = rlaif("preview", path, "-n", 2)
        outcome = run(path).outcome
    assert told.returncode == 0, told.stderr
    assert shown in told.stdout and outcome is not None
    read, written = (outcome.counts[f"judge_{kind}_tokens"] for kind in ("prompt", "completion"))
    assert f"judge      {read:>12,} tokens in {written:>12,} out" in told.stdout
