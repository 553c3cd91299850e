"""What a training tells of itself: figures of the weights that are kept, and of what the loss compares."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from rlaif.cli.train import train as command
from rlaif.errors import ModelError
from rlaif.training import reference
from rlaif.training.trainer import Falling
from tests.data.made import write_jsonl
from tests.training.runs import Heard, begin, pair_rows, run
from tests.training.test_rails_runs import flags, lines

pytestmark = pytest.mark.slow  # whole trainings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return begin(tmp_path_factory.mktemp("rails"))


def test_the_figures_are_those_of_the_weights_that_are_kept(folder: Path, tmp_path: Path) -> None:
    trained = run(
        "sft", folder, output=str(tmp_path / "out"), learning_rate=0.3, holdout=0.3, max_steps=30, eval_steps=1,
        patience=2, schedule="constant", max_grad_norm=0,
    )  # fmt: skip
    evaluated = {line["step"]: line["eval_loss"] for line in lines(trained.folder) if "eval_loss" in line}
    best = min(evaluated, key=lambda step: evaluated[step])
    assert trained.metrics["eval_loss"] == evaluated[best] != list(evaluated.values())[-1]
    assert trained.metrics["best_step"] == best
    assert json.loads((trained.folder / "metrics.json").read_text())["eval_loss"] == evaluated[best]
    assert f"lowest held-out loss, after step {best}." in (trained.folder / "README.md").read_text()


def test_progress_tells_of_the_step_that_it_names(folder: Path, tmp_path: Path) -> None:
    heard, out = Heard(), tmp_path / "out"
    run("sft", folder, output=str(out), heard=heard, holdout=0.3, max_steps=3, log_steps=1, eval_steps=1)
    losses = {line["step"]: line["loss"] for line in lines(out) if "loss" in line}
    held = {line["step"]: line["eval_loss"] for line in lines(out) if "eval_loss" in line}
    assert len(set(losses.values())) == len(set(held.values())) == 3
    shown = {done: note for (stage, done), note in zip(heard.done, heard.shown, strict=True) if stage == "train"}
    assert shown.keys() == losses.keys() == held.keys()
    for step, note in shown.items():
        assert f"loss {losses[step]:.3f}" in note and f"held-out loss {held[step]:.3f}" in note


@pytest.mark.parametrize("loss", ["ipo", "sigmoid_norm", "simpo", "orpo", "robust"])
def test_the_accuracy_is_that_of_what_the_loss_compares(loss: str, folder: Path, tmp_path: Path) -> None:
    """Whichever of two answers has the higher mean may have the lower sum; the log of a first step by hand."""
    more = {"label_smoothing": 0.1} if loss == "robust" else {}
    run("dpo", folder, output=str(tmp_path / "out"), loss=loss, max_steps=1, batch_size=12, **more)
    first = lines(tmp_path / "out")[0]
    assert first["margin"] == pytest.approx(first["rewards/chosen"] - first["rewards/rejected"], abs=1e-5)
    if loss in ("simpo", "orpo"):
        assert abs(first["margin"]) > 1e-4 and 0 < first["accuracy"] < 1
    else:
        assert abs(first["margin"]) < 1e-5
    settings = json.loads((tmp_path / "out" / "train.json").read_text())["settings"]
    beta = {"sigmoid_norm": 5.0, "simpo": 2.0, "orpo": None}.get(loss, 0.1)
    assert settings.get("beta") == beta
    card = (tmp_path / "out" / "README.md").read_text()
    assert (f"| `beta` | `{beta}` |" in card) is (beta is not None)


def test_falling_is_watched_where_there_is_a_reference(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Falling] = []
    monkeypatch.setattr("rlaif.training.session.Falling", lambda note: made.append(Falling(note)) or made[-1])
    run("dpo", folder, output=str(tmp_path / "a"), loss="simpo", max_steps=1)
    assert made == []
    run("dpo", folder, output=str(tmp_path / "b"), max_steps=1)
    assert len(made) == 1


def test_kto_shows_its_own_figures(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = [*flags(folder, out), "--loss=kto", f"--reference-cache={tmp_path / 'cache'}"]
    told = CliRunner().invoke(command, ["dpo", *given[1:]])
    assert told.exit_code == 0, told.output
    assert all(f"\n{name} " in told.output for name in ("rewards/good", "rewards/bad", "kl"))
    card = (out / "README.md").read_text()
    assert "| reward of good answers |" in card and "| distance from the reference, times beta |" in card


def shifted(found: list[list[float]], off: float) -> list[list[float]]:
    """The long completion's log-probability, which is far below the others, off by a little."""
    return [[each + off if each < -400 else each for each in logps] for logps in found]


def test_a_long_completion_may_differ_more_from_its_reference(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of sums over many tokens the last digits differ by the order of the additions: 2e-5 nats a token."""
    rows = pair_rows(4)
    rows[0]["chosen"] = " calm" * 120
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    plain = reference.compute
    for off, fits in ((2e-3, True), (2e-2, False)):
        with monkeypatch.context() as patch:
            patch.setattr(
                reference,
                "compute",
                lambda *given, off=off: [[a + off if a < -400 else a, b] for a, b in plain(*given)],
            )
            more = {"data": str(data), "output": str(tmp_path / f"{off}"), "reference_cache": str(tmp_path / f"c{off}")}
            if fits:
                assert run("dpo", folder, max_steps=1, **more).finished
            else:
                with pytest.raises(ModelError, match=r"by 0\.02 nats over \d+ tokens \(at most 0\.00\d+\)"):
                    run("dpo", folder, max_steps=1, **more)
