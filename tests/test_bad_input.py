"""What people get wrong: each mistake is one line that says what, where and how to fix it, and exit code 2."""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rlaif.cli.main import main
from tests.fakes import FakeServer
from tests.support import write_run

GOOD_PRINCIPLE = "  - {id: kind, compare: 'Which reply is kinder?'}\n"


@dataclass(frozen=True)
class Case:
    """A mistake, and fragments that the one line about it must hold: what, where, and how to fix it."""

    name: str
    says: tuple[str, ...]
    run: str | bytes | None = None
    """Replaces run.yaml; or a replacement `old -> new` in it."""
    files: dict[str, str | bytes] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    command: str = "generate"
    code: int = 2
    prepare: Callable[[Path], None] = lambda folder: None


def changed(old: str, new: str) -> str:
    return f"{old}\x00{new}"


def constitution(text: str | bytes) -> dict[str, str | bytes]:
    return {"c.yaml": text}


C = changed("constitution: harmless", "constitution: c.yaml")
HEAD = "name: c\nprinciples:\n"


def lock_out(folder: Path) -> None:
    (folder / "run").write_text("a file where the run folder should be")


def unreadable_record(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run/samples.jsonl").write_text('{"id":"zz"}\n')


CASES = [
    # The run file
    Case("no run file", ("missing.yaml", "no such file"), args=("missing.yaml",)),
    Case("run file is a folder", ("is a folder",), args=(".",)),
    Case("empty run file", ("run.yaml", "empty"), run=""),
    Case("run file is a list", ("run.yaml", "mapping"), run="- a\n- b\n"),
    Case("yaml syntax", ("run.yaml:3", "bracket"), run="constitution: harmless\nprompts: [a, b\njudge: {model: x}\n"),
    Case("yaml tab", ("run.yaml:2", "tab"), run="judge:\n\tmodel: x\n"),
    Case("duplicate key", ("run.yaml", "twice"), run=changed("prompts:", "output: x\nprompts:")),
    Case("utf-16 run file", ("run.yaml", "UTF-8"), run="constitution: harmless\n".encode("utf-16")),
    Case("latin-1 run file", ("run.yaml", "UTF-8"), run="constitution: härmless\n".encode("latin-1")),
    Case("unknown key", ("unknown key `jugde`", "did you mean `judge`"), run=changed("judge:", "jugde:")),
    Case("unknown inner key", ("`samplse`", "did you mean `samples`"), run=changed("samples:", "samplse:")),
    Case("missing key", ("output",), run=changed("output:", "# output:")),
    Case("wrong type", ("policy.samples", "whole number", "four"), run=changed("samples: 4", "samples: four")),
    Case("out of range", ("policy.samples",), run=changed("samples: 4", "samples: 0")),
    Case("bad choice", ("compare.orders", "`both`"), run=changed("output:", "compare: {orders: bth}\noutput:")),
    Case("bad flag value", ("--policy-temperature", "hot"), args=("run.yaml", "--policy-temperature", "hot")),
    Case("unknown flag", ("--policy-sampels",), args=("run.yaml", "--policy-sampels", "3")),
    Case("bad url", ("base_url", "http://"), args=("run.yaml", "--judge-base-url", "localhost:8000")),
    Case("url and launch", ("launch", "exclude"), args=("run.yaml", "--judge-launch", "vllm")),
    Case("bad clamp", ("compare.clamp", "[0.4, 0.6]"), run=changed("output:", "compare: {clamp: [0.6, 0.4]}\noutput:")),
    Case("key not set", ("NO_KEY", "not set", "export"), args=("run.yaml", "--judge-api-key-env", "NO_KEY")),
    Case("unknown command", ("genrate", "did you mean `generate`"), command="genrate"),
    # The constitution
    Case("unknown constitution", ("harmles", "did you mean `harmless`"), run=changed("harmless", "harmles")),
    Case("missing constitution", ("c.yaml",), run=C),
    Case("empty constitution", ("c.yaml", "empty"), run=C, files=constitution("")),
    Case("no principles", ("c.yaml", "principles"), run=C, files=constitution("name: c\nprinciples: []\n")),
    Case("principle key", ("c.yaml:3", "critque", "did you mean `critique`"), run=C,
         files=constitution(HEAD + "  - {id: kind, compare: 'Kinder?', critque: x}\n")),
    Case("duplicate id", ("c.yaml:4", "kind"), run=C, files=constitution(HEAD + GOOD_PRINCIPLE * 2)),
    Case("blank text", ("c.yaml:3", "compare", "empty"), run=C,
         files=constitution(HEAD + "  - {id: kind, compare: '  '}\n")),
    Case("negative weight", ("c.yaml:3", "weight"), run=C,
         files=constitution(HEAD + "  - {id: kind, compare: 'Kinder?', weight: -1}\n")),
    Case("weight in words", ("c.yaml:3", "weight", "number", "high"), run=C,
         files=constitution(HEAD + "  - {id: kind, compare: 'Kinder?', weight: high}\n")),
    Case("critique wanted", ("kind", "critique"), run=C, files=constitution(HEAD + GOOD_PRINCIPLE),
         args=("run.yaml", "--compare-critique", "true")),
    # The prompts
    Case("missing prompts", ("nowhere.jsonl",), args=("run.yaml", "--prompts", "nowhere.jsonl")),
    Case("empty prompts", ("prompts.jsonl", "empty"), files={"prompts.jsonl": ""}),
    Case("broken line", ("prompts.jsonl:2", "JSON"), files={"prompts.jsonl": '{"prompt": "a"}\n{"prompt": \n'}),
    Case("utf-16 prompts", ("prompts.jsonl", "UTF-8"), files={"prompts.jsonl": '{"prompt": "a"}\n'.encode("utf-16")}),
    Case("latin-1 prompts", ("prompts.jsonl", "UTF-8"), files={"prompts.jsonl": '{"prompt": "ä"}'.encode("latin-1")}),
    Case("huge line", ("prompts.jsonl:1",), files={"prompts.jsonl": json.dumps({"prompt": "a" * 11_000_000}) + "\n"}),
    Case("missing column", ("prompts.jsonl", "question", "column"), files={"prompts.jsonl": '{"question": "a"}\n'}),
    Case("named column missing", ("ask", "prompt"), args=("run.yaml", "--prompts-column", "ask")),
    Case("only blank prompts", ("prompts.jsonl", "prompt"), files={"prompts.jsonl": '{"prompt": " "}\n'}),
    Case("only wrong types", ("prompts.jsonl", "prompt"), files={"prompts.jsonl": '{"prompt": 5}\n'}),
    Case("not gzip", ("p.jsonl.gz",), files={"p.jsonl.gz": "plain"}, args=("run.yaml", "--prompts", "p.jsonl.gz")),
    Case("cut gzip", ("p.jsonl.gz",), files={"p.jsonl.gz": gzip.compress(b'{"prompt": "a"}\n' * 999, mtime=0)[:-20]},
         args=("run.yaml", "--prompts", "p.jsonl.gz")),
    Case("not parquet", ("p.parquet",), files={"p.parquet": "plain"}, args=("run.yaml", "--prompts", "p.parquet")),
    Case("nothing to judge", ("policy", "prompts.responses"), run=changed("policy:", "# policy:")),
    Case("no such answers", ("answers",), args=("run.yaml", "--prompts-responses", "answers")),
    # The models
    Case("unknown model", ("fakee", "did you mean `fake`"), args=("run.yaml", "--judge-model", "fakee")),
    Case("unreachable", ("127.0.0.1:9", "not reachable"), code=1,
         args=("run.yaml", "--policy-base-url", "http://127.0.0.1:9/v1")),
    Case("no model folder", ("weights", "config.json"),
         run=changed("judge:", "judge: {model: ./weights}\n#")),
    Case("unknown local model", ("demo-juge",), files={"j.yaml": ""},
         run=changed("judge:", "judge: {model: demo-juge}\n#")),
    # The output
    Case("output is a file", ("run", "cannot write"), prepare=lock_out),
    Case("output in nowhere", ("/proc/nowhere", "cannot write"), args=("run.yaml", "--output", "/proc/nowhere")),
    Case("broken table", ("samples.jsonl:1",), prepare=unreadable_record, code=1),
    # Other commands
    Case("preview of nothing", ("-n",), command="preview", args=("run.yaml", "-n", "0")),
    Case("init over files", ("run.yaml", "already there"), command="init", args=(".",)),
    Case("init of nothing", ("harmles", "did you mean"), command="init", args=("new", "--constitution", "harmles")),
]  # fmt: skip


@pytest.fixture(scope="module")
def server() -> FakeServer:
    with FakeServer() as fake:
        yield fake


def lay_out(case: Case, folder: Path, url: str) -> None:
    """A good run, with the mistake put in."""
    path = write_run(folder, url)
    # One setting a line, as a person writes it, so that line numbers mean something.
    path.write_text(
        "constitution: harmless\nprompts: prompts.jsonl\n"
        f"policy: {{model: fake, base_url: '{url}', samples: 4}}\n"
        f"judge: {{model: fake, base_url: '{url}'}}\noutput: run\n"
    )
    if isinstance(case.run, str) and "\x00" in case.run:
        old, new = case.run.split("\x00")
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    elif case.run is not None:
        path.write_bytes(case.run if isinstance(case.run, bytes) else case.run.encode())
    for name, content in case.files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    case.prepare(folder)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_one_line_and_an_exit_code(
    case: Case,
    server: FakeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    lay_out(case, tmp_path, server.url)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "argv", ["rlaif", case.command, *(case.args or ("run.yaml",))])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capfd.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("Error:")]
    assert ended.value.code == case.code, said
    assert len(errors) == 1, said
    assert "Traceback" not in said
    for fragment in case.says:
        assert fragment in errors[0]


def test_there_are_forty() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 40


def test_check_tells_everything_at_once(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_run(tmp_path, server.url)
    path.write_text(path.read_text().replace("samples: 4", "samples: four").replace("max_tokens", "max_token"))
    monkeypatch.setattr(sys, "argv", ["rlaif", "check", "run.yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capfd.readouterr().err
    assert ended.value.code == 2
    assert re.search(r"run.yaml:\d+: .*four", said)
    assert re.search(r"run.yaml:\d+: .*max_token", said)
    assert "2 problems" in said
    assert not (tmp_path / "run").exists()


def test_a_good_run_passes_the_check(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, server.url)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rlaif", "check", "run.yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capfd.readouterr()
    assert ended.value.code == 0, said.err
    assert "exact label log-probabilities" in said.out
    assert not (tmp_path / "run").exists()
