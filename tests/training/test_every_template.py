"""The chat templates of many model families, and every kind of row through each: nothing is lost without a word.

What has to hold is looked up in the text that the tokens stand for, and not by the code that made them: either a row is
left out with its reason, or each text stands once where it belongs.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError

from rlaif.data.conversations import Turn
from rlaif.feedback.prompts import compare_messages
from rlaif.inference.chat_template import ChatTemplate, UnwritableError
from rlaif.records import Message
from rlaif.rl.experience import Cue
from rlaif.training.examples import Example, RowCounts
from rlaif.training.tokenize import Group, Tokens
from tests.training.small import bpe
from tests.training.written_templates import END_OF, WRITTEN

SYSTEM = "Talk like a sailor of old."
FIRST, ANSWER, SECOND = "What is a lighthouse?", "A tower with a lamp.", "And who keeps it?"
REPLIES = ("A keeper, matey.", "Nobody knows, nor cares.")
THOUGHT = "<think>\nWho could it be?\n</think>\n\nA keeper, matey."

TURNS: dict[str, tuple[Turn, ...]] = {
    "one": (Turn("user", FIRST),),
    "many": (Turn("user", FIRST), Turn("assistant", ANSWER), Turn("user", SECOND)),
}
DIALOGUES = {**TURNS, **{f"system, {name}": (Turn("system", SYSTEM), *turns) for name, turns in TURNS.items()}}


def shipped_templates() -> dict[str, str]:
    """Those that come with TRL, by file name, without its own variants for training."""
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        assert os.environ.get("CI_REQUIRE_TRL") != "1"
        return {}
    folder = Path(spec.origin).with_name("chat_templates")
    files = sorted(path for path in folder.glob("*.jinja") if not path.stem.endswith("_training"))
    return {path.stem: path.read_text(encoding="utf-8") for path in files}


TEMPLATES = {**WRITTEN, **shipped_templates()}
_SPECIAL = re.compile(
    r"<\|[\w/]+\|?>|<[\w/]+\|>|<｜[^｜>]+｜>|<(?:start|end)_of_\w+>|<end_of_utterance>|\[/?[A-Z_]{3,}\]|\[\|\w+\|\]"
)
NOT_WRITTEN: Mapping[str, Mapping[str, str]] = {
    "mistral-v1": {"system": "template"},
    "gemma": {"system": "template"},
    "openchat": {"system": "lost-system"},
}
"""Which conversations a template cannot write, by what is in them, and why."""


@functools.cache
def tokenizer_for(name: str) -> Any:
    """A small tokenizer with the template, whose special tokens are those that stand in it."""
    template = TEMPLATES[name]
    texts = [SYSTEM, FIRST, ANSWER, SECOND, *REPLIES, THOUGHT]
    marks = sorted(set(_SPECIAL.findall(template)) | {f"<|{role}|>" for role in ("system", "user", "assistant")})
    if name.startswith("exaone"):
        marks += [f"[|{role}|]" for role in ("system", "user", "assistant")]
    tokenizer = bpe(texts * 3, template, size=600)
    tokenizer.add_special_tokens({"additional_special_tokens": [mark for mark in marks if mark not in ("<s>", "</s>")]})
    tokenizer.eos_token = end_of(name, tokenizer)
    return tokenizer


def render(tokenizer: Any, turns: Sequence[Turn], *, cue: bool, parts: bool) -> str:
    messages = [
        {"role": turn.role, "content": [{"type": "text", "text": turn.content}] if parts else turn.content}
        for turn in turns
    ]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=cue))


def by_hand(tokenizer: Any, turns: Sequence[Turn], *, cue: bool) -> str | None:
    """What the template writes, content as a text or as parts, whichever shows the last turn; None where none does."""
    for parts in (False, True):
        try:
            text = render(tokenizer, turns, cue=cue, parts=parts)
        except (TemplateError, ValueError, TypeError, KeyError):
            continue
        if turns[-1].content in text:
            return text
    return None


def end_of(name: str, tokenizer: Any) -> str:
    """The token behind a response: by the table, else the first special one that the template writes there."""
    if name in WRITTEN:
        return END_OF.get(name, "</s>")
    whole = by_hand(tokenizer, (*TURNS["one"], Turn("assistant", REPLIES[0])), cue=False) or ""
    found = _SPECIAL.search(whole, whole.rfind(REPLIES[0]) + len(REPLIES[0]))
    return found[0] if found else "</s>"


def made(name: str, dialogue: Sequence[Turn], replies: Sequence[str]) -> tuple[Group | None, RowCounts]:
    row_counts = RowCounts()
    groups = list(
        Tokens(tokenizer_for(name)).groups([Example("row", tuple(dialogue), tuple(replies), {}, 7)], row_counts)
    )
    return (groups[0] if groups else None), row_counts


def in_order(texts: Sequence[str], whole: str) -> bool:
    places = [whole.find(text) for text in texts]
    return -1 not in places and places == sorted(places)


def proven(name: str, dialogue: Sequence[Turn], replies: Sequence[str], group: Group) -> None:
    """What has to hold of a row that is trained on."""
    tokenizer = tokenizer_for(name)
    prompt, end = tokenizer.decode(group.prompt), tokenizer.eos_token_id
    assert prompt == by_hand(tokenizer, dialogue, cue=True), "the prompt is what the model is asked"
    assert in_order([turn.content for turn in dialogue if turn.role != "system"], prompt)
    assert all(turn.content in prompt for turn in dialogue)
    assert list(group.prompt).count(tokenizer.bos_token_id) <= (2 if "llama-2" in name else 1)
    assert not any(reply in prompt for reply in replies)
    for ids, reply in zip(group.completions, replies, strict=True):
        text = tokenizer.decode(ids)
        assert text.count(reply) == 1 and not any(turn.content in text for turn in dialogue)
        before, behind = text.split(reply)
        # Before it stand marks only: of a thought that is left empty, of a channel.
        assert not re.sub(r"<[^>]*>|to=user|\W|think|final|analysis|response", "", before), before
        rest = list(ids)[len(tokenizer(before + reply, add_special_tokens=False)["input_ids"]) :]
        assert rest.count(end) == 1, f"one end behind the response: {behind!r}"
        assert not tokenizer.decode(rest[rest.index(end) + 1 :]).strip()
    assert len({tuple(ids) for ids in group.completions}) == len(replies)


def test_there_are_enough_of_them() -> None:
    assert len(WRITTEN) >= 15
    assert len(TEMPLATES) >= 25 or not shipped_templates()


@pytest.mark.parametrize("kind", ["sft", "pairs"])
@pytest.mark.parametrize("dialogue", DIALOGUES)
@pytest.mark.parametrize("name", TEMPLATES)
def test_training(name: str, dialogue: str, kind: str) -> None:
    replies = REPLIES if kind == "pairs" else REPLIES[:1]
    group, row_counts = made(name, DIALOGUES[dialogue], replies)
    reason = NOT_WRITTEN.get(name, {}).get("system" if "system" in dialogue else "turns")
    if group is None:
        assert [*row_counts.left_out] == [reason], row_counts.notes
        return
    assert reason is None
    proven(name, DIALOGUES[dialogue], replies, group)


@pytest.mark.parametrize("dialogue", DIALOGUES)
@pytest.mark.parametrize("name", TEMPLATES)
def test_sampling_and_judging(name: str, dialogue: str) -> None:
    """PPO's prompts and a judge's questions are the same text, or are refused for the same reason."""
    tokenizer = tokenizer_for(name)
    asked = tuple(Message(role=turn.role, content=turn.content) for turn in DIALOGUES[dialogue])  # type: ignore[arg-type]
    reason = NOT_WRITTEN.get(name, {}).get("system" if "system" in dialogue else "turns")
    if reason is not None:
        with pytest.raises(UnwritableError) as refusal:
            Cue(tokenizer)(asked)
        assert refusal.value.fault == reason
        return
    ids = Cue(tokenizer)(asked)
    assert tokenizer.decode(ids) == by_hand(tokenizer, DIALOGUES[dialogue], cue=True)
    question = compare_messages(asked, *REPLIES, "Which reply is kinder?")
    text = ChatTemplate(tokenizer).prompt(question)
    assert question[-1].content.strip() in text
    assert text == by_hand(tokenizer, [Turn("user", question[0].content)], cue=True)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_thought_is_learned_or_the_row_says_that_it_is_not(name: str) -> None:
    group, row_counts = made(name, TURNS["one"], [THOUGHT])
    if group is None:
        assert [*row_counts.left_out] == ["closed-thought"]
        return
    tokenizer = tokenizer_for(name)
    text = tokenizer.decode([*group.prompt, *group.completions[0]])
    assert text.count("Who could it be?") == text.count("A keeper, matey.") == 1
    assert text.count("<think>") <= 1


@pytest.mark.parametrize("name", TEMPLATES)
def test_pairs_that_differ_in_their_thoughts_stay_different(name: str) -> None:
    other = THOUGHT.replace("Who could it be?", "I am not sure.")
    group, row_counts = made(name, TURNS["one"], [THOUGHT, other])
    if group is None:
        assert [*row_counts.left_out] == ["closed-thought"]
    else:
        assert group.completions[0] != group.completions[1]
