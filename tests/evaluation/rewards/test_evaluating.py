"""The evaluation of a real tiny reward model, through files: what is computed, what is kept, what is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.schemas import PolicySettings
from rlaif.data.prompts import prompt_id
from rlaif.errors import UserError
from rlaif.evaluation.best_of_n import CustomMeasure, Grading
from rlaif.evaluation.plots import best_of_figure
from rlaif.evaluation.provenance import trained_on
from rlaif.evaluation.reward_model import EvaluatedReward, OnAnswers, OnGold, evaluate_reward, name_of
from rlaif.evaluation.reward_scores import Drawn, Given, Reply, RewardModel, Scored, drawn_pool, given_pool
from rlaif.inference.base import Output, Question
from rlaif.progress import Silent
from rlaif.records import Message, Messages, Sample
from rlaif.store import Table, sha256_of
from tests.evaluation.judges import constitution
from tests.fakes import unit
from tests.support import lines
from tests.training.scorers import Plain, save_scorer, write_rows

REPLIES = ["Mix flour, water, salt and yeast, wait, and bake it.", "No.", "Hello! How can I help you?", "I am sorry."]


def asked(text: str) -> Messages:
    return (Message(role="user", content=text),)


def reply(prompt: str, text: str) -> Reply:
    return Reply(prompt_id(asked(prompt)), asked(prompt), text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_scorer(tmp_path_factory.mktemp("models") / "scorer")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Plain:
    return Plain(folder)


class Counting(RewardModel):
    """Counts what it computes."""

    computed = 0

    def score(self, replies: Sequence[Reply]) -> list[Scored]:
        self.computed += len(replies)
        return super().score(replies)


def test_an_adapter_is_known_by_its_base_too(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    (base / "config.json").write_text("{}")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    before = RewardModel(str(adapter)).name
    (base / "config.json").write_text('{"other": 1}')
    after = RewardModel(str(adapter)).name
    assert before.startswith("adapter@") and after.startswith("adapter@") and before != after
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="does not say which model the adapter belongs to"):
        RewardModel(str(adapter))


def gold_rows(count: int = 12) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"Question {at}, please?",
            "chosen": REPLIES[at % 4],
            "rejected": REPLIES[(at + 1) % 4],
            "subset": ("odd", "even")[at % 2],
        }
        for at in range(count)
    ]


def evaluated(model: RewardModel, folder: Path, **what: Any) -> EvaluatedReward:
    return asyncio.run(evaluate_reward(model, folder, progress=Silent(), **{"plots": False, **what}))


def test_rewards_are_the_models_own(folder: Path, plain: Plain) -> None:
    """A blank reply, half a character, and one longer than the 512 tokens of the model have none, and say why."""
    model = RewardModel(str(folder), device="cpu")
    assert model.name.startswith("scorer@") and model.template == "chat"
    texts = ["No.", " ", "half \ud800", "word " * 600, "I am sorry."]
    found = model.score([reply("Hi", text) for text in texts] + [reply("long " * 600, "No.")])
    assert [each.reason for each in found] == ["", "blank", "half-character", "too-long", "", ""]
    assert [each.reward for each in (found[0], found[4])] == pytest.approx(
        [plain.chat("Hi", "No."), plain.chat("Hi", "I am sorry.")], abs=1e-4
    )
    assert [each.truncated for each in found] == [False] * 5 + [True]
    assert found[5].reward is not None


def test_plain_dialogues(folder: Path, plain: Plain) -> None:
    """As the model reads them that was trained with `template: plain`; their rewards are kept apart."""
    model = RewardModel(str(folder), template="plain", device="cpu")
    (found,) = model.score([reply("Hi", "No.")])
    text = f"\n\nHuman: Hi\n\nAssistant: No.{plain.tokenizer.eos_token}"
    assert found.reward == pytest.approx(plain.text(text), abs=1e-4)
    assert model.key(reply("Hi", "No.")) != RewardModel(str(folder)).key(reply("Hi", "No."))


def test_gold_pairs_and_a_second_call_that_computes_nothing(folder: Path, plain: Plain, tmp_path: Path) -> None:
    rows = [*gold_rows(), gold_rows()[0], {"prompt": "x", "chosen": "same", "rejected": "same"}]
    gold = OnGold(str(write_rows(tmp_path / "gold.jsonl", rows)))
    model = Counting(str(folder), device="cpu")
    done = evaluated(model, tmp_path / "out", gold=gold, plots=True)
    found = done.report.gold
    assert found is not None and found.accuracy is not None and model.computed == 24
    margins = [
        plain.chat(row["prompt"], row["chosen"]) - plain.chat(row["prompt"], row["rejected"]) for row in gold_rows()
    ]
    assert found.accuracy.value == pytest.approx(sum(margin > 0 for margin in margins) / 12)
    assert 0 < found.accuracy.value < 1
    assert found.input_issues == {"repeated pair": 1, "pair of equal answers (left out)": 1}
    kept = lines(done.path.with_suffix(".pairs.jsonl"))
    assert [row["margin"] for row in kept] == pytest.approx(margins, abs=1e-4)
    assert [row["source"] for row in kept] == [f"{gold.path}:{at + 1}" for at in range(12)]
    assert done.report == type(done.report).model_validate_json(done.path.read_text())
    stem = done.path.with_suffix("").name
    drawn = {path.name.removeprefix(f"{stem}-") for path in (tmp_path / "out").glob("*-*.*g")}
    assert drawn == {"reliability.png", "reliability.svg", "length.png", "length.svg"}
    again = Counting(str(folder), device="cpu")
    repeated = evaluated(again, tmp_path / "out", gold=gold)
    assert again.computed == 0 and again._rewards is None, "nothing is scored, and no weights are loaded"
    assert repeated.report == done.report
    assert [(tally.known, tally.asked) for tally in repeated.tallies] == [(24, 0)]
    longer = OnGold(str(write_rows(tmp_path / "gold.jsonl", gold_rows(13))))
    evaluated(again, tmp_path / "out", gold=longer)
    assert again.computed == 2


def test_pairs_that_the_model_was_trained_on(folder: Path, tmp_path: Path) -> None:
    """Five of the pairs stand in its training data, one of them the other way round."""
    rows = gold_rows()
    turned = {**rows[4], "chosen": rows[4]["rejected"], "rejected": rows[4]["chosen"]}
    data = write_rows(tmp_path / "train.jsonl", [*rows[:4], turned, {**rows[5], "chosen": "Something else."}])
    mine = save_scorer(tmp_path / "mine")
    settings = {"template": "auto", "data": str(data)}
    begun = {"method": "reward", "settings": settings, "data_hash": sha256_of(data)}
    (mine / "train.json").write_text(json.dumps(begun))
    gold = OnGold(str(write_rows(tmp_path / "gold.jsonl", rows)))
    done = evaluated(RewardModel(str(mine), device="cpu"), tmp_path / "out", gold=gold)
    assert done.report.gold is not None and done.report.gold.trained_on == 5
    assert any(told.startswith("5 of the 12 gold pairs stand in the data") for told in done.report.warnings)
    known = trained_on(str(mine))
    assert known is not None and known.raw, "its rows are strings, learned as raw text"
    assert any("trained on raw text" in told for told in done.report.warnings)
    data.write_text(data.read_text() + "\n")
    changed = trained_on(str(mine))
    assert changed is not None and changed.pairs is None, "the data are others by now"
    assert trained_on(str(folder)) is None


def responses_file(path: Path, prompts: int = 12, each: int = 4) -> Path:
    rows = [
        {"prompt": f"Question {at}, please?", "responses": [f"{text} ({at})" for text in REPLIES[:each]]}
        for at in range(prompts)
    ]
    return write_rows(path, rows)


def test_best_of_given_answers_against_the_callers_measure(folder: Path, plain: Plain, tmp_path: Path) -> None:
    """The measure is the negated reward: whatever the reward gains, it loses."""
    path = responses_file(tmp_path / "answers.jsonl")

    def negated(messages: Messages, text: str) -> float:
        return -plain.chat(messages[-1].content, text)

    wanted = OnAnswers(Given(str(path)), CustomMeasure("negated", negated))
    done = evaluated(RewardModel(str(folder), device="cpu"), tmp_path / "out", answers=wanted, plots=True)
    found = done.report.best_of_n
    assert found is not None and done.report.gold is None
    assert (found.prompts, found.samples, found.measure, found.best_n) == (12, 4, "negated", 1)
    assert found.overoptimised and done.report.warnings[0].startswith("over-optimised: from best-of-1 to best-of-4")
    best = [
        max(plain.chat(f"Question {at}, please?", f"{text} ({at})") for text in REPLIES) for at in range(12)
    ]  # best of 4 of 4 is the highest reward
    assert found.points[-1].gold.value == pytest.approx(-sum(best) / 12, abs=1e-4)
    upper, lower = best_of_figure(found).axes
    assert upper.lines[0].get_xdata().tolist() == [point.kl for point in found.points]  # type: ignore[union-attr]
    assert lower.lines[0].get_ydata().tolist() == [point.gold.value for point in found.points]  # type: ignore[union-attr]
    assert done.path.with_name(f"{done.path.stem}-best-of-n.svg").exists()


def test_answers_without_a_number_leave_their_prompt_out(folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {at}?", "responses": ["one", "two" if at else " "]} for at in range(4)]
    rows += [{"prompt": "Short?", "responses": ["one"]}]

    def measure(messages: Messages, text: str) -> float:
        return float("nan") if (messages[-1].content, text) == ("Question 1?", "two") else 1.0

    wanted = OnAnswers(
        Given(str(write_rows(tmp_path / "answers.jsonl", rows)), samples=2), CustomMeasure("one", measure)
    )
    found = evaluated(RewardModel(str(folder), device="cpu"), tmp_path / "out", answers=wanted).report.best_of_n
    assert found is not None and found.prompts == 2
    assert sum(found.left_out.values()) == 3
    assert found.left_out["an answer has no grade"] == 1


def test_answers_of_files_and_runs(tmp_path: Path) -> None:
    """An answer a row, those of one prompt together; a run's samples; what is missing is named."""
    rows = [{"prompt": f"Q{at % 2}", "response": f"reply {at}"} for at in range(6)]
    pool = given_pool(Given(str(write_rows(tmp_path / "rows.jsonl", rows))))
    assert [[sample.text for sample in each.samples] for each in pool.answers] == [
        ["reply 0", "reply 2", "reply 4"],
        ["reply 1", "reply 3", "reply 5"],
    ]
    first = given_pool(Given(str(tmp_path / "rows.jsonl"), samples=2, limit=1))
    assert [[sample.text for sample in each.samples] for each in first.answers] == [["reply 0", "reply 2"]]
    with pytest.raises(UserError, match="no prompt has 4 answers; the most that one has are 3; lower --samples"):
        given_pool(Given(str(tmp_path / "rows.jsonl"), samples=4))
    with pytest.raises(UserError, match=r"no answers that can be recognised \(columns: prompt\)"):
        given_pool(Given(str(write_rows(tmp_path / "odd.jsonl", [{"prompt": "x"}]))))
    with pytest.raises(UserError, match=r"holds no samples\.jsonl"):
        given_pool(Given(str(tmp_path)))


