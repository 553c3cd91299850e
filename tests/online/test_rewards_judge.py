"""The judge as the reward: grades by pencil and paper, what fails is no score, and one thread for its whole life."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rlaif.config.schemas import JudgeSettings
from rlaif.constitution import Constitution, Principle, load_constitution
from rlaif.errors import ModelError, UserError
from rlaif.feedback.prompts import DIGITS, score_messages
from rlaif.inference.base import Output, Question
from rlaif.inference.models import LazyModel
from rlaif.records import Message, Messages
from rlaif.rl.rewards import JudgeReward
from rlaif.store import shipped_model
from tests.fakes import FakeServer, Trouble, unit

TWO = Constitution(
    name="two",
    principles=(
        Principle(id="kind", compare="Which reply is kinder?", weight=3),
        Principle(id="short", compare="Which reply is shorter?", weight=1),
    ),
)
NEVER = -50.0


def asked(text: str) -> Messages:
    return (Message(role="user", content=text),)


def spread(**chances: float) -> Output:
    """An answer with these probabilities: `spread(d3=0.5)`."""
    return Output(
        logprobs=tuple(math.log(chances[f"d{digit}"]) if f"d{digit}" in chances else NEVER for digit in range(10))
    )


Grade = Callable[[Question], Output]


def by_hand(question: Question) -> Output:
    """Kindness: 0.6 on 8 and 0.2 on 4, so 7; shortness: 3."""
    return spread(d8=0.6, d4=0.2) if "kinder" in question.messages[-1].content else spread(d3=0.9)


class Planted:
    """A judge, and its own source, whose answers are given; it fails as it is told."""

    name = "planted"

    def __init__(self, grade: Grade = by_hand, *, batch_size: int = 4, concurrency: int = 3) -> None:
        self.grade, self.batch_size, self.concurrency = grade, batch_size, concurrency
        self.asked: Counter[str] = Counter()
        self.batches: list[int] = []
        self.busy = self.most_busy = 0
        self.loops: set[int] = set()
        self.closed = False

    async def probe(self, labels: tuple[str, ...]) -> list[str]:
        return []

    async def open(self) -> Planted:
        self.loops.add(id(asyncio.get_running_loop()))
        return self

    async def answer(self, questions: Sequence[Question]) -> list[Output]:
        self.loops.add(id(asyncio.get_running_loop()))
        self.asked.update(question.id for question in questions)
        self.batches.append(len(questions))
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        await asyncio.sleep(0.01)
        self.busy -= 1
        return [self.grade(question) for question in questions]

    async def close(self) -> None:
        self.loops.add(id(asyncio.get_running_loop()))
        self.closed = True


def judges() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "judge"]


def test_score_is_the_weighted_mean_of_the_grades() -> None:
    """(3 * 7 + 1 * 3) / 4 = 6 of 9."""
    reward = JudgeReward(Planted(), TWO)
    scores = reward([asked("How?"), asked("Why?")], ["So.", "Because."])
    assert scores.total == pytest.approx([6 / 9] * 2)
    assert {name: list(values) for name, values in scores.parts.items()} == {
        "kind": pytest.approx([7 / 9] * 2), "short": pytest.approx([3 / 9] * 2)
    }  # fmt: skip
    assert reward([], []).total == []
    assert reward.state() == {}
    reward.restore({})
    reward.close()


def test_whole_constitution_in_one_question() -> None:
    judge = Planted()
    reward = JudgeReward(judge, TWO, "all")
    scores = reward([asked("How?")], ["So."])
    reward.close()
    assert judge.asked.total() == 1
    assert scores.total == pytest.approx([7 / 9])
    assert scores.parts == {"all": scores.total}


def troubled(question: Question) -> Output:
    """Fails for `down`, has too little on the digits for `dim` under kindness, and chats for `chatty`."""
    text = question.messages[-1].content
    if "down" in text and "shorter" in text:
        return Output(failure="timeout", detail="no reply within 2 s")
    if "dim" in text and "kinder" in text:
        return spread(d9=0.49)
    if "chatty" in text:
        return Output(text="What a question!")
    return Output(text="Grade: 9") if "worded" in text else by_hand(question)


def test_what_failed_is_none_and_never_zero() -> None:
    reward = JudgeReward(Planted(troubled), TWO)
    scores = reward([asked("How?")] * 5, ["down", "fine", "dim", "chatty", "worded"])
    reward.close()
    assert [value is None for value in scores.total] == [True, False, True, True, False]
    assert [scores.total[1], scores.total[4]] == pytest.approx([6 / 9, 1.0])
    assert [value is None for value in scores.parts["kind"]] == [False, False, True, True, False]
    assert [value is None for value in scores.parts["short"]] == [True, False, False, True, False]
    assert scores.parts["kind"][0] == pytest.approx(7 / 9)


def test_least_mass_is_the_callers() -> None:
    reward = JudgeReward(Planted(lambda question: spread(d9=0.49)), TWO, min_mass=0.4)
    assert reward([asked("How?")], ["So."]).total == pytest.approx([1.0])
    reward.close()


def test_no_score_at_all_stops() -> None:
    """Two responses, four questions: the two of kindness time out, of the others one cannot be read. The commonest
    reason is told."""

    def grade(question: Question) -> Output:
        text = question.messages[-1].content
        if "kinder" in text:
            return Output(failure="timeout", detail="no reply within 2 s" + "!" * 1000)
        return spread(d1=0.2) if "first" in text else by_hand(question)

    reward = JudgeReward(Planted(grade), TWO)
    with pytest.raises(ModelError, match="planted gave none of 2 responses a score: timeout 2 of 3 times") as raised:
        reward([asked("How?")] * 2, ["first", "second"])
    assert len(str(raised.value)) < 400
    reward.close()


def test_judge_that_cannot_go_on_stops_and_can_be_asked_again() -> None:
    def grade(question: Question) -> Output:
        if "wrong key" in question.messages[-1].content:
            raise ModelError("http://judge.test: HTTP 401")
        return by_hand(question)

    reward = JudgeReward(Planted(grade, batch_size=1), TWO)
    with pytest.raises(ModelError, match=r"^http://judge.test: HTTP 401$"):
        reward([asked("How?")] * 9, ["wrong key"] * 9)
    assert reward([asked("How?")], ["So."]).total == pytest.approx([6 / 9])
    reward.close()


def test_equal_pairs_are_asked_once_a_call() -> None:
    judge = Planted()
    reward = JudgeReward(judge, TWO)
    scores = reward([asked("How?"), asked("Why?"), asked("How?")], ["So.", "So.", "So."])
    assert scores.total == pytest.approx([6 / 9] * 3)
    assert sorted(judge.asked.values()) == [1] * 4
    reward.close()


def test_calls_under_way_are_bounded() -> None:
    judge = Planted(batch_size=4, concurrency=3)
    reward = JudgeReward(judge, TWO)
    reward([asked(f"{at}?") for at in range(25)], ["So."] * 25)
    reward.close()
    assert judge.most_busy == 3
    assert sorted(judge.batches) == [2] + [4] * 12


def test_one_loop_for_its_whole_life() -> None:
    before = len(judges())
    judge = Planted()
    reward = JudgeReward(judge, TWO)
    for _ in range(3):
        reward([asked("How?")], ["So."])
    assert len(judges()) == before + 1
    reward.close()
    assert judge.closed and len(judge.loops) == 1
    assert len(judges()) == before
    reward.close()
    with pytest.raises(ModelError, match="was closed"):
        reward([asked("How?")], ["So."])


def test_interrupt_does_not_hang() -> None:
    """Ctrl-C while the judge is silent reaches the caller, calls the question off, and closing comes to its end."""
    silent, called_off = threading.Event(), threading.Event()

    class Silent(Planted):
        async def answer(self, questions: Sequence[Question]) -> list[Output]:
            silent.set()
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                called_off.set()
                raise
            return []

    def interrupt() -> None:
        assert silent.wait(30)
        time.sleep(0.3)  # by then the caller waits for the answers: before, there is nothing to be called off
        os.kill(os.getpid(), signal.SIGINT)

    before = len(judges())
    judge = Silent()
    reward = JudgeReward(judge, TWO)
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        reward([asked("How?")], ["So."])
    assert called_off.wait(30)
    reward.close()
    assert judge.closed and len(judges()) == before


def test_judge_that_does_not_open() -> None:
    class Missing(Planted):
        async def open(self) -> Planted:
            raise UserError("no such model")

    before = len(judges())
    judge = Missing()
    with pytest.raises(UserError, match="no such model"):
        JudgeReward(judge, TWO)
    assert judge.closed and len(judges()) == before


def test_over_a_real_socket(tmp_path: Path) -> None:
    """The fake grades by a bell around 9 times a reply's merit. It refuses one text, which alone has no score."""
    replies = ["So.", "Because.", "poison"]
    with FakeServer(troubles=[Trouble("400", contains="poison")]) as fake:
        source = LazyModel(JudgeSettings(model="fake", base_url=fake.url), log=tmp_path / "log", labels=DIGITS)
        reward = JudgeReward(source, TWO)
        for _ in range(2):
            scores = reward([asked("How?")] * 3, replies)
            assert scores.total == [*(pytest.approx(_bell(reply), abs=1e-6) for reply in replies[:2]), None]
        with pytest.raises(ModelError, match="gave none of 1 responses a score: bad_request 2 of 2 times"):
            reward([asked("How?")], ["poison"])
        reward.close()


