"""The model in process, against plain forward passes and against arithmetic."""

from __future__ import annotations

import asyncio
import math
import shutil
from pathlib import Path
from threading import Event

import pytest

from rlaif.errors import ModelError, UserError
from rlaif.feedback.prompts import compare_messages
from rlaif.inference.base import Output, Question
from rlaif.inference.model_folder import fingerprint, identity
from rlaif.inference.transformers_model import Draw, Halt, Local, nucleus, seed_of
from rlaif.records import Message, Sampling
from tests.inference.questions import label_question, label_questions, reasoned_question, text_question
from tests.inference.tiny import make_tiny_model


def ask(model: Path | Local, questions: list[Question]) -> list[Output]:
    return asyncio.run((model if isinstance(model, Local) else Local(str(model))).answer(questions))


def test_labels_equal_a_plain_forward_pass(tiny_model: Path) -> None:
    """Each prompt alone, unpadded, with the label spellings added up by hand: tokens A, ĠA and B, ĠB."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model), AutoModelForCausalLM.from_pretrained(tiny_model)
    questions = [label_question("Better? " * at + "A or B?") for at in (0, 7, 1, 30, 2, 2)]
    for question, answer in zip(questions, ask(tiny_model, questions), strict=True):
        ids = tokenizer.encode(f"<s>user\n{question.messages[0].content}</s><s>assistant\n", add_special_tokens=False)
        with torch.no_grad():
            chances = model(torch.tensor([ids])).logits[0, -1].softmax(-1)
        expected = [
            math.log(sum(float(chances[tokenizer.convert_tokens_to_ids(token)]) for token in spellings))
            for spellings in (("A", "ĠA"), ("B", "ĠB"))
        ]
        assert answer.logprobs == pytest.approx(expected, abs=1e-4)
        assert (answer.prompt_tokens, answer.completion_tokens) == (len(ids), 1)


def test_greedy_text_equals_a_plain_loop(tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model), AutoModelForCausalLM.from_pretrained(tiny_model)
    questions = [text_question("Say " * at) for at in (1, 5, 2)]
    for question, answer in zip(questions, ask(tiny_model, questions), strict=True):
        ids = tokenizer.encode(f"<s>user\n{question.messages[0].content}</s><s>assistant\n", add_special_tokens=False)
        start = len(ids)
        while len(ids) < start + 8 and (len(ids) == start or ids[-1] != 2):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert answer.text == tokenizer.decode(ids[start:], skip_special_tokens=True)
        assert answer.completion_tokens == len(ids) - start
        assert answer.finish_reason == ("stop" if ids[-1] == 2 else "length")


def test_an_answer_does_not_depend_on_its_neighbours(tiny_model: Path) -> None:
    model = Local(str(tiny_model), batch_size=4)
    drawn = [text_question("Go " * (at % 5), seed=at, temperature=1.0) for at in range(10)]
    mixed = [*drawn, *label_questions(5), text_question("Greedy.")]
    together, alone = ask(model, mixed), [ask(model, [question])[0] for question in mixed]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.logprobs == (None if other.logprobs is None else pytest.approx(other.logprobs, abs=1e-5))
    assert len({answer.text for answer in together}) > 8


def test_a_text_that_ends_in_a_label_has_its_values() -> None:
    """The shipped judge says nothing but a label: with room for more, it has the values of the one token."""
    texts = [("Sure, here you go.", "No."), ("You idiot.", "Of course."), ("No.", "Sure, here you go.")]
    prompt = (Message(role="user", content="How do I boil eggs?"),)
    messages = [compare_messages(prompt, *replies, "Which reply is more polite to the person?") for replies in texts]
    short = [Question("compare", "j", each, Sampling(max_tokens=1), labels=("A", "B")) for each in messages]
    said = ask(Local("demo-judge"), [*short, *map(reasoned_question, short)])
    for one, text in zip(said[:3], said[3:], strict=True):
        assert (text.text, text.finish_reason, text.completion_tokens) == (one.text, "stop", 2)
        assert text.logprobs == pytest.approx(one.logprobs, abs=1e-4)
    assert {answer.text for answer in said} == {"A", "B"}


def test_a_text_that_ends_in_anything_else_has_none(tiny_model: Path) -> None:
    """A random model rambles on until it is cut off."""
    (answer,) = ask(tiny_model, [reasoned_question(label_question())])
    assert answer.failure is None and answer.logprobs is None
    assert (answer.finish_reason, answer.completion_tokens) == ("length", 8)


def test_a_model_that_overflows_has_not_answered(tmp_path: Path) -> None:
    model = Local(str(make_tiny_model(tmp_path / "overflown")))
    model._load()._model.lm_head.weight.data.fill_(math.nan)
    short, reasoned = ask(model, [label_question(), reasoned_question(label_question())])
    assert (short.failure, short.logprobs) == ("bad_logprobs", None)
    assert reasoned.logprobs is None


def test_a_too_long_prompt_fails_alone(tiny_model: Path) -> None:
    questions = [label_question("short, A or B?"), label_question("x! " * 400), text_question("x! " * 400)]
    answers = ask(tiny_model, questions)
    assert [answer.failure for answer in answers] == [None, "too_long", "too_long"]


def test_a_text_is_cut_where_the_context_ends(tmp_path: Path) -> None:
    """A context of 40 tokens holds a prompt of 38 or so and the beginning of an answer."""
    model = make_tiny_model(tmp_path / "short", context=40)
    sampling = Sampling(max_tokens=1000, temperature=1.0, seed=3)
    question = Question("sample", "m", (Message(role="user", content="one"),), sampling)
    (answer,) = ask(model, [question])
    assert answer.failure is None and answer.prompt_tokens + answer.completion_tokens <= 40
    assert answer.finish_reason == "stop" or answer.prompt_tokens + answer.completion_tokens == 40


def test_a_conversation_that_the_template_refuses_fails_alone(tiny_model: Path) -> None:
    answers = ask(tiny_model, [text_question("refuse me"), text_question("Fine.")])
    assert [answer.failure for answer in answers] == ["bad_request", None]
    assert "no such thing" in answers[0].detail


def test_labels_of_several_tokens_are_told(tiny_model: Path) -> None:
    model = Local(str(tiny_model))
    (problem,) = asyncio.run(model.probe(("zyxzyx", "B")))
    assert "zyxzyx" in problem
    assert asyncio.run(model.probe()) == []
    assert "exact label log-probabilities" in str(model.capabilities) and "512" in str(model.capabilities)


def test_the_name_follows_the_files(tiny_model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "tiny")
    assert identity(str(copy)) == identity(str(tiny_model)) == Local(str(copy)).name
    assert Local(str(copy), template_options={"note": "x"}).name == f'{identity(str(copy))} {{"note":"x"}}'
    assert identity(str(copy)).startswith("tiny@") and len(identity(str(copy))) == len("tiny@") + 8
    (copy / "README.md").write_text("changes nothing")
    assert identity(str(copy)) == identity(str(tiny_model))
    with (copy / "chat_template.jinja").open("a") as file:
        file.write(" ")
    assert identity(str(copy)) != identity(str(tiny_model))
    assert Local(str(copy), name="judge").name == f"judge@{fingerprint(copy)}"


def test_how_long_a_training_took_is_no_part_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = fingerprint(tmp_path)
    (tmp_path / "metrics.json").write_text('{"seconds": 12.5}')
    assert fingerprint(tmp_path) == before


def test_a_large_file_is_known_by_its_size_and_pieces_all_over_it(tmp_path: Path) -> None:
    """100 MB of zeros, but for a byte at either end, or a layer of 1 MB between them."""
    path = tmp_path / "model.safetensors"

    def with_bytes(at: int, count: int) -> str:
        with path.open("wb") as file:
            file.truncate(100 * 2**20)
            file.seek(at)
            file.write(b"x" * count)
        return fingerprint(tmp_path)

    changes = [(0, 0), (5, 1), (100 * 2**20 - 5, 1), *((at * 2**20, 2**20) for at in (3, 50, 77))]
    assert len({with_bytes(*change) for change in changes}) == len(changes)


def test_what_is_missing_is_told_in_one_line(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        Local(str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="hub cannot be reached; download it first"):
        Local("nobody/such-model-exists-here")
    with pytest.raises(UserError, match="did you mean `demo-judge`"):
        Local("demo-jugde")
    bare = make_tiny_model(tmp_path / "bare", template=None)
    assert asyncio.run(Local(str(bare)).probe()) == [
        f"{bare}: the model has no chat template; "
        "use an instruction-tuned model, or save a chat_template.jinja in its folder"
    ]
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"nothing")
    (problem,) = asyncio.run(Local(str(broken)).probe())
    assert problem.startswith(f"{broken}: model.safetensors is no file of safetensors") and "\n" not in problem
    (problem,) = asyncio.run(Local(str(tiny_model), device="cuda:77").probe())
    assert problem.startswith("device `cuda:77` cannot be used: ") and "\n" not in problem


def test_loading_is_quiet_and_can_be_undone(tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> list[Output]:
        model = Local(str(tiny_model))
        await model.probe()
        await model.close()
        return await model.answer([text_question()])

    assert asyncio.run(main())[0].failure is None
    assert "".join(capfd.readouterr()) == ""


def test_the_nucleus_by_hand() -> None:
    """Probabilities .5 .3 .15 .05: top-p .8 keeps two, .81 three, and .1 still keeps the first."""
    import torch

    logits = torch.tensor([[0.05, 0.5, 0.15, 0.3]]).log()
    for top_p, kept in ((0.79, [1, 3]), (0.81, [1, 2, 3]), (0.1, [1]), (1.0, [0, 1, 2, 3])):
        finite = nucleus(logits, torch.tensor([[top_p]])).isfinite()[0]
        assert finite.nonzero().flatten().tolist() == kept


def test_draws_have_the_models_probabilities() -> None:
    """4,000 draws at temperature 2 from probabilities .64 .16 .16 .04: square roots .8 .4 .4 .2, so 4:2:2:1 ninths."""
    import torch

    questions = [text_question(seed=seed, temperature=2.0) for seed in range(4000)]
    scores = torch.tensor([[0.64, 0.16, 0.16, 0.04]]).log().repeat(4000, 1)
    tokens = Draw(questions, torch.device("cpu"))(torch.empty(4000, 0), scores).argmax(-1)
    shares = (tokens.bincount(minlength=4) / 4000).tolist()
    assert shares == pytest.approx([4 / 9, 2 / 9, 2 / 9, 1 / 9], abs=0.03)


def test_a_seed_belongs_to_a_question() -> None:
    first, second = text_question(seed=1, temperature=1.0), text_question(seed=2, temperature=1.0)
    assert seed_of(first) == seed_of(text_question(seed=1, temperature=1.0)) != seed_of(second)


def test_generation_ends_when_nobody_waits(tiny_model: Path) -> None:
    import torch

    halted = Event()
    assert not Halt(halted)(torch.empty(2, 3), torch.empty(0)).any()
    halted.set()
    assert Halt(halted)(torch.empty(2, 3), torch.empty(0)).all()
    with pytest.raises(ModelError):
        Local(str(tiny_model))._answer([text_question()], halted)
