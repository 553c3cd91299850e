"""Which revisions are replies: read by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.revisions.guards import Parent, Use, likeness, spoken, use_of

PARENT = Parent(
    text="Read the packet, genius. Boil the rice for twelve minutes.",
    critique="The reply insults the person when it says genius, and that is rude.",
    request="Rewrite the reply so that it is polite to the person who asked.",
    said="How do I cook rice so that it does not stick?",
)


@pytest.mark.parametrize(
    ("text", "use"),
    [
        ("Boil the rice for twelve minutes.", Use.REVISED),
        ("Read the packet. Boil the rice for twelve minutes.", Use.REVISED),
        ("", Use.EMPTY),
        ("read the packet, genius! Boil the rice for twelve minutes", Use.UNCHANGED),
        ("The reply insults the person when it says genius, and that is rude.", Use.CRITIQUE),
        ("The reply insults the person when it says genius. That is rude.", Use.CRITIQUE),
        ("The assistant's response was rude and should have been kinder.", Use.CRITIQUE),
        ("This response is dismissive of the user.", Use.CRITIQUE),
        ("Critique: it calls the person a genius in a mocking way.", Use.CRITIQUE),
        ("**Review:** mocking.", Use.CRITIQUE),
        ("Rewrite the reply so that it is polite to the person who asked.", Use.REQUEST),
        ("RevisionRequest: make it kinder.", Use.REQUEST),
        ("Human: How do I cook rice?", Use.REQUEST),
        ("Sure. Write only the new reply, as the assistant would say it.", Use.REQUEST),
        ("How do I cook rice, so that it does not stick?", Use.REQUEST),
        ("The reply to that question is simple: boil the rice for twelve minutes.", Use.REVISED),
        ("The answer is to boil the rice for twelve minutes, a question of patience.", Use.REVISED),
        ("Critique of pure reason aside, boil the rice for twelve minutes.", Use.REVISED),
    ],
)
def test_use_by_hand(text: str, use: Use) -> None:
    assert use_of(text, PARENT, "stop") is use


def test_a_cut_revision_is_truncated() -> None:
    assert use_of("Boil the rice for", PARENT, "length") is Use.TRUNCATED


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("  Boil the rice.\n", "Boil the rice."),
        ("Here is the revised reply:\n\nBoil the rice.", "Boil the rice."),
        ("Revised response: Boil the rice.", "Boil the rice."),
        ("Sure! Here's a rewritten version of it: Boil the rice.", "Boil the rice."),
        ("**New reply:** Boil the rice.", "Boil the rice."),
        ('"Boil the rice."', "Boil the rice."),
        ("“Boil the rice.”", "Boil the rice."),
        ('"Rice" is the word for "nasi".', '"Rice" is the word for "nasi".'),
        ("Boil: the rice. Revision: no.", "Boil: the rice. Revision: no."),
        ("To improve the taste, add these: salt, oil.", "To improve the taste, add these: salt, oil."),
        ("Revision:", "Revision:"),
        ("", ""),
    ],
)
def test_what_is_not_the_reply_is_taken_off(text: str, said: str) -> None:
    assert spoken(text) == said


def test_likeness_by_hand() -> None:
    """Trigrams of "a b c" with ends: _ab, abc, bc_; "a b d" shares the first one of five."""
    assert likeness("a b c", "A, b... C!") == 1.0
    assert likeness("a b c", "a b d") == pytest.approx(1 / 5)
    assert likeness("", "") == 1.0
    assert likeness("", "a") == 0.0


@given(st.text(), st.text())
def test_likeness_is_a_symmetric_share(one: str, other: str) -> None:
    assert 0 <= likeness(one, other) == likeness(other, one) <= 1
    assert likeness(one, one) == 1


@given(st.text(max_size=60))
def test_any_text_can_be_taken_in(text: str) -> None:
    assert use_of(spoken(text), PARENT, "stop") in Use
    assert spoken(spoken(text)).strip() == spoken(spoken(text))
