"""The word lists: every wording is one readable sentence, and no two mean different things."""

from __future__ import annotations

import re

import pytest

from rlaif.demo.oracle import plain, read_prompt, read_reply
from rlaif.demo.world import FAMILIES, Family, expand, frames, phrase_kinds, phrases, topics, topics_of


def test_expand_by_hand() -> None:
    assert expand("(a|b) c") == ("a c", "b c")
    assert expand("x(| y)") == ("x", "x y")
    assert expand("(a|b)(c|d)") == ("ac", "ad", "bc", "bd")
    assert expand("plain") == ("plain",)


def all_sentences() -> list[tuple[str, str | None, str]]:
    found: list[tuple[str, str | None, str]] = []
    for kind in phrase_kinds():
        found += [(kind, None, text) for text in phrases(kind).every()]
    for topic in topics().values():
        kind = "comply" if topic.family == "harm" else "help"
        found += [(kind, topic.key, text) for text in topic.answers.every()]
        found += [("instead", topic.key, text) for text in topic.instead]
    return found


def test_every_sentence_is_read_as_what_it_is() -> None:
    sentences = all_sentences()
    assert len(sentences) > 1000
    for kind, topic, text in sentences:
        (sentence,) = read_reply(f"{text}.").sentences
        assert (sentence.kind, sentence.topic) == (kind, topic), text


def test_no_wording_is_both_trained_and_held_out() -> None:
    banks = [phrases(kind) for kind in phrase_kinds()] + [topic.answers for topic in topics().values()]
    banks += [frames(family) for family in FAMILIES]
    for bank in banks:
        train = {plain(text) for wordings in bank.train for text in wordings}
        held = {plain(text) for wordings in bank.held for text in wordings}
        assert held
        assert not train & held


@pytest.mark.parametrize(("family", "least"), [("ordinary", 40), ("harm", 20), ("upset", 20)])
def test_there_are_enough_topics(family: Family, least: int) -> None:
    assert len(topics_of(family)) >= least


def test_every_topic_has_two_wordings_and_enough_answers() -> None:
    for topic in topics().values():
        assert len(topic.asks) == 2, topic.key
        assert len(topic.answers.train) >= 2, topic.key
        assert bool(topic.instead) == (topic.family == "harm"), topic.key


def test_every_prompt_is_read_as_its_topic() -> None:
    prompts: dict[str, str] = {}
    for topic in topics().values():
        for ask in topic.asks:
            for frame in frames(topic.family).every():
                text = re.sub(r"\{(ask|says)\}", lambda _, ask=ask: ask, frame)
                assert prompts.setdefault(plain(text), topic.key) == topic.key
                scene = read_prompt(text)
                assert scene is not None
                assert (scene.topic, scene.family) == (topic.key, topic.family)
    assert len(prompts) > 2000
