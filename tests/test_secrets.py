"""Keys and passwords stand in no file, page, message or argument; a command that waits can be stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.secrets import secret_in, shown_url, without_secrets
from rlaif.errors import UserError
from rlaif.evaluation.policy_specs import contestants
from rlaif.feedback.run import read_provenance
from rlaif.text import MOST_LEVELS, loads
from tests.fakes import FakeServer
from tests.inference.rawserver import Asked, RawServer, reply
from tests.support import command, environment, lines, rlaif, write_run

PASSWORD, TOKEN = "s3cret-w0rd", "s3cret-query"


def given(folder: Path, url: str, **settings: Any) -> Path:
    """A run on two answers that came with the prompts."""
    path = write_run(folder, url, policy=None, prompts=["unused"], **settings)
    rows = [{"prompt": f"Pair number {at}?", "answers": ["yes", "no"]} for at in range(6)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = path.read_text().replace("prompts: prompts.jsonl", "prompts: {path: prompts.jsonl, responses: answers}")
    path.write_text(text)
    return path


def holds(folder: Path, *secrets: str) -> list[str]:
    """The files below a folder that hold one of the secrets."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [file.name for file in files if any(each.encode() in file.read_bytes() for each in secrets)]


@pytest.mark.case("sec-11-secrets-in-a-url")
def test_a_secret_in_a_url_is_refused_and_a_named_one_is_written_nowhere(tmp_path: Path) -> None:
    with FakeServer() as fake:
        (tmp_path / "named").mkdir()
        (tmp_path / "plain").mkdir()
        plain = fake.url.replace("127.", f"user:{PASSWORD}@127.") + f"?api-key={TOKEN}"
        path = given(tmp_path / "plain", plain)
        for name in ("check", "generate"):
            result = rlaif(name, path)
            assert result.returncode == 2 and "holds a password" in result.stderr and "${NAME}" in result.stderr
            assert "s3cret" not in result.stdout + result.stderr
        assert not (tmp_path / "plain/run").exists()
        named = fake.url.replace("127.", "user:${JUDGE_PASS}@127.") + "?api-key=${JUDGE_TOKEN}"
        path = given(tmp_path / "named", named)
        secrets = {"JUDGE_PASS": PASSWORD, "JUDGE_TOKEN": TOKEN}
        told = rlaif("check", path)
        assert told.returncode == 2 and "`JUDGE_PASS` is not set" in told.stderr
        result = rlaif("generate", path, **secrets)
        assert result.returncode == 0, result.stderr
        page = rlaif("report", tmp_path / "named/run", **secrets)
        assert page.returncode == 0, page.stderr
    assert holds(tmp_path / "named/run", PASSWORD, TOKEN) == []
    assert "s3cret" not in result.stdout + result.stderr + page.stdout + page.stderr
    assert "${JUDGE_PASS}" in (tmp_path / "named/run/run.yaml").read_text()


@pytest.mark.case("sec-02-key-in-a-reply")
def test_a_key_in_a_reply_is_in_no_file_of_the_run(tmp_path: Path) -> None:
    key = "sk-abcdefgh-12345678"

    def act(asked: Asked) -> None:
        sent = asked.header("authorization").removeprefix("Bearer ")
        asked.send(reply({"error": {"message": f"Incorrect API key provided: {sent}", "code": "invalid_api_key"}}))

    with RawServer(act) as server:
        path = given(tmp_path, server.url, judge={"api_key_env": "JUDGE_KEY"})
        result = rlaif("generate", path, JUDGE_KEY=key)
        check = rlaif("check", path, JUDGE_KEY=key)
    assert result.returncode == 1 and "Traceback" not in result.stderr and check.returncode == 2
    assert key not in result.stdout + result.stderr + check.stdout + check.stderr
    assert holds(tmp_path / "run", key, key[:12]) == []


@pytest.mark.case("sec-03-one-prompt-stops-the-run")
def test_one_prompt_of_which_the_connection_breaks_costs_its_own_labels(tmp_path: Path) -> None:
    def act(asked: Asked) -> bool:
        return "Pair number 4" in asked.body and "Answer with one" not in asked.body

    with RawServer(act) as server:
        result = rlaif("generate", given(tmp_path, server.url))
    assert "compare: 10 answered, 0 on disk already, 2 failed" in result.stderr, result.stderr
    failures = lines(tmp_path / "run/failures.jsonl")
    assert len(failures) == 2 and {row["reason"] for row in failures} == {"dropped"}
    assert len(lines(tmp_path / "run/judgements.jsonl")) == 10


