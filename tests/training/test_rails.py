"""Settings of a training that are wrong, or left out: what is told, and what is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rlaif.cli.train import train as command
from rlaif.errors import UserError
from rlaif.rl.config import OnlineSettings
from rlaif.training.config import SETTINGS, DpoSettings, Method, load_settings, resolved

HERE = {"model": "m", "data": "d", "output": "o"}
GIVEN = {(name,): value for name, value in HERE.items()}


def dpo(**more: Any) -> Any:
    return load_settings(DpoSettings, None, GIVEN, [f"{name}={value}" for name, value in more.items()])


@pytest.mark.parametrize(
    ("loss", "name", "value"),
    [
        ("sigmoid", "gamma_beta_ratio", 0.5), ("sigmoid", "orpo_weight", 0.1), ("sigmoid", "desirable_weight", 2),
        ("ipo", "label_smoothing", 0.1), ("simpo", "reference", "other"), ("simpo", "reference_cache", "folder"),
        ("orpo", "beta", 0.1), ("orpo", "reference", "other"), ("kto", "label_smoothing", 0.1),
        ("kto", "soft_labels", "false"), ("kto", "sft_weight", 1), ("kto", "orpo_weight", 0.1),
    ],
)  # fmt: skip
def test_a_setting_that_does_nothing_is_refused(loss: str, name: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"--set {name}: .*`{name}` does nothing for `loss: {loss}`: leave it out"):
        dpo(loss=loss, **{name: value})


def test_what_the_losses_read_is_taken() -> None:
    assert dpo(loss="simpo", beta=2, gamma_beta_ratio=0.3).gamma_beta_ratio == 0.3
    assert dpo(loss="orpo", orpo_weight=0.3, sft_weight=1, soft_labels="false").orpo_weight == 0.3
    assert dpo(loss="kto", beta=0.2, desirable_weight=1.3, reference="other").desirable_weight == 1.3
    assert dpo(loss="robust", label_smoothing=0.1).label_smoothing == 0.1
    with pytest.raises(UserError, match="`loss: robust` needs the share of labels that are wrong: set `label_smooth"):
        dpo(loss="robust")


def test_a_setting_from_a_flag_is_told_at_the_flag(tmp_path: Path) -> None:
    """What is wrong about it is a setting that nobody gave, which has no place of its own."""
    (file := tmp_path / "dpo.yaml").write_text("model: m\ndata: d\noutput: o\nloss: sigmoid\n")
    with pytest.raises(UserError, match=r"^--loss: `loss: robust` needs"):
        load_settings(DpoSettings, file, {("loss",): "robust"})
    file.write_text(file.read_text().replace("sigmoid", "robust"))
    with pytest.raises(UserError, match=r"dpo.yaml:4: `loss: robust` needs"):
        load_settings(DpoSettings, file, {})
    file.write_text("model: m\nprompts: p\nreward: judge\noutput: o\n")
    with pytest.raises(UserError, match=r"^--samples: `batch_size: 64` is no multiple of `samples: 3`"):
        load_settings(OnlineSettings, file, {("samples",): "3"})


def test_settings_written_down_can_be_read_again() -> None:
    """Without those that the loss does not read, though they have defaults."""
    for loss in ("sigmoid", "ipo", "simpo", "orpo", "kto"):
        plain = resolved(dpo(loss=loss), False)[0].plain()
        again = DpoSettings.model_validate(plain)
        assert again.plain() == plain and again.loss == loss
        assert ("reference_cache" in plain) is False and ("orpo_weight" in plain) is (loss == "orpo")


@pytest.mark.parametrize(
    ("method", "more", "rate", "beta"),
    [
        ("sft", {}, 2e-5, None), ("sft", {"lora.rank": 4}, 2e-4, None), ("reward", {}, 1e-5, None),
        ("reward", {"lora.rank": 4}, 1e-4, None), ("dpo", {}, 1e-6, 0.1), ("dpo", {"lora.rank": 4}, 1e-5, 0.1),
        ("dpo", {"loss": "ipo"}, 1e-6, 0.1), ("dpo", {"loss": "simpo"}, 1e-6, 2.0),
        ("dpo", {"loss": "sigmoid_norm"}, 1e-6, 5.0), ("dpo", {"loss": "kto"}, 1e-6, 0.1),
        ("dpo", {"loss": "orpo"}, 1e-6, None), ("dpo", {"learning_rate": 3e-7, "beta": 0.4}, 3e-7, 0.4),
    ],
)  # fmt: skip
def test_what_is_left_out(method: Method, more: dict[str, Any], rate: float, beta: float | None) -> None:
    settings = load_settings(SETTINGS[method], None, GIVEN, [f"{name}={value}" for name, value in more.items()])
    made, told = resolved(settings, narrow=False)
    assert made.learning_rate == pytest.approx(rate) and getattr(made, "beta", None) == beta
    usual = {"learning_rate": pytest.approx(rate)} | ({"beta": beta} if beta else {})
    assert told == {name: value for name, value in usual.items() if name not in more}
    assert made.dtype == "float32" and resolved(settings, narrow=True)[0].dtype == "bfloat16"


def test_patience_and_save_steps() -> None:
    with pytest.raises(UserError, match=r"--set save_steps: .*`patience` saves at every evaluation"):
        load_settings(SETTINGS["sft"], None, GIVEN, ["patience=2", "save_steps=5"])
    assert load_settings(SETTINGS["sft"], None, GIVEN, ["patience=2"]).patience == 2


def test_every_mistake_is_told_in_one_line() -> None:
    with pytest.raises(UserError) as caught:
        load_settings(DpoSettings, None, {("beta",): "-1", ("loss",): "sigmoyd"})
    told = str(caught.value)
    for part in (
        "`beta` must be greater than 0",
        "did you mean `sigmoid`",
        "`model` is missing",
        "`output` is missing",
    ):
        assert part in told
    assert "rlaif check" not in told and "\n" not in told


def test_lists_by_commas() -> None:
    settings = load_settings(
        SETTINGS["sft"], None, GIVEN | {("report_to",): "wandb, tensorboard", ("lora", "targets"): "q_proj,v_proj"}
    )
    assert settings.report_to == ("wandb", "tensorboard") and settings.lora.targets == ("q_proj", "v_proj")
    assert load_settings(SETTINGS["sft"], None, GIVEN, ["lora.targets=[k_proj]"]).lora.targets == ("k_proj",)
    assert load_settings(SETTINGS["sft"], None, GIVEN, ["lora.targets=k_proj"]).lora.targets == ("k_proj",)


def test_paths_of_a_settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the file where something is there, else as they stand; `~` is the home folder."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "rows.jsonl").touch()
    (tmp_path / "there" / "held.jsonl").touch()
    file = tmp_path / "there" / "dpo.yaml"
    file.write_text("model: owner/name\ndata: rows.jsonl\nheld_data: ./held.jsonl\noutput: ~/out\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    settings = load_settings(DpoSettings, file, {("reference_cache",): "~/cache"})
    assert settings.data == str(tmp_path / "there" / "rows.jsonl")
    assert settings.held_data == str(tmp_path / "there" / "held.jsonl")
    assert settings.model == "owner/name" and settings.output == str(tmp_path / "home" / "out")
    assert isinstance(settings, DpoSettings) and settings.reference_cache == str(tmp_path / "home" / "cache")
    assert load_settings(SETTINGS["sft"], None, GIVEN | {("model",): "~/m"}).model == str(tmp_path / "home" / "m")


def test_help_says_what_is_taken() -> None:
    """Of a setting that depends on method and loss, and of what KTO makes of a soft label."""
    told = CliRunner().invoke(command, ["dpo", "--help"], terminal_width=200).output
    words = " ".join(told.split())
    for part in ("none takes 0.1, for sigmoid_norm 5, for simpo 2", "ten times that under LoRA", "whatever its `prob"):
        assert part in words
    assert "completions that alone are longer are left out" in words


def test_nothing_but_settings_of_the_method_has_a_default(tmp_path: Path) -> None:
    for method, kind in SETTINGS.items():
        assert kind.model_validate(HERE).learning_rate is None, method
