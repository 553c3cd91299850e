"""A whole run against a fake server, and what its files hold."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

from rlaif.config.run_file import load_run
from rlaif.config.schemas import CompareSettings, PairSettings
from rlaif.errors import UserError
from rlaif.feedback.pipeline import Report, run_pipeline
from rlaif.feedback.ranking import Provenance, pairs, rank_samples
from rlaif.records import Message, Prompt, Sample, content_id
from tests.fakes import MASS, FakeServer, Trouble, first_share, unit
from tests.support import lines, rlaif, write_run


def run(path: Path, **flags: str) -> Report:
    return run_pipeline(load_run(path, {tuple(name.split("__")): value for name, value in flags.items()}))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    with FakeServer() as fake:
        run(write_run(folder, fake.url))
    return folder / "run"


def test_every_call_is_there(finished: Path) -> None:
    """Ten prompts, four samples, six pairs, two orders."""
    assert len(lines(finished / "prompts.jsonl")) == 10
    assert len(lines(finished / "samples.jsonl")) == 40
    assert len(lines(finished / "judgements.jsonl")) == 10 * 6 * 2
    assert len(lines(finished / "pairs.jsonl")) == 10
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["counts"]["judgements"] == 120
    assert manifest["counts"]["comparisons_labelled"] + manifest["counts"]["comparisons_tie"] == 60
    assert manifest["failures"] == {}
    assert set(manifest["files"]) == {"prompts.jsonl", "rankings.jsonl", "pairs.jsonl"}


def test_a_judgement_is_what_the_server_said(finished: Path) -> None:
    texts = {row["id"]: row["text"] for row in lines(finished / "samples.jsonl")}
    for row in lines(finished / "judgements.jsonl"):
        first, second = texts[row["first"]], texts[row["second"]]
        share = 1 / (1 + math.exp(-8 * (unit("merit", first) - unit("merit", second))))
        assert row["logprobs"] == pytest.approx([math.log(MASS * share), math.log(MASS * (1 - share))], abs=1e-6)
        assert row["label_mass"] == pytest.approx(MASS)


def test_best_against_worst(finished: Path) -> None:
    """The fake's merit is one number a reply, so the chosen one is the best of the four and the rejected the worst."""
    of_prompt: dict[str, list[str]] = {}
    for row in lines(finished / "samples.jsonl"):
        of_prompt.setdefault(row["prompt"], []).append(row["text"])
    for pair in lines(finished / "pairs.jsonl"):
        ranked = sorted(of_prompt[pair["prompt_id"]], key=lambda text: unit("merit", text))
        assert pair["chosen"] == [{"role": "assistant", "content": ranked[-1]}]
        assert pair["rejected"] == [{"role": "assistant", "content": ranked[0]}]
        assert pair["ranks"] == [1, 4]


@pytest.mark.parametrize(("kind", "file"), [("json", "pairs.jsonl"), ("parquet", "pairs.parquet")])
def test_datasets_loads_it(finished: Path, tmp_path: Path, kind: str, file: str) -> None:
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(kind, data_files=str(finished / file), split="train", cache_dir=str(tmp_path))
    rows = lines(finished / "pairs.jsonl")
    assert loaded.num_rows == len(rows)
    assert loaded.column_names == list(rows[0])
    assert [dict(row) for row in loaded] == rows


def test_the_tables_load_too(finished: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for name in ("samples", "judgements", "rankings", "prompts"):
        file = str(finished / f"{name}.jsonl")
        loaded = datasets.load_dataset("json", data_files=file, split="train", cache_dir=str(tmp_path))
        assert loaded.num_rows == len(lines(finished / f"{name}.jsonl"))


def test_pair_derives_again_without_a_call(tmp_path: Path) -> None:
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url)
        run(path)
    wide = run_pipeline(load_run(path, {("pair", "margin"): "0.45"}), ["pair"])  # the server is gone
    assert wide.outcome is not None
    rows = lines(tmp_path / "run/pairs.jsonl")
    assert all(row["margin"] >= 0.45 for row in rows)
    everything = run_pipeline(load_run(path, {("pair", "select"): "all", ("pair", "per_prompt"): "9"}), ["pair"])
    assert everything.outcome is not None
    assert len(lines(tmp_path / "run/pairs.jsonl")) == everything.outcome.counts["comparisons_labelled"]


