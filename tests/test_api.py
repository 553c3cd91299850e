"""The functions of `rlaif`: as the commands, in a running event loop too, with mistakes in a line."""

from __future__ import annotations

import asyncio
import doctest
import importlib
import json
import pkgutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import rlaif
from rlaif.config.run_file import load_run
from rlaif.training.folder import TrainState
from tests.fakes import FakeServer
from tests.readme import prepare
from tests.support import environment, lines, write_run

FUNCTIONS = [name for name in rlaif.__all__ if isinstance(getattr(rlaif, name), types.FunctionType)]
OURS = [name for name in FUNCTIONS if name != "load_constitution"]
SLOW = {"run_workflow"}
PARTS = [("Thank you, I will gladly help.", "Go away."), ("I am sorry; here is how.", "You are an idiot.")]
ASKED = ("boil eggs", "learn the guitar", "clean an oven", "make good coffee", "pack a suitcase", "win at chess")

LOOP = """
constitution: demo
prompts: prompts.jsonl
policy: {model: demo-policy, samples: 4, max_tokens: 96}
judge: {model: demo-judge}
compare: {principles: all}
pair: {select: all}
output: runs/loop
train:
  dpo: {learning_rate: 2.0e-4, max_steps: 2, holdout: 0}
evaluate: {prompts: prompts.jsonl, max_tokens: 96, compare: {principles: all}, grades: false}
"""


def rows(path: Path, found: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))


def parts(name: str) -> list[Any]:
    return [pytest.mark.slow] if name in SLOW else []


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the examples run: data of a run, a reward model, and a few files."""
    folder = tmp_path_factory.mktemp("world")
    prepare(folder)
    asked = [f"How do I {what}?" for what in ASKED]
    gold = [{"prompt": each, "chosen": good, "rejected": bad} for each in asked for good, bad in PARTS]
    rows(folder / "gold.jsonl", gold)
    rows(folder / "prompts.jsonl", [{"prompt": f"{each} {at}"} for each in asked[:4] for at in "ab"])
    answers = [{"prompt": f"{each} {at}", "response": "Go away."} for each in asked[:4] for at in "ab"]
    rows(folder / "answers.jsonl", answers)
    (folder / "loop.yaml").write_text(LOOP)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        example("generate")
        rlaif.train(
            "reward", model="demo-policy", data="gold.jsonl", output="models/reward", max_steps=2, holdout=0, quiet=True
        )
    return folder


@pytest.fixture
def within(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(world)
    return world


def example(name: str) -> None:
    """Run the example of a function's docstring, and compare what it shows."""
    test = doctest.DocTestParser().get_doctest(getattr(rlaif, name).__doc__, {}, name, None, 0)
    assert test.examples
    told: list[str] = []
    doctest.DocTestRunner().run(test, out=told.append)
    assert told == [], "".join(told)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [pytest.param(name, marks=parts(name)) for name in OURS])
def test_the_example_of_every_function_runs(within: Path, name: str) -> None:
    example(name)


def test_importing_loads_nothing() -> None:
    """Not pydantic, and of our own modules none; nor does asking what there is."""
    code = "import rlaif, sys; assert 'train' in dir(rlaif); print(sorted(n for n in sys.modules if "
    code += "n.split('.')[0] in ('torch', 'pydantic', 'yaml', 'click', 'rich') or n.startswith('rlaif.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.stdout.strip() == "[]", done.stderr


def test_every_name_is_there_and_none_is_a_module() -> None:
    """Importing a module of the package would put it where the function of its name was."""
    assert len(FUNCTIONS) == 9
    inside = {each.name for each in pkgutil.iter_modules(rlaif.__path__)}
    assert inside & set(rlaif.__all__) == set()
    assert set(rlaif.__all__) <= set(dir(rlaif))
    listed = [name for names in rlaif._PLACES.values() for name in names]
    assert sorted(listed) == rlaif.__all__
    assert importlib.import_module("rlaif.feedback.run").Run and not hasattr(rlaif, "trian")


def call(path: Path, url: str, **more: Any) -> rlaif.Generated:
    return rlaif.generate(write_run(path, url), quiet=True, **more)


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


