"""The real model as a judge: in process with shared beginnings and without, and behind a real vLLM server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from rlaif.feedback.prompts import LABELS, compare_messages
from rlaif.inference.base import Output, Question
from rlaif.inference.client import Server
from rlaif.inference.transformers_model import Loaded, Local, Row
from rlaif.records import Message, Sampling
from tests.conftest import Served

REPLIES = ("Red.", "A colour is what the eye makes of light; red is one.", "I do not know.", "Ask me later!")
QUESTIONS = ("Which reply is shorter?", "Which reply answers the request?")


def comparisons(count: int) -> list[Question]:
    """Pairs of responses under two principles, in both orders."""
    prompt = (Message(role="user", content="Name a colour, and say what colours are."),)
    asked = [
        compare_messages(prompt, REPLIES[at % 4], REPLIES[(at + 1 + at // 4) % 4], QUESTIONS[at % 2])
        for at in range(count)
    ]
    return [Question("compare", "any", messages, Sampling(max_tokens=1), labels=LABELS) for messages in asked]


def values(answers: Sequence[Output]) -> list[float]:
    assert [answer.failure for answer in answers] == [None] * len(answers)
    return [value for answer in answers for value in answer.logprobs or ()]


def test_shared_beginnings_change_no_number(smollm2: Path) -> None:
    loaded = Loaded(smollm2, "cpu", None, {})
    rows = [row for at, question in enumerate(comparisons(8)) if isinstance(row := loaded.row(at, question), Row)]
    shared = dict((row.at, answer) for row, answer in loaded.labels(rows, 4, Event()))
    assert loaded._proven, "the first batch compared the two ways, and the rest shared"
    loaded._prefixes.able = False
    plain = dict((row.at, answer) for row, answer in loaded.labels(rows, 4, Event()))
    assert values([shared[at] for at in range(8)]) == pytest.approx(values([plain[at] for at in range(8)]), abs=1e-3)


@pytest.mark.server
def test_a_server_and_this_process_agree(smollm2_served: Served) -> None:
    """On the log-probabilities of labels, and on the text that is most probable."""
    text = Question(
        "sample", "any", (Message(role="user", content="Name three colours."),), Sampling(max_tokens=12, temperature=0)
    )
    asked = [*comparisons(6), text]

    async def there() -> Any:
        server = Server(smollm2_served.base_url, smollm2_served.name, timeout=60)
        assert await server.probe() == []
        try:
            return await server.answer(asked[:-1]), await server.answer(asked[-1:])
        finally:
            await server.close()

    labels, (said,) = asyncio.run(there())
    here = asyncio.run(Local(str(smollm2_served.folder), device="cpu").answer(asked))
    assert values(labels) == pytest.approx(values(here[:-1]), abs=1e-3)
    assert said.text == here[-1].text
    assert said.prompt_tokens == here[-1].prompt_tokens
