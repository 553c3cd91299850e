"""What a model in process will be asked is written by its chat template before anything is spent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.feedback.sampling import rehearsals
from rlaif.inference.base import Output, Question
from rlaif.inference.transformers_model import Loaded
from rlaif.records import Message, Prompt, Sampling
from rlaif.store import shipped_model
from tests.support import lines, rlaif

TURN = "{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}"
CUE = "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
ANY = "{% for m in messages %}" + TURN + "{% endfor %}" + CUE
NO_SYSTEM = "{% for m in messages if m['role'] != 'system' %}" + TURN + "{% endfor %}" + CUE
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}{% endif %}" + ANY
BROKEN = "{% for m in messages %}{{ m['content'] }"
SEVERAL = [{"name": "rag", "template": ANY}, {"name": "tools", "template": ANY}]


def made(folder: Path, template: Any, prompts: list[Any] | None = None, **policy: Any) -> Path:
    """A run file whose policy is the shipped one with another template."""
    source = shipped_model("demo-policy")
    assert source is not None
    shutil.copytree(source, folder / "model")
    path = folder / "model" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    rows = prompts or ["How do I boil eggs?", "Tell me a joke."]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": each}) + "\n" for each in rows))
    run = {
        "constitution": "demo", "prompts": "prompts.jsonl", "output": "run", "judge": {"model": "demo-judge"},
        "policy": {"model": "./model", "samples": 1, "max_tokens": 4, **policy},
    }  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    return folder / "run.yaml"


def refused(folder: Path, *words: object) -> str:
    """What `check` and `sample` say alike, with exit code 2."""
    found = [rlaif(command, "run.yaml", *words, cwd=folder) for command in ("check", "sample")]
    assert [each.returncode for each in found] == [2, 2], found
    assert all("Traceback" not in each.stderr for each in found)
    problem = next(line for line in found[0].stderr.splitlines() if line.startswith("policy: "))
    assert problem.removeprefix("policy: ") in found[1].stderr
    assert not (folder / "run" / "samples.jsonl").exists() or not lines(folder / "run" / "samples.jsonl")
    return problem


@pytest.mark.case("13-system-role-refused")
def test_a_refused_system_role_is_a_problem_before_anything_is_spent(tmp_path: Path) -> None:
    made(tmp_path, REFUSES, system="Be brief.")
    problem = refused(tmp_path)
    assert "policy.system: the chat template refuses the conversation: no system role here" in problem
    assert problem.endswith("; leave it out, or write it at the beginning of each prompt")


@pytest.mark.case("11-template-without-system")
def test_a_system_prompt_that_is_passed_over_is_a_problem(tmp_path: Path) -> None:
    made(tmp_path, NO_SYSTEM, system="Answer like a pirate.")
    assert "policy.system: the chat template leaves out the system prompt" in refused(tmp_path)


@pytest.mark.sibling("system-turn-in-a-later-prompt")
def test_check_writes_every_kind_of_prompt(tmp_path: Path) -> None:
    own = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi?"}]
    made(tmp_path, NO_SYSTEM, prompts=["How do I boil eggs?", own])
    found = rlaif("check", "run.yaml", cwd=tmp_path)
    assert found.returncode == 2
    assert "policy: prompts: the chat template leaves out the system prompt" in found.stderr


@pytest.mark.case("14-several-chat-templates")
def test_one_of_several_templates_has_to_be_chosen(tmp_path: Path) -> None:
    made(tmp_path, SEVERAL)
    problem = refused(tmp_path)
    assert "several chat templates (rag, tools), and no default; choose one with `template_options" in problem
    found = rlaif("check", "run.yaml", "--policy-template-options", "{chat_template: tools}", cwd=tmp_path)
    assert found.returncode == 0, found.stderr


@pytest.mark.case("14-several-chat-templates")
def test_a_broken_template_is_a_problem(tmp_path: Path) -> None:
    made(tmp_path, BROKEN)
    assert "the chat template refuses the conversation: unexpected '}'" in refused(tmp_path)


@pytest.mark.sibling("judge-whose-template-is-broken")
def test_a_judge_with_a_broken_template_is_a_problem(tmp_path: Path) -> None:
    made(tmp_path, BROKEN)
    found = rlaif("check", "run.yaml", "--judge-model", "./model", "--policy-model", "demo-policy", cwd=tmp_path)
    assert found.returncode == 2 and "judge: " in found.stderr and "unexpected '}'" in found.stderr


@pytest.mark.sibling("policy-whose-template-wants-a-system-prompt")
def test_a_policy_whose_template_wants_a_system_prompt_works_with_one(tmp_path: Path) -> None:
    wants = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('say who I am') }}{% endif %}" + ANY
    made(tmp_path, wants, prompts=[[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi?"}]])
    found = rlaif("check", "run.yaml", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    found = rlaif("check", "run.yaml", "--judge-model", "./model", "--policy-model", "demo-policy", cwd=tmp_path)
    assert found.returncode == 2 and "say who I am" in found.stderr


@pytest.mark.sibling("one-prompt-in-process-loses-its-system-turn")
def test_a_question_that_would_lose_its_system_prompt_fails_by_itself(tmp_path: Path) -> None:
    made(tmp_path, NO_SYSTEM)
    loaded = Loaded(tmp_path / "model", "cpu", None, {})
    asked = Message(role="user", content="Hi?")

    def row(*messages: Message) -> Any:
        return loaded.row(0, Question("sample", "m", messages, Sampling(max_tokens=4)))

    answer = row(Message(role="system", content="Be kind."), asked)
    assert isinstance(answer, Output) and answer.failure == "bad_request"
    assert answer.detail == "the chat template leaves out the system prompt"
    assert not isinstance(row(asked), Output)


def test_prompts_are_rehearsed_by_their_kinds() -> None:
    user, system = Message(role="user", content="Hi?"), Message(role="system", content="Be kind.")
    kinds = [(user,), (user,), (system, user)]
    prompts = [Prompt(id=str(at), messages=messages, source="-") for at, messages in enumerate(kinds)]
    found = rehearsals(prompts, "Be brief.")
    assert [(each.where, [message.content for message in each.messages]) for each in found] == [
        ("prompts", ["Hi?"]), ("prompts", ["Be kind.", "Hi?"]), ("policy.system", ["Be brief.", "Hi?"]),
    ]  # fmt: skip
    assert {each.where for each in rehearsals(prompts, None)} == {"prompts"}
