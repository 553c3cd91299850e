"""Begun answers: what servers are sent, what a model in process reads, and which form a run comes to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.judge_templates import BEGUN, PLAIN, Form, Judge, Templates
from rlaif.config.run_file import load_run
from rlaif.config.schemas import CompareSettings
from rlaif.errors import RecordError
from rlaif.feedback.judge import FormTrial, best, candidates, judge_asked, judgement, tried_forms
from rlaif.feedback.pipeline import Report, run_pipeline
from rlaif.feedback.prompts import LABELS
from rlaif.inference.base import Output, Question
from rlaif.inference.chat_api import begun
from rlaif.inference.client import Server
from rlaif.inference.transformers_model import Local
from rlaif.records import Judgement, Message, Sampling, Verdict
from rlaif.store import Table
from tests.fakes import FakeServer, Taste
from tests.inference.tiny import TEMPLATE, make_tiny_model
from tests.support import lines, rlaif, write_run

ECHOING = Taste(mass=0.06)
"""A judge that would rather say something else."""


def asked(text: str = "Which is better, A or B?", prefill: str = BEGUN) -> Question:
    about: dict[str, str | int | None] = dict.fromkeys(("prompt", "first", "second", "principle"), "x")
    turn = (Message(role="user", content=text),)
    return Question("compare", "m", turn, Sampling(max_tokens=1), labels=LABELS, prefill=prefill, about=about)


def run(path: Path, **compare: str) -> Report:
    return run_pipeline(load_run(path, {("compare", name): value for name, value in compare.items()}))


def choices(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((path / "run/asking.json").read_text())["judges"]
    return found


def test_a_begun_answer_is_another_question_and_none_is_the_old_one() -> None:
    plain = Question("compare", "m", asked().messages, Sampling(max_tokens=1), labels=LABELS)
    assert plain.id == asked(prefill="").id
    assert len({plain.id, asked().id, asked(prefill="Reply").id}) == 3


def test_the_dialects() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "A or B?"}]}
    turn = {"role": "assistant", "content": "Reply"}
    more = {"add_generation_prompt": False, "continue_final_message": True}
    assert begun(body, "Reply", "continue") == {"model": "m", "messages": [*body["messages"], turn], **more}
    assert begun(body, "Reply", "plain") == {"model": "m", "messages": [*body["messages"], turn]}
    assert begun(body, "Reply", "prefix")["messages"][-1] == {**turn, "prefix": True}
    batch = {"model": "m", "messages": [body["messages"], body["messages"]]}
    assert begun(batch, "Reply", "continue")["messages"] == [[*body["messages"], turn]] * 2
    assert body["messages"] == [{"role": "user", "content": "A or B?"}], "the request itself is left as it was"


@pytest.mark.parametrize("way", ["continue", "prefix", "plain"])
@pytest.mark.parametrize("logprobs", ["exact", "top", "none"])
def test_every_dialect_is_found(way: str, logprobs: str) -> None:
    with FakeServer(way=way, logprobs=logprobs, batch=logprobs == "exact", taste=Taste(mass=0.95)) as fake:

        async def answers() -> list[Output]:
            server = Server(fake.url, "fake")
            try:
                return await server.answer([asked(), asked("Is it A or is it B?"), asked(prefill="")])
            finally:
                await server.close()

        found = asyncio.run(answers())
        assert [answer.failure for answer in found] == [None] * 3
        sent = [body for body in fake.bodies if body["messages"][-1] != asked().messages]
    last = [
        (connection[-1] if isinstance(connection, list) else connection)
        for connection in (body["messages"][-1] for body in sent)
    ]
    turns = [turn for turn in last if turn["role"] == "assistant"]
    assert turns and {turn["content"] for turn in turns} == {BEGUN}
    assert fake.begun[BEGUN] == 2 + 1, "the two questions, and one that finds the dialect"
    assert all(turn.get("prefix", False) is (way == "prefix") for turn in turns[-1:])


def test_a_server_that_begins_no_answer_says_so() -> None:
    with FakeServer(way="", batch=False) as fake:

        async def answers() -> list[Output]:
            server = Server(fake.url, "fake")
            try:
                return await server.answer([asked()])
            finally:
                await server.close()

        (found,) = asyncio.run(answers())
    assert found.failure == "bad_request" and "400" in found.detail


def test_in_process_the_answer_goes_on_from_the_begun_text(tiny_model: Path) -> None:
    """The tokens that the model reads are those of the conversation, the assistant's head and the begun text."""
    model = Local(str(tiny_model))
    loaded = model._load()
    row = loaded.row(0, asked("A or B?", prefill="Reply"))
    assert not isinstance(row, Output)
    assert loaded._tokenizer.decode(row.ids) == "<s>user\nA or B?</s><s>assistant\nReply"
    plain, other, same = asyncio.run(
        model.answer([asked("A or B?", prefill=""), asked("A or B?", prefill="Reply"), asked("A or B?", "Reply")])
    )
    assert other.logprobs == pytest.approx(same.logprobs, abs=1e-4)
    assert plain.logprobs != pytest.approx(other.logprobs, abs=0.01)


