"""`rlaif evaluate judge` as a process, on the fake server, on real data, and in the tiny world."""

from __future__ import annotations

import asyncio
import importlib
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.cli.evaluate import evaluate
from rlaif.cli.main import LazyGroup
from rlaif.config.schemas import CompareSettings
from rlaif.errors import ModelError, UserError
from rlaif.inference.models import only_model
from rlaif.inference.requests import ServerConnection
from rlaif.stats import sigmoid
from tests.conftest import Served
from tests.fakes import FakeServer, Trouble, unit
from tests.support import DATA, command, environment, lines, rlaif, write_run

HHH = DATA / "constitutional-ai/438HHHEvaluations.jsonl"


def write_pairs(path: Path, count: int, *, wrong: bool = False) -> Path:
    """Pairs that the fake decides clearly: by its own merit the better reply is over 0.7 and the worse under 0.3."""
    texts = [f"A reply of number {at}{', at length' * (at % 5)}." for at in range(12 * count)]
    good = [text for text in texts if unit("merit", text) > 0.7][:count]
    poor = [text for text in texts if unit("merit", text) < 0.3][:count]
    rows = [
        {"prompt": f"Question {at}?", "chosen": better, "rejected": worse}
        for at, (better, worse) in enumerate(zip(poor if wrong else good, good if wrong else poor, strict=True))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluated(*arguments: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return rlaif("evaluate", "judge", *arguments, cwd=cwd, **env)


@pytest.mark.slow
def test_exit_codes_and_what_is_told(tmp_path: Path) -> None:
    gold, wrong = write_pairs(tmp_path / "gold.jsonl", 120), write_pairs(tmp_path / "wrong.jsonl", 120, wrong=True)
    with FakeServer() as fake:
        judge = ("--judge", "fake", "--base-url", fake.url, "--no-plots", "--no-canaries")
        fit = evaluated("--gold", gold, *judge, cwd=tmp_path)
        asked = fake.asked.total()
        doubtful = evaluated("--gold", gold, *judge, "--limit", 50, cwd=tmp_path)
        assert fake.asked.total() == asked, "the second call asks nothing"
        unfit = evaluated("--gold", wrong, *judge, "--format", "json", cwd=tmp_path)
    assert fit.returncode == 0, fit.stderr
    assert "\nFIT\n" in fit.stdout and "120 of 120" in fit.stdout
    assert "accuracy              100.0% (96.9% to 100.0%)" in fit.stdout
    assert "first slot wins     50.0% (50.0% to 50.0%)  by construction" in fit.stdout
    assert "240 calls, 0 cached" in fit.stdout
    assert doubtful.returncode == 3, doubtful.stderr
    assert "\nDOUBTFUL\n  doubtful: only 50 pairs" in doubtful.stdout
    assert "0 calls, 100 cached" in doubtful.stdout
    assert unfit.returncode == 4, unfit.stderr
    told = json.loads(unfit.stdout)
    assert (told["verdict"]["level"], told["measures"]["accuracy"]["value"]) == ("unfit", 0.0)
    (path,) = (tmp_path / "runs/judges").glob("fake-*-wrong-*.json")
    assert json.loads(path.read_text()) == told
    assert told["about"]["gold_sha256"] and told["about"]["constitution"] == "helpful-honest-harmless-concise"


def test_a_url_is_enough(tmp_path: Path) -> None:
    gold = write_pairs(tmp_path / "gold.jsonl", 4)
    with FakeServer(api_key="s3cret") as fake:
        flags = ("--judge", fake.url, "--gold", gold, "--api-key-env", "KEY", "--no-plots", "--canary-pairs", 2)
        done = evaluated(*flags, cwd=tmp_path, KEY="s3cret")
        wrong = evaluated(*flags, cwd=tmp_path, KEY="other")
        other = evaluated(*flags, "--model", "absent", cwd=tmp_path, KEY="s3cret")
    assert done.returncode in (3, 4), done.stderr  # four pairs prove nothing
    assert done.stdout.startswith("fake by `helpful-honest-harmless-concise`")
    assert "off-topic reply" in done.stdout
    assert wrong.returncode == 2 and "s3cret" not in wrong.stderr + wrong.stdout
    assert other.returncode == 2 and "does not serve a model called `absent`" in other.stderr


@pytest.mark.slow
def test_a_run_file_and_what_generate_says_of_its_judge(tmp_path: Path) -> None:
    gold = write_pairs(tmp_path / "gold.jsonl", 120)
    with FakeServer() as fake:
        run = write_run(tmp_path, fake.url, compare={"principles": "all"}, pair={"min_label_mass": 0.3})
        before = rlaif("generate", run, cwd=tmp_path)
        flags = ("--run", run, "--gold", gold, "--no-canaries", "--format", "json")
        fit = evaluated(*flags, cwd=tmp_path)
        between = rlaif("generate", run, cwd=tmp_path)
        doubtful = evaluated(*flags, "--limit", 30, "--principles", "one", cwd=tmp_path)
        after = rlaif("generate", run, cwd=tmp_path)
        sampling = rlaif("sample", run, cwd=tmp_path)
    assert before.returncode == between.returncode == after.returncode == 0, before.stderr
    assert "note: runs/judges has no evaluation of fake by this constitution" in before.stderr
    assert fit.returncode == 0, fit.stderr
    told = json.loads(fit.stdout)
    assert (told["about"]["constitution"], told["about"]["compare"]["principles"]) == ("harmless", "all")
    assert told["measures"]["mass"]["least"] == 0.3
    assert [group["name"] for group in told["measures"]["principles"]] == ["*"]
    assert [line for line in between.stderr.splitlines() if "note:" in line and "own family" not in line] == []
    assert doubtful.returncode == 3
    assert json.loads(doubtful.stdout)["about"]["compare"]["principles"] == "one"
    assert "the judge fake is doubtful: only 30 pairs" in after.stderr
    assert "note:" not in sampling.stderr


def test_the_temperature_of_a_run_changes_labels_and_asks_nothing(tmp_path: Path) -> None:
    """The fake's labels are sigmoid(8 gap): at temperature 4 their log-odds are a quarter."""

    def probabilities() -> list[float]:
        return [row["raw_probability"] for row in lines(tmp_path / "run/pairs.jsonl")]

    with FakeServer() as fake:
        run = write_run(tmp_path, fake.url)
        assert rlaif("generate", run, cwd=tmp_path).returncode == 0
        before, journal = probabilities(), (tmp_path / "run/judgements.jsonl").read_bytes()
        asked = fake.asked.total()
        result = rlaif("generate", run, "--compare-temperature", 4, "--pair-margin", 0, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert fake.asked.total() == asked
    assert probabilities() == pytest.approx([sigmoid(math.log(p / (1 - p)) / 4) for p in before], abs=1e-9)
    assert (tmp_path / "run/judgements.jsonl").read_bytes() == journal


def test_a_failing_server(tmp_path: Path) -> None:
    """Refused questions leave pairs without a label; they are asked again by the next call."""
    gold = write_pairs(tmp_path / "gold.jsonl", 20)
    flags = ("--gold", gold, "--no-canaries", "--no-plots", "--judge", "fake", "--format", "json", "--base-url")
    with FakeServer(troubles=[Trouble("400", contains="Question 7?")]) as fake:
        told = json.loads(evaluated(*flags, fake.url, cwd=tmp_path).stdout)["measures"]
    assert (told["labelled"], told["no_label"]) == (19, {"failed": 1, "call bad_request": 2})
    assert told["accuracy"]["value"] == 1.0
    with FakeServer() as fake:
        again = evaluated(*flags, fake.url, cwd=tmp_path)
    assert "judge: 2 answered, 38 on disk already" in again.stderr
    assert json.loads(again.stdout)["measures"]["labelled"] == 20
    gone = evaluated("--gold", write_pairs(gold, 21), *flags[2:], "http://127.0.0.1:9/v1", cwd=tmp_path)
    assert gone.returncode == 1 and "not reachable" in gone.stderr


@pytest.mark.slow
def test_a_killed_evaluation_goes_on(tmp_path: Path) -> None:
    gold = write_pairs(tmp_path / "gold.jsonl", 60)
    with FakeServer(delay=0.05, batch=False, most_at_once=8) as fake:
        flags = ["evaluate", "judge", "--gold", gold, "--judge", "fake", "--base-url", fake.url, "--no-plots"]
        flags.append("--no-canaries")
        process = subprocess.Popen(command(*flags), env=environment(), cwd=tmp_path, stderr=subprocess.DEVNULL)
        while fake.answered.total() < 40 and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -9
        known = len((tmp_path / "runs/judges/judgements.jsonl").read_bytes().splitlines())
        assert 0 < known < 120
        assert [path.name for path in (tmp_path / "runs/judges").glob("*.json")] in ([], ["asking.json"])
        done = rlaif(*flags, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    left = int(done.stderr.partition("judge: ")[2].partition("judge: ")[2].split()[0])
    assert 120 - known <= left <= 121 - known, "at most a torn line is asked again"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--judge", "x"], "--gold"),
        (["--gold", "g.jsonl"], "name the judge with --judge"),
        (["--gold", "g.jsonl", "--judge", "x", "--run", "r.yaml"], "--run takes the judge"),
        (["--gold", "g.jsonl", "--judge", "x", "--model", "y"], "--judge-model goes with"),
        (["--gold", "g.jsonl", "--judge", "http://x", "--base-url", "http://x"], "--judge is a URL already"),
        (["--gold", "g.jsonl", "--judge", "x", "--base-url", "ftp://x"], "--base-url"),
        (["--gold", "g.jsonl", "--judge", "x", "--base-url", "http://x", "--launch", "vllm"], "exclude each other"),
        (["--gold", "g.jsonl", "--judge", "demo-judge", "--constitution", "harmles"], "did you mean `harmless`"),
        (["--gold", "absent.jsonl", "--judge", "demo-judge"], "absent.jsonl"),
        (["--gold", "odd.jsonl", "--judge", "demo-judge"], "gold pairs need the columns"),
        (["--gold", "g.jsonl", "--judge", "http://x", "--api-key-env", "NO_SUCH"], "`NO_SUCH` is not set"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: list[str], told: str) -> None:
    write_pairs(tmp_path / "g.jsonl", 2)
    (tmp_path / "odd.jsonl").write_text('{"prompt": "x"}\n')
    result = evaluated(*arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert told in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("names", [[], ["one", "two"]])
def test_a_server_with_several_models_or_none(monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    async def get(self: ServerConnection, path: str, *, timeout: float) -> dict[str, Any]:
        return {"data": [{"id": name} for name in names]}

    monkeypatch.setattr(ServerConnection, "get", get)
    with pytest.raises(UserError, match=f"lists {len(names)} models"):
        asyncio.run(only_model("http://judge.test/v1"))
    names[:] = ["only"]
    assert asyncio.run(only_model("http://judge.test/v1")) == "only"


def test_no_server() -> None:
    with pytest.raises(ModelError, match="not reachable"):
        asyncio.run(only_model("http://127.0.0.1:9/v1"))


def test_the_group_is_light_and_complete() -> None:
    assert isinstance(evaluate, LazyGroup)
    for name, entry in evaluate.entries.items():
        assert getattr(importlib.import_module(entry.module), entry.name).name == name
    code = "import sys; sys.argv = ['rlaif', 'evaluate', 'judge', '--help']\nfrom rlaif.cli.main import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "heavy = ('torch', 'transformers', 'datasets', 'matplotlib', 'rich', 'aiohttp')\n"
    code += "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert result.stderr.strip() == "[]"
    words = " ".join(result.stdout.split())
    assert "Exit codes: 0 the judge is fit, 3 doubtful, 4 unfit; 1 a model failed, 2 a mistake" in words


@pytest.mark.slow
def test_the_tiny_judge_is_out_of_its_depth_in_the_real_world(tmp_path: Path) -> None:
    if not HHH.exists():
        pytest.skip("the shared data is not here")
    flags = ("--judge", "demo-judge", "--constitution", "demo", "--gold", HHH, "--limit", 24, "--canary-pairs", 2)
    result = evaluated(*flags, cwd=tmp_path)
    assert result.returncode in (3, 4), result.stderr
    assert "24 of 24" in result.stdout


def write_tiny_gold(path: Path) -> Path:
    """Pairs from the tiny world's grammar whose better reply its oracle knows, each with the principle that decides."""
    from tools.train_demo_models.measure import comparisons

    rows = []
    for each in comparisons(20):
        better, worse = (each.first, each.second) if each.better == 1.0 else (each.second, each.first)
        rows.append({"prompt": each.prompt, "chosen": better, "rejected": worse, "principle": each.principle})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_judges_own_temperature_counts_as_in_a_run(tmp_path: Path) -> None:
    """Both are divided by: what is told for `compare.temperature` then leaves the judge's own as it is."""
    gold = write_tiny_gold(tmp_path / "gold.jsonl")
    told = []
    with FakeServer() as fake:
        for own, common in ((1, 1), (4, 1), (1, 4)):
            run: dict[str, Any] = {"constitution": "demo", "prompts": str(gold), "output": "run"}
            run |= {"judge": {"model": "fake", "base_url": fake.url, "temperature": own}}
            run |= {"compare": {"temperature": common}}
            (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
            flags = ("--gold", gold, "--limit", 20, "--no-canaries", "--no-plots", "--format", "json")
            told.append(json.loads(evaluated("--run", "run.yaml", *flags, cwd=tmp_path).stdout)["measures"])
    plain, by_judge, by_compare = (each["calibration"]["log_loss"] for each in told)
    assert by_judge == by_compare != plain
    # It is always right, so that the fit stops at its bound of 20, times what `compare.temperature` is.
    assert [each["temperature"]["temperature"] for each in told] == pytest.approx([20, 20, 80])


@pytest.mark.slow
def test_the_tiny_judge_is_fit_in_its_own_world(tmp_path: Path) -> None:
    """It is right, and less sure of it than it could be: with the temperature that is told, nothing is against it."""
    gold = write_tiny_gold(tmp_path / "gold.jsonl")
    judge = ("--judge", "demo-judge", "--constitution", "demo")
    result = evaluated(*judge, "--gold", gold, "--no-canaries", "--format", "json", cwd=tmp_path)
    assert result.returncode in (0, 3), result.stdout
    raw = json.loads(result.stdout)
    assert [each["text"] for each in raw["verdict"]["reasons"] if "calibration" not in each["text"]] == []
    temperature = raw["measures"]["temperature"]["temperature"]
    run: dict[str, Any] = {"constitution": "demo", "prompts": str(gold), "judge": {"model": "demo-judge"}}
    run |= {"compare": {"temperature": temperature}, "output": "run"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    flags = ("--run", "run.yaml", "--gold", gold, "--format", "json")
    fit = evaluated(*flags, "--no-canaries", cwd=tmp_path)
    assert fit.returncode == 0, fit.stdout
    assert "judge: 0 answered" in fit.stderr
    told = json.loads(fit.stdout)["measures"]
    assert told["pairs"] >= 100 and told["accuracy"]["low"] > 0.9
    assert len(told["principles"]) == 8
    assert told["calibration"]["error"] <= raw["measures"]["calibration"]["error"]
    with_canaries = json.loads(evaluated(*flags, "--canary-pairs", 8, cwd=tmp_path).stdout)["measures"]["canaries"]
    wins = {each["kind"]: each["wins"]["value"] for each in with_canaries if each["fenced"]}
    assert wins["empty reply"] <= 0.2 and wins["lone colon"] <= 0.2


@pytest.mark.server
def test_real_pairs_on_a_real_server(vllm: Served, tmp_path: Path) -> None:
    if not HHH.exists():
        pytest.skip("the shared data is not here")
    flags = ("--judge", vllm.base_url, "--constitution", "demo", "--gold", HHH, "--limit", 12, "--canary-pairs", 2)
    result = rlaif("evaluate", "judge", *flags, "--format", "json", cwd=tmp_path, timeout=300)
    assert result.returncode in (3, 4), result.stderr
    told = json.loads(result.stdout)
    assert told["about"]["judge"] == "demo-judge"
    assert told["measures"]["pairs"] == 12
    silent = told["measures"]["no_label"]
    assert told["measures"]["labelled"] + silent.get("unparsed", 0) + silent.get("failed", 0) == 12
    assert told["measures"]["cost"]["prompt_tokens"] > 0
    assert len({each["kind"] for each in told["measures"]["canaries"]}) == 10
    again = rlaif("evaluate", "judge", *flags, cwd=tmp_path, timeout=300)
    assert "judge: 0 answered, 24 on disk already" in again.stderr
    assert len(list((tmp_path / "runs/judges").glob("demo-judge-*-reliability.png"))) == 1


def test_yaml_of_the_told_temperature_is_a_setting() -> None:
    """The line that is told for the run file."""
    assert CompareSettings(**yaml.safe_load("compare: {temperature: 2.31}")["compare"]).temperature == 2.31
