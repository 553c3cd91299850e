"""The figures of a folder, counted by hand (see `tests.page.folders`)."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.config.schemas import PolicySettings
from rlaif.errors import RecordError, UserError
from rlaif.feedback.sampling import sampling_of
from rlaif.report.examples import choose
from rlaif.report.page import build_page
from rlaif.report.run_data import Plan, judgement_logit
from rlaif.report.view import Page
from tests.page.folders import JUDGE, answers, key, lines, write_run, write_training
from tests.page.test_evaluations import write_evaluation


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def levels(page: Page) -> list[str]:
    return [each.level for each in page.warnings]


def test_from_samples_to_pairs(run: Path) -> None:
    data = build_page(run).data
    assert data is not None
    assert (data.prompts, data.samples, data.truncated, data.blank, data.distinct) == (3, 5, 1, 0, 5)
    assert data.comparisons == {"labelled": 1, "tie": 1, "flip": 1, "unparsed": 1, "failed": 0}
    assert (data.flipped, data.pairs, data.without_pair, data.ranks) == (1, 1, 2, {"1>2": 1})
    # 0.62 lies in [0.6, 0.625), the fifth of twenty bins; its margin of 0.12 in [0.1, 0.125).
    assert [at for at, count in enumerate(data.confidence["labelled"].counts) if count] == [4]
    assert data.margins is not None
    assert [at for at, count in enumerate(data.margins.counts) if count] == [4]
    assert data.lengths is not None
    assert (data.lengths.chosen.median, data.lengths.rejected.median, data.lengths.shorter) == (5, 14, 1)


def test_what_the_judge_said(run: Path) -> None:
    """12 readable answers, 7 for the first slot: log-odds 2 -1 -1 +2, 2 +3 +1 -1, and four that cancel, 7 in all."""
    said = build_page(run).verdicts
    assert said is not None
    assert (said.judgements, said.unused, said.unparsed, said.low_mass, said.hard) == (16, 1, 1, 3, 1)
    assert said.mass is not None
    assert said.mass.total == 15
    assert said.mass_mean == pytest.approx((12 * 0.9 + 3 * 0.2) / 15)
    (slot,) = said.slots
    assert (slot.judge, slot.verdicts) == ("judge@1", 12)
    assert (slot.first, slot.bias) == (pytest.approx(7 / 12), pytest.approx(7 / 12))


def test_what_each_principle_did(run: Path) -> None:
    """The one label is a over b: `kind` says so, and without it `short` would turn it."""
    kind, short = build_page(run).principles
    assert (kind.id, kind.weight, kind.labels, kind.compared, kind.flips) == ("kind", 2, 1, 3, 1)
    assert (kind.agreed, kind.opposed, kind.decided) == (1, 0, 1)
    assert (short.id, short.weight, short.labels, short.compared, short.flips) == ("short", 1, 1, 3, 0)
    assert (short.agreed, short.opposed, short.decided) == (0, 1, 0)


def test_an_answer_that_names_another_sample_counts_by_its_place_in_the_plan(run: Path) -> None:
    """A question is known by its texts: a revision that came out like a sample was asked about first."""
    rows = answers()
    for row in rows:
        if row["id"] in (key("bak"), key("abs")):
            row["first"], row["second"] = key("other"), key("more")
    lines(run / "judgements.jsonl", rows)
    page = build_page(run)
    assert [(each.agreed, each.decided, each.flips) for each in page.principles] == [(1, 1, 1), (0, 0, 0)]
    assert page.examples is not None
    (story,) = (item for item in page.examples.items if item["id"] == key("p1"))
    kind = next(vote for vote in story["comparisons"][0]["votes"] if page.examples.principles[vote[0]] == "kind")
    assert kind[2:] == [pytest.approx(0.881), pytest.approx(0.731)]  # sigmoid of +2 and +1, both for a


def test_the_examples_tell_the_whole_story(run: Path) -> None:
    found = build_page(run).examples
    assert found is not None
    assert (found.shown, found.total, found.cut) == (3, 3, 0)
    story = {item["id"]: item for item in found.items}[key("p1")]
    assert [(each["rank"], each["text"]) for each in story["samples"]] == [
        (1, "short"), (2, "a longer reply"), (3, "ten chars."),
    ]  # fmt: skip
    assert [(each["of"], each["status"], each["pair"]) for each in story["comparisons"]] == [
        ([0, 1], "labelled", key("pair")), ([0, 2], "flip", None), ([1, 2], "tie", None),
    ]  # fmt: skip
    silent = {item["id"]: item for item in found.items}[key("p2")]["comparisons"][0]
    assert [vote[2:] for vote in silent["votes"]] == [["low mass", "unparsed"], ["low mass", "low mass"]]


def test_long_texts_are_cut_with_a_note(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    rows[0]["text"] = "x" * 5000
    lines(run / "samples.jsonl", rows)
    found = build_page(run).examples
    assert found is not None
    assert found.cut == 1
    text = next(item for item in found.items if item["id"] == key("p1"))["samples"][0]["text"]
    assert len(text) < 1600
    assert text.endswith("[cut: 5,000 characters]")


def test_examples_are_drawn_from_all_that_is_of_interest() -> None:
    """20 prompts, one comparison each: of four places one goes to each list, the random ones by their ids."""
    plan = Plan(prompts=[key(f"q{at:02}") for at in range(20)])
    for at in range(20):
        plan.prompt.append(at)
        plan.probability.append(0.6 + at / 100 if at < 10 else 0.5)
        plan.status.append(0 if at < 10 else 2 if at < 15 else 3)
    assert {plan.prompts.index(name): why for name, why in choose(plan, Path("nowhere"), 5).items()} == {
        9: ["widest margin"], 0: ["narrowest margin"], 10: ["flip"], 15: ["no label"], 1: ["random"],
    }  # fmt: skip
    assert len(choose(plan, Path("nowhere"), 100)) == 20


def test_an_unfinished_loop_says_what_to_do(run: Path) -> None:
    """Its data are finished, its trainings are not; once they are, there is nothing to do."""
    ledger = {"format": 1, "command": "rlaif run loop.yaml", "finished": False, "steps": {}}
    (run / "loop.json").write_text(json.dumps(ledger))
    page = build_page(run)
    assert (page.about.finished, page.about.next) == (False, "rlaif run loop.yaml")
    assert page.warnings[0].level == "serious" and "`rlaif run loop.yaml`" in page.warnings[0].hint
    (run / "loop.json").write_text(json.dumps({**ledger, "finished": True}))
    assert build_page(run).about.finished


def test_an_unfinished_run_says_what_to_do(run: Path) -> None:
    for name in ("manifest.json", "rankings.jsonl", "pairs.jsonl"):
        (run / name).unlink()
    with (run / "samples.jsonl").open("a") as file:
        file.write('{"id": "torn')
    page = build_page(run)
    assert not page.about.finished
    assert page.about.next == f"rlaif generate {run}/run.yaml"
    assert page.warnings[0].level == "serious"
    assert page.data is not None and page.verdicts is not None
    assert (page.data.samples, page.data.ranked, page.verdicts.judgements) == (5, None, 17)
    assert page.missing[0].command == f"rlaif generate {run}/run.yaml"
    assert page.examples is not None and page.examples.shown == 3


def test_an_older_manifest_without_most_of_its_keys(run: Path) -> None:
    (run / "manifest.json").write_text('{"judge": "judge@1", "counts": {}}')
    page = build_page(run)
    assert page.about.finished
    assert [each.labels for each in page.principles] == [None, None]
    assert [each.agreed for each in page.principles] == [1, 0]


def test_a_constitution_that_changed_is_not_told(run: Path) -> None:
    (run / "two.yaml").write_text((run / "two.yaml").read_text().replace("kinder", "warmer"))
    page = build_page(run)
    assert [(each.text, each.decided, each.agreed) for each in page.principles] == [(None, None, 1), (None, None, 0)]
    assert any("has changed" in each.message for each in page.warnings)


def test_files_that_changed_since_are_named(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["files"] = {"pairs.jsonl": "0" * 64}
    (run / "manifest.json").write_text(json.dumps(manifest))
    page = build_page(run)
    assert page.provenance.changed == ("pairs.jsonl",)
    assert any("pairs.jsonl changed since" in each.message for each in page.warnings)


def test_warnings_come_worst_first(run: Path) -> None:
    """A flip in three of four readable ones is one third; 4 of 16 answers without a label are a quarter."""
    page = build_page(run)
    told = [each.message for each in page.warnings]
    assert levels(page) == sorted(levels(page), key=["serious", "caution", "note"].index)
    assert any("33% of the comparisons" in each for each in told)
    assert any("3 of 16 judgements (18.8%) put little probability" in each for each in told)
    assert any("No evaluation of the judge judge@1" in each for each in told)


def test_trainings_are_found_two_levels_down(run: Path) -> None:
    write_training(run / "dpo")
    write_training(run / "sweep" / "ppo", method="ppo", finished=False)
    write_training(run / "too" / "deep" / "down")
    page = build_page(run)
    assert [(each.name, each.status, each.steps) for each in page.trainings] == [
        ("dpo", "finished", 3), ("sweep/ppo", "unfinished", 3),
    ]  # fmt: skip
    dpo, ppo = page.trainings
    assert dpo.metrics["loss"] == (0.25, 0.5)
    assert (dpo.overrides, dpo.seconds) == ({"learning_rate": 0.5}, 7.5)
    assert [look["win_rate"] for look in ppo.held_out] == pytest.approx([0.55, 0.6, 0.65])
    assert ppo.command.endswith("--resume")
    assert any("sweep/ppo is unfinished after step 3" in each.message for each in page.warnings)


def test_a_training_that_stopped_tells_its_alarms(tmp_path: Path) -> None:
    alarm = "step 2: the policy is 20.0 nats an answer away from its reference (bound 15.0): go back"
    write_training(tmp_path / "ppo", method="ppo", steps=2, alarms=[alarm])
    page = build_page(tmp_path / "ppo")
    assert (page.about.kind, page.trainings[0].name, page.trainings[0].status) == ("training", ".", "stopped")
    told = {each.message: each.hint for each in page.warnings}
    assert told["The training, step 2: the policy is 20.0 nats an answer away from its reference (bound 15.0)"] == (
        "Go back."
    )
    assert "The training stopped at step 2 of 3." in told


def test_data_of_a_training_are_recognised(run: Path) -> None:
    from rlaif.store import sha256_of

    folder = write_training(run / "dpo")
    begun: dict[str, Any] = json.loads((folder / "train.json").read_text())
    begun["data_hash"] = sha256_of(run / "pairs.jsonl")
    (folder / "train.json").write_text(json.dumps(begun))
    assert build_page(run).trainings[0].data_note == "pairs.jsonl of this folder, in its current state"
    begun |= {"data_hash": "0" * 64, "settings": begun["settings"] | {"data": str(run / "pairs.jsonl")}}
    (folder / "train.json").write_text(json.dumps(begun))
    assert build_page(run).trainings[0].data_note.startswith("changed since")


def test_the_command_of_a_training_makes_the_same_settings(tmp_path: Path) -> None:
    """What is told is what was set, so that the words on the page, read back as flags, are the training again."""
    import shlex

    from rlaif.config.schemas import JudgeSettings
    from rlaif.rl.config import OnlineSettings
    from rlaif.training.config import DpoSettings, LoraSettings, load_settings

    judge = JudgeSettings(model="demo-judge", concurrency=3, base_url="http://127.0.0.1:1/v1")
    for at, settings in enumerate((
        DpoSettings(model="m n", data="d", output="o", beta=0.2, lora=LoraSettings(rank=4), report_to=("tensorboard",)),
        OnlineSettings(model="m", output="o", prompts="p", reward="judge", judge=judge, steps=7, clip_high=0.3),
    )):  # fmt: skip
        folder = write_training(tmp_path / str(at), method=settings.method)
        begun = json.loads((folder / "train.json").read_text()) | {"settings": settings.plain()}
        (folder / "train.json").write_text(json.dumps(begun))
        _, _, method, *words = shlex.split(build_page(folder).trainings[0].command)
        given = list(zip(words[::2], words[1::2], strict=True))
        flags = {(name.removeprefix("--"),): value for name, value in given if name != "--set"}
        again = load_settings(type(settings), None, flags, [value for name, value in given if name == "--set"])
        assert method == settings.method
        assert again.plain() == settings.plain() | {"output": str(folder)}


def test_an_unfinished_run_knows_its_judge_by_its_answers(run: Path) -> None:
    (run / "manifest.json").unlink()
    assert build_page(run).about.judge == "judge@1"


@pytest.mark.parametrize("name", ["nowhere", "a file", "empty", "foreign", "only a run file"])
def test_folders_with_nothing_to_tell(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    if name == "a file":
        folder.write_text("")
    elif name != "nowhere":
        folder.mkdir()
    if name == "foreign":
        (folder / "manifest.json").write_text('{"name": "an app"}')
        (folder / "data.json").write_text('{"made_by": "somebody", "policies": []}')
    if name == "only a run file":
        (folder / "run.yaml").write_text("constitution: demo\njudge: {model: j}\noutput: runs/first\n")
    with pytest.raises(UserError) as caught:
        build_page(folder)
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["judgements.jsonl", "rankings.jsonl", "pairs.jsonl"])
def test_a_broken_line_is_named(run: Path, name: str) -> None:
    path = run / name
    path.write_text('{"id": "00"}\n' + path.read_text())
    with pytest.raises(RecordError, match=rf"{name}:1"):
        build_page(run)


def test_logits_are_those_of_the_fold() -> None:
    """Cut at 30, hard verdicts at ln 99 over 1.6, and no label under the least mass."""
    row = {"verdict": "first", "label_mass": 0.9, "logprobs": [-0.1, -50.0]}
    assert judgement_logit(row, 0.5) == 30
    assert judgement_logit(row | {"logprobs": [None, -0.1]}, 0.5) == -30
    assert math.isnan(judgement_logit(row, 0.95))
    assert judgement_logit({"verdict": "second", "logprobs": None}, 0.5) == pytest.approx(-math.log(99) / 1.6)
    assert judgement_logit({"verdict": "tie", "logprobs": None}, 0.5) == 0
    assert math.isnan(judgement_logit({"verdict": "unparsed", "logprobs": None}, 0.5))


def test_a_stated_tie_stays_one_whatever_is_taken_off_the_slot(run: Path) -> None:
    """As in the labels: the slot's 0.8 is in no tie that was said in words."""
    how = {"temperature": 2.0, "slot": 0.8}
    assert judgement_logit({"verdict": "tie", "logprobs": None}, 0.5, **how) == 0
    hard = math.log(99) / 1.6
    assert judgement_logit({"verdict": "first", "logprobs": None}, 0.5, **how) == pytest.approx((hard - 0.8) / 2)
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"position_bias": {JUDGE: {"removed": 0.8}}}))
    said: dict[str, Any] = {"verdict": "tie", "logprobs": None, "label_mass": None}
    lines(run / "judgements.jsonl", [row | said if row["id"] in (key("abk"), key("bak")) else row for row in answers()])
    found = build_page(run).examples
    assert found is not None
    story = next(item for item in found.items if item["id"] == key("p1"))
    kind = next(vote for vote in story["comparisons"][0]["votes"] if found.principles[vote[0]] == "kind")
    assert kind[2:] == [0.5, 0.5]