def test_keywords_are_the_flags(fake: FakeServer, tmp_path: Path) -> None:
    """By single names and by mappings, the settings that are kept are those of the command with its flags."""
    path = write_run(tmp_path, fake.url)
    flags: dict[tuple[str, ...], Any] = {
        ("policy", "samples"): "2", ("prompts", "limit"): "3", ("compare", "principles"): "all",
        ("judge", "template_options"): "{enable_thinking: false}",
    }  # fmt: skip
    wanted = load_run(path, flags)
    options = {"enable_thinking": False}
    rlaif.generate(path, policy_samples=2, prompts_limit=3, compare_principles="all", quiet=True,
                   judge_template_options=options)  # fmt: skip
    assert load_run(tmp_path / "run/run.yaml") == wanted
    done = rlaif.generate(
        path, policy={"samples": 2}, prompts={"limit": 3}, compare={"principles": "all"}, quiet=True,
        judge={"template_options": options},
    )  # fmt: skip
    assert load_run(tmp_path / "run/run.yaml") == wanted
    assert (done.counts["samples"], done.report.tallies[0].asked) == (6, 0)  # the second call asked nothing


def test_flags_are_read_like_the_file(fake: FakeServer, tmp_path: Path) -> None:
    """A list or a mapping by the YAML of the file, where `no` is a word; a text stays a text."""
    flags: dict[tuple[str, ...], Any] = {
        ("judge", "template_options"): "{effort: no, thinking: false}", ("policy", "system"): "[Be brief]",
        ("revise", "sft_rounds"): "[1, 2]",
    }  # fmt: skip
    found = load_run(write_run(tmp_path, fake.url), flags)
    (judge,) = found.judges
    assert judge.template_options == {"effort": "no", "thinking": False}
    assert found.policy.system == "[Be brief]"
    assert found.revise.sft_rounds == (1, 2)


