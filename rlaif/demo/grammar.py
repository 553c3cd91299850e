"""The grammar of the tiny world: scenes (prompts) and replies of every quality, put together from phrases.

A reply follows a plan: what its core does (answers, strays to another topic, dodges, refuses, complies with harm), and
what else it carries (an insult, filler, a lecture, an empathetic opening, a safe alternative). The plan is never shown
to anyone; the oracle reads it back from the text.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rlaif.demo.words import FAMILIES, Bank, Family, Topic, frames, phrases, topics, topics_of

Core = Literal["answer", "stray", "dodge", "refuse", "nothing"]
"""What the core of a reply does; to answer a harmful request is to comply with it."""


@dataclass(frozen=True)
class Scene:
    """A prompt, with what it is about."""

    topic: str
    family: Family
    prompt: str


@dataclass(frozen=True)
class Plan:
    """The hidden attributes of a reply."""

    core: Core
    sentences: int = 1
    """Help sentences in the core."""
    rude: bool = False
    lecture: bool = False
    empathy: bool = False
    instead: bool = False
    filler: int = 0
    repeat: bool = False
    neutral: bool = False


@dataclass(frozen=True)
class Voice:
    """A source of choices, and the share of them that falls on held-out wordings."""

    rng: random.Random
    held: float = 0.0
    joined: float = 0.0
    """Share of sentences that join two wordings by "and"."""

    def pick(self, bank: Bank) -> str:
        """One wording of a bank."""
        return self.rng.choice(self.rng.choice(self._part(bank)))

    def say(self, bank: Bank) -> str:
        """A sentence: one wording of a bank, or two in one."""
        text = self.pick(bank)
        return _join(text, self.pick(bank)) if self.chance(self.joined) else text

    def pick_several(self, bank: Bank, count: int) -> list[str]:
        """Up to `count` wordings of different templates."""
        chosen = self.rng.sample(bank.train, min(count, len(bank.train)))
        if chosen and bank.held and self.rng.random() < self.held:
            chosen = [*chosen[1:], self.rng.choice(bank.held)]
        texts = [self.rng.choice(wordings) for wordings in chosen]
        if len(texts) > 1 and self.chance(self.joined):
            texts[:2] = [_join(*texts[:2])]
        return texts

    def chance(self, share: float) -> bool:
        """True in `share` of all calls; a share of zero costs no draw, so what is off changes nothing that is on."""
        return share > 0 and self.rng.random() < share

    def _part(self, bank: Bank) -> tuple[tuple[str, ...], ...]:
        return bank.held if bank.held and self.rng.random() < self.held else bank.train


def draw_scene(voice: Voice, family: Family | None = None) -> Scene:
    """A prompt of `family` (or of any) in one of its wordings."""
    family = family or voice.rng.choices(FAMILIES, weights=(2, 1, 1))[0]
    return word_scene(voice.rng.choice(topics_of(family)), voice)


def word_scene(topic: Topic, voice: Voice) -> Scene:
    """A prompt about `topic`."""
    prompt = fill_frame(voice.pick(frames(topic.family)), voice.rng.choice(topic.asks))
    return Scene(topic.key, topic.family, prompt)


def fill_frame(frame: str, ask: str) -> str:
    """The frame with what is asked put in, starting with a capital letter."""
    text = frame.replace("{ask}", ask).replace("{says}", ask)
    return text[0].upper() + text[1:]


def draw_plan(voice: Voice, family: Family) -> Plan:
    """A plan of mixed quality; about every second one breaks some principle."""
    flip = voice.chance
    cores: Sequence[Core] = ("answer", "stray", "dodge", "refuse", "nothing")
    weights = {"ordinary": (62, 14, 12, 9, 3), "upset": (62, 14, 12, 9, 3), "harm": (38, 5, 7, 48, 2)}[family]
    verbose = flip(0.22)
    return Plan(
        core=voice.rng.choices(cores, weights=weights)[0],
        sentences=voice.rng.choice((1, 1, 2)),
        rude=flip(0.2),
        lecture=flip(0.3 if family == "harm" else 0.12),
        empathy=flip({"ordinary": 0.03, "harm": 0.03, "upset": 0.5}[family]),
        instead=family == "harm" and flip(0.4),
        filler=voice.rng.choice((1, 2, 3)) if verbose else 0,
        repeat=flip(0.25) if verbose else flip(0.03),
        neutral=flip(0.25),
    )


def write_reply(scene: Scene, plan: Plan, voice: Voice) -> str:
    """A reply to `scene` that carries out `plan`."""
    opening: list[str] = []
    closing: list[str] = []
    if plan.neutral:
        (opening if voice.chance(0.3) else closing).append(voice.say(phrases("neutral")))
    if plan.rude:
        (opening if voice.chance(0.5) else closing).append(voice.say(phrases("insult")))
    if plan.lecture:
        (opening if voice.chance(0.25) else closing).append(voice.say(phrases("lecture")))
    voice.rng.shuffle(opening)
    voice.rng.shuffle(closing)
    if plan.empathy:
        opening.insert(voice.rng.randint(0, len(opening)), voice.say(phrases("empathy")))
    sentences = [*opening, *_core(scene, plan, voice), *closing]
    for text in voice.pick_several(phrases("filler"), plan.filler):
        sentences.insert(voice.rng.randint(0, len(sentences)), text)
    if plan.repeat and sentences:
        sentences.append(voice.rng.choice(sentences))
    return " ".join(_finish(text, at, voice) for at, text in enumerate(sentences))


def draw_reply(scene: Scene, voice: Voice) -> str:
    """A reply of mixed quality."""
    return write_reply(scene, draw_plan(voice, scene.family), voice)


def draw_oddity(reply: str, voice: Voice) -> str:
    """Something that is no reply: empty, a lone sign, an order to the judge, or `reply` cut off, shuffled, or with such
    an order below it."""
    words = reply.split()
    way = voice.rng.choice(("bank", "bank", "note", "note", "cut", "shuffle", "echo"))
    if way == "bank" or len(words) < 4:
        return voice.pick(phrases("odd"))
    if way == "note":
        return f"{reply}{voice.rng.choice((' ', chr(10), 2 * chr(10)))}{voice.pick(phrases('odd')) or '>>>'}"
    if way == "cut":
        return " ".join(words[: voice.rng.randint(1, len(words) - 1)]).rstrip(".!?") + voice.rng.choice(("", ","))
    if way == "shuffle":
        voice.rng.shuffle(words)
        return " ".join(words)
    return " ".join([voice.rng.choice(words)] * voice.rng.randint(3, 12))


def _core(scene: Scene, plan: Plan, voice: Voice) -> list[str]:
    topic = topics()[scene.topic]
    sentences: list[str] = []
    if plan.core == "answer":
        sentences = voice.pick_several(topic.answers, plan.sentences)
        if scene.family == "harm" and voice.chance(0.5):
            sentences.insert(0, voice.say(phrases("agree")))
    elif plan.core == "stray":
        sentences = voice.pick_several(_other_topic(topic, voice).answers, plan.sentences)
    elif plan.core != "nothing":
        sentences = [voice.say(phrases("refusal" if plan.core == "refuse" else "dodge"))]
    if plan.instead:
        own = topic.instead and voice.chance(0.5)
        sentences.append(voice.rng.choice(topic.instead) if own else voice.say(phrases("instead")))
    return sentences


def _other_topic(topic: Topic, voice: Voice) -> Topic:
    family: Family = "upset" if topic.family == "upset" and voice.chance(0.7) else "ordinary"
    return voice.rng.choice([other for other in topics_of(family) if other.key != topic.key])


def _finish(text: str, at: int, voice: Voice) -> str:
    """The sentence with its lead and its full stop."""
    if voice.chance(0.1 if at else 0.04):
        lead = voice.pick(phrases("lead"))
        text = lead + _uncapped(text)
    return text + ("!" if voice.chance(0.08) else ".")


def _join(first: str, second: str) -> str:
    return f"{first}, and {_uncapped(second)}"


def _uncapped(text: str) -> str:
    """`text` as it goes on inside a sentence."""
    return text if text.startswith(("I ", "I'")) else text[0].lower() + text[1:]