@pytest.mark.case("sec-26-slow-on-everything")
def test_a_server_too_slow_for_all_ends_a_run_in_one_line(tmp_path: Path) -> None:
    with RawServer(lambda _: server.wait(60)) as server:
        result = rlaif("generate", given(tmp_path, server.url, judge={"timeout": 0.5}))
    assert result.returncode == 1
    assert 12 <= sum(not each.is_probe for each in server.asked) <= 120  # of 12 questions
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert "answers a small question" in line and "raise `timeout`" in line
    assert "questions at once from here on" in result.stderr


@pytest.mark.case("sec-27-odd-tokenize-reply")
def test_a_key_with_a_line_break_is_one_line_of_check(tmp_path: Path) -> None:
    path = given(tmp_path, "http://127.0.0.1:9/v1", judge={"api_key_env": "JUDGE_KEY"})
    result = rlaif("check", path, JUDGE_KEY="sk-one\ntwo")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "`JUDGE_KEY` holds a line break" in result.stderr and "sk-one" not in result.stderr


@pytest.mark.sibling("secrets-in-urls-of-trainings")
@pytest.mark.parametrize(
    "setting",
    [
        ("--reward", f"http://me:{PASSWORD}@127.0.0.1:9/get_reward"),
        ("--reward", f"length.py:f*0.5,https://127.0.0.1:9/get_reward?token={PASSWORD}"),
        ("--rollout-base-url", f"http://me:{PASSWORD}@127.0.0.1:9/v1"),
        ("--judge-base-url", f"http://{PASSWORD}@127.0.0.1:9/v1"),
    ],
    ids=["password", "token", "rollout", "judge"],
)
def test_trainings_refuse_secrets_in_urls(tmp_path: Path, setting: tuple[str, str]) -> None:
    (tmp_path / "prompts.txt").write_text("Hi\n")
    flags = {"--model": "demo-policy", "--prompts": "prompts.txt", "--reward": "judge", "--output": "out"}
    words = [word for pair in {**flags, setting[0]: setting[1]}.items() for word in pair]
    more = ["--judge-model", "x"] if setting[0].startswith("--judge") else []
    result = rlaif("train", "ppo", *words, *more, cwd=tmp_path)
    assert result.returncode == 2 and "${NAME}" in result.stderr, result.stderr
    assert PASSWORD not in result.stdout + result.stderr and not (tmp_path / "out").exists()


@pytest.mark.sibling("secrets-in-urls-of-policies")
def test_policies_refuse_secrets_in_urls() -> None:
    with pytest.raises(UserError, match=r"^http://h/v1: holds a password; keep it") as caught:
        contestants([f"http://me:{PASSWORD}@h/v1#m"])
    assert PASSWORD not in str(caught.value)
    (found,) = contestants(["http://me:${PASS}@h:80/v1#m"])
    assert found.name == "m"


@pytest.mark.sibling("key-among-launch-arguments")
@pytest.mark.parametrize("flag", ["--api-key", "--api_key=x", "--hf-token"])
def test_a_key_among_the_arguments_of_a_launched_server_is_refused(tmp_path: Path, flag: str) -> None:
    path = given(
        tmp_path, "http://127.0.0.1:9/v1", judge={"base_url": None, "launch": "vllm", "launch_args": [flag, PASSWORD]}
    )
    result = rlaif("check", "--offline", path)
    assert result.returncode == 2 and "everybody can read the arguments of a process" in result.stderr
    assert PASSWORD not in result.stderr


@pytest.mark.sibling("key-of-a-launched-server")
def test_the_key_of_a_launched_server_is_no_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlaif.inference import vllm_process

    started: dict[str, Any] = {}

    def popen(words: list[str], **options: Any) -> Any:
        started.update(words=words, **options)
        raise FileNotFoundError

    monkeypatch.setenv(vllm_process.PYTHON_VARIABLE, "python3")
    monkeypatch.setattr(vllm_process.subprocess, "Popen", popen)
    with pytest.raises(FileNotFoundError):
        vllm_process.VllmServer("m", log=tmp_path / "log", api_key=PASSWORD).start()
    assert started["env"]["VLLM_API_KEY"] == PASSWORD and PASSWORD not in " ".join(started["words"])