def _bell(reply: str) -> float:
    centre = 9 * unit("merit", reply)
    heights = [math.exp(-((digit - centre) ** 2) / 2) for digit in range(10)]
    return sum(digit * height for digit, height in enumerate(heights)) / sum(heights) / 9


def test_server_that_is_not_there(tmp_path: Path) -> None:
    with FakeServer() as fake:
        url = fake.url
    before = len(judges())
    source = LazyModel(JudgeSettings(model="fake", base_url=url), log=tmp_path / "log", labels=DIGITS)
    with pytest.raises(ModelError, match="not reachable"):
        JudgeReward(source, TWO)
    assert len(judges()) == before


def test_shipped_judge_in_process(tmp_path: Path) -> None:
    """Against the digits' probabilities as transformers gives them, one conversation at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shipped_model("demo-judge")
    constitution = load_constitution("demo")
    assert folder is not None and len(constitution.principles) == 8
    prompt = asked("How do I boil eggs?")
    replies = ["Put the eggs into boiling water and take them out after six minutes.", "What a stupid question."]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    digits = [tokenizer.convert_tokens_to_ids(digit) for digit in DIGITS]

    def grade(reply: str, question: str) -> float:
        (message,) = score_messages(prompt, reply, question)
        text = tokenizer.apply_chat_template([message.model_dump()], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            chances = model(input_ids=ids).logits[0, -1, digits].softmax(-1)
        return float(chances @ torch.arange(10.0)) / 9

    reward = JudgeReward(LazyModel(JudgeSettings(model="demo-judge"), log=tmp_path / "log"), constitution, min_mass=0)
    scores = reward([prompt] * 3, [*replies, replies[0]])
    reward.close()
    for at, reply in enumerate([*replies, replies[0]]):
        grades = {each.id: grade(reply, each.compare) for each in constitution.principles}
        weights = {each.id: each.weight for each in constitution.principles}
        assert {name: values[at] for name, values in scores.parts.items()} == pytest.approx(grades, abs=1e-4)
        mean = sum(weights[name] * grades[name] for name in grades) / sum(weights.values())
        assert scores.total[at] == pytest.approx(mean, abs=1e-4)