def test_only_samples_of_the_runs_own_settings_count(run: Path) -> None:
    """12 rows: of an earlier seed, a third one where two are drawn now, of another policy, of a prompt that is gone."""
    settings = yaml.safe_load((run / "run.yaml").read_text()) | {"policy": {"model": "policy", "samples": 2, "seed": 1}}
    (run / "run.yaml").write_text(json.dumps(settings))

    def drawn(prompt: str, at: int, policy: str = "policy@1", **how: Any) -> dict[str, Any]:
        asked = PolicySettings(model="policy", **({"seed": 1} | how))
        return {
            "id": key(f"{prompt}{at}{policy}{how}"[:16]), "prompt": key(prompt), "index": at, "text": "" if at else "x",
            "policy": policy, "sampling": sampling_of(asked, key(prompt), at).model_dump(),
        }  # fmt: skip

    kept = [drawn(name, at) for name in ("p1", "p2") for at in (0, 1)]
    old = [drawn(name, at, seed=0) for name in ("p1", "p2") for at in (0, 1, 2)]
    lines(run / "samples.jsonl", [*old, drawn("p1", 2), drawn("p2", 0, "policy@2"), drawn("gone", 0), *kept])
    data = build_page(run).data
    assert data is not None and (data.samples, data.blank) == (4, 2)