def test_a_template_that_changes_a_begun_answer_is_refused(tmp_path: Path) -> None:
    """One that writes an assistant's text in capitals cannot begin it."""
    upper = "(m['content'] | upper if m['role'] == 'assistant' else m['content'])"
    shouting = TEMPLATE.replace("m['content'] + '</s>'", f"{upper} + '</s>'")
    assert shouting != TEMPLATE
    model = Local(str(make_tiny_model(tmp_path / "shouting", template=shouting)))
    plain, found = asyncio.run(model.answer([asked(prefill=""), asked(prefill="Reply")]))
    assert plain.failure is None
    assert found.failure == "bad_request", found


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (" A", Verdict.FIRST),
        ("B.", Verdict.SECOND),
        (f"{BEGUN} B", Verdict.SECOND),  # a server that repeats the beginning
        (" A, because it answers the question.", Verdict.FIRST),
        (" A or B", Verdict.UNPARSED),
        (" that is kinder", Verdict.UNPARSED),
        ("", Verdict.UNPARSED),
    ],
)
def test_a_verdict_in_words_is_read_from_what_follows(text: str, verdict: Verdict) -> None:
    assert judgement(asked(), Output(text=text)).verdict is verdict


def test_a_judge_that_answers_is_asked_as_ever(tmp_path: Path) -> None:
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url)
        assert run(path).problem is None
        assert fake.trials == 2, "the one comparison in both orders"
        assert set(fake.begun) == {""}
    (chosen,) = choices(tmp_path)
    assert Form.model_validate(chosen["form"]) == PLAIN
    assert [each["label_mass"] for each in chosen["tried"]] == [pytest.approx(0.96)]


@pytest.mark.parametrize(
    ("masses", "form"),
    [
        ({"begun_mass": 0.96}, Form(prefill=BEGUN)),
        ({"tags_mass": 0.93}, Form(fence="tags")),
        ({"begun_mass": 0.3, "tags_mass": 0.5}, Form(fence="tags")),
        ({"begun_mass": 0.5, "tags_mass": 0.3}, Form(prefill=BEGUN)),
        ({}, PLAIN),
    ],
)
@pytest.mark.sibling("label-mass-in-other-forms")
def test_the_form_with_the_most_label_mass_is_taken(tmp_path: Path, masses: dict[str, float], form: Form) -> None:
    with FakeServer(taste=ECHOING, **masses) as fake:  # type: ignore[arg-type]
        report = run(write_run(tmp_path, fake.url))
    (chosen,) = choices(tmp_path)
    assert Form.model_validate(chosen["form"]) == form
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    best_mass = max([0.06, *masses.values()])
    assert manifest["asking"]["fake"]["label_mass"] == pytest.approx(best_mass)
    assert manifest["asking"]["fake"]["prefill"] == (form.prefill or None)
    assert manifest["asking"]["fake"]["fence"] == form.fence
    assert report.outcome is not None
    on_disk = [row["label_mass"] for row in lines(tmp_path / "run/judgements.jsonl")]
    assert on_disk == pytest.approx([best_mass] * 120)
    assert (report.problem is None) is (best_mass >= 0.5)


