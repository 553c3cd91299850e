"""What a real tokenizer and chat template make of rows, beside what transformers makes of the same conversations.

The template is ChatML with a system prompt of its own where a conversation has none; the end of a turn is the token
`<|im_end|>`, a line break behind it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlaif.data.conversations import Turn
from rlaif.inference.model_folder import load_tokenizer
from rlaif.records import Message
from rlaif.rl.experience import Cue
from rlaif.training.examples import Example
from rlaif.training.tokenize import Group, Tokens

DEFAULT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
TALK = [("user", "What is rain?"), ("assistant", "Water that falls."), ("user", "And snow?")]
REPLIES = ("Frozen water.", "  Ice, in flakes: it's *light*.\n\nAnd white… ❄️")
TALKS = {
    "one turn": TALK[:1],
    "many turns": TALK,
    "system": [("system", "Answer like a pirate."), *TALK],
    "odd text": [("user", "  Spaces   and\ttabs\n\n\nand 1234567890, naïve café, 日本語, <b>&amp;</b> ")],
}


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    return load_tokenizer(smollm2)


def group_of(tokenizer: Any, connection: list[tuple[str, str]]) -> Group:
    turns = tuple(Turn(role, text) for role, text in connection)
    (group,) = Tokens(tokenizer).groups([Example("row", turns, REPLIES, {})])
    return group


def written(connection: list[tuple[str, str]]) -> str:
    """ChatML by hand, without a cue."""
    turns = connection if connection[0][0] == "system" else [("system", DEFAULT), *connection]
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)


@pytest.mark.parametrize("name", TALKS)
def test_training_reads_what_the_template_writes(name: str, tokenizer: Any) -> None:
    connection = TALKS[name]
    group = group_of(tokenizer, connection)
    assert tokenizer.decode(group.prompt) == f"{written(connection)}<|im_start|>assistant\n"
    assert [tokenizer.decode(ids) for ids in group.completions] == [f"{text}<|im_end|>\n" for text in REPLIES]
    # One begins with a blank, which the line break of the cue would take up: the prompt keeps all of the cue.
    whole = f"{written(connection)}<|im_start|>assistant\n{REPLIES[0]}<|im_end|>\n"
    assert [*group.prompt, *group.completions[0]] == tokenizer(whole, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", TALKS)
def test_a_policy_is_asked_as_it_is_trained(name: str, tokenizer: Any) -> None:
    connection = TALKS[name]
    messages = tuple(Message.model_validate({"role": role, "content": text}) for role, text in connection)
    asked = list(Cue(tokenizer)(messages))
    assert asked == list(group_of(tokenizer, connection).prompt)
    plain = [{"role": role, "content": text} for role, text in connection]
    by_transformers = tokenizer.apply_chat_template(plain, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert asked == list(by_transformers)


def test_one_end_of_turn_stands_behind_every_completion(tokenizer: Any) -> None:
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.eos_token_id == end
    for ids in group_of(tokenizer, TALK).completions:
        assert list(ids).count(end) == 1
        assert tokenizer.decode(list(ids)[list(ids).index(end) + 1 :]) == "\n"


def test_a_system_prompt_takes_the_place_of_the_templates_own(tokenizer: Any) -> None:
    own = tokenizer.decode(group_of(tokenizer, TALKS["system"]).prompt)
    assert "Answer like a pirate." in own and DEFAULT not in own
    assert own.count("<|im_start|>system") == 1