def test_questions_without_an_answer_count_once_and_while_they_have_none(run: Path) -> None:
    (run / "manifest.json").unlink()
    failed = [{"id": key(name), "stage": "compare", "reason": why} for name, why in
              (("x", "timeout"), ("x", "http_500"), ("y", "timeout"), ("abk", "timeout"))]  # fmt: skip
    lines(run / "failures.jsonl", failed)
    assert build_page(run).failures == {"compare: http_500": 1, "compare: timeout": 1}


def test_the_date_is_that_of_the_result_that_was_written_last(run: Path) -> None:
    os.utime(run / "manifest.json", (0, 0))
    assert build_page(run).about.when == "1970-01-01 00:00 UTC"
    write_evaluation(run / "evaluation", "other@1")
    os.utime(run / "evaluation" / "dpo.v2-base.json", (86400, 86400))
    assert build_page(run).about.when == "1970-01-02 00:00 UTC"


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("prompts.jsonl", {"extra": 1}, "extra: Extra inputs are not permitted"),
        ("samples.jsonl", {"policy": None}, "`policy` is missing"),
        ("samples.jsonl", {"text": 3}, "`text` is 3"),
        ("critiques.jsonl", {"principle": None}, "`principle` is missing"),
        ("rankings.jsonl", {"samples": [{"sample": key("a"), "rank": 1}]}, "`strength` is missing"),
    ],
)
def test_an_odd_row_is_named(run: Path, name: str, change: dict[str, Any], told: str) -> None:
    first, *more = [json.loads(line) for line in (run / name).read_text().splitlines()]
    lines(run / name, [first | change, *more])
    with pytest.raises(RecordError) as error:
        build_page(run)
    assert f"{name}:1: {told}" in str(error.value)
