"""The slot bias told from one-order answers: on paper, planted and found again, and over whole runs."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlaif.analysis.coverage import coverage
from rlaif.analysis.edit_impact import impact, plans
from rlaif.config.run_file import load_run
from rlaif.feedback.aggregate import HARD_LOGIT, PositionBias, Vote, first_logit, position_bias
from rlaif.feedback.dataset import Outcome
from rlaif.feedback.pipeline import run_pipeline
from rlaif.feedback.run import reopen_run
from rlaif.records import Judgement
from tests.comparisons.test_fold import folded, judged
from tests.fakes import FakeServer, Taste, unit
from tests.support import lines, rlaif, write_run

DERIVED = ("pairs.jsonl", "rankings.jsonl")


def told(*prompts: Sequence[Judgement | None]) -> PositionBias:
    return position_bias(prompts, min_mass=0.5)


def test_one_pair_a_prompt_is_the_mean() -> None:
    """3, 1, 2, 2: mean 2; residuals 1, -1, 0, 0: sqrt(2 * 4/3) / 4 = 0.408248."""
    found = told(*([judged(f"a{at}", f"b{at}", gap)] for at, gap in enumerate((3.0, 1.0, 2.0, 2.0))))
    assert found.estimate == pytest.approx(2.0)
    assert found.standard_error == pytest.approx(0.408248, abs=1e-6)
    assert (found.judgements, found.prompts) == (4, 4)


def test_a_triangle_on_paper() -> None:
    """a > b > c shown as (a, b), (b, c), (c, a), strengths 1, 0, -1 and b = 2: logits 3, 3, 0. Every sample is shown
    first once and second once, so the strengths cancel and the mean 2 is exact. As (a, b), (b, c), (a, c): logits
    3, 3, 4. B'B + I is 4 I - J (three samples), u = (2, 0, -2), v = (7, 0, -7), z = u / 4 as J u = 0:
    1'W1 = 3 - 2 = 1, 1'Wy = 10 - 14 / 2 = 3."""
    round_robin: list[Judgement | None] = [judged("a", "b", 3.0), judged("b", "c", 3.0), judged("c", "a", 0.0)]
    assert told(round_robin).estimate == pytest.approx(2.0)
    falling: list[Judgement | None] = [judged("a", "b", 3.0), judged("b", "c", 3.0), judged("a", "c", 4.0)]
    assert told(falling).estimate == pytest.approx(3.0)


def test_what_has_no_label_says_nothing() -> None:
    silent: list[Judgement | None] = [None, judged("a", "b", 9.0, mass=0.1), judged("a", "b", None, text="unparsed")]
    assert told(silent) == PositionBias(0.0, None, 0, 0)
    assert told().removed == 0
    alone = told([judged("a", "b", 3.0)])
    assert alone.estimate == pytest.approx(3.0)
    assert (alone.standard_error, alone.removed) == (None, 0.0)


def test_what_is_removed_shrinks_with_its_doubt() -> None:
    """2 +- 1: 2 (1 - 1/4) = 1.5; one standard error or less: nothing."""
    assert PositionBias(2.0, 1.0, 9, 9).removed == pytest.approx(1.5)
    assert PositionBias(-2.0, 1.0, 9, 9).removed == pytest.approx(-1.5)
    assert PositionBias(0.5, 1.0, 9, 9).removed == 0
    assert PositionBias(0.5, 0.0, 9, 9).removed == 0.5


def planted(bias: float, *, noise: float, spread: float, seed: int, prompts: int = 300) -> list[list[Judgement | None]]:
    """Four samples a prompt, all pairs once, the order by a coin."""
    rng = random.Random(seed)
    made: list[list[Judgement | None]] = []
    for number in range(prompts):
        strengths = {f"{number}-{at}": rng.gauss(0, spread) for at in range(4)}
        rows: list[Judgement | None] = []
        for pair in itertools.combinations(strengths, 2):
            first, second = pair if rng.random() < 0.5 else pair[::-1]
            rows.append(judged(first, second, strengths[first] - strengths[second] + bias + rng.gauss(0, noise)))
        made.append(rows)
    return made


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("bias", "noise", "spread"), [(0.0, 0.5, 3.0), (1.5, 0.5, 3.0), (-2.0, 2.0, 0.1), (0.7, 1, 1)])
def test_a_planted_bias_is_found_again(bias: float, noise: float, spread: float, seed: int) -> None:
    """Within three standard errors; and strengths that explain the logits make it surer than their mean is."""
    found = told(*planted(bias, noise=noise, spread=spread, seed=seed))
    assert found.standard_error is not None
    assert abs(found.estimate - bias) < 3 * found.standard_error
    if spread > 1:  # the plain mean: sqrt((2 * 9 + 0.25) / 1800) = 0.10
        assert found.standard_error < 0.05


def test_the_standard_error_is_that_of_repetition() -> None:
    found = [told(*planted(1.0, noise=1.0, spread=1.0, seed=seed, prompts=40)) for seed in range(60)]
    estimates = [each.estimate for each in found]
    mean = sum(estimates) / len(estimates)
    spread = math.sqrt(sum((each - mean) ** 2 for each in estimates) / (len(estimates) - 1))
    told_error = sum(each.standard_error or 0 for each in found) / len(found)
    assert mean == pytest.approx(1.0, abs=4 * spread / math.sqrt(60))
    assert told_error == pytest.approx(spread, rel=0.3)


def test_it_is_taken_off_the_first_slot() -> None:
    """+2 for the first, of which 0.5 is the slot's: 1.5 for the left shown first, 2.5 against it shown second."""
    assert folded(Vote("kind", 1.0, judged("l", "r", 2.0), None, (True, False), slot=0.5)).logit == pytest.approx(1.5)
    assert folded(Vote("kind", 1.0, None, judged("r", "l", 2.0), (False, True), slot=-0.5)).logit == pytest.approx(-2.5)
    cold = Vote("kind", 1.0, judged("l", "r", 2.0), None, (True, False), temperature=0.5, slot=0.5)
    assert folded(cold).logit == pytest.approx(3.0)
    both = Vote("kind", 1.0, judged("l", "r", 2.0), judged("r", "l", 1.0), slot=0.7)
    assert folded(both, drop_flips=False).logit == pytest.approx(0.5)