def test_a_keyword_goes_before_the_environment_and_that_before_the_file(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLAIF_POLICY_SAMPLES", "2")
    monkeypatch.setenv("RLAIF_PROMPTS_LIMIT", "3")
    assert call(tmp_path, fake.url).counts["samples"] == 6
    assert call(tmp_path, fake.url, policy_samples=3, stages=["sample"]).counts == {}
    assert len(lines(tmp_path / "run/samples.jsonl")) == 9


def test_without_a_file_a_panel_and_a_constitution_of_ones_own(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows(tmp_path / "asked.jsonl", [{"prompt": "Why?", "answers": ["So.", "Because it is.", "Ask me later."]}])
    own = rlaif.Constitution(name="own", principles=(rlaif.Principle(id="brief", compare="Which reply is brief?"),))
    with FakeServer(model="other") as other:
        done = rlaif.generate(
            constitution=own, prompts="asked.jsonl", prompts_responses="answers", output="out", pair_margin=0.0,
            judge=[{"model": "fake", "base_url": fake.url}, {"model": "other", "base_url": other.url, "weight": 2}],
            quiet=True,
        )  # fmt: skip
    assert done.counts["judgements"] == 2 * 2 * 3  # judges, orders, pairs of three answers
    saved = load_run(tmp_path / "out/run.yaml")
    assert [judge.weight for judge in saved.judges] == [1, 2]
    assert (saved.prompts.path, saved.constitution) == (
        str(tmp_path / "asked.jsonl"),
        f"{tmp_path}/out/constitution.yaml",
    )
    assert rlaif.load_constitution(saved.constitution) == own
    assert {row["constitution"] for row in done.pairs()} == {f"own@{own.hash[:12]}"}


def test_pairs_are_those_on_disk_now(fake: FakeServer, tmp_path: Path) -> None:
    """Also where there are none, which is a dataset without rows."""
    run = call(tmp_path, fake.url)
    pairs = run.pairs()
    assert [row["id"] for row in pairs] == [row["id"] for row in lines(tmp_path / "run/pairs.jsonl")]
    assert len(pairs) == run.counts["pairs"] > 0
    strict = call(tmp_path, fake.url, pair_margin=0.49)
    assert len(strict.pairs()) == strict.counts["pairs"] < len(pairs)
    none = call(tmp_path, fake.url, pair_margin=0.499999)
    assert (none.counts["pairs"], len(none.pairs()), none.pairs().column_names) == (0, 0, pairs.column_names)
    with pytest.raises(rlaif.UserError, match=r'sft\.jsonl.*revise=\{"enabled": True\}'):
        none.sft()


def test_everything_works_in_a_running_event_loop(fake: FakeServer, tmp_path: Path) -> None:
    """As in a notebook, where `asyncio.run` raises."""
    judge = {"model": "fake", "base_url": fake.url}
    pairs = [{"prompt": f"What is {at}?", "chosen": f"It is {at}.", "rejected": f"Guess {at}."} for at in range(8)]
    rows(tmp_path / "gold.jsonl", pairs)
    rows(tmp_path / "answers.jsonl", [{"prompt": row["prompt"], "response": row["rejected"]} for row in pairs])

    async def cell() -> tuple[int, Any, Any]:
        run = call(tmp_path, fake.url, judge=fake.url)  # the name is asked of the server
        one = rlaif.evaluate_judge(judge=judge, gold=tmp_path / "gold.jsonl", output=tmp_path / "judges",
                                   plots=False, canaries=False, quiet=True)  # fmt: skip
        two = rlaif.evaluate_policies(
            f"served={fake.url}#fake", against=f"given={tmp_path}/answers.jsonl", prompts=tmp_path / "answers.jsonl",
            judge=judge, output=tmp_path / "policies", plots=False, grades=False, quiet=True,
        )  # fmt: skip
        return run.counts["pairs"], one.report.measures, two.report

    made, measures, report = asyncio.run(cell())
    assert (made, measures.pairs) == (10, 8)
    assert (report.baseline, report.matches[0].policy, report.matches[0].compared) == ("given", "served", 8)


def test_nothing_is_printed(fake: FakeServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing at all with `quiet`; else only progress, on standard error."""
    path = write_run(tmp_path, fake.url)
    rlaif.generate(path, quiet=True)
    rlaif.write_report(tmp_path / "run", quiet=True)
    assert capfd.readouterr() == ("", "")
    rlaif.generate(path)
    out, err = capfd.readouterr()
    assert out == "" and "compare: 0 answered" in err


MISTAKES: list[tuple[Callable[[], Any], str]] = [
    (lambda: rlaif.generate("run.yaml", policy_sample=3),
     "generate(): no setting `policy_sample`; did you mean `policy_samples`?"),
    (lambda: rlaif.generate("run.yaml", quite=True), "generate(): no setting `quite`; did you mean `quiet`?"),
    (lambda: rlaif.generate("run.yaml", policy={"smples": 3}),
     "policy.smples: unknown key `smples` in `policy`; did you mean `samples`?"),
    (lambda: rlaif.generate("run.yaml", policy_samples=0),
     "policy_samples: `policy.samples` must be at least 1, got 0"),
    (lambda: rlaif.generate("run.yaml", stages=["pairs"]), "stages: `pairs` is not known; did you mean `pair`?"),
    (lambda: rlaif.generate(constitution="demo", prompts="x", judge="demo-judge"), "generate(): `output` is missing"),
    (lambda: rlaif.generate("nowhere.yaml"), "nowhere.yaml: no such file"),
    (
        lambda: rlaif.run_workflow("run.yaml", train={"dpo": {}}),
        "run_workflow(): no setting `train`; it is set in the file",
    ),
    (lambda: rlaif.train("dop"), "train(): `dop` is not known; did you mean `dpo`?"),  # type: ignore[arg-type]
    (lambda: rlaif.train("dpo", model="m", data="d", output="o", betta=1),
     'train("dpo"): no setting `betta`; did you mean `beta`?'),
    (lambda: rlaif.train("dpo", model="m", data="d", output="o", lora={"rank": 0}),
     "lora.rank: `lora.rank` must be at least 1, got 0"),
    (lambda: rlaif.score("m", ["text"]),  # type: ignore[list-item]
     'data:1: is no row but str; for instance [{"prompt": "...", "response": "..."}]'),
    (lambda: rlaif.score("m", "f", tmplate="chat"),  # type: ignore[call-arg]
     "score(): no keyword `tmplate`; did you mean `template`?"),
    (lambda: rlaif.score("m", "f", template="chta"),  # type: ignore[arg-type]
     "template: `chta` is not known; did you mean `chat`?"),
    (lambda: rlaif.evaluate_judge(gold="g", judge="demo-judge", principles="al"),  # type: ignore[arg-type]
     "principles: `principles` must be one of `one`, `each`, `all`, got 'al'; did you mean `all`?"),
    (lambda: rlaif.evaluate_judge(gold="g", judge={"model": "x", "timout": 3}),
     "judge.timout: unknown key `timout`; did you mean `timeout`?"),
    (lambda: rlaif.evaluate_judge(gold="g", judge="x", run="run.yaml"),
     "run: takes the judge from the run file; leave `judge` out"),
    (lambda: rlaif.evaluate_judge(gold="g"),
     'judge: does not say which judge; for instance judge="demo-judge", or run="run.yaml"'),
    (lambda: rlaif.evaluate_policies("demo-policy", against="demo-policy", judge="x", prompts="p"),
     "against: two policies are called `demo-policy` (demo-policy and demo-policy); give them names: "
     "first=demo-policy second=demo-policy"),
    (lambda: rlaif.evaluate_policies("a", against="b", judge="x"),
     "evaluate_policies(): does not say what the policies answer; add prompts=FILE"),
    (lambda: rlaif.evaluate_reward("m"),
     "evaluate_reward(): there is nothing to evaluate on; give `gold`, `policy` with `prompts`, or `responses`"),
    (lambda: rlaif.evaluate_reward("m", gold="g", judge="demo-judge"),
     "judge: goes with `policy`, or with `responses`; leave it out, or give either"),
    (lambda: rlaif.evaluate_reward("m", gold="g", samples=4),
     "samples: goes with `policy`, or with `responses`; leave it out, or give either"),
    (lambda: rlaif.evaluate_reward("m", gold="g", limit=0), "limit: must be at least 1, got 0"),
    (lambda: rlaif.evaluate_judge(gold="g", judge="x", limit=0), "limit: must be at least 1, got 0"),
]  # fmt: skip


@pytest.mark.parametrize(("mistake", "told"), MISTAKES)
def test_mistakes_are_told_in_a_line(
    mistake: Callable[[], Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, "http://127.0.0.1:9/v1")
    with pytest.raises(rlaif.UserError) as error:
        mistake()
    assert str(error.value) == told


def test_scores_are_rows_in_their_order(within: Path) -> None:
    """By hand: three responses of two rows, the blank one without a reward; a file gives the same."""
    given: list[dict[str, Any]] = [
        {"prompt": "Why?", "responses": ["So.", " "]},
        {"prompt": "How?", "responses": ["Like this."]},
    ]
    found = rlaif.score("models/reward", given, quiet=True)
    assert [(row["prompt"], row["response"], row["reward"] is None) for row in found] == [
        ("Why?", "So.", False), ("Why?", " ", True), ("How?", "Like this.", False),
    ]  # fmt: skip
    rows(within / "given.jsonl", given)
    again = rlaif.score("models/reward", "given.jsonl", output="rewards.jsonl", quiet=True)
    assert [row["reward"] for row in again] == [row["reward"] for row in found]
    assert lines(within / "rewards.jsonl") == again
    with pytest.raises(rlaif.UserError, match=r"^data"):
        rlaif.score("models/reward", [{"prompt": "Why?"}], quiet=True)


def test_a_training_takes_groups_and_goes_on_only_when_told(within: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "model": "demo-policy", "data": "gold.jsonl", "output": tmp_path / "m", "max_steps": 1, "holdout": 0,
        "quiet": True,
    }  # fmt: skip
    done = rlaif.train("sft", lora={"rank": 2, "alpha": 3}, **given)
    assert (done.steps, done.finished) == (1, True)
    kept = TrainState.model_validate_json((tmp_path / "m/train.json").read_text())
    assert kept.settings["lora"] == {"rank": 2, "alpha": 3.0, "dropout": 0.0, "targets": [], "merge": False}
    (tmp_path / "m/metrics.json").unlink()  # as if it had been stopped
    with pytest.raises(rlaif.UserError, match=r"go on with `resume=True`, or remove it$"):
        rlaif.train("sft", lora_rank=2, lora_alpha=3, **given)


def test_the_device_goes_for_every_model_of_an_evaluation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As `rlaif evaluate reward --device cpu`; what a model's own settings say goes before it."""
    seen: list[str] = []
    monkeypatch.setattr("rlaif.inference.models.LazyModel", lambda settings, **_: seen.append(settings.device))
    monkeypatch.setattr("rlaif.api.evaluate.blocking", lambda work, *_: work.close())
    monkeypatch.setattr("rlaif.evaluation.reward_scores.identity", lambda *_, **__: "rm@1")
    given: dict[str, Any] = {"prompts": "p.jsonl", "output": tmp_path, "quiet": True, "device": "cpu"}
    rlaif.evaluate_reward("rm", policy="demo-policy", judge="demo-judge", **given)
    own = {"model": "demo-judge", "device": "auto"}
    rlaif.evaluate_reward("rm", policy={"model": "demo-policy"}, judge=own, **given)
    assert seen == ["cpu", "cpu", "cpu", "auto"]