@pytest.mark.parametrize(
    ("url", "secret"),
    [
        ("http://127.0.0.1:8000/v1", None),
        ("https://x.openai.azure.com/openai/deployments/gpt-4o?api-version=2024-12-01-preview", None),
        ("http://${USER_NAME}:${PASS}@h/v1?key=${KEY}", None),
        ("http://user:${PASS}@h/v1", None),
        ("${JUDGE_URL}", None),
        ("http://user:pw@h/v1", "a password"),
        ("http://user:p@ss/w0rd@h/v1", "a password"),
        ("http://sk-abcdefghijklm@h/v1", "a user without a password, which may be a key"),
        ("http://h/v1?subscription-key=1", "a key (`subscription-key`)"),
        ("http://h/v1?code=abc", "a key (`code`)"),
        ("http://h/v1#token=abc", "a key (`token`)"),
        ("http://h/v1?x=sk-abcdefghijklmnop1234", "a key (`x`)"),
        ("http://h/sk-abcdefghijklmnop1234/v1", "a key"),
    ],
)
def test_what_of_a_url_is_secret(url: str, secret: str | None) -> None:
    assert secret_in(url) == secret


def test_urls_in_foreign_texts_are_masked() -> None:
    text = "base_url: 'http://user:pw@h/v1?api-key=abc&x=1'\nother: https://h/${A}?key=${KEY}"
    assert without_secrets(text) == "base_url: 'http://***@h/v1?api-key=***&x=1'\nother: https://h/${A}?key=${KEY}"
    assert shown_url("http://u:p@h:1/v1?key=1#x") == "http://h:1/v1"


@pytest.mark.sibling("page-of-an-older-run")
def test_the_page_of_an_older_run_shows_no_password(tmp_path: Path) -> None:
    with FakeServer() as fake:
        path = given(tmp_path, fake.url)
        assert rlaif("generate", path).returncode == 0
    for name in ("run.yaml", "manifest.json"):
        file = tmp_path / "run" / name
        file.write_text(file.read_text().replace("http://127.", f"http://me:{PASSWORD}@127."))
    result = rlaif("report", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert PASSWORD not in (tmp_path / "run/report.html").read_text()


@pytest.mark.case("sec-15-deep-json-reply")
@pytest.mark.parametrize("depth", [MOST_LEVELS + 1, 5_000, 100_000])
def test_json_of_any_depth_is_a_value_error(depth: int) -> None:
    assert loads("[" * MOST_LEVELS + "]" * MOST_LEVELS)
    for opened, closed in (("[", "]"), ('{"a":', "}")):
        for text in (opened * depth + "1" + closed * depth, (opened * depth + "1" + closed * depth).encode()):
            with pytest.raises(ValueError, match="nested"):
                loads(text)
    assert loads("[" + "[]," * 5000 + "[]]") and loads('"' + "[" * 5000 + '"')
    with pytest.raises(ValueError, match="thousands of digits"):
        loads("9" * 5000)


@pytest.mark.case("sec-15-deep-json-reply")
def test_a_deep_manifest_is_one_line_that_names_it(tmp_path: Path) -> None:
    with FakeServer() as fake:
        assert rlaif("generate", given(tmp_path, fake.url)).returncode == 0
    manifest = tmp_path / "run/manifest.json"
    manifest.write_text('{"constitution":' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(UserError, match=r"manifest\.json: this is not the manifest of a run"):
        read_provenance(tmp_path / "run")
    run = tmp_path / "run"
    for words in (("report", run), ("data", "export", run, tmp_path / "to"), ("constitution", "coverage", run)):
        result = rlaif(*words)
        assert "Traceback" not in result.stderr and result.returncode in (0, 1, 2), result.stderr
    (run / "run.yaml").write_text("judge: " + "[" * 5_000 + "]" * 5_000)
    assert "Traceback" not in rlaif("report", run).stderr


@pytest.mark.case("sec-31-ctrl-c-while-a-model-loads")
@pytest.mark.parametrize("presses", [1, 3])
def test_ctrl_c_waits_for_no_model_that_is_being_loaded(tmp_path: Path, presses: int) -> None:
    """The model takes a minute to load here, in a thread, as large weights do."""
    slow = "import sys, time, rlaif.inference.transformers_model as local\n"
    slow += "local.Local._load = lambda self: (print('loading', flush=True), time.sleep(60))\n"
    slow += "from rlaif.cli.main import main\nsys.argv = ['rlaif', 'generate', 'run.yaml']\nmain()\n"
    (tmp_path / "slow.py").write_text(slow)
    given(tmp_path, "http://unused.test/v1", judge={"model": "demo-judge", "base_url": None})
    run = subprocess.Popen(
        [command()[0], "slow.py"], cwd=tmp_path, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.stdout is not None
    while "loading" not in (line := run.stdout.readline()):
        assert line, run.communicate()
    start = time.monotonic()
    for _ in range(presses):
        os.kill(run.pid, signal.SIGINT)
        time.sleep(0.05)
    _, told = run.communicate(timeout=30)
    assert run.returncode == 130 and time.monotonic() - start < 5
    assert "Interrupted. What was answered is kept" in told and "Traceback" not in told
