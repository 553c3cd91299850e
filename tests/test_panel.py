"""Panels of judges over whole runs: what each is asked, what their answers come to, and what the manifest says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.analysis.coverage import coverage
from rlaif.cli.main import main
from rlaif.config.run_file import load_run
from rlaif.config.schemas import JudgeSettings, RunSettings
from rlaif.errors import UserError
from rlaif.feedback.pipeline import Report, Silent, compare, run_pipeline
from rlaif.feedback.run import open_run, require_different
from rlaif.inference.base import Output, Question
from rlaif.inference.models import LazyModel
from tests.fakes import FakeServer, Taste, Trouble, unit
from tests.support import lines, rlaif, write_run

CONTRARY = Taste(contrary=True)
MUMBLING = Taste(mass=0.2)


@contextlib.contextmanager
def bench(folder: Path, *tastes: Taste, **settings: Any) -> Iterator[tuple[Path, list[FakeServer]]]:
    """A run file whose judges `fake`, `fake-2`, ... have these tastes, and the servers that they are on."""
    with contextlib.ExitStack() as stack:
        names = [f"fake-{number}" if number > 1 else "fake" for number in range(1, len(tastes) + 1)]
        fakes = [stack.enter_context(FakeServer(model=n, taste=t)) for n, t in zip(names, tastes, strict=True)]
        judges = [{"model": fake.model, "base_url": fake.url} for fake in fakes]
        yield write_run(folder, fakes[0].url, judge=judges, **settings), fakes


def change(path: Path, *, keep: Sequence[int] | None = None, **values: Sequence[Any]) -> Path:
    """The run file with the judges `keep`, and with these settings of each."""
    run = yaml.safe_load(path.read_text())
    for key, of_judges in values.items():
        for judge, value in zip(run["judge"], of_judges, strict=True):
            judge[key] = value
    run["judge"] = [run["judge"][at] for at in keep or range(len(run["judge"]))]
    path.write_text(yaml.safe_dump(run))
    return path


def run(path: Path, stages: Sequence[str] | None = None) -> Report:
    return run_pipeline(load_run(path), stages) if stages else run_pipeline(load_run(path))


def asked(report: Report) -> dict[str, int]:
    return {tally.stage: tally.asked for tally in report.tallies}


def gap(pair: dict[str, Any]) -> float:
    """Log-odds of the usual judge that `chosen` is better."""
    chosen, rejected = (unit("merit", pair[side][0]["content"]) for side in ("chosen", "rejected"))
    return 8 * (chosen - rejected)


def probability(logit: float) -> Any:
    return pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-6)


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run/manifest.json").read_text())
    return found


def test_a_panel_of_one_is_a_judge(tmp_path: Path) -> None:
    with bench(tmp_path, Taste()) as (path, _):
        run(path)
        made = {name: (tmp_path / "run" / name).read_bytes() for name in ("pairs.jsonl", "rankings.jsonl", "run.yaml")}
        as_list = manifest(tmp_path)
        settings = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump({**settings, "judge": settings["judge"][0]}))
        assert asked(run(path)) == {"sample": 0, "compare": 0}
    assert {name: (tmp_path / "run" / name).read_bytes() for name in made} == made
    assert "panel" not in as_list
    assert as_list["judge"] == "fake"
    assert isinstance(as_list["settings"]["judge"], dict)
    assert lines(tmp_path / "run/pairs.jsonl")[0]["judge"] == "fake"


def test_every_judge_is_asked_the_same(tmp_path: Path) -> None:
    """Ten prompts, four samples, six pairs, two orders: 120 questions a judge."""
    with bench(tmp_path, Taste(), Taste(own=0.3, seed=1), Taste(own=0.3, seed=2)) as (path, fakes):
        report = run(path)
        assert asked(report) == {"sample": 40, "compare": 120, "compare by fake-2": 120, "compare by fake-3": 120}
        shown = [{key for key in fake.asked if "Reply A:" in key} for fake in fakes]
        assert len(shown[0]) == 120
        assert shown[0] == shown[1] == shown[2]
        before = [sum(fake.requests.values()) for fake in fakes]
        assert set(asked(run(path)).values()) == {0}
        assert set(asked(run(tmp_path / "run/run.yaml")).values()) == {0}
        assert [sum(fake.requests.values()) for fake in fakes] == before
    rows = lines(tmp_path / "run/judgements.jsonl")
    assert Counter(row["judge"] for row in rows) == {"fake": 120, "fake-2": 120, "fake-3": 120}
    assert len({row["id"] for row in rows}) == 360
    by_judge = {row["id"]: row["judge"] for row in rows}
    for pair in lines(tmp_path / "run/pairs.jsonl"):
        assert pair["judge"] == "fake + fake-2 + fake-3"
        assert [by_judge[key] for key in pair["judgements"]] == ["fake"] * 2 + ["fake-2"] * 2 + ["fake-3"] * 2
    assert manifest(tmp_path)["counts"]["judgements"] == 360


def test_one_more_judge_asks_only_its_questions(tmp_path: Path) -> None:
    with bench(tmp_path, Taste(), Taste(own=0.5), CONTRARY) as (path, _):
        whole = path.read_text()
        assert asked(run(change(path, keep=[0]))) == {"sample": 40, "compare": 120}
        path.write_text(whole)
        assert asked(run(change(path, keep=[0, 1]))) == {"sample": 0, "compare": 0, "compare by fake-2": 120}
        two = (tmp_path / "run/pairs.jsonl").read_bytes()
        path.write_text(whole)
        assert sum(asked(run(path)).values()) == 120
        assert sum(asked(run(change(path, keep=[0, 1]))).values()) == 0
    assert (tmp_path / "run/pairs.jsonl").read_bytes() == two


def test_a_contrary_judge_is_outvoted(tmp_path: Path) -> None:
    """Of two alike and their opposite, the mean is a third: the same winners, less sure."""
    with bench(tmp_path, Taste(), Taste(), CONTRARY) as (path, _):
        run(path)
    pairs = lines(tmp_path / "run/pairs.jsonl")
    assert len(pairs) == 10
    for pair in pairs:
        assert gap(pair) > 0
        assert pair["raw_probability"] == probability(gap(pair) / 3)
        assert not pair["flip"]


def test_weight_and_calibration_ask_nothing(tmp_path: Path) -> None:
    with bench(tmp_path, Taste(), Taste(), CONTRARY) as (path, _):
        run(path)
    run(change(path, temperature=[1.0, 2.0, 4.0]), ["pair"])  # the servers are gone
    for pair in lines(tmp_path / "run/pairs.jsonl"):
        assert pair["raw_probability"] == probability(gap(pair) * (1 + 1 / 2 - 1 / 4) / 3)
    run(change(path, temperature=[1.0, 1.0, 1.0], weight=[1.0, 0.5, 4.0]), ["pair"])
    pairs = lines(tmp_path / "run/pairs.jsonl")
    assert len(pairs) == 10
    for pair in pairs:
        assert pair["raw_probability"] == probability(gap(pair) * (1 + 0.5 - 4) / 5.5)


def test_the_calibration_of_one_judge_counts_wherever_it_is_read(tmp_path: Path) -> None:
    """`judge.temperature` alone is `compare.temperature` alone: in labels, revisions, coverage and tests."""
    constitution = str(Path(__file__).parent / "revisions" / "two.yaml")
    tested = tmp_path / "tested.yaml"
    example = {"prompt": "Hello?", "better": "a kind reply", "worse": "no reply"}
    principle = {"id": "kind", "compare": "Which reply is kinder?", "examples": [example]}
    tested.write_text(yaml.safe_dump({"name": "c", "principles": [principle]}))
    made = []
    with FakeServer() as fake:
        for where in ("judge", "compare"):
            folder = tmp_path / where
            folder.mkdir()
            settings = {"judge": {}, "compare": {}, where: {"temperature": 4.0}}
            revise = {"enabled": True, "rounds": 1}
            path = write_run(folder, fake.url, constitution=constitution, revise=revise, **settings)
            run(path)
            words = ("constitution", "test", tested, "--run", path, "--answers", folder / "t", "--format", "json")
            trials = rlaif(*words)
            assert trials.returncode in (0, 1), trials.stderr
            files = [lines(folder / "run" / f"{name}.jsonl") for name in ("pairs", "revised_pairs")]
            made.append((files, coverage(folder / "run"), json.loads(trials.stdout)))
    assert made[0] == made[1]
    (pair, *_) = made[0][0][0]
    assert pair["raw_probability"] == probability(gap(pair) / 4)


def test_a_judge_without_readable_verdicts_has_no_say(tmp_path: Path) -> None:
    with bench(tmp_path, Taste(), Taste(own=1.0, seed=1), MUMBLING) as (path, _):
        report = run(path)
        assert report.outcome is not None
        assert report.outcome.counts["judgements_low_mass"] == 120
        assert report.outcome.counts["comparisons_unparsed"] == 0
        mumbling = manifest(tmp_path)["panel"]["judges"][2]
        assert mumbling["abstains"] == report.outcome.counts["comparisons_labelled"] > 0
        assert mumbling["agrees"] == mumbling["opposes"] == 0
        three = [row["raw_probability"] for row in lines(tmp_path / "run/pairs.jsonl")]
        run(change(path, keep=[0, 1]))
        assert [row["raw_probability"] for row in lines(tmp_path / "run/pairs.jsonl")] == three


def test_half_a_panel_is_no_majority(tmp_path: Path) -> None:
    with bench(tmp_path, Taste(), MUMBLING) as (path, _):
        report = run(path)
    assert report.outcome is not None
    assert report.outcome.counts["comparisons_unparsed"] == 60
    assert lines(tmp_path / "run/pairs.jsonl") == []
    assert manifest(tmp_path)["panel"]["cohen_kappa"] is None


def test_a_missing_answer_of_any_judge_fails_the_pair(tmp_path: Path) -> None:
    with bench(tmp_path, Taste(), Taste(), Taste()) as (path, fakes):
        fakes[2].troubles.append(Trouble("400", contains="station number 3?"))
        report = run(path)
        assert report.outcome is not None
        assert report.outcome.failures == {"compare: bad_request": 12}
        assert report.outcome.counts["comparisons_failed"] == 6
        assert report.outcome.counts["pairs"] == 9
        fakes[2].troubles.clear()
        again = run(path)
    assert asked(again) == {"sample": 0, "compare": 0, "compare by fake-2": 0, "compare by fake-3": 12}
    assert again.outcome is not None
    assert again.outcome.counts["pairs"] == 10
    assert not again.outcome.failures


def test_the_manifest_by_hand(tmp_path: Path) -> None:
    """Two judges alike and their opposite: correlations 1, -1, -1; in every unit two values against one, or ties."""
    with bench(tmp_path, Taste(), Taste(), CONTRARY) as (path, _):
        change(path, weight=[1.0, 2.0, 1.0])
        report = run(path)
    assert report.outcome is not None
    found = manifest(tmp_path)["panel"]
    labels = report.outcome.counts["comparisons_labelled"]
    assert 0 < labels < 60
    told = [(each["judge"], each["agrees"], each["opposes"], each["abstains"]) for each in found["judges"]]
    assert told == [("fake", labels, 0, 0), ("fake-2", labels, 0, 0), ("fake-3", 0, labels, 0)]
    assert [each["weight"] for each in found["judges"]] == [1.0, 2.0, 1.0]
    assert found["comparisons"] == 60
    assert found["correlation"] == pytest.approx(-1 / 3)
    assert found["effective_judges_at_least"] == pytest.approx(3.0)
    assert "cohen_kappa" not in found
    # A tie of one judge is a tie of all; `clear` units, mirrored too, are two of one side and one of the other.
    texts = {row["id"]: row["text"] for row in lines(tmp_path / "run/samples.jsonl")}
    gaps = [
        8 * (unit("merit", texts[each["left"]]) - unit("merit", texts[each["right"]]))
        for row in lines(tmp_path / "run/rankings.jsonl")
        for each in row["comparisons"]
    ]
    clear = sum(abs(1 / (1 + math.exp(-each)) - 0.5) >= 0.05 for each in gaps)
    n, n_side, n_tie = 6 * 60, 3 * clear, 6 * (60 - clear)
    apart = 4 * clear
    assert found["krippendorff_alpha"] == pytest.approx(1 - n * apart / (n**2 - 2 * n_side**2 - n_tie**2))


def test_two_judges_that_are_alike_are_worth_one(tmp_path: Path) -> None:
    with bench(tmp_path, Taste(), Taste()) as (path, _):
        report = rlaif("generate", path)
    found = manifest(tmp_path)["panel"]
    assert (found["cohen_kappa"], found["correlation"]) == (pytest.approx(1.0), pytest.approx(1.0))
    assert found["effective_judges_at_least"] == pytest.approx(1.0)
    assert "krippendorff_alpha" not in found
    assert report.returncode == 0, report.stderr
    assert re.search(
        r"judge agreement +kappa 1.00 over 60 comparisons, correlation 1.00: "
        r"worth at least 1.0 independent judges of 2",
        report.stdout,
    )
    assert re.search(r"  fake-2 +agrees with \d+ labels, opposes 0, abstains 0;", report.stdout)


def test_a_tournament_takes_a_panel(tmp_path: Path) -> None:
    """Its grades are the first judge's; each judge compares the four finalists of ten prompts in both orders."""
    compare = {"method": "tournament", "principles": "all"}
    with bench(tmp_path, Taste(), CONTRARY, Taste(), policy={"samples": 8}, compare=compare) as (path, fakes):
        report = run(path)
        graded = [sum(fake.asked[key] for key in fake.asked if "one digit" in key) for fake in fakes]
    assert asked(report) == {
        "sample": 80, "score": 80, "compare": 120, "compare by fake-2": 120, "compare by fake-3": 120,
    }  # fmt: skip
    assert graded[1:] == [0, 0]
    assert {row["judge"] for row in lines(tmp_path / "run/scores.jsonl")} == {"fake"}
    assert all(gap(pair) > 0 for pair in lines(tmp_path / "run/pairs.jsonl"))


