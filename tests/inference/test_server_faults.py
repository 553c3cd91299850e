"""A server that fails in every way we know, over real sockets: every question gets its own answer, once."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Any

import pytest

from rlaif.errors import ModelError
from rlaif.inference.base import Output, Question
from rlaif.inference.client import Server
from tests.fake_answers import first_share
from tests.fakes import FakeServer, Trouble
from tests.inference.questions import label_question, label_questions, text_question


def expected(question: Question) -> float:
    """log P(A) - log P(B) of the fake, worked out from its rule."""
    share = first_share([{"content": question.messages[-1].content}])
    return math.log(share / (1 - share))


def gap(answer: Output) -> float:
    assert answer.failure is None, answer
    assert answer.logprobs is not None
    return answer.logprobs[0] - answer.logprobs[1]


def ask(url: str, questions: Sequence[Question], *, together: int = 8, size: int = 16, **options: Any) -> list[Output]:
    async def main() -> list[Output]:
        settings = {"backoff": 0.002, "timeout": 2.0, "give_up_after": 5.0, "max_attempts": 10} | options
        server = Server(url, "fake", **settings)
        parts = [questions[at : at + size] for at in range(0, len(questions), size)]
        answers: dict[int, list[Output]] = {}
        left = iter(range(len(parts)))

        async def worker() -> None:
            for at in left:
                answers[at] = await server.answer(parts[at])

        try:
            await asyncio.gather(*[worker() for _ in range(together)])
        finally:
            await server.close()
        return [answer for at in range(len(parts)) for answer in answers[at]]

    return asyncio.run(main())


EVERYTHING = [
    Trouble("429", chance=0.08, retry_after="0"),
    Trouble("500", chance=0.08),
    Trouble("503", chance=0.05),
    Trouble("drop", chance=0.08),
    Trouble("half", chance=0.05),
    Trouble("broken_json", chance=0.08),
    Trouble("no_logprobs", chance=0.08),
    Trouble("short_batch", chance=0.1),
    Trouble("shuffled", chance=0.2),
]


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("logprobs", ["exact", "top"])
def test_every_fault_at_once_changes_no_answer(batch: bool, logprobs: str) -> None:
    questions = label_questions(300)
    with FakeServer(troubles=EVERYTHING, batch=batch, logprobs=logprobs) as fake:
        answers = ask(fake.url, questions, max_attempts=40)
    assert [gap(answer) for answer in answers] == pytest.approx([expected(question) for question in questions])


def test_the_batch_route_equals_the_single_route() -> None:
    questions = label_questions(40)
    with FakeServer() as fake:
        batched = ask(fake.url, questions)
        assert fake.requests["/v1/chat/completions"] == 0
    with FakeServer(batch=False) as fake:
        single = ask(fake.url, questions)
    assert [answer.logprobs for answer in batched] == [answer.logprobs for answer in single]


def test_a_swap_flips_the_fakes_preference() -> None:
    """The fake itself: it prefers a reply, not a slot."""
    form = "Reply A:\n<<<aa\n{}\naa>>>\n\nReply B:\n<<<bb\n{}\nbb>>>"
    both = [label_question(form.format("kind", "rude")), label_question(form.format("rude", "kind"))]
    with FakeServer() as fake:
        one, other = ask(fake.url, both)
    assert gap(one) == pytest.approx(-gap(other)) and abs(gap(one)) > 0.01


def test_a_poisoned_conversation_fails_alone() -> None:
    questions = label_questions(20)
    poison = Trouble("500", contains="Pair 13:")
    with FakeServer(troubles=[poison]) as fake:
        answers = ask(fake.url, questions, size=20, max_attempts=3)
    assert [at for at, answer in enumerate(answers) if answer.failure] == [13]
    assert answers[13].failure == "http_500"
    assert fake.answered["Pair 13: which is better, A or B?"] == 0


def test_a_too_long_prompt_fails_alone() -> None:
    questions = label_questions(10)
    questions[4] = label_question("Which is better, A or B? " * 50)
    with FakeServer(context=200) as fake:
        answers = ask(fake.url, questions, size=10)
    assert [answer.failure for answer in answers] == [None] * 4 + ["too_long"] + [None] * 5


def test_a_hanging_request_times_out_and_is_asked_again() -> None:
    with FakeServer(troubles=[Trouble("hang", start=1, stop=2)]) as fake:
        (answer,) = ask(fake.url, [label_question()], timeout=0.2)
    assert answer.logprobs is not None
    assert fake.requests["/v1/chat/completions"] == 2


def test_a_question_that_always_hangs_fails_alone() -> None:
    """The server is well, though nothing else is asked of it for longer than a server may be silent."""
    with FakeServer(troubles=[Trouble("hang", contains="Pair 2:")], batch=False) as fake:
        answers = ask(fake.url, label_questions(4), size=1, timeout=0.2, give_up_after=0.1, max_attempts=5)
    assert [answer.failure for answer in answers] == [None, None, "timeout", None]


def test_a_server_that_hangs_on_everything_stops_the_run() -> None:
    """`GET /models` is still answered."""
    with FakeServer(troubles=[Trouble("hang", start=1)]) as fake, pytest.raises(ModelError, match="no answer from"):
        ask(fake.url, label_questions(4), timeout=0.2, give_up_after=0.1, max_attempts=50)


def test_a_hanging_batch_is_halved() -> None:
    """Whatever is slow about a batch, a smaller one is less so."""
    with FakeServer(troubles=[Trouble("hang", start=1, stop=2)]) as fake:
        answers = ask(fake.url, label_questions(8), size=8, timeout=0.2)
    assert all(answer.logprobs for answer in answers)
    assert fake.requests["/v1/chat/completions/batch"] == 4  # probe, the batch, its two halves


def test_a_restart_costs_no_answer() -> None:
    """Down for longer than all attempts of a question would last: they wait, and are answered."""
    questions = label_questions(30)

    async def main() -> list[Output]:
        with FakeServer() as first:
            server = Server(first.url, "fake", backoff=0.01, give_up_after=20, max_attempts=2)
            await server.probe()
        asked = asyncio.create_task(server.answer(questions))
        await asyncio.sleep(0.5)
        with FakeServer(port=first.port):
            answers = await asked
        await server.close()
        return answers

    answers = asyncio.run(main())
    assert [gap(answer) for answer in answers] == pytest.approx([expected(question) for question in questions])


def test_a_server_that_stays_away_stops_the_run() -> None:
    with FakeServer(troubles=[Trouble("drop", start=1)]) as fake:
        start = time.monotonic()
        with pytest.raises(ModelError, match=r"no answer from .* for \d+ s .*run the same command again"):
            ask(fake.url, label_questions(200), give_up_after=0.5)
    assert 0.5 <= time.monotonic() - start < 5


def test_a_server_with_nothing_but_500s_stops_the_run() -> None:
    with FakeServer(troubles=[Trouble("500", start=1)]) as fake, pytest.raises(ModelError, match="no answer from"):
        ask(fake.url, label_questions(400), give_up_after=0.3, max_attempts=50)


def test_overload_is_met_with_fewer_questions_at_once() -> None:
    """The server takes 4 requests at once; 32 are allowed. Everything is answered, and the pressure falls."""
    questions = label_questions(200)
    with FakeServer(batch=False, most_at_once=4, delay=0.005) as fake:
        answers = ask(fake.url, questions, together=32, size=1, concurrency=32)
        refused = sum(fake.asked.values()) - sum(fake.answered.values())
    assert [gap(answer) for answer in answers] == pytest.approx([expected(question) for question in questions])
    assert refused < 200


def test_texts_are_the_same_however_they_are_asked() -> None:
    questions = [text_question(f"Say {at}.", seed=at, temperature=1.0) for at in range(20)]
    with FakeServer(troubles=[Trouble("500", chance=0.2)]) as fake:
        once, again = ask(fake.url, questions), ask(fake.url, questions, size=1)
    assert [answer.text for answer in once] == [answer.text for answer in again]
    assert len({answer.text for answer in once}) > 10


def test_a_server_outlives_an_event_loop() -> None:
    with FakeServer() as fake:
        server = Server(fake.url, "fake")
        first = asyncio.run(server.answer(label_questions(3)))
        second = asyncio.run(server.answer(label_questions(3)))
    assert first == second


def test_cancelled_questions_give_their_room_back() -> None:
    async def main(url: str) -> Output:
        server = Server(url, "fake", concurrency=1)
        await server.probe()
        slow = [asyncio.create_task(server.answer([question])) for question in label_questions(5)]
        await asyncio.sleep(0.05)
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        (answer,) = await asyncio.wait_for(server.answer([label_question()]), 5)
        await server.close()
        return answer

    with FakeServer(delay=0.2) as fake:
        assert asyncio.run(main(fake.url)).failure is None