@pytest.mark.sibling("resume-keeps-the-form-of-asking")
def test_a_run_never_mixes_forms(tmp_path: Path) -> None:
    """The judge changes its mind about begun answers midway; the run goes on as it was begun."""
    with FakeServer(taste=ECHOING, begun_mass=0.96) as fake:
        path = write_run(tmp_path, fake.url)
        assert run(path).problem is None
        journal = tmp_path / "run/judgements.jsonl"
        whole = journal.read_bytes()
        journal.write_bytes(b"".join(whole.splitlines(keepends=True)[:60]))
        fake.taste, fake.begun_mass = Taste(), 0.2
        before = fake.begun[""]
        report = run(path)
        assert report.outcome is not None and report.outcome.counts["judgements"] == 120
        plain = fake.begun[""] - before
    assert plain == 2, "the probe's two alone"
    assert len(lines(journal)) == 120


@pytest.mark.sibling("runs-from-before-begun-answers")
def test_a_run_from_before_goes_on_in_the_plain_form(tmp_path: Path) -> None:
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url)
        run(path)
        (tmp_path / "run/asking.json").unlink()
        fake.taste, fake.begun_mass = ECHOING, 0.96  # another answer to the same question would be another form
        requests = fake.requests.total()
        report = run(path)
        assert fake.requests.total() == requests, "nothing is asked, not even how to ask"
    assert report.problem is None
    assert len(lines(tmp_path / "run/judgements.jsonl")) == 120


def test_settings_decide_where_they_say_so(tmp_path: Path) -> None:
    with FakeServer(taste=ECHOING, begun_mass=0.96) as fake:
        path = write_run(tmp_path, fake.url)
        report = run(path, prefill="none", fence="marks")
        assert report.problem is not None and "120 of 120 answers put less than 0.5 probability" in report.problem
        assert set(fake.begun) == {""}
        report = run(path, prefill="My choice is reply", fence="tags")
        assert report.problem is None
        assert set(fake.begun) == {"", "My choice is reply"}
        assert any("<text_" in key and "</text_...>" in key for key in fake.asked)
    assert len(lines(tmp_path / "run/judgements.jsonl")) == 240


@pytest.mark.parametrize(
    ("compare", "forms"),
    [
        ({}, [("marks", ""), ("marks", BEGUN), ("tags", ""), ("tags", BEGUN)]),
        ({"prefill": "none"}, [("marks", ""), ("tags", "")]),
        ({"prefill": None}, [("marks", ""), ("tags", "")]),
        ({"prefill": False, "fence": "tags"}, [("tags", "")]),
        ({"prefill": " Reply ", "fence": "marks"}, [("marks", "Reply")]),
        ({"prefill": "  ", "fence": "marks"}, [("marks", "")]),
        ({"reasoning": "reply"}, [("marks", "")]),
        ({"reasoning": "reply", "fence": "tags"}, [("tags", "")]),
    ],
)
def test_what_there_is_to_choose_from(compare: dict[str, object], forms: list[tuple[str, str]]) -> None:
    found = candidates(CompareSettings.model_validate(compare), Templates())
    assert [(form.fence, form.prefill) for form in found] == forms


def test_reasons_and_a_begun_answer_exclude_each_other(tmp_path: Path) -> None:
    path = write_run(tmp_path, "http://127.0.0.1:1/v1", compare={"reasoning": "reply", "prefill": "Reply"})
    result = rlaif("check", "--offline", path)
    assert result.returncode == 2 and "compare.prefill" in result.stderr