def test_critiques_and_revisions_are_the_first_judges(tmp_path: Path) -> None:
    settings = {"compare": {"critique": True}, "revise": {"enabled": True, "rounds": 1}}
    with bench(tmp_path, Taste(), Taste(own=0.5), **settings) as (path, fakes):
        report = run(path)
        shown = [{key for key in fake.asked if "A reviewer's notes on reply A" in key} for fake in fakes]
    assert shown[0] == shown[1]
    assert len(shown[1]) == asked(report)["compare by fake-2"] == 120
    for name in ("critiques", "revisions", "revised_pairs"):
        rows = lines(tmp_path / "run" / f"{name}.jsonl")
        assert rows
        assert {row["judge"] for row in rows} == {"fake"}


class Recorded:
    """A judge that only remembers when it was opened and closed."""

    batch_size, concurrency = 1000, 1

    def __init__(self, name: str, story: list[str]) -> None:
        self.name, self.story = name, story

    async def open(self) -> Recorded:
        self.story.append(f"open {self.name}")
        return self

    async def probe(self, labels: tuple[str, ...]) -> list[str]:
        return []

    async def answer(self, questions: Sequence[Question]) -> list[Output]:
        return [Output(text="A") for _ in questions]

    async def close(self) -> None:
        self.story.append(f"close {self.name}")


