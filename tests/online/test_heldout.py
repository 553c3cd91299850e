"""The held-out judge, asked by planted opinions, by the shipped judge, and where it fails."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.schemas import CompareSettings, ModelSettings, PairSettings
from rlaif.constitution import Constitution, Principle, load_constitution
from rlaif.errors import ModelError, UserError
from rlaif.feedback.prompts import LABELS
from rlaif.inference.base import Output, Question
from rlaif.inference.client import Server
from rlaif.inference.models import LazyModel
from rlaif.progress import Silent
from rlaif.records import Message, Messages
from rlaif.rl.config import OnlineSettings
from rlaif.rl.heldout import HeldOut, HeldOutJudge
from rlaif.rl.monitor import Monitoring
from rlaif.stats import sigmoid
from rlaif.store import shipped_model
from tests.evaluation.judges import Judge, first_slot, longer_wins
from tests.fakes import FakeServer

TWO = Constitution(
    name="two",
    description="Two principles of unequal weight.",
    principles=(
        Principle(id="kind", compare="Which reply is kinder?", weight=3),
        Principle(id="short", compare="Which reply is shorter?", weight=1),
    ),
)


def asked(*texts: str) -> list[Messages]:
    return [(Message(role="user", content=text),) for text in texts]


def held_out(judge: Judge, folder: Path, **more: object) -> HeldOutJudge:
    return HeldOutJudge(judge, TWO, folder, **more)  # type: ignore[arg-type]


class Odd(Judge):
    """Answers questions by what `of` makes of them; None asks the opinion."""

    def __init__(self, of: Callable[[Question], Output | None]) -> None:
        super().__init__(longer_wins)
        self.of, self.closed = of, 0

    def _answer(self, question: Question) -> Output:
        return self.of(question) or super()._answer(question)

    async def close(self) -> None:
        self.closed += 1


def test_preferences_by_hand(tmp_path: Path) -> None:
    """Log-odds of 3 for the longer one in either order and under either principle: sigmoid(3) = 0.9526."""
    judge = Judge(longer_wins)
    with held_out(judge, tmp_path) as held:
        found = held.preferences(
            asked("a", "b", "c"), ["no", "a long one", "the same "], ["longer", "short", "the same"]
        )
    assert found == [pytest.approx(0.9526, abs=1e-4), pytest.approx(0.0474, abs=1e-4), 0.5]
    assert len(judge.asked) == 2 * 2 * 2, (
        "two prompts, two principles, two orders; identical answers are not asked about"
    )
    assert {str(question.about["principle"]) for question in judge.asked} == {"kind", "short"}


def test_principles_count_by_their_weight(tmp_path: Path) -> None:
    """+2 by the one of weight 3, -2 by the one of weight 1: (3 * 2 - 2) / 4 = 1, and sigmoid(1) = 0.7311."""

    def opinion(question: Question) -> Output:
        policy_first = "mine" in question.messages[-1].content.split("Reply B")[0]
        logit = (2.0 if question.about["principle"] == "kind" else -2.0) * (1 if policy_first else -1)
        return Output(logprobs=(math.log(0.9 * sigmoid(logit)), math.log(0.9 * sigmoid(-logit))))

    with held_out(Odd(opinion), tmp_path) as held:
        assert held.preferences(asked("a"), ["theirs"], ["mine"]) == [pytest.approx(0.7311, abs=1e-4)]


def test_a_liking_for_the_first_slot_cancels(tmp_path: Path) -> None:
    with held_out(Judge(first_slot), tmp_path) as held:
        found = held.look(7, asked("a", "b"), ["one", "two"], ["three", "four"])
    assert (found.step, found.win_rate, found.ties, found.flips) == (7, 0.5, 2, 1.0)


def test_one_question_for_the_whole_constitution(tmp_path: Path) -> None:
    judge = Judge(longer_wins)
    with held_out(judge, tmp_path, compare=CompareSettings(principles="all", orders="random")) as held:
        held.preferences(asked("a"), ["one"], ["other"])
    assert len(judge.asked) == 2, "both orders, whatever the settings say"


def test_length_is_told_from_quality(tmp_path: Path) -> None:
    """A judge of length alone, and a policy that is longer on 100 prompts in 160: little of its lead is left."""
    rng = random.Random(1)
    prompts = asked(*(f"Prompt {at}" for at in range(160)))
    start = ["x" * rng.randint(60, 140) for _ in prompts]
    policy = ["y" * (len(text) + (1 if at % 8 < 5 else -1) * rng.randint(1, 60)) for at, text in enumerate(start)]
    with held_out(Judge(longer_wins), tmp_path) as held:
        found = held.look(20, prompts, start, policy)
    assert found.win_rate == pytest.approx(0.625 * 0.9526 + 0.375 * 0.0474, abs=1e-3)
    assert (found.wins, found.losses, found.compared, found.identical) == (100, 60, 160, 0)
    assert found.length_controlled is not None and found.interval is not None
    assert found.length_controlled < found.win_rate - 0.02 and found.interval[0] < 0.52
    assert found.length > found.start_length == pytest.approx(sum(map(len, start)) / 160)
    assert found.judge == "synthetic"


def test_the_difference_is_the_policys_length_less_the_starts(tmp_path: Path) -> None:
    with held_out(Judge(lambda first, second: 1.0 if first > second else -1.0), tmp_path) as held:
        found = held.look(1, asked("a", "b", "c"), ["p", "q", "r"], ["zz", "bbb", "cccc"])
    assert "100% of the responses are longer" in found.note and found.length_controlled is None


def test_silent_prompts_are_counted_and_never_a_label(tmp_path: Path) -> None:
    """Of four prompts one call fails, and one has no label under any principle: two are left to compare."""

    def opinion(question: Question) -> Output | None:
        text = question.messages[-1].content
        if "prompt 1" in text and question.about["principle"] == "short":
            return Output(failure="timeout")
        return Output(logprobs=(math.log(0.01), math.log(0.01))) if "prompt 2" in text else None

    prompts = asked("prompt 0", "prompt 1", "prompt 2", "prompt 3")
    start, policy = ["no", "no", "no", "alike"], ["longer", "longer", "longer", "alike"]
    with held_out(Odd(opinion), tmp_path) as held:
        found = held.look(1, prompts, start, policy)
        said = held.preferences(prompts, start, policy)
    assert said == [pytest.approx(0.9526, abs=1e-4), None, None, 0.5]
    assert (found.compared, found.failed, found.unreadable, found.identical) == (2, 1, 1, 1)
    assert found.win_rate == pytest.approx((0.9526 + 0.5) / 2, abs=1e-4)
    assert found.length == 5.5, "the lengths are those of the prompts that were compared"


@pytest.mark.parametrize("most", [0.5, 1.0])
def test_a_judge_without_verdicts_stops_the_training(tmp_path: Path, most: float) -> None:
    with (
        held_out(Odd(lambda question: Output(failure="http_500")), tmp_path, max_failed=most) as held,
        pytest.raises(ModelError, match=r"no verdict on 2 of 2 prompts \(http_500 8\)"),
    ):
        held.look(1, asked("a", "b"), ["x", "y"], ["xx", "yy"])
    silent = Odd(lambda question: Output(text="Hm."))
    with (
        held_out(silent, tmp_path, max_failed=most) as held,
        pytest.raises(ModelError, match="no label in its answers"),
    ):
        held.look(1, asked("c"), ["x"], ["xx"])


def test_the_label_mass_and_the_margin_are_settings(tmp_path: Path) -> None:
    with held_out(Judge(longer_wins, mass=0.4), tmp_path, pair=PairSettings(min_label_mass=0.3, margin=0.49)) as held:
        found = held.look(1, asked("a"), ["x"], ["xx"])
    assert (found.compared, found.ties) == (1, 1)


def test_a_resumed_training_asks_nothing_twice(tmp_path: Path) -> None:
    prompts, start, policy = asked("a", "b"), ["one", "two"], ["three", "fourteen"]
    with held_out(Judge(longer_wins), tmp_path) as held:
        first = held.look(3, prompts, start, policy)
    again = Judge(longer_wins)
    with held_out(again, tmp_path) as held:
        assert held.look(3, prompts, start, policy) == first
        assert again.asked == []
        held.look(4, prompts, start, ["three", "another"])
    assert len(again.asked) == 4, "only the prompt whose answer is another one"


def test_a_result_is_a_line_of_json(tmp_path: Path) -> None:
    with held_out(Judge(longer_wins), tmp_path) as held:
        found = held.look(3, asked("a", "b"), ["one", "two"], ["three", "fourteen"])
    line = json.dumps(found.plain())
    assert "\n" not in line
    assert HeldOut.model_validate(json.loads(line)) == found


def test_it_can_be_called_where_a_loop_runs(tmp_path: Path) -> None:
    """As in a notebook: the caller's own loop is not needed and not in the way."""

    async def caller() -> list[float | None]:
        with held_out(Judge(longer_wins), tmp_path) as held:
            return held.preferences(asked("a"), ["x"], ["xx"])

    assert asyncio.run(caller()) == [pytest.approx(0.9526, abs=1e-4)]


