"""Every example runs, and every command in the README exists with the flags it is given there (docs/: `test_docs`)."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import click
import pytest

from rlaif.cli.main import cli
from rlaif.inference.vllm_process import PYTHON_VARIABLE
from tests.conftest import Served
from tests.support import DATA, ROOT, lines, rlaif

README = (ROOT / "README.md").read_text()
REFERENCE = (ROOT / "docs/commands.md").read_text()
HH = DATA / "hh-rlhf-harmless-base-test.jsonl.gz"
LAMDA = DATA / "constitutional-ai/LAMDA_RLMADISON.jsonl"


def commands_in(text: str) -> list[str]:
    """The `rlaif ...` lines of code blocks and of the comments in example files."""
    return sorted({line.strip("# ").split("  ")[0] for line in text.splitlines() if re.match(r"#? *rlaif [a-z]", line)})


EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
BLOCKS = "\n".join(re.findall(r"^```.*?^```$", README, re.DOTALL | re.MULTILINE))
COMMANDS = commands_in(BLOCKS) + [line for path in EXAMPLES for line in commands_in(path.read_text())]


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_that_we_write_about_parse(line: str) -> None:
    words = shlex.split(line.replace("PATH/", "/"), comments=True)[1:]
    context = click.Context(cli)
    group: click.Command = cli
    while isinstance(group, click.Group):
        name = words.pop(0)
        found = group.get_command(context, name)
        assert found is not None, name
        group = found
    group.make_context(group.name, words, resilient_parsing=False)


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 8


def names_of(group: click.Group) -> list[str]:
    """Its commands; those of a group within it with the group's name before them."""
    context = click.Context(group)
    found = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        inner = [f"{name} {each}" for each in names_of(command)] if isinstance(command, click.Group) else [name]
        found += inner
    return found


def test_every_command_is_in_the_reference() -> None:
    assert [name for name in names_of(cli) if f"rlaif {name}" not in REFERENCE] == []


@pytest.mark.slow
def test_the_demo_example_runs(tmp_path: Path) -> None:
    result = rlaif("generate", ROOT / "examples/demo.yaml", "--prompts-limit", 3, "--output", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert len(lines(tmp_path / "run/samples.jsonl")) == 12
    assert lines(tmp_path / "run/critiques.jsonl")
    assert (tmp_path / "run/manifest.json").exists()


@pytest.mark.slow
def test_the_demo_example_revises(tmp_path: Path) -> None:
    result = rlaif("revise", ROOT / "examples/demo.yaml", "--prompts-limit", 3, "--output", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert len(lines(tmp_path / "run/revisions.jsonl")) == 6
    assert lines(tmp_path / "run/sft.jsonl")


@pytest.mark.server
def test_real_dialogues_are_revised_on_a_real_server(vllm: Served, tmp_path: Path) -> None:
    """Critiques and revisions are texts drawn by the server; what they say means nothing here."""
    if not HH.exists():
        pytest.skip("the shared data is not here")
    flags = ("--prompts", HH, "--prompts-limit", 8, "--judge-base-url", vllm.base_url, "--output", tmp_path / "run")
    result = rlaif("revise", ROOT / "examples/hh-rlhf.yaml", *flags, timeout=300)
    assert result.returncode == 0, result.stderr
    made = json.loads((tmp_path / "run/revised.json").read_text())
    assert made["counts"]["chains"] == 8
    assert sum(made["uses"].values()) + sum(made["failures"].values()) == 16
    again = rlaif("revise", ROOT / "examples/hh-rlhf.yaml", *flags, timeout=300)
    assert "confirm: 0 answered" in again.stderr


@pytest.mark.slow
def test_a_new_project_runs_as_it_is(tmp_path: Path) -> None:
    assert rlaif("init", "mine", cwd=tmp_path).returncode == 0
    checked = rlaif("check", "mine/run.yaml", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    result = rlaif("generate", "mine/run.yaml", "--prompts-limit", 5, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs/mine/pairs.jsonl").exists()


@pytest.mark.server
def test_real_dialogues_on_a_real_server(vllm: Served, tmp_path: Path) -> None:
    if not HH.exists():
        pytest.skip("the shared data is not here")
    flags = ("--prompts", HH, "--prompts-limit", 12, "--judge-base-url", vllm.base_url, "--output", tmp_path / "run")
    result = rlaif("generate", ROOT / "examples/hh-rlhf.yaml", *flags, timeout=300)
    assert result.returncode == 0, result.stderr
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["counts"]["prompts"] == 12
    assert manifest["counts"]["samples"] == 48
    comparisons = sum(len(row["comparisons"]) for row in lines(tmp_path / "run/rankings.jsonl"))
    assert manifest["counts"]["judgements"] + sum(manifest["failures"].values()) == 2 * comparisons
    again = rlaif("generate", ROOT / "examples/hh-rlhf.yaml", *flags, timeout=300)
    assert "compare: 0 answered" in again.stderr


@pytest.mark.server
def test_given_answers_on_a_real_server(vllm: Served, tmp_path: Path) -> None:
    """17 answers a prompt: 6 matchups of the first four, 3 for each later one, two orders, 90 calls a prompt."""
    if not LAMDA.exists():
        pytest.skip("the shared data is not here")
    flags = ("--prompts", LAMDA, "--prompts-limit", 3, "--judge-base-url", vllm.base_url, "--output", tmp_path / "run")
    result = rlaif("generate", ROOT / "examples/given-answers.yaml", *flags, timeout=300)
    assert result.returncode == 0, result.stderr
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["counts"]["samples"] == 3 * 17
    assert manifest["counts"]["judgements"] + sum(manifest["failures"].values()) == 3 * 90


@pytest.mark.server
def test_a_server_is_launched_for_the_run_and_stopped(vllm: Served, tmp_path: Path) -> None:
    """`launch: vllm` beside the server of the other tests, which shows that there is a vLLM at all."""
    assert vllm.base_url
    (tmp_path / "given.jsonl").write_text(json.dumps({"prompt": "How do I cook rice?", "a": ["Boil it.", "No."]}))
    (tmp_path / "run.yaml").write_text(
        "constitution: demo\nprompts: {path: given.jsonl, responses: a}\n"
        "judge: {model: demo-judge, launch: vllm, launch_args: [--max-model-len, '1024']}\n"
        f"output: {tmp_path}/run\n"
    )
    result = rlaif("generate", tmp_path / "run.yaml", timeout=300, **{PYTHON_VARIABLE: os.environ[PYTHON_VARIABLE]})
    assert len(lines(tmp_path / "run/judgements.jsonl")) == 2, result.stderr
    # The judge contradicts itself about this pair: a run without a pair is no success.
    assert result.returncode == 1 and "1 whose orders disagree" in result.stderr, result.stderr
    log = (tmp_path / "run/judge.log").read_text()
    assert "Application startup complete" in log
    assert "Shutting down" in log or "shutdown" in log.lower()