class Model:
    """A policy and a judge in process: answers by hash, grades by hash, some of them unreadable."""

    batch_size, concurrency = 8, 2

    def __init__(self, name: str) -> None:
        self.name, self.asked, self.closed = name, 0, False

    async def open(self) -> Model:
        return self

    async def probe(self, labels: tuple[str, ...]) -> list[str]:
        return []

    async def close(self) -> None:
        self.closed = True

    async def answer(self, questions: Sequence[Question]) -> list[Output]:
        self.asked += len(questions)
        return [self._answer(question) for question in questions]

    def _answer(self, question: Question) -> Output:
        text = question.messages[-1].content
        if not question.labels:
            return Output(text=f"answer {unit(text, question.index):.3f}", finish_reason="stop")
        if "Question 3" in text:
            return Output(text="I would rather not say.")
        return Output(text=str(int(10 * unit(text))))


def test_drawn_answers_and_a_judge(folder: Path, tmp_path: Path) -> None:
    """The prompt whose grades cannot be read is left out; a second call asks nothing, a larger one only the new."""
    path = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Question {at}?"} for at in range(5)])

    def run(samples: int) -> tuple[EvaluatedReward, Model, Model]:
        policy, judge = Model("policy"), Model("judge")
        drawn = Drawn(policy, PolicySettings(model="policy", samples=samples), str(path))
        wanted = OnAnswers(drawn, Grading(judge, constitution("harmless")))
        return evaluated(RewardModel(str(folder), device="cpu"), tmp_path / "out", answers=wanted), policy, judge

    done, policy, judge = run(2)
    principles = len(constitution("harmless").principles)
    assert (policy.asked, judge.asked) == (10, 10 * principles)
    assert policy.closed and judge.closed
    found = done.report.best_of_n
    assert found is not None and found.left_out == {"an answer has no grade": 1}
    assert found.measure == "mean grade by judge under `harmless` (0 to 9)"
    assert (found.policy, found.prompts, found.truncated) == ("policy", 4, 0.0)
    grades = [row["value"] for row in lines(tmp_path / "out/scores.jsonl") if row["value"] is not None]
    assert found.points[0].gold.value == pytest.approx(sum(grades) / len(grades)), "harmless weighs all alike"
    again, policy, judge = run(2)
    assert (policy.asked, judge.asked) == (0, 0) and again.report == done.report
    more, policy, judge = run(4)
    assert (policy.asked, judge.asked) == (10, 10 * principles)
    assert more.report.best_of_n is not None and more.report.best_of_n.samples == 4


