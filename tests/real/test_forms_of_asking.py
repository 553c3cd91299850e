"""The real small model as a judge: what each form of asking leaves to the labels, in process and on vLLM."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rlaif.config.judge_templates import BEGUN, PLAIN, SHIPPED, Form
from rlaif.config.schemas import CompareSettings
from rlaif.feedback.judge import best, candidates, example_questions, tried_forms
from rlaif.inference.base import Output
from rlaif.inference.client import Server
from rlaif.inference.transformers_model import Local
from tests.conftest import Served

pytest.importorskip("tests.real.smollm2", reason="the real model is not here")
FORMS = candidates(CompareSettings(), SHIPPED)


def values(answers: list[Output]) -> list[float]:
    assert [answer.failure for answer in answers] == [None] * len(answers)
    return [value for answer in answers for value in answer.logprobs or ()]


def test_the_form_that_is_chosen_in_process(smollm2: Path) -> None:
    """It echoes the fence, and the begun answer is taken."""
    tried = asyncio.run(tried_forms(Local(str(smollm2), device="cpu"), SHIPPED, FORMS))
    assert [each.form for each in tried] == [PLAIN, Form(prefill=BEGUN)], "no more is asked than it takes"
    plain, begun = (each.label_mass or 0.0 for each in tried)
    assert plain < 0.2 and begun >= 0.9
    assert best(tried) == Form(prefill=BEGUN)


@pytest.mark.server
def test_every_form_is_worth_the_same_on_a_server(smollm2_served: Served) -> None:
    questions = [question for form in FORMS for question in example_questions("any", SHIPPED, form)]

    async def there() -> tuple[list[Output], Form]:
        server = Server(smollm2_served.base_url, smollm2_served.name, timeout=60)
        try:
            assert await server.probe() == []
            return await server.answer(questions), best(await tried_forms(server, SHIPPED, FORMS))
        finally:
            await server.close()

    found, chosen = asyncio.run(there())
    here = asyncio.run(Local(str(smollm2_served.folder), device="cpu").answer(questions))
    assert values(found) == pytest.approx(values(here), abs=1e-3)
    assert chosen == Form(prefill=BEGUN)
