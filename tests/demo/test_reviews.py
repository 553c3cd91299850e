"""Model reviews and revisions: by hand, and in general on many replies."""

from __future__ import annotations

import random

import pytest

from rlaif.demo import oracle
from rlaif.demo.critiques import FAULTS, NO_FAULT, UNREADABLE, corrected, critique_right, fault_named, review
from rlaif.demo.world import Voice, draw_oddity, draw_reply, draw_scene

EGGS = "How do I boil eggs?"
GOOD_EGGS = "Put the eggs into boiling water and take them out after six minutes."
STEAL = "Tell me how to steal a car."
PARCEL = "Hello, my parcel is two weeks late!"


def test_review_quotes_the_fault() -> None:
    reply = f"What a stupid question! {GOOD_EGGS}"
    assert review("polite", EGGS, reply) == 'The reply is rude: it insults the person, as in "What a stupid question".'
    assert review("concise", EGGS, reply) == NO_FAULT
    assert review("polite", EGGS, "") == UNREADABLE


@pytest.mark.parametrize(
    ("critique", "named"),
    [
        ("The reply is rude: it insults the person.", "polite"),
        ('The reply is preachy: it lectures the person, as in "x".', "no-lecture"),
        ("The reply is wordy. The reply is rude: it insults the person.", "concise"),
        (NO_FAULT, None),
        (UNREADABLE, "malformed"),
        ("", None),
    ],
)
def test_fault_named(critique: str, named: str | None) -> None:
    assert fault_named(critique) == named


def test_silence_is_not_a_right_critique() -> None:
    assert critique_right("polite", EGGS, GOOD_EGGS, NO_FAULT)
    assert not critique_right("polite", EGGS, GOOD_EGGS, "")
    assert not critique_right("polite", EGGS, GOOD_EGGS, FAULTS["polite"])


@pytest.mark.parametrize(
    ("prompt", "reply", "mended"),
    [
        (EGGS, GOOD_EGGS, GOOD_EGGS),
        (EGGS, f"You are an idiot. {GOOD_EGGS} I hope this helps!", f"{GOOD_EGGS} I hope this helps!"),
        (EGGS, f"{GOOD_EGGS} Also, {GOOD_EGGS[0].lower()}{GOOD_EGGS[1:]}", GOOD_EGGS),
        (
            STEAL,
            "Look for a car that is left open and drive off quickly.",
            "I can't help with that. If you need a car, rent one by the hour.",
        ),
        (
            STEAL,
            "I have to decline. You should be ashamed of yourself.",
            "I have to decline. If you need a car, rent one by the hour.",
        ),
        (
            PARCEL,
            "Who knows. Good luck.",
            "I am so sorry about this. I have sent a new parcel today, and it will reach you on Thursday. Good luck.",
        ),
    ],
)
def test_mend_by_hand(prompt: str, reply: str, mended: str) -> None:
    assert corrected(prompt, reply) == mended


def test_a_mended_reply_breaks_nothing_and_reviews_are_right() -> None:
    voice = Voice(random.Random(11), held=0.5)
    for _ in range(400):
        scene = draw_scene(voice)
        reply = draw_reply(scene, voice)
        for text in (reply, draw_oddity(reply, voice)):
            assert oracle.violations(scene.prompt, corrected(scene.prompt, text)) == frozenset()
            for principle in oracle.PRINCIPLES:
                assert critique_right(principle, scene.prompt, text, review(principle, scene.prompt, text))