def test_the_best_of_what_was_measured() -> None:
    plain, begun_ = PLAIN, Form(prefill=BEGUN)
    assert best([FormTrial(form=plain, label_mass=0.5), FormTrial(form=begun_, label_mass=0.5)]) == plain
    assert best([FormTrial(form=plain, label_mass=None), FormTrial(form=begun_, label_mass=0.1)]) == begun_
    assert best([FormTrial(form=plain, label_mass=None), FormTrial(form=begun_, label_mass=None)]) == plain


class Away:
    """A model whose questions are lost on the way."""

    name, batch_size, concurrency = "away", 8, 1

    async def open(self) -> Away:
        return self

    async def probe(self, labels: tuple[str, ...]) -> list[str]:
        return []

    async def answer(self, questions: Sequence[Question]) -> list[Output]:
        return [Output(failure="dropped", detail="the connection broke")] * len(questions)

    async def close(self) -> None:
        pass


@pytest.mark.sibling("form-not-measured-by-a-mishap")
def test_a_mishap_while_measuring_decides_nothing(tmp_path: Path) -> None:
    """Nothing is kept, so that the next session measures again."""
    said: list[str] = []
    with contextlib.closing(Table(tmp_path / "judgements.jsonl", Judgement)) as answers:
        judge = asyncio.run(judge_asked(Away(), Templates(), CompareSettings(), tmp_path, answers, said.append))
    assert judge == Judge("away") and not (tmp_path / "asking.json").exists()
    assert "plain: dropped (the connection broke)" in said[0]


@pytest.mark.sibling("trial-longer-than-the-context")
def test_a_model_whose_context_is_too_short_for_the_trial_is_asked_plainly(tmp_path: Path, tiny_model: Path) -> None:
    tried = asyncio.run(tried_forms(Local(str(tiny_model)), Templates(), candidates(CompareSettings(), Templates())))
    assert [each.label_mass for each in tried] == [None] * 4
    assert all(each.failure.startswith("too_long") and each.lasting for each in tried)
    assert best(tried) == PLAIN


def test_a_damaged_record_of_the_form_is_no_traceback(tmp_path: Path) -> None:
    with FakeServer() as fake:
        path = write_run(tmp_path, fake.url)
        run(path)
        (tmp_path / "run/asking.json").write_text('{"judges": [{"judge": ')
        with pytest.raises(RecordError, match="asking"):
            run(path)


def test_check_tells_the_form(tmp_path: Path) -> None:
    with FakeServer(taste=ECHOING, begun_mass=0.96) as fake:
        result = rlaif("check", write_run(tmp_path, fake.url))
    assert result.returncode == 0, result.stderr
    assert f"judge: form of asking: answer begun with `{BEGUN}` (label mass 0.96)" in result.stdout
    assert "; plain: label mass 0.06" in result.stdout
    with FakeServer(taste=ECHOING) as fake:
        result = rlaif("check", write_run(tmp_path, fake.url))
    assert result.returncode == 1
    assert "judge: A and B had a share of " in result.stderr and "take another judge" in result.stderr


def test_a_panel_has_a_form_a_judge(tmp_path: Path) -> None:
    with FakeServer() as good, FakeServer(model="echo", taste=ECHOING, begun_mass=0.96) as echo:
        judges = [{"model": "fake", "base_url": good.url}, {"model": "echo", "base_url": echo.url}]
        path = write_run(tmp_path, good.url)
        settings = load_run(path).plain() | {"judge": judges}
        report = run_pipeline(load_run(path).model_validate(settings))
    assert report.outcome is not None and report.problem is None
    assert {each["judge"]: each["form"]["prefill"] for each in choices(tmp_path)} == {"fake": "", "echo": BEGUN}
    assert report.run.judge_named("echo") == Judge("echo", Templates(), Form(prefill=BEGUN))
    assert math.isclose(lines(tmp_path / "run/judgements.jsonl")[-1]["label_mass"], 0.96)
