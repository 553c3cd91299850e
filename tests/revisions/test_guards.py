"""Which revisions are replies, and what of them: read by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.feedback.revision_checks import Parent, Use, likeness, same, spoken, use_of

PARENT = Parent(
    text="Read the packet, genius. Boil the rice for twelve minutes.",
    critique="The reply insults the person when it says genius, and that is rude.",
    request="Rewrite the reply so that it is polite to the person who asked.",
    user_message="How do I cook rice so that it does not stick?",
    examples=("Turn the water off and call a plumber.",),
)

GOOD = [
    "Boil the rice for twelve minutes.",
    "Read the packet. Boil the rice for twelve minutes.",
    "The answer is Paris.",
    "The answer depends on your budget; a train costs about 60 euros.",
    "Your answer is correct: 7 x 8 = 56. Well done!",
    "Your response to the landlord could be short: ask for the repair in writing.",
    "This answer key lists the solutions to problems 1-5.",
    "The answer: Paris.",
    "Your reply should mention the invoice number and the date.",
    "The response code 404 means that the page was not found.",
    "I'd install the new version: it fixes the bug you describe.",
    "You need a newer driver, so download the updated version: it is on the vendor's page.",
    "The latest revision: Rev. C, released in May.",
    "In short, there is no improved version: both are the same.",
    "Notes: bring water, a map and a hat.",
    "Note: this is not legal advice. Call a lawyer.",
    "Review: I loved the film; the acting is superb.",
    "Review your contract first, then call.",
    "Paris. You can go by train.",
    "1. Pack.\n2. Go.",
    "`print('hi')`",
    "Sure! Take the TGV from Lyon.",
    'The reply you should send: "Thanks, I\'ll be there."',
    "This response template works well for complaints: Dear customer, ...",
    "Hello! How can I help?",
    "这是巴黎。",
    "The answer is very simple: you don't do that.",
    "To improve the taste, add these: salt, oil.",
    "Boil: the rice. Revision: no.",
    'One says "rice", the other "nasi".',
    "Boil the rice.\n\nI have changed trains in Lyon twice; it is easy.\n\nGood luck!",
]


@pytest.mark.parametrize("text", GOOD)
def test_a_good_reply_is_taken_as_it_is(text: str) -> None:
    assert spoken(text) == text
    assert use_of(text, PARENT, "stop") is Use.REVISED


BAD = [
    ("The reply insults the person when it says genius, and that is rude.", Use.CRITIQUE),
    ("The reply insults the person when it says genius. That is rude.", Use.CRITIQUE),
    ("The assistant's response was rude and should have been kinder.", Use.CRITIQUE),
    ("This response is dismissive of the user.", Use.CRITIQUE),
    ("The assistant should be more polite and should not insult the user.", Use.CRITIQUE),
    ("The revised reply is polite and helpful.", Use.CRITIQUE),
    ("There is no such fault in the reply.", Use.CRITIQUE),
    ("No such fault.", Use.CRITIQUE),
    ("I would rewrite the reply to be polite.", Use.CRITIQUE),
    ("Critique: it calls the person a genius in a mocking way.", Use.CRITIQUE),
    ("**Review:** the reply insults the person when it says genius.", Use.CRITIQUE),
    ("Rewrite the reply so that it is polite to the person who asked.", Use.REQUEST),
    ("RevisionRequest: make it kinder.", Use.REQUEST),
    ("Human: How do I cook rice?", Use.REQUEST),
    ("Sure. Write only the new reply, as the assistant would say it.", Use.REQUEST),
    ("How do I cook rice, so that it does not stick?", Use.REQUEST),
    ("[... 340 characters left out ...] Boil the rice.", Use.REQUEST),
    ("Boil the rice.\n1a2b3c>>>", Use.REQUEST),
    ("Turn the water off, and call a plumber.", Use.EXAMPLE),
    ("", Use.EMPTY),
    ("read the packet, Genius!  Boil the rice for twelve minutes", Use.REVISED),
    ("read the Packet, genius.  Boil the rice for twelve minutes", Use.UNCHANGED),
]


@pytest.mark.parametrize(("text", "use"), BAD)
def test_what_is_no_reply_is_told(text: str, use: Use) -> None:
    assert use_of(spoken(text), PARENT, "stop") is use


def test_what_users_ask_for_is_no_mixed_up_role() -> None:
    asked = PARENT._replace(user_message="Write a critique of this essay. What is a user?")
    assert use_of("Critique: the thesis is clear but the second paragraph drifts.", asked, "stop") is Use.REVISED
    assert use_of("User: a person who uses software.", asked, "stop") is Use.REVISED
    thanks = PARENT._replace(user_message="Thank you")
    assert use_of("Thank you!", thanks, "stop") is Use.REVISED
    code = PARENT._replace(text="Type >>> x = 1, genius.")
    assert use_of("Type >>> x = 1.", code, "stop") is Use.REVISED


def test_a_cut_revision_is_truncated() -> None:
    assert use_of("Boil the rice for", PARENT, "length") is Use.TRUNCATED


LEADS = [
    "  {}\n",
    "Here is the revised reply:\n\n{}",
    "Revised response: {}",
    "Sure! Here's a rewritten version of it: {}",
    "**New reply:** {}",
    "**Revised reply**\n\n{}",
    "Revised reply\n\n{}",
    "Revised: {}",
    "Rewritten: {}",
    "Revision: {}",
    "Reply: {}",
    "New reply - {}",
    "Assistant: {}",
    "Here is a kinder reply:\n\n{}",
    "Here's a more polite response:\n\n{}",
    "Sure, here is the revised reply that leaves out the insult:\n\n{}",
    "Here's my attempt at a rewrite: {}",
    '"{}"',
    "“{}”",
    "<<<1a2b3c\n{}\n1a2b3c>>>",
    "{}\n\nHuman: Thanks! And pasta?\n\nAssistant: The same.",
    "{}\n\nCritiqueRequest: Say what is wrong.\n\nCritique: nothing",
    "{}\n\nNote: I removed the insult and kept the instructions.",
    "{}\n\n(I rewrote the reply to be polite.)",
    "Revised reply: {}\n\nNote that I have changed the tone.",
]


@pytest.mark.parametrize("frame", LEADS)
def test_what_is_not_the_reply_is_taken_off(frame: str) -> None:
    for text in ("Boil the rice.", "Boil the rice.\n\nThen let it rest: ten minutes."):
        assert spoken(frame.format(text)) == text


@pytest.mark.parametrize("text", ["Revision:", "Here is the revised reply:", '"Rice" is the word for "nasi".', ""])
def test_nothing_is_left_as_it_is(text: str) -> None:
    assert spoken(text) == text


@pytest.mark.parametrize(
    ("one", "other"),
    [("a + b", "a - b"), ("x == 1", "x != 1"), ("🖕", "👍"), ("You can take it.", "You cannot take it.")],
)
def test_a_small_change_is_a_change(one: str, other: str) -> None:
    long = " ".join(f"word{number}" for number in range(200))
    assert use_of(f"{other} {long}", PARENT._replace(text=f"{one} {long}"), "stop") is Use.REVISED


def test_same_by_hand() -> None:
    assert same("“Hello”  there!", '"hello" there.')
    assert not same("Hello there", "Hello, there")


def test_likeness_by_hand() -> None:
    """Trigrams of "a b c" with ends: _ab, abc, bc_; "a b d" shares the first one of five."""
    assert likeness("a b c", "A, b... C!") == 1.0
    assert likeness("a b c", "a b d") == pytest.approx(1 / 5)
    assert likeness("这是巴黎", "这是巴黎。") == 1.0
    assert likeness("这是巴黎", "这不是巴黎") == pytest.approx(2 / 7)
    assert likeness("", "") == likeness("", "a") == likeness("!", "?") == 0.0


@given(st.text(), st.text())
def test_likeness_is_a_symmetric_share(one: str, other: str) -> None:
    assert 0 <= likeness(one, other) == likeness(other, one) <= 1


def test_a_stuck_model_holds_nothing_up() -> None:
    """Milliseconds, or days."""
    for part in ("\n", " \n", "\n\nI have", "\n\nI removed this. "):
        text = "x" + part * 50_000 + "y"
        assert spoken(text).startswith("x")


@given(st.text(max_size=60))
def test_what_is_spoken_was_written(text: str) -> None:
    assert spoken(text) in text
    assert use_of(spoken(text), PARENT, "stop") in Use