def test_text_verdicts_and_stated_ties() -> None:
    said = [
        first_logit(judged("l", "r", None, text=text), min_mass=0.5, slot=1.0) for text in ("first", "second", "tie")
    ]
    assert said == [pytest.approx(HARD_LOGIT - 1), pytest.approx(-HARD_LOGIT - 1), 0.0]


def run(path: Path, **compare: str) -> Outcome:
    found = run_pipeline(load_run(path, {("compare", name): value for name, value in compare.items()})).outcome
    assert found is not None
    return found


def biased(folder: Path, url: str, *, judges: list[dict[str, str]] | None = None, **compare: Any) -> Path:
    prompts = [f"How do I get to station number {number}?" for number in range(40)]
    settings: dict[str, Any] = {"compare": {"orders": "random", "principles": "all", **compare}}
    return write_run(folder, url, prompts=prompts, **settings, **({"judge": judges} if judges else {}))


def right(folder: Path) -> float:
    """Share of labelled comparisons that go the way of the merits."""
    text = {row["id"]: row["text"] for row in lines(folder / "run/samples.jsonl")}
    hits: list[bool] = [
        (each["probability"] > 0.5) == (unit("merit", text[each["left"]]) > unit("merit", text[each["right"]]))
        for row in lines(folder / "run/rankings.jsonl")
        for each in row["comparisons"]
    ]
    return sum(hits) / len(hits)


def test_over_a_run_in_one_order(tmp_path: Path) -> None:
    """The fake judge goes by merit and adds 3 for the first slot. Taking that off makes its labels right again, and
    asks it nothing."""
    with FakeServer(taste=Taste(slot=3.0)) as fake:
        path = biased(tmp_path, fake.url)
        run(path, position_bias="kept")
        asked = fake.asked.total()
        assert "position_bias" not in json.loads((tmp_path / "run/manifest.json").read_text())
        before = right(tmp_path)
        outcome = run(path)
        assert fake.asked.total() == asked
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    bias = manifest["position_bias"]["fake"]
    assert bias["judgements"] == 240
    assert bias["prompts"] == 40
    assert bias["estimate"] == pytest.approx(3.0, abs=3 * bias["standard_error"])
    assert bias["standard_error"] < 0.3
    assert outcome.slots["fake"].removed == bias["removed"]
    assert before < 0.85
    assert right(tmp_path) > 0.95
    shown = rlaif("pair", path)
    assert f"{bias['estimate']:+.2f} ± {bias['standard_error']:.2f} logits for the first slot" in shown.stdout


def test_coverage_and_impact_see_the_same_labels(tmp_path: Path) -> None:
    with FakeServer(taste=Taste(slot=2.0)) as fake:
        outcome = run(biased(tmp_path, fake.url))
    labelled = outcome.counts["comparisons_labelled"]
    assert coverage(tmp_path / "run").labels == labelled
    with reopen_run(tmp_path / "run") as opened:
        found = impact(plans(opened, opened.constitution, opened.constitution))
    assert (found.labels, found.flipped, found.moved) == ((labelled, labelled), 0, ())


@pytest.mark.parametrize("setting", [{"orders": "both"}, {"method": "score"}])
def test_where_no_order_decides_the_setting_does_nothing(tmp_path: Path, setting: dict[str, Any]) -> None:
    with FakeServer(taste=Taste(slot=2.0)) as fake:
        path = biased(tmp_path, fake.url, **setting)
        assert run(path, position_bias="removed").slots == {}
        removed = [(tmp_path / "run" / name).read_bytes() for name in DERIVED]
        run(path, position_bias="kept")
    assert [(tmp_path / "run" / name).read_bytes() for name in DERIVED] == removed


def test_every_judge_of_a_panel_has_its_own(tmp_path: Path) -> None:
    with FakeServer(taste=Taste(slot=3.0)) as one, FakeServer(model="fake-2", taste=Taste(slot=-3.0)) as two:
        judges = [{"model": fake.model, "base_url": fake.url} for fake in (one, two)]
        found = run(biased(tmp_path, one.url, judges=judges)).slots
    assert {name: bias.estimate for name, bias in found.items()} == pytest.approx({"fake": 3.0, "fake-2": -3.0}, abs=1)


def test_revisions_compared_in_one_order(tmp_path: Path) -> None:
    with FakeServer(taste=Taste(slot=3.0)) as fake:
        path = biased(tmp_path, fake.url)
        found = run_pipeline(load_run(path), ["revise"]).revised
    assert found is not None and found.slot is not None and found.slot.standard_error is not None
    assert found.slot.estimate == pytest.approx(3.0, abs=3 * found.slot.standard_error)
    told_there = json.loads((tmp_path / "run/revised.json").read_text())["position_bias"]["fake"]
    assert told_there["removed"] == found.slot.removed > 2
