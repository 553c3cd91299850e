"""Against a real vLLM: the numbers that no fake can vouch for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rlaif.inference.base import Output, Question
from rlaif.inference.client import Server
from rlaif.inference.transformers_model import Local
from tests.conftest import Served
from tests.inference.questions import label_question, label_questions, reasoned_question, text_question

pytestmark = pytest.mark.server


def on(served: Served, run: Callable[[Server], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        server = Server(served.base_url, served.name, timeout=60)
        problems = await server.probe()
        assert problems == []
        try:
            return await run(server)
        finally:
            await server.close()

    return asyncio.run(main())


def values(answers: list[Output]) -> list[float]:
    assert [answer.failure for answer in answers] == [None] * len(answers)
    return [value for answer in answers for value in answer.logprobs or ()]


def test_the_probe_finds_the_exact_and_the_batch_route(vllm: Served) -> None:
    async def run(server: Server) -> Any:
        return server.capabilities

    found = on(vllm, run)
    assert (found.route.kind, found.batch, found.context) == ("exact", True, 2048)
    assert all(len(tokens) in (1, 2) for tokens in found.route.tokens)


def test_labels_are_those_of_the_model_in_process(vllm: Served) -> None:
    questions = [*label_questions(40, vllm.name), label_question("A long one. " * 30 + "A or B?", vllm.name)]
    here = asyncio.run(Local(str(vllm.folder)).answer(questions))
    there = on(vllm, lambda server: server.answer(questions))
    assert values(there) == pytest.approx(values(here), abs=1e-3)
    assert len(set(values(here))) > 40


def test_the_batch_route_equals_the_single_route(vllm: Served) -> None:
    questions = label_questions(20, vllm.name)

    async def both(server: Server) -> tuple[list[Output], list[Output]]:
        batched = await server.answer(questions)
        return batched, [(await server.answer([question]))[0] for question in questions]

    batched, single = on(vllm, both)
    assert values(batched) == pytest.approx(values(single), abs=1e-3)
    spent = [sum(answer.prompt_tokens for answer in answers) for answers in (batched, single)]
    assert spent[0] == spent[1] > 0


@pytest.mark.parametrize("words", [2100, 60_000])  # vLLM words its refusal differently for far too long a prompt
def test_a_too_long_prompt_fails_alone_inside_a_batch(vllm: Served, words: int) -> None:
    questions = label_questions(9, vllm.name)
    questions[5] = label_question("x! " * words, vllm.name)
    answers = on(vllm, lambda server: server.answer(questions))
    assert [answer.failure for answer in answers] == [None] * 5 + ["too_long"] + [None] * 3


def test_the_label_at_a_texts_end_has_the_values_of_the_model_in_process(vllm: Served) -> None:
    """One at a time and in batches; the shipped judge mostly says a label and no more."""
    questions = [reasoned_question(each) for each in label_questions(12, vllm.name)]
    here = asyncio.run(Local(str(vllm.folder)).answer(questions))

    async def both(server: Server) -> tuple[list[Output], list[Output]]:
        return await server.answer(questions), [(await server.answer([question]))[0] for question in questions]

    for there in on(vllm, both):
        assert [answer.text for answer in there] == [answer.text for answer in here]
        assert [answer.logprobs is None for answer in there] == [answer.logprobs is None for answer in here]
        assert values(there) == pytest.approx(values(here), abs=1e-3)
    assert values(here)


def test_greedy_texts_agree(vllm: Served) -> None:
    questions: list[Question] = [text_question(f"Say {at}.", model=vllm.name) for at in range(6)]
    here = asyncio.run(Local(str(vllm.folder)).answer(questions))
    there = on(vllm, lambda server: server.answer(questions))
    for ours, theirs in zip(here, there, strict=True):
        # vLLM holds back bytes at the end that are no whole character yet.
        assert ours.text.rstrip("\ufffd").rstrip() == theirs.text.rstrip("\ufffd").rstrip()
        assert (ours.finish_reason, ours.completion_tokens > 0) == (theirs.finish_reason, True)


def test_a_seed_fixes_a_drawn_text(vllm: Served) -> None:
    questions = [text_question("Say it.", seed=seed, temperature=1.0, model=vllm.name) for seed in (1, 1, 2, 3, 4)]
    texts = [answer.text for answer in on(vllm, lambda server: server.answer(questions))]
    assert texts[0] == texts[1] and len(set(texts)) > 1
