"""The plots are drawn where there is something to draw, whatever the names are."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from rlaif.evaluation.judge import EvaluatedJudge
from rlaif.evaluation.plots import length_figure, reliability_figure, slot_figure, write_judge_plots
from tests.evaluation.judges import Judge, evaluated, right_by_hash, write_gold


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> EvaluatedJudge:
    folder = tmp_path_factory.mktemp("plots")
    write_gold(folder / "gold.jsonl", 120)
    return evaluated(Judge(right_by_hash(0.8, bias=0.3)), folder / "gold.jsonl", folder / "out", plots=True)


def test_png_and_svg_beside_the_report(done: EvaluatedJudge) -> None:
    stem = done.path.with_suffix("").name
    names = {path.name.removeprefix(f"{stem}-") for path in done.path.parent.glob("*-*.*g")}
    assert names == {f"{name}.{ending}" for name in ("reliability", "slots", "length") for ending in ("png", "svg")}
    for path in done.path.parent.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    for path in done.path.parent.glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_the_figures_show_the_numbers_of_the_report(done: EvaluatedJudge) -> None:
    found = done.report.measures
    assert found.calibration is not None and found.slot is not None and found.accuracy is not None
    upper, lower = reliability_figure(found.calibration).axes
    points = upper.lines[1].get_xydata()
    assert points.tolist() == [[each.confidence, each.accuracy] for each in found.calibration.bins]  # type: ignore[union-attr]
    assert [bar.get_height() for bar in lower.patches] == list(found.calibration.confidences)  # type: ignore[attr-defined]
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("accuracy", "pairs")
    (slots,) = slot_figure(found).axes
    assert [label.get_text() for label in slots.get_yticklabels()] == ["all pairs  (120)", "left  (60)", "right  (60)"]
    assert slots.lines[1].get_xdata().tolist()[0] == found.slot.first.value  # type: ignore[union-attr]
    (length,) = length_figure(found.length, found.accuracy).axes
    assert length.lines[2].get_ydata().tolist() == [each.accuracy.value for each in found.length.bins]  # type: ignore[union-attr]


def test_odd_names_do_no_harm(done: EvaluatedJudge, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    subsets = tuple(
        group.model_copy(update={"name": name})
        for group, name in zip(
            done.report.measures.subsets, ("costs $5 and $x_2^", "数学 " + "long " * 30), strict=True
        )
    )
    report = done.report.model_copy(update={"measures": done.report.measures.model_copy(update={"subsets": subsets})})
    assert len(write_judge_plots(report, tmp_path / "odd")) == 6
    assert [str(each.message) for each in recwarn if "Glyph" in str(each.message)] == []


def test_nothing_to_draw(tmp_path: Path) -> None:
    write_gold(tmp_path / "gold.jsonl", 3)
    done = evaluated(Judge(lambda first, second: None), tmp_path / "gold.jsonl", tmp_path / "out", plots=True)
    assert done.report.measures.accuracy is None
    assert list(done.path.parent.glob("*.png")) == []
    assert done.report.verdict.level == "unfit"