def test_critiques_are_evidence_and_clamp_the_label(tmp_path: Path) -> None:
    with FakeServer() as fake:
        run(write_run(tmp_path, fake.url, compare={"critique": True}))
        shown = [key for key in fake.asked if "A reviewer's notes on reply A" in key]
    critiques = lines(tmp_path / "run/critiques.jsonl")
    assert len(shown) == 120
    assert all(any(row["text"] in key for row in critiques) for key in shown[:5])
    for row in lines(tmp_path / "run/pairs.jsonl"):
        assert row["probability"] == min(0.6, row["raw_probability"])
        assert row["margin"] == pytest.approx(row["raw_probability"] - 0.5)


def test_critiques_are_in_the_counts(tmp_path: Path) -> None:
    """Some critiques fail: each is a failure of its own; the judge's tokens are those of both its journals."""
    with FakeServer(batch=False, troubles=[Trouble("400", contains="The reply:", chance=0.3)]) as fake:
        report = run(write_run(tmp_path, fake.url, compare={"critique": True}))
    assert report.outcome is not None
    counts, failed = report.outcome.counts, len(lines(tmp_path / "run/failures.jsonl"))
    assert failed > 0 and report.outcome.failures == {"critique: bad_request": failed}
    written = [row for name in ("critiques", "judgements") for row in lines(tmp_path / f"run/{name}.jsonl")]
    assert counts["critiques"] == len(lines(tmp_path / "run/critiques.jsonl")) > 0
    assert counts["judge_prompt_tokens"] == sum(row["prompt_tokens"] for row in written)
    assert counts["judge_completion_tokens"] == sum(row["completion_tokens"] for row in written)


def test_given_answers_are_labelled_as_they_are(tmp_path: Path) -> None:
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url, policy=None)
        rows = [{"prompt": f"Say {at}", "answers": [f"one {at}", f"two {at}", f"three {at}"]} for at in range(4)]
        (tmp_path / "given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        report = run(path, prompts__path=str(tmp_path / "given.jsonl"), prompts__responses="answers")
    assert report.outcome is not None
    assert report.outcome.counts["judgements"] == 4 * 3 * 2
    for row in lines(tmp_path / "run/pairs.jsonl"):
        assert row["policies"] == ["given", "given"]
        texts = [row[side][0]["content"] for side in ("chosen", "rejected")]
        shown = f"Reply A:\n<<<x\n{texts[0]}\nx>>>\nReply B:\n<<<x\n{texts[1]}\nx>>>"
        assert row["raw_probability"] == pytest.approx(first_share([{"content": shown}]), abs=1e-6)


@pytest.mark.parametrize("route", ["top", "none"])
def test_servers_without_exact_log_probabilities(tmp_path: Path, route: str) -> None:
    with FakeServer(batch=False, logprobs=route) as fake:
        run(write_run(tmp_path, fake.url))
    rows = lines(tmp_path / "run/pairs.jsonl")
    assert len(rows) == 10
    assert all(row["hard"] == (route == "none") for row in rows)
    for row in rows:
        assert unit("merit", row["chosen"][0]["content"]) > unit("merit", row["rejected"][0]["content"])


@pytest.mark.parametrize(("principles", "calls"), [("one", 120), ("all", 120), ("each", 120 * 4)])
def test_the_three_ways_to_use_a_constitution(tmp_path: Path, principles: str, calls: int) -> None:
    with FakeServer() as fake:
        path = write_run(
            tmp_path, fake.url, constitution="helpful-honest-harmless-concise", compare={"principles": principles}
        )
        report = run(path)
    assert report.outcome is not None
    assert report.outcome.counts["judgements"] == calls
    principle = {row["principle"] for row in lines(tmp_path / "run/judgements.jsonl")}
    assert len(principle) == (1 if principles == "all" else 4)


def test_one_order_costs_half(tmp_path: Path) -> None:
    with FakeServer() as fake:
        report = run(write_run(tmp_path, fake.url, compare={"orders": "random"}))
    assert report.outcome is not None
    assert report.outcome.counts["judgements"] == 60


def test_rewording_a_principle_asks_only_its_questions(tmp_path: Path) -> None:
    principles = [{"id": name, "compare": f"Which reply is more {name}?"} for name in ("kind", "true", "brief")]
    constitution = tmp_path / "c.yaml"
    constitution.write_text(yaml.safe_dump({"name": "c", "principles": principles}))
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url, constitution="c.yaml")
        run(path)
        before = {row["id"] for row in lines(tmp_path / "run/judgements.jsonl")}
        of_kind = sum(row["principle"] == "kind" for row in lines(tmp_path / "run/judgements.jsonl"))
        principles[0]["compare"] = "Which reply is the kinder one?"
        constitution.write_text(yaml.safe_dump({"name": "c", "principles": principles}))
        report = run(path)
        fresh = [row for row in lines(tmp_path / "run/judgements.jsonl") if row["id"] not in before]
    assert {row["principle"] for row in fresh} == {"kind"}
    assert len(fresh) == of_kind > 0
    (compare,) = [tally for tally in report.tallies if tally.stage == "compare"]
    assert compare.asked == of_kind
    assert report.outcome is not None
    assert report.outcome.counts["judgements"] == 120, "the old answers are kept and do not count"