def test_closing(tmp_path: Path) -> None:
    before = threading.active_count()
    judge = Odd(lambda question: None)
    held = held_out(judge, tmp_path)
    with pytest.raises(UserError, match="another process"):
        held_out(judge, tmp_path)
    assert threading.active_count() == before + 1
    held.close()
    held.close()
    assert judge.closed == 1
    assert threading.active_count() == before, "a refused one leaves no thread either"
    with pytest.raises(ValueError, match="closed"):
        held.preferences(asked("a"), ["x"], ["y"])
    held_out(judge, tmp_path).close()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with held_out(Judge(longer_wins), tmp_path) as held:
        with pytest.raises(ValueError, match="one answer of the start"):
            held.preferences(asked("a", "b"), ["x"], ["y", "z"])
        with pytest.raises(ValueError, match="no prompt"):
            held.look(1, [], [], [])
        assert held.preferences([], [], []) == []


def test_ctrl_c_reaches_the_judge(tmp_path: Path) -> None:
    """The main thread waits for the answers: an interrupt ends the waiting and the asking."""
    halted = threading.Event()

    class Slow(Judge):
        async def answer(self, questions: Sequence[Question]) -> list[Output]:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                halted.set()
                raise
            return []

    with held_out(Slow(longer_wins), tmp_path) as held, pytest.raises(KeyboardInterrupt):
        held.preferences(asked("a"), ["x"], ["xx"])
    assert halted.wait(10)


