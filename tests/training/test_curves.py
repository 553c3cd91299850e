"""The picture of a training: what is drawn, and when nothing is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from rlaif.training.curves import _panels, draw_curves, running_mean

pytestmark = pytest.mark.curves


def _history(steps: int) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        lines.append({
            "step": step, "loss": 0.7 - step / 1000, "accuracy": 0.5 + step / 1000, "margin": step / 100,
            "rewards/chosen": 0.1, "rewards/rejected": -step / 100, "logps/chosen": -90.0, "logps/rejected": -95.0,
            "grad_norm": 100.0 if step == 7 else 1.0, "learning_rate": 1e-6, "epoch": 0.1,
        })  # fmt: skip
        if step % 10 == 0:
            lines.append({"step": step, "eval_loss": 0.69, "eval_accuracy": 0.6, "eval_rewards/chosen": 0.2})
    return [*lines, {"step": steps, "train_runtime": 3.0, "train_loss": 0.6}]


@pytest.mark.slow
def test_draws_a_png_of_what_was_logged(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    draw_curves(_history(120), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.glob("*curves*")) == [path]
    draw_curves(_history(120), other := tmp_path / "again.png")
    assert path.read_bytes() == other.read_bytes()


def test_panels_hold_what_there_is() -> None:
    """Seven panels of a DPO training; the held-out points lie in the panel of their figure."""
    panels = list(_panels(_history(20)))
    titles = [panel.title.partition(":")[0] for panel in panels]
    assert titles == [
        "loss", "accuracy", "margin", "rewards", "log-probability of a reply", "gradient norm", "learning rate"
    ]  # fmt: skip
    assert [curve.name for curve in panels[0].curves] == ["training", "held out"]
    assert [curve.name for curve in panels[2].curves] == ["training"]
    assert [curve.name for curve in panels[3].curves] == ["chosen", "rejected", "chosen, held out"]
    assert panels[0].curves[1].points == [(10.0, 0.69), (20.0, 0.69)]


@pytest.mark.parametrize("steps", [1, 41])
def test_any_number_of_steps_is_drawn(tmp_path: Path, steps: int) -> None:
    draw_curves(_history(steps), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    draw_curves([], tmp_path / "curves.png")
    draw_curves([{"step": 3, "train_runtime": 1.0}], tmp_path / "curves.png")
    assert list(tmp_path.glob("*curves*")) == []


def test_what_is_no_number_is_left_out(tmp_path: Path) -> None:
    history = [{"step": 1, "loss": math.nan}, {"step": 2, "loss": 0.5}, {"step": 2, "loss": 0.4}]
    (panel,) = _panels(history)
    assert panel.curves[0].points == [(2.0, 0.4)]
    draw_curves(history, tmp_path / "curves.png")


def test_running_mean_by_hand() -> None:
    """Width 3: (1+2)/2, (1+2+6)/3, (2+6+3)/3, (6+3)/2."""
    assert running_mean([1.0, 2.0, 6.0, 3.0], 3) == pytest.approx([1.5, 3.0, 11 / 3, 4.5])
