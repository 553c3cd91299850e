"""The help of commands with many settings: sections, types, the common settings first, renamed settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import click
import pytest
from click.testing import CliRunner
from pydantic import Field, JsonValue

from rlaif.cli import generate, setup, workflow
from rlaif.cli.evaluate import policy
from rlaif.cli.options import COMMON, SettingsCommand, metavar_of
from rlaif.cli.train import SECTION_OF, train
from rlaif.config.run_file import load_run, settable
from rlaif.config.schemas import MODEL, CompareSettings, RunSettings
from rlaif.config.yaml import RENAMED, Source, former_names, key_hint, validate
from rlaif.errors import UserError
from rlaif.evaluation.policy_specs import EvaluateSettings
from rlaif.records import Record
from rlaif.rl.config import Algorithm, OnlineSettings
from rlaif.training.config import SETTINGS, DpoSettings, load_settings

ONLINE = {("model",): "m", ("output",): "o", ("prompts",): "p", ("reward",): "judge"}
RUN_COMMANDS = (
    generate.generate, generate.sample, generate.critique, generate.compare, generate.pair, generate.preview,
    generate.revise, setup.check, workflow.run,
)  # fmt: skip


def shown(command: click.Command, *words: str) -> str:
    result = CliRunner().invoke(command, [*words], terminal_width=200)
    assert result.exit_code == 0, result.output
    return result.output


def flags_in(text: str) -> set[str]:
    return {word for line in text.splitlines() if line.startswith("  --") for word in [line.split()[0]]}


@pytest.mark.parametrize("command", RUN_COMMANDS, ids=lambda command: str(command.name))
def test_a_run_command_shows_fifteen_settings_and_all_on_demand(command: click.Command) -> None:
    settings = {setting.flag for setting in settable()}
    few, everything = shown(command, "--help"), shown(command, "--help-all")
    assert 10 <= len(flags_in(few) & settings) <= 16
    assert flags_in(everything) >= settings
    assert f"--help-all lists all {len(settings)}." in few and "--help-all lists" not in everything
    assert " VALUE" not in everything
    for section in ("Run", "Prompts", "Policy", "Judge", "Critique", "Compare", "Revise", "Pair"):
        assert f"\n{section}:\n" in everything


def test_common_settings_are_settings() -> None:
    assert {".".join(each.path) for each in settable()} >= COMMON


@pytest.mark.parametrize("method", ["sft", "reward", "dpo", "ppo"])
def test_a_training_shows_sections(method: str) -> None:
    kind = OnlineSettings if method == "ppo" else SETTINGS[method]  # type: ignore[index]
    settings = {setting.flag for setting in settable(kind)}
    few, everything = shown(train, method, "--help"), shown(train, method, "--help-all")
    assert 13 <= len(flags_in(few) & settings) <= 19
    assert flags_in(everything) >= settings
    for section in ("Model and output", "Data", "Optimization", "LoRA", "Memory and speed", "Checkpoints and logs"):
        assert f"\n{section}:\n" in everything
    assert " VALUE" not in everything


def test_an_evaluation_of_policies_shows_sections() -> None:
    few, everything = shown(policy, "--help"), shown(policy, "--help-all")
    assert {"--against", "--judge", "--prompts", "--samples"} <= flags_in(few) and "--top-p" not in few
    assert "--top-p FLOAT" in everything and "--matchups [all|baseline]" in everything
    for section in ("Prompts", "Responses", "Compare", "Pair", "Metrics", "Comparisons"):
        assert f"\n{section}:\n" in everything


def test_every_setting_of_a_training_has_a_section() -> None:
    flat = {
        each.path[0] for kind in (*SETTINGS.values(), OnlineSettings) for each in settable(kind) if not each.path[1:]
    }
    assert flat <= SECTION_OF.keys()


def test_types_come_from_the_annotations() -> None:
    class Inner(Record):
        number: int | None = None
        share: Annotated[float, Field(ge=0)] = 0.5
        on: bool = False
        text: str = ""
        model: Annotated[str | None, MODEL] = None
        choice: Literal["a", "b"] | None = None
        choices: tuple[Literal["a", "b"], ...] = ()
        words: tuple[str, ...] = ()
        pair: tuple[float, float] = (0.0, 1.0)
        mapping: dict[str, JsonValue] = Field(default_factory=dict)
        file: Path | None = None

    assert {name: metavar_of(field) for name, field in Inner.model_fields.items()} == {
        "number": "INTEGER", "share": "FLOAT", "on": "BOOLEAN", "text": "TEXT", "model": "MODEL", "choice": "[a|b]",
        "choices": "[a|b],...", "words": "YAML", "pair": "YAML", "mapping": "YAML", "file": "PATH",
    }  # fmt: skip
    algorithms = "|".join(get_args(Algorithm))
    assert f"--algorithm [{algorithms}]" in shown(train, "ppo", "--help")


@pytest.mark.parametrize("algorithm", sorted({*get_args(Algorithm)} - {"ppo"}))
def test_every_algorithm_is_a_command(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("rlaif.cli.train._train", lambda *given: seen.append(given))
    result = CliRunner().invoke(train, [algorithm, "--kl-beta", "0.2", "--set", "steps=3"])
    assert result.exit_code == 0, result.output
    method, path, flags, pairs, resume = seen[0]
    assert (method, path, pairs, resume) == ("ppo", None, ("steps=3",), False)
    assert flags == {("kl", "beta"): "0.2", ("algorithm",): algorithm}
    assert load_settings(OnlineSettings, None, {**ONLINE, **flags}, pairs).algorithm == algorithm
    twice = CliRunner().invoke(train, [algorithm, "--set", "algorithm=ppo"])
    assert twice.exit_code == 2 and "sets the algorithm itself" in twice.output
    assert CliRunner().invoke(train, [algorithm, "--algorithm", "ppo"]).exit_code == 2


def test_the_help_of_an_algorithm_leaves_out_what_it_does_not_read() -> None:
    grpo, ppo = (flags_in(shown(train, name, "--help-all")) for name in ("grpo", "ppo"))
    assert ppo - grpo == {
        "--algorithm", "--lam", "--gamma", "--whiten", "--group-baseline", "--p3o-clip", "--value-model",
        "--value-learning-rate", "--value-clip", "--value-warmup",
    }  # fmt: skip
    refused = CliRunner().invoke(train, ["grpo", "--model", "m", "--output", "o", "--prompts", "p", "--reward", "judge",
                                         "--lam", "0.5"])  # fmt: skip
    assert "`lam` does nothing for `algorithm: grpo`" in str(refused.exception)


def test_ppo_takes_any_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("rlaif.cli.train._train", lambda *given: seen.append(given))
    CliRunner().invoke(train, ["ppo", "--algorithm", "rloo"])
    assert seen[0][2] == {("algorithm",): "rloo"}


@pytest.mark.parametrize(
    ("words", "today"),
    [
        (("dpo", "--tokens", "4096"), "--max-tokens-per-pass"),
        (("sft", "--keep=2"), "--checkpoints-to-keep"),
        (("reward", "--center-on", "x"), "--center-dataset"),
        (("ppo", "--per", "token"), "--loss-normalization"),
        (("grpo", "--kl-place", "loss"), "--kl-apply-to"),
        (("ppo", "--rollout-ahead", "true"), "--rollout-async-rollout"),
        (("ppo", "--watch-kl-stop", "20"), "--monitor-kl-stop"),
    ],
)
def test_a_former_flag_names_the_one_of_today(words: tuple[str, ...], today: str) -> None:
    result = CliRunner().invoke(train, words)
    former = words[1].partition("=")[0]
    assert result.exit_code == 2
    assert f"No such option '{former}'; it is now called '{today}'." in result.output


def test_a_former_flag_of_a_run_names_the_one_of_today() -> None:
    result = CliRunner().invoke(generate.generate, ["run.yaml", "--compare-slot-bias", "kept"])
    assert (
        result.exit_code == 2 and "'--compare-slot-bias'; it is now called '--compare-position-bias'" in result.output
    )
    other = CliRunner().invoke(generate.generate, ["run.yaml", "--tokens", "1"])
    assert "it is now called" not in other.output


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        ({"meetings": "all"}, EvaluateSettings, "unknown key `meetings`; it is now called `matchups`"),
        ({"slot_bias": "kept"}, CompareSettings, "unknown key `slot_bias`; it is now called `position_bias`"),
        ({"tokens": 100}, DpoSettings, "unknown key `tokens`; it is now called `max_tokens_per_pass`"),
        ({"per": "token"}, OnlineSettings, "unknown key `per`; it is now called `loss_normalization`"),
        ({"watch": {"kl": 3}}, OnlineSettings, "unknown key `watch`; it is now called `monitor`"),
        ({"kl": {"place": "loss"}}, OnlineSettings, "unknown key `place` in `kl`; it is now called `apply_to`"),
        ({"rollout": {"ahead": True}}, OnlineSettings, "`ahead` in `rollout`; it is now called `async_rollout`"),
    ],
)
def test_a_former_key_names_the_one_of_today(data: dict[str, Any], kind: type[Record], message: str) -> None:
    with pytest.raises(UserError) as raised:
        validate(Source(data, "file"), kind)
    assert message in str(raised.value)


def test_a_former_key_of_a_run_file_and_of_set(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("constitution: harmless\nprompts: p.jsonl\njudge: {model: j}\noutput: o\n"
                    "compare:\n  slot_bias: kept\n")  # fmt: skip
    with pytest.raises(UserError, match=r"run.yaml:6: unknown key `slot_bias` in `compare`; it is now called `pos"):
        load_run(file)
    with pytest.raises(UserError, match=r"--set: no setting `watch.kl`; it is now called `monitor.kl`"):
        load_settings(OnlineSettings, None, ONLINE, ["watch.kl=3"])
    with pytest.raises(UserError, match="--set: no setting `center_on`; it is now called `center_dataset`"):
        load_settings(SETTINGS["reward"], None, {}, ["center_on=x"])


def test_the_table_of_former_names() -> None:
    """Each new name is a setting or a keyword; a former name that is no setting of a kind means nothing there."""
    kinds = (RunSettings, EvaluateSettings, OnlineSettings, *SETTINGS.values())
    names = {part for kind in kinds for setting in settable(kind) for part in setting.path}
    assert set(RENAMED.values()) - {"metrics"} <= names
    assert list(former_names(("kl", "apply_to"))) == [("kl", "place")]
    assert key_hint("meters", ["metrics", "judge"]) == "it is now called `metrics`"
    assert key_hint("tokens", ["samples"]) == "known: samples"


def test_a_command_without_common_settings_still_lists_all() -> None:
    command = SettingsCommand("x", callback=lambda: None)
    assert "--help-all lists" not in shown(command, "--help")
