"""A reward model as the reward: the model's own numbers, and none where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlaif.errors import ModelError, UserError
from rlaif.records import Message, Messages
from rlaif.rl.reward_sources import ModelReward
from tests.training.scorers import Plain, save_scorer


def asked(*turns: str, system: str | None = None) -> Messages:
    """A conversation of user and assistant in turn."""
    head = () if system is None else (Message(role="system", content=system),)
    return (*head, *(Message(role="assistant" if at % 2 else "user", content=text) for at, text in enumerate(turns)))


BREAD, HI = asked("How do I bake bread?"), asked("Hi")
LONGER = asked("Hi", "Hello! How can I help you today?", "My order is late, and I am furious.", system="Be kind.")
REPLIES = ["Mix flour, water, salt and yeast, wait, and bake it.", "No.", "I am sorry."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_scorer(tmp_path_factory.mktemp("models") / "scorer")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Plain:
    return Plain(folder)


@pytest.fixture(scope="module")
def reward(folder: Path) -> ModelReward:
    return ModelReward(folder, "cpu")


def forward(plain: Plain, prompt: Messages, reply: str) -> float:
    return plain.chat([message.model_dump() for message in prompt], reply)


@pytest.mark.parametrize("tokens", [64, 8192])
def test_rewards_are_those_of_transformers(folder: Path, plain: Plain, tokens: int) -> None:
    """Prompts apart from their like, lengths mixed, and one pair twice; the second call goes the way of the first."""
    pairs = [(prompt, reply) for reply in [*REPLIES, REPLIES[0]] for prompt in (BREAD, HI, LONGER)]
    wanted = [forward(plain, *pair) for pair in pairs]
    assert max(wanted) - min(wanted) > 0.5
    scorer = ModelReward(folder, "cpu", tokens)
    for _ in range(2):
        scores = scorer([prompt for prompt, _ in pairs], [reply for _, reply in pairs])
        assert scores.total == pytest.approx(wanted, abs=1e-4)
        assert scores.parts == {"model": scores.total}


def test_rewards_are_those_of_rewards_of(reward: ModelReward, folder: Path) -> None:
    from rlaif.data.conversations import Turn
    from rlaif.training.examples import Example
    from rlaif.training.reward_model import load
    from rlaif.training.score import rewards_of
    from rlaif.training.tokenize import Tokens

    loaded = load(str(folder), "cpu")
    example = Example("x", (Turn("user", "Hi"),), tuple(REPLIES), {})
    groups = list(Tokens(loaded.tokenizer, ends=loaded.ends).groups([example]))
    assert reward([HI] * 3, REPLIES).total == pytest.approx(rewards_of(loaded.model, groups), abs=1e-4)


def test_what_cannot_be_scored_is_none_and_keeps_its_place(reward: ModelReward, plain: Plain) -> None:
    """The model takes 512 tokens: an answer of more has no score, while a prompt of more loses its beginning."""
    texts = ["No.", "", " \n", "word " * 600, "half \ud800", "I am sorry."]
    total = reward([HI] * 6, texts).total
    assert [value is None for value in total] == [False, True, True, True, True, False]
    assert [total[0], total[5]] == pytest.approx(
        [forward(plain, HI, "No."), forward(plain, HI, "I am sorry.")], abs=1e-4
    )
    long, half = asked("long " * 600), asked("half \ud800")
    assert [value is None for value in reward([long, half], ["No.", "No."]).total] == [False, True]
    assert reward([], []).total == []
    assert reward([HI], [""]).total == [None]


def test_prompt_is_computed_once(folder: Path) -> None:
    """Four answers to a prompt of over 300 tokens make one row with that prompt once, in a single pass. More passes try
    out how: before the first answer, and before the first prompt of several."""
    scorer = ModelReward(folder, "cpu")
    assert scorer._rewards is not None
    seen: list[int] = []
    scorer._rewards._model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args or (kwargs["input_ids"],))[0].numel()), with_kwargs=True
    )
    prompt = asked("very long words " * 100)
    length = len(scorer._tokens.tokenizer("very long words " * 100)["input_ids"])
    assert length > 300
    for texts in (["No."], ["No.", "Yes.", "I am sorry.", "Mix flour."], ["Wait."]):
        scorer([prompt] * len(texts), texts)
        tried = len(seen) > 1
        seen.clear()
        scorer([prompt] * len(texts), texts)
        assert tried == (texts != ["Wait."])
        assert len(seen) == 1
        assert length < seen[0] < 1.5 * length
        seen.clear()


def test_mean_of_a_centred_model_is_taken_off(tmp_path: Path, plain: Plain) -> None:
    centred = ModelReward(save_scorer(tmp_path / "centred", reward_mean=0.75), "cpu")
    assert centred([HI], ["No."]).total == pytest.approx([forward(plain, HI, "No.") - 0.75], abs=1e-4)


def test_model_trained_on_plain_text_reads_plain_text(tmp_path: Path, plain: Plain) -> None:
    other = save_scorer(tmp_path / "trained")
    settings = {"template": "plain", "max_length": 60, "model": "x"}
    (other / "train.json").write_text(json.dumps({"method": "reward", "settings": settings}))
    text = f"Be kind.\n\nHuman: Hi\n\nAssistant: No.{plain.tokenizer.eos_token}"
    prompt = asked("Hi", system="Be kind.")
    assert ModelReward(other, "cpu")([prompt], ["No."]).total == pytest.approx([plain.text(text)], abs=1e-4)
    chat = ModelReward(other, "cpu", template="chat")([prompt], ["No."]).total
    assert chat == pytest.approx([forward(plain, prompt, "No.")], abs=1e-4)


def test_reward_that_is_no_number_stops(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    broken = save_scorer(tmp_path / "broken")
    model: Any = AutoModelForSequenceClassification.from_pretrained(broken)
    model.score.weight.data.fill_(float("nan"))
    model.save_pretrained(broken)
    with pytest.raises(UserError, match=r"broken: has weights that are no numbers: score\.weight"):
        ModelReward(broken, "cpu")([HI, HI], ["", "No."])


def test_templates_that_are_missing_or_refuse(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    other = save_scorer(tmp_path / "other")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{{ raise_exception('no conversation of this kind') }}"
    tokenizer.save_pretrained(other)
    with pytest.raises(ModelError, match=r"no response can be scored: the chat template refuses .* of this kind"):
        ModelReward(other, "cpu")([HI], ["No."])
    (other / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"has no chat template, and prompts are messages; save a chat_template\.jinja"):
        ModelReward(other, "cpu")


def test_closing_lets_go(folder: Path) -> None:
    scorer = ModelReward(folder, "cpu")
    assert scorer.state() == {}
    scorer.restore({})
    scorer.close()
    assert scorer._rewards is None
    with pytest.raises(ModelError, match="was closed"):
        scorer([HI], ["No."])