def test_one_judge_closes_before_the_next_opens(tmp_path: Path) -> None:
    with bench(tmp_path, Taste(), Taste()) as (path, _):
        run(path, ["sample"])
    story: list[str] = []
    with open_run(load_run(path), "fake", "fake", ("fake-2",)) as opened:
        opened.read_prompts()
        asyncio.run(compare(opened, [Recorded("fake", story), Recorded("fake-2", story)], Silent()))
    assert list(dict.fromkeys(story)) == ["open fake", "close fake", "open fake-2", "close fake-2"]
    assert story.index("close fake") < story.index("open fake-2"), "opening again is of no effect"


def test_flags_and_paths_of_a_panel(tmp_path: Path) -> None:
    places = [tmp_path / "one", tmp_path / "two"]
    for place in places:
        place.mkdir()
    with bench(tmp_path, Taste(), Taste()) as (path, _):
        change(path, model=["./one", "./one/../two"])
        assert [judge.model for judge in load_run(path).judges] == [str(place) for place in places]
        settings = load_run(path, {("judge", "model"): "other", ("judge", "weight"): "2"})
        with pytest.raises(UserError, match=r"run.yaml:\d+: .*/two` is judge 1 of the panel already"):
            load_run(path, {("judge", "model"): str(places[1])})
    assert [(judge.model, judge.weight) for judge in settings.judges] == [("other", 2.0), (str(places[1]), 1.0)]
    assert settings.judge == settings.judges[0]
    assert RunSettings.model_validate(settings.plain()) == settings
    plain = settings.plain()
    plain["judge"][1] |= {"model": "other", "template_options": {"enable_thinking": False}}
    assert len(RunSettings.model_validate(plain).judges) == 2, "one model, asked in another way"