def test_other_template_options_are_other_answers(tmp_path: Path) -> None:
    """What the chat template is told is part of a model's name in the records, and not of the one the server hears."""
    prompts, silent, loud = ["Why?", "How?"], {"thinking": False, "b": 1}, {"thinking": True, "b": 1}
    with FakeServer() as fake:
        for options, asked in (({}, 8), (silent, 8), (silent, 0), (loud, 8), ({}, 0)):
            path = write_run(tmp_path, fake.url, prompts=prompts, policy={"template_options": options})
            assert run(path).tallies[0].asked == asked
        path = write_run(tmp_path, fake.url, prompts=prompts, judge={"template_options": silent})
        assert [tally.asked for tally in run(path).tallies] == [0, 24]
        assert {body["model"] for body in fake.bodies} == {"fake"}
    policies = {row["policy"] for row in lines(tmp_path / "run/samples.jsonl")}
    assert policies == {"fake", 'fake {"b":1,"thinking":false}', 'fake {"b":1,"thinking":true}'}


def test_revisions_meet_their_originals() -> None:
    """`select: revised` takes the pairs of a revision and its parent, whichever of them the judge preferred."""
    from rlaif.feedback.aggregate import Comparison, Status

    prompt = Prompt(id="p" * 32, messages=(Message(role="user", content="Hi"),), source="t")
    first = Sample(id=content_id(1), prompt=prompt.id, index=0, text="rude", policy="given")
    other = Sample(id=content_id(2), prompt=prompt.id, index=1, text="odd", policy="given")
    better = Sample(id=content_id(3), prompt=prompt.id, index=2, text="kind", policy="given", revision_of=content_id(1))
    comparisons = [
        Comparison(first.id, other.id, Status.LABELLED, logit=3.0),
        Comparison(first.id, better.id, Status.LABELLED, logit=-1.0),
        Comparison(other.id, better.id, Status.LABELLED, logit=-2.0),
    ]
    standing = rank_samples(prompt, [first, other, better], comparisons)
    settings = PairSettings(select="revised")
    (made,) = pairs(standing, settings, CompareSettings(), Provenance("j", "c"))
    assert (made.chosen_id, made.rejected_id) == (better.id, first.id)
    assert made.probability == pytest.approx(1 / (1 + math.exp(-1.0)))


def test_no_policy_and_no_answers_is_said(tmp_path: Path) -> None:
    with FakeServer() as fake, pytest.raises(UserError, match="nothing to judge"):
        run(write_run(tmp_path, fake.url, policy=None))


def test_preview_shows_and_stores_nothing(tmp_path: Path) -> None:
    with FakeServer() as fake:
        result = rlaif("preview", write_run(tmp_path, fake.url), "-n", 2)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Responses, best first") == 2
    assert "about 5 times this (10 prompts)" in result.stdout
    assert "P(A) = " in result.stdout
    assert not (tmp_path / "run").exists()


def test_a_key_is_sent_and_written_nowhere(tmp_path: Path) -> None:
    with FakeServer(api_key="s3cret-key") as fake:
        key = {"api_key_env": "TEST_KEY"}
        path = write_run(tmp_path, fake.url, policy=key, judge=key)
        assert rlaif("generate", path, TEST_KEY="wrong").returncode != 0
        result = rlaif("generate", path, TEST_KEY="s3cret-key")
    assert result.returncode == 0, result.stderr
    assert "s3cret" not in result.stdout + result.stderr
    written = [file for file in (tmp_path / "run").iterdir() if b"s3cret" in file.read_bytes()]
    assert written == []
    paired = rlaif("pair", path)
    assert paired.returncode == 0, paired.stderr  # no model is asked
    for stage, owner in (("sample", "policy"), ("compare", "judge")):
        result = rlaif(stage, path)
        assert (result.returncode, "Traceback" in result.stderr) == (2, False)
        assert f"{owner}.api_key_env: the environment variable `TEST_KEY` is not set" in result.stderr
    told = rlaif("check", path).stderr
    assert "policy.api_key_env" in told and "judge.api_key_env" in told and "2 problems" in told