class OnServer:
    """A source of a server that is given up soon."""

    def __init__(self, url: str) -> None:
        self.name, self._model = "fake", Server(url, "fake", give_up_after=0.3, backoff=0.01)

    async def open(self) -> Server:
        return self._model

    async def close(self) -> None:
        await self._model.close()


def test_a_server_that_dies_stops_the_training_and_may_come_back(tmp_path: Path) -> None:
    prompts = asked("a", "b")
    with FakeServer() as fake:
        port, source = fake.port, OnServer(fake.url)
        held = HeldOutJudge(source, TWO, tmp_path)
        first = held.look(1, prompts, ["one", "two"], ["three", "fourteen"])
    with pytest.raises(ModelError, match=r"127\.0\.0\.1"):
        held.look(2, prompts, ["one", "two"], ["five", "six"])
    with FakeServer(port=port) as fake:
        assert held.look(2, prompts, ["one", "two"], ["five", "six"]).compared == 2
        assert held.look(1, prompts, ["one", "two"], ["three", "fourteen"]) == first
        assert fake.asked.total() == 2 * 2 * 2, "the first look is on disk"
        held.close()


def test_a_server_that_was_never_there(tmp_path: Path) -> None:
    with FakeServer() as fake:
        url = fake.url
    source = LazyModel(ModelSettings(model="fake", base_url=url), log=tmp_path / "log", labels=LABELS)
    with HeldOutJudge(source, TWO, tmp_path) as held, pytest.raises(ModelError):
        held.preferences(asked("a"), ["x"], ["y"])


@pytest.mark.parametrize(
    ("reward", "witness", "told"),
    [
        ("judge", None, True),
        ("judge*0.5,module:fn", None, True),
        ("module:fn,judge", {"model": "demo-judge", "timeout": 9}, True),
        ("judge", {"model": "other"}, False),
        ("module:fn", None, False),
    ],
)
def test_the_judge_of_the_reward_is_no_witness(
    reward: str, witness: dict[str, Any] | None, told: bool, tmp_path: Path
) -> None:
    settings = OnlineSettings.model_validate(
        {
            "model": "-", "output": str(tmp_path), "prompts": "-", "reward": reward, "judge": {"model": "demo-judge"},
            "constitution": "demo", "held_out": {"every": 1, "judge": witness},
        }
    )  # fmt: skip
    notes: list[str] = []
    nobody: Any = None
    with Monitoring.opened(settings, [], nobody, notes.append):
        assert any("no independent witness" in note for note in notes) == told


@pytest.mark.slow
def test_the_shipped_judge_knows_the_better_answers(tmp_path: Path) -> None:
    """Answers of the shipped policy to fresh prompts, sorted by the oracle: the judge finds most of the better ones.

    The other way round all questions are the same, so nothing is asked and every preference is its complement.
    """
    from rlaif.demo.oracle import prefer_overall
    from tests.bench.behaviour import answers, fresh_prompts

    policy = shipped_model("demo-policy")
    assert policy is not None
    prompts = fresh_prompts(60)
    sorted_by_oracle = []
    for prompt, (one, other) in answers(policy, prompts, 2, 1.0).items():
        said = prefer_overall(prompt, one, other)
        if said != 0.5:
            sorted_by_oracle.append((prompt, one, other) if said == 1.0 else (prompt, other, one))
    assert len(sorted_by_oracle) > 25
    found, better, worse = (list(each) for each in zip(*sorted_by_oracle, strict=True))
    counts: list[int] = []

    class Counting(Silent):
        def advance(self, stage: str, done: int, note: str = "") -> None:
            counts.append(done)

    source = LazyModel(ModelSettings(model="demo-judge"), log=tmp_path / "log", labels=LABELS)
    with HeldOutJudge(source, load_constitution("demo"), tmp_path, progress=Counting()) as held:
        right = held.look(10, asked(*found), worse, better)
        assert counts[-1] == 16 * len(found)
        calls = len(counts)
        said_so, otherwise = (held.preferences(asked(*found), *each) for each in ((worse, better), (better, worse)))
        assert len(counts) == calls, "asked before"
    assert right.compared == len(found)
    assert right.wins > 0.75 * len(found) and right.losses < 0.1 * len(found)
    assert right.interval[0] > 0.55, "probabilities are mild, as most principles see no difference"
    assert right.failed == right.unreadable == 0
    assert [1 - each for each in said_so if each is not None] == pytest.approx(otherwise)