def test_two_judges_of_one_identity_are_refused(tmp_path: Path) -> None:
    """Copies of one model: their questions would have the same ids, and one answer would count twice."""
    places = [tmp_path / "one" / "judge", tmp_path / "two" / "judge"]
    for place in places:
        place.mkdir(parents=True)
        (place / "config.json").write_text("{}")
    judges = [{"model": str(place)} for place in places]
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url, judge=judges)
        with pytest.raises(UserError, match="two judges of the panel are the same model, judge@"):
            run(path)
        assert not (tmp_path / "run").exists()
    (places[1] / "config.json").write_text("{ }")
    require_different([LazyModel(JudgeSettings(**judge), log=tmp_path / "log").name for judge in judges])


@pytest.mark.parametrize("command", [("diff", "c", "c", "--run"), ("coverage",)])
def test_what_looks_at_one_judge_says_so(tmp_path: Path, command: tuple[str, ...]) -> None:
    constitution = str(Path(__file__).parent / "revisions" / "two.yaml")
    with bench(tmp_path, Taste(), Taste(), constitution=constitution) as (path, _):
        run(path)
        words = [constitution if word == "c" else word for word in command]
        done = rlaif("constitution", *words, tmp_path / "run")
        assert done.returncode == 2
        assert "panel of 2 judges, and this looks at one judge's answers" in done.stderr
        run(change(path, keep=[0]))
        assert rlaif("constitution", *words, tmp_path / "run").returncode == 0


