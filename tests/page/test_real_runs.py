"""The page's figures against what the pipeline itself counted, on runs that it made."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.run_file import load_run
from rlaif.config.schemas import (
    CompareSettings,
    JudgeSettings,
    PairSettings,
    PolicySettings,
    PromptSettings,
    ReviseSettings,
    RunSettings,
)
from rlaif.feedback.pipeline import run_pipeline
from rlaif.records import Judgement, PreferencePair
from rlaif.report.examples import gather
from rlaif.report.page import build_page
from rlaif.report.run_data import _Columns, _forward, _join, _parts, count_data, rows
from rlaif.report.run_settings import label_settings, read_documents
from rlaif.store import read_records, resource
from tests.fakes import Taste
from tests.test_panel import CONTRARY, MUMBLING, bench, change


def agrees(folder: Path) -> None:
    """The counts are those of the manifest, and every label comes out again from the answers, joined by number."""
    page, manifest = build_page(folder), json.loads((folder / "manifest.json").read_text())
    counts: dict[str, Any] = manifest["counts"]
    data, verdicts = page.data, page.verdicts
    assert data is not None and verdicts is not None
    assert (data.prompts, data.samples, data.pairs) == (counts["prompts"], counts["samples"], counts["pairs"])
    for name in ("labelled", "tie", "flip", "unparsed"):
        assert data.comparisons[name] == counts.get(f"comparisons_{name}", 0)
    assert data.flipped == counts["comparisons_flipped"]
    assert data.without_pair == counts["prompts_without_pair"]
    assert verdicts.judgements == counts["judgements"]
    assert verdicts.low_mass == counts["judgements_low_mass"]
    assert sum(1 for _ in read_records(folder / "judgements.jsonl", Judgement)) == verdicts.judgements + verdicts.unused
    assert sum(1 for _ in read_records(folder / "pairs.jsonl", PreferencePair)) == data.pairs
    told = {each.id: (each.labels, each.flips or 0) for each in page.principles if each.labels is not None}
    assert told == {name: (each["labels"], each.get("flips", 0)) for name, each in manifest["principles"].items()}
    _labels_come_out_again(folder)


def _labels_come_out_again(folder: Path) -> None:
    import numpy as np

    reading = label_settings(read_documents(folder))
    _, plan = count_data(folder, both=reading.both)
    columns = _Columns()
    for row in rows(folder / "judgements.jsonl"):
        columns.add(row, reading)
    at, asked = _join(columns, plan)
    of = np.array(plan.comparison, dtype=np.int64)[asked]
    judge = np.array(columns.judge, dtype=np.int64)[at]
    logit = np.array(columns.logit)[at]
    logit = np.where(_forward(columns, at, asked, of, plan), logit, -logit)
    many, judges = len(columns.principles), len(columns.judges)
    cell = (of * many + np.array(columns.principle, dtype=np.int64)[at]) * judges + judge
    cells, inverse = np.unique(cell, return_inverse=True)
    mean = np.bincount(inverse, weights=logit) / np.bincount(inverse)
    known = ~np.isnan(mean)
    cells, mean = cells[known], mean[known]
    parts = _parts(columns, cells, mean, reading)
    whole = np.bincount(cells // judges // many, weights=parts, minlength=len(plan.left))
    found = 0
    for number, (status, probability) in enumerate(zip(plan.status, plan.probability, strict=True)):
        if status == 0:
            found += 1
            assert 1 / (1 + math.exp(-whole[number])) == pytest.approx(probability, abs=1e-6)
    assert found > 5


@pytest.mark.parametrize("principles", ["each", "one", "all"])
@pytest.mark.parametrize("orders", ["both", "random"])
def test_a_judge_that_likes_the_first_slot(tmp_path: Path, principles: str, orders: str) -> None:
    with bench(tmp_path, Taste(slot=1.5), compare={"principles": principles, "orders": orders}) as (path, _):
        run_pipeline(load_run(path))
    agrees(tmp_path / "run")


def test_a_panel_with_weights_and_temperatures(tmp_path: Path) -> None:
    tastes = (Taste(slot=1.0), CONTRARY, MUMBLING)
    with bench(tmp_path, *tastes, compare={"principles": "each"}, constitution="helpful-honest-harmless-concise") as (
        path,
        _,
    ):
        run_pipeline(load_run(change(path, weight=[1.0, 0.4, 1.0], temperature=[1.0, 2.5, 1.0])))
    agrees(tmp_path / "run")
    page = build_page(tmp_path / "run")
    assert page.panel is not None
    assert [each.judge for each in page.panel.judges] == ["fake", "fake-2", "fake-3"]


@pytest.mark.slow
def test_a_tiny_run_with_revisions(tmp_path: Path) -> None:
    """Some revisions equal samples, so some judgements name those: see `run_data.shows_left_first`."""
    run_pipeline(RunSettings(
        constitution="demo", prompts=PromptSettings(path=str(resource("prompts") / "policy" / "demo.jsonl"), limit=16),
        policy=PolicySettings(model="demo-policy", samples=4, max_tokens=96), judge=JudgeSettings(model="demo-judge"),
        compare=CompareSettings(principles="each"), pair=PairSettings(select="all", per_prompt=6),
        revise=ReviseSettings(enabled=True, samples=4, temperature=0.3, max_tokens=96), output=str(tmp_path / "run"),
    ))  # fmt: skip
    agrees(tmp_path / "run")
    named = {row["id"] for row in rows(tmp_path / "run" / "samples.jsonl")}
    settled = [each for row in rows(tmp_path / "run" / "rankings.jsonl") for each in row["comparisons"]]
    ranked = {key for each in settled for key in each["judgements"]}
    strangers = [
        row for row in rows(tmp_path / "run" / "judgements.jsonl")
        if row["id"] in ranked and not {row["first"], row["second"]} <= named
    ]  # fmt: skip
    assert strangers


@pytest.mark.sibling("given-responses-in-the-report")
@pytest.mark.parametrize("drawn", [True, False])
def test_given_answers_are_counted_once(tmp_path: Path, drawn: bool) -> None:
    """They stand with their prompts and, once the run has begun, among the samples: three given, two drawn."""
    prompts = tmp_path / "given.jsonl"
    texts = [("Who is it?", ["It is I.", "Nobody at all."]), ("Why?", ["Because it is so, as you can see."])]
    prompts.write_text("".join(json.dumps({"prompt": text, "given": said}) + "\n" for text, said in texts))
    with bench(tmp_path, Taste()) as (path, _):
        settings = load_run(path)
        policy = settings.policy.model_copy(update={"samples": 2}) if drawn and settings.policy else None
        given = PromptSettings(path=str(prompts), responses="given")
        run_pipeline(settings.model_copy(update={"policy": policy, "prompts": given}))
    page = build_page(tmp_path / "run")
    assert page.data is not None
    assert page.data.samples == json.loads((tmp_path / "run/manifest.json").read_text())["counts"]["samples"]
    assert page.data.samples == (7 if drawn else 3)
    found = gather(tmp_path / "run", [row["id"] for row in rows(tmp_path / "run" / "prompts.jsonl")], {})
    assert sorted(map(len, found.samples.values())) == ([3, 4] if drawn else [1, 2])