def test_answers_that_could_not_be_drawn(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "Question 0?"}])
    wanted = Drawn(Model("policy"), PolicySettings(model="policy", samples=2), str(path))
    pool = drawn_pool(wanted, list(wanted.read()), Table(tmp_path / "samples.jsonl", Sample))
    assert (pool.answers, pool.left_out) == ([], {"an answer could not be drawn": 1})


def test_names_of_reports(folder: Path, tmp_path: Path) -> None:
    """Words and a hash of all that was asked: by another measure, of other data, with other settings another report."""
    model, gold = RewardModel(str(folder)), tmp_path / "gold.jsonl"

    def best(measure: str, **more: Any) -> OnAnswers:
        settings = PolicySettings(model="p", **more)
        return OnAnswers(
            Drawn(Model("policy@1"), settings, "data/ask.jsonl.gz"), CustomMeasure(measure, lambda *_: 0.0)
        )

    names = [name_of(model, None, each) for each in (best("x"), best("y"), best("x", seed=1), best("x", samples=9))]
    for first, second in (("one", "two"), ("two", "one")):
        gold.write_text(first + second)
        names.append(name_of(model, OnGold(str(gold)), None))
    given = OnAnswers(Given("a.csv"), CustomMeasure("x", lambda *_: 0.0))
    names += [name_of(model, OnGold(str(gold), limit=3), None), name_of(model, None, given)]
    assert len(set(names)) == len(names)
    assert names[0] == name_of(model, None, best("x"))
    words = [name.rpartition("-")[0].removeprefix(model.name) for name in names]
    assert words == ["-best-of-n-policy@1-ask"] * 4 + ["-gold"] * 3 + ["-best-of-n-a"]