def test_check_probes_every_judge_and_names_relatives(tmp_path: Path) -> None:
    with bench(tmp_path, Taste(), Taste()) as (path, fakes):
        done = rlaif("check", path)
        assert done.returncode == 0, done.stderr
        assert "judge: fake, " in done.stdout
        assert "judge 2: fake-2, " in done.stdout
        notes = [line for line in done.stderr.splitlines() if "own family" in line]
        assert len(notes) == 1
        assert notes[0].startswith("note: the judges fake and fake-2 are of the policy's own family (fake)")
        fakes[1].model = "renamed"
        done = rlaif("check", path)
    assert done.returncode == 2
    assert "judge 2: " in done.stderr
    assert "`fake-2`" in done.stderr


def test_generate_names_relatives_in_one_line(tmp_path: Path) -> None:
    with FakeServer(model="Qwen/Qwen3-0.6B") as policy, FakeServer(model="Qwen/Qwen3-8B") as judge:
        path = write_run(
            tmp_path,
            policy.url,
            prompts=["Hello?"],
            policy={"model": policy.model},
            judge={"model": judge.model, "base_url": judge.url},
        )
        found = rlaif("generate", path)
    assert found.returncode == 0, found.stderr
    notes = [line for line in found.stderr.splitlines() if "own family" in line]
    assert notes == [
        "note: the judge Qwen/Qwen3-8B is of the policy's own family (Qwen/Qwen3-0.6B): "
        "judges prefer what reads like their own writing"
    ]


def test_preview_says_who_said_what(tmp_path: Path) -> None:
    with bench(tmp_path, Taste(), CONTRARY) as (path, _):
        done = rlaif("preview", path, "-n", 1)
    assert done.returncode == 0, done.stderr
    assert re.search(r"fake, \S+: A = response \d, B = response \d: P\(A\)", done.stdout)
    assert re.search(r"fake-2, \S+: A = response \d, B = response \d: P\(A\)", done.stdout)


BAD = {
    "two of one name": ("- {model: a}\n- {model: a}", (":6", "`a` is judge 1 of the panel already")),
    "no judges": ("[]", ("`judge` is empty",)),
    "too many": (f"[{', '.join(f'{{model: m{at}}}' for at in range(6))}]", ("a list of at most 5",)),
    "a name alone": ("- {model: a}\n- b", (":6", "`judge[2]` must be a mapping")),
    "misspelt": ("- {model: a}\n- {model: b, wieght: 2}", (":6", "`wieght` in `judge[2]`", "did you mean `weight`")),
    "no model": ("- {model: a}\n- {weight: 2}", (":6", "`judge[2].model` is missing")),
    "no weight": ("- {model: a}\n- {model: b, weight: 0}", (":6", "judge[2].weight", "greater than 0")),
    "cold": ("{model: a, temperature: 0}", ("judge.temperature", "greater than 0")),
    "truth": ("- {model: a}\n- {model: b, weight: true}", (":6", "judge[2].weight", "number")),
    "url": ("- {model: a}\n- {model: b, base_url: b}", (":6", "judge[2].base_url", "http://")),
    "neither": ("5", ("`judge` must be a mapping",)),
    "scores": ("[{model: a}, {model: b}]\ncompare: {method: score}", (":5", "one judge alone", "`tournament`")),
    "ranks": ("[{model: a}, {model: b}]\ncompare: {method: rank}", (":5", "one judge alone", "`pairwise`")),
}


@pytest.mark.parametrize("name", BAD)
def test_one_line_and_an_exit_code(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    judges, says = BAD[name]
    between = "\n" if judges.startswith("-") else " "
    path = tmp_path / "run.yaml"
    path.write_text(f"constitution: harmless\nprompts: prompts.jsonl\noutput: run\njudge:{between}{judges}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rlaif", "generate", "run.yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capfd.readouterr().err
    assert ended.value.code == 2
    errors = [line for line in said.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1, said
    assert "run.yaml" in errors[0]
    for fragment in says:
        assert fragment in errors[0]