@pytest.mark.parametrize(
    ("judge", "told"),
    [
        ({"launch_args": ["--seed", "1"]}, "`launch_args` go with `launch: vllm`"),
        ({"device": "cuda"}, "`device` is for a model in process"),
        ({"base_url": None, "launch": "vllm", "device": "cpu"}, "`device` is for a model in process"),
        ({"base_url": None, "launch": "vllm", "launch_args": ["--port", "9000"]}, "must not hold --port"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(tmp_path: Path, judge: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        load_run(write_run(tmp_path, "http://127.0.0.1:1/v1", judge=judge))


def test_the_environment_and_flags_change_the_file(tmp_path: Path) -> None:
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url)
        result = rlaif("generate", path, "--policy-samples", 2, RLAIF_POLICY_SAMPLES="3", RLAIF_PROMPTS_LIMIT="4")
    assert result.returncode == 0, result.stderr
    assert len(lines(tmp_path / "run/samples.jsonl")) == 4 * 2
    saved = yaml.safe_load((tmp_path / "run/run.yaml").read_text())
    assert saved["policy"]["samples"] == 2
    assert saved["prompts"] == {"path": str(tmp_path / "prompts.jsonl"), "limit": 4}


def test_a_mistyped_variable_is_told(tmp_path: Path) -> None:
    """Those of trainings, of vLLM and of keys are none of a run's settings, and no mistake."""
    path = write_run(tmp_path, "http://127.0.0.1:1/v1")
    wrong = {"RLAIF_POLICY_SMAPLES": "4", "RLAIF_TRAIN_KL_BTEA": "1"}
    right = {"RLAIF_POLICY_SAMPLES": "2", "RLAIF_TRAIN_KL_BETA": "1", "RLAIF_VLLM_PYTHON": "p", "RLAIF_JUDGE_KEY": "k"}
    said = rlaif("check", path, "--offline", **wrong, **right).stderr.splitlines()
    assert [line for line in said if "RLAIF_" in line] == [
        "note: the environment variable RLAIF_POLICY_SMAPLES names no setting and is ignored; "
        "did you mean RLAIF_POLICY_SAMPLES?",
        "note: the environment variable RLAIF_TRAIN_KL_BTEA names no setting and is ignored; "
        "did you mean RLAIF_TRAIN_KL_BETA?",
    ]
    trained = rlaif("train", "dpo", "--beta", "x", RLAIF_TRAIN_BTEA="1")
    assert "did you mean RLAIF_TRAIN_BETA?" in trained.stderr


def test_the_saved_settings_run_again(tmp_path: Path) -> None:
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url)
        run(path)
        pairs_before = (tmp_path / "run/pairs.jsonl").read_bytes()
        requests = sum(fake.requests.values())
        run(tmp_path / "run/run.yaml")
        assert sum(fake.requests.values()) == requests
    assert (tmp_path / "run/pairs.jsonl").read_bytes() == pairs_before


def test_a_mistake_in_the_prompts_leaves_a_finished_run_as_it_was(tmp_path: Path) -> None:
    """Missing, or broken in its middle: told, and nothing in the folder is another one. A new folder is not made."""
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url)
        run(path)
        before = {each.name: each.read_bytes() for each in (tmp_path / "run").iterdir()}
        broken = tmp_path / "broken.jsonl"
        broken.write_text('{"prompt": "Fine?"}\n{"prompt": \n')
        for wrong, words in (("missing.jsonl", "no such file"), (str(broken), "broken.jsonl:2")):
            with pytest.raises(UserError, match=words):
                run(path, prompts__path=wrong)
        assert {each.name: each.read_bytes() for each in (tmp_path / "run").iterdir()} == before
        with pytest.raises(UserError, match="no such file"):
            run(path, prompts__path="missing.jsonl", output=str(tmp_path / "new"))
        assert not (tmp_path / "new").exists()


def test_a_dataset_of_somebody_elses_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/pairs.jsonl").write_text("mine\n")
    with (
        FakeServer() as fake,
        pytest.raises(UserError, match=r"pairs.jsonl: there is a file of this name here already"),
    ):
        run(write_run(tmp_path, fake.url))
    assert (tmp_path / "run/pairs.jsonl").read_text() == "mine\n"


def test_a_run_on_other_prompts_in_the_same_folder_is_told(tmp_path: Path) -> None:
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url)
        run(path)
        (tmp_path / "other.jsonl").write_text('{"prompt": "Another question?"}\n')
        done = rlaif("generate", path, "--prompts", "other.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"was a run on {tmp_path / 'prompts.jsonl'}: its answers are kept, its pairs are replaced" in done.stderr
