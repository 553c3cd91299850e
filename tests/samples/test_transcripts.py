"""Dialogues in one text: rendered and parsed, they are what they were."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlaif.data.conversations import alternate, cut_dangling, is_transcript, joined, parse_transcript
from rlaif.records import Message, Messages

NAMES = {"user": "Human", "assistant": "Assistant"}


def render(turns: Messages) -> str:
    return "".join(f"\n\n{NAMES[turn.role]}: {turn.content}" for turn in turns)


def dialogue(*contents: str) -> Messages:
    """Turns of user and assistant, by turns."""
    return tuple(
        Message(role="assistant" if at % 2 else "user", content=content) for at, content in enumerate(contents)
    )


tricky = st.sampled_from(["Human:", "Assistant:", "\n", " ", "\n\n", "a: b", "Dear Human: no", "é", "Assistant", ": "])
spoken = st.lists(tricky | st.text(max_size=8), min_size=1, max_size=5).map("".join).map(str.strip).filter(bool)


@settings(deadline=None)
@given(st.lists(spoken, min_size=1, max_size=6).map(lambda texts: dialogue(*texts)))
def test_what_is_rendered_is_parsed_back(turns: Messages) -> None:
    assume(all("\n\nHuman:" not in turn.content and "\n\nAssistant:" not in turn.content for turn in turns))
    text = render(turns)
    assert is_transcript(text)
    assert parse_transcript(text) == turns


@settings(deadline=None)
@given(st.lists(spoken, min_size=1, max_size=4).map(lambda texts: dialogue(*texts)))
def test_an_empty_cue_for_the_assistant_is_kept_as_an_empty_turn(turns: Messages) -> None:
    assume(len(turns) % 2)
    assume(all("\n\nHuman:" not in turn.content and "\n\nAssistant:" not in turn.content for turn in turns))
    assert parse_transcript(render(turns) + "\n\nAssistant:") == (*turns, Message(role="assistant", content=""))


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_at_all_is_parsed(text: str) -> None:
    for turn in parse_transcript(f"\n\nHuman: {text}"):
        assert turn.content == turn.content.strip()


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("\n\nHuman: Say: Human: hi\nHuman: ho\n\nAssistant: ok", dialogue("Say: Human: hi\nHuman: ho", "ok")),
        ("\n\nHuman: One\n\nTwo: three\n\nAssistant: ok", dialogue("One\n\nTwo: three", "ok")),
        ("Human: hi\n\nAssistant: ho", dialogue("hi", "ho")),
        ("\n\nHuman: 1?\nAssistant: 1.\n\nHuman: 2?\n\nAssistant:", dialogue("1?", "1.", "2?", "")),
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant: c", (*dialogue("a"), *dialogue("b", "c"))),
    ],
)
def test_hand_written_dialogues(text: str, turns: Messages) -> None:
    assert parse_transcript(text) == turns


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n\nHuman: hi", True),
        ("Human: hi\n\nAssistant: ho", True),
        ("Human: hi", False),
        ("Human rights: what are they?", False),
        ("Consider this.\n\nHuman: hi\n\nAssistant: ho", False),
        ("", False),
    ],
)
def test_what_is_a_transcript(text: str, expected: bool) -> None:
    assert is_transcript(text) is expected


def test_turns_of_one_speaker_are_joined() -> None:
    turns = (*dialogue("a"), *dialogue("b", "c"), Message(role="assistant", content=""))
    assert not alternate(turns)
    assert joined(turns) == dialogue("a\n\nb", "c")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Sure.\n\nHuman:", " Sure."),
        ("Sure.\nHuman: \n", "Sure."),
        ("I am Human:", "I am Human:"),
        ("Two:\n\nHuman: hi\n\nAssistant: ho", "Two:\n\nHuman: hi\n\nAssistant: ho"),
        ("\n\nHuman:", ""),
    ],
)
def test_only_a_dangling_marker_is_cut(text: str, expected: str) -> None:
    assert cut_dangling(text) == expected


def test_a_stuck_model_holds_nothing_up() -> None:
    """Milliseconds, or hours."""
    assert cut_dangling("x" + "\n" * 200_000 + "y").endswith("y")
