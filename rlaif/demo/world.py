"""The tiny world: a grammar of prompts and replies of every quality, and the prompts of the demo.

A scene is a prompt with its topic. A reply follows a hidden plan: its core helps, strays to another topic, dodges,
refuses or complies with harm; beside it stand an insult, filler, a lecture, an empathetic opening, a safe alternative.
The oracle (`demo.oracle`) recovers all this from the text alone.

The words are in `words/*.yaml`. Every list has training wordings and held-out wordings. No model is trained on the
latter, so measurements on them show understanding rather than memory.

`python -m rlaif.demo.world` writes the demo's prompts, always the same: `prompts/policy/demo.jsonl` for runs, and
`demo-held-out.jsonl` for evaluations.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from rlaif.store import resource

Family = Literal["ordinary", "harm", "upset"]
"""The three families of prompts: ordinary requests, requests that would hurt someone, upset customers."""

Core = Literal["answer", "stray", "dodge", "refuse", "nothing"]
"""What the core of a reply does; to `answer` a harmful request is to comply with it."""

FAMILIES: tuple[Family, ...] = ("ordinary", "harm", "upset")

SHARES: dict[Family, int] = {"ordinary": 60, "harm": 30, "upset": 30}
"""Prompts of each family: every topic at least once."""
_HELD_OUT = 120
_CHOICE = re.compile(r"\(([^()]*)\)")


def expand(template: str) -> tuple[str, ...]:
    """All wordings of a template: `(a|b) c` is `a c` and `b c`; an empty side may be left out."""
    pieces = _CHOICE.split(template)
    choices = [piece.split("|") if at % 2 else [piece] for at, piece in enumerate(pieces)]
    return tuple("".join(wording) for wording in itertools.product(*choices))


@dataclass(frozen=True)
class Bank:
    """Wordings of one function: for each template, all its wordings."""

    train: tuple[tuple[str, ...], ...]
    held: tuple[tuple[str, ...], ...] = ()

    def every(self) -> tuple[str, ...]:
        """All wordings, held-out ones included."""
        return tuple(itertools.chain.from_iterable(self.train + self.held))


@dataclass(frozen=True)
class Topic:
    """One subject of requests or complaints."""

    key: str
    family: Family
    asks: tuple[str, ...]
    """Texts for the slot of a prompt frame."""
    answers: Bank
    """Sentences that help (for a harmful request: that comply)."""
    instead: tuple[str, ...] = ()
    """Safe alternatives for a reply to a harmful request."""


@cache
def topics() -> dict[str, Topic]:
    """Every topic by its key."""
    files: dict[Family, str] = {"ordinary": "ordinary", "harm": "harm", "upset": "complaints"}
    return {key: _topic(key, family, entry) for family, name in files.items() for key, entry in _load(name).items()}


@cache
def topics_of(family: Family) -> tuple[Topic, ...]:
    """The topics of one family."""
    return tuple(topic for topic in topics().values() if topic.family == family)


@cache
def phrases(kind: str) -> Bank:
    """The phrase bank of a kind: `refusal`, `dodge`, `insult`, `filler`, `lecture`, `empathy`, `instead`, ..."""
    return _bank(_load("phrases")[kind])


@cache
def frames(family: Family) -> Bank:
    """The prompt frames of a family; ordinary and harmful requests share theirs."""
    return _bank(_load("frames")["upset" if family == "upset" else "how"])


def phrase_kinds() -> tuple[str, ...]:
    """The kinds of sentences in the phrase banks (leads and input_issues are no sentences of their own)."""
    return tuple(kind for kind in _load("phrases") if kind not in ("lead", "odd"))


def _topic(key: str, family: Family, entry: dict[str, list[str]]) -> Topic:
    answers = Bank(
        train=tuple(expand(text) for text in entry["comply" if family == "harm" else "help"]),
        held=tuple(expand(text) for text in entry["held"]),
    )
    asks = tuple(entry["says" if family == "upset" else "ask"])
    instead = tuple(itertools.chain.from_iterable(expand(text) for text in entry.get("instead", [])))
    return Topic(key, family, asks, answers, instead)


def _bank(entry: dict[str, list[str]]) -> Bank:
    return Bank(
        train=tuple(expand(text) for text in entry["train"]), held=tuple(expand(text) for text in entry["held"])
    )


@cache
def _load(name: str) -> dict[str, Any]:
    path = Path(__file__).with_name("words") / f"{name}.yaml"
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


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
        use_held = bool(bank.held) and self.rng.random() < self.held
        return self.rng.choice(self.rng.choice(bank.held if use_held else bank.train))

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
        """True in `share` of all calls. A share of zero uses no random number, so other draws stay the same."""
        return share > 0 and self.rng.random() < share


def draw_scene(voice: Voice, family: Family | None = None) -> Scene:
    """A prompt of `family` (or of any) in one of its wordings."""
    family = family or voice.rng.choices(FAMILIES, weights=(2, 1, 1))[0]
    return word_scene(voice.rng.choice(topics_of(family)), voice)


def word_scene(topic: Topic, voice: Voice) -> Scene:
    """A prompt about `topic`."""
    prompt = fill_frame(voice.pick(frames(topic.family)), voice.rng.choice(topic.asks))
    return Scene(topic.key, topic.family, prompt)


def fill_frame(frame: str, ask: str) -> str:
    """The frame around `ask`, with a capital first letter."""
    text = frame.replace("{ask}", ask).replace("{says}", ask)
    return text[0].upper() + text[1:]


def draw_plan(voice: Voice, family: Family) -> Plan:
    """A plan of mixed quality; about every second one violates some principle."""
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
    for at, text in enumerate(sentences):
        has_lead = voice.chance(0.1 if at else 0.04)
        led = voice.pick(phrases("lead")) + _uncapped(text) if has_lead else text
        sentences[at] = led + ("!" if voice.chance(0.08) else ".")
    return " ".join(sentences)


def draw_reply(scene: Scene, voice: Voice) -> str:
    """A reply of mixed quality."""
    return write_reply(scene, draw_plan(voice, scene.family), voice)


def draw_oddity(reply: str, voice: Voice) -> str:
    """Something that is no reply: empty, a lone sign, an order to the judge, or `reply` cut off, shuffled, or with such
    an order below it."""
    words = reply.split()
    kind = voice.rng.choice(("bank", "bank", "note", "note", "cut", "shuffle", "echo"))
    if kind == "bank" or len(words) < 4:
        return voice.pick(phrases("odd"))
    if kind == "note":
        return f"{reply}{voice.rng.choice((' ', chr(10), 2 * chr(10)))}{voice.pick(phrases('odd')) or '>>>'}"
    if kind == "cut":
        return " ".join(words[: voice.rng.randint(1, len(words) - 1)]).rstrip(".!?") + voice.rng.choice(("", ","))
    if kind == "shuffle":
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
        family: Family = "upset" if topic.family == "upset" and voice.chance(0.7) else "ordinary"
        stray = voice.rng.choice([other for other in topics_of(family) if other.key != topic.key])
        sentences = voice.pick_several(stray.answers, plan.sentences)
    elif plan.core != "nothing":
        sentences = [voice.say(phrases("refusal" if plan.core == "refuse" else "dodge"))]
    if plan.instead:
        is_specific = topic.instead and voice.chance(0.5)
        sentences.append(voice.rng.choice(topic.instead) if is_specific else voice.say(phrases("instead")))
    return sentences


def _join(first: str, second: str) -> str:
    return f"{first}, and {_uncapped(second)}"


def _uncapped(text: str) -> str:
    """`text` as it continues inside a sentence."""
    return text if text.startswith(("I ", "I'")) else text[0].lower() + text[1:]


def demo_scenes(seed: int = 7, shares: Mapping[Family, int] | None = None) -> list[Scene]:
    """The scenes of the prompt file in its order: all different, four in ten in held-out wordings."""
    voice = Voice(random.Random(seed), held=0.4)
    scenes: dict[str, Scene] = {}
    for family, count in (shares or SHARES).items():
        total = len(scenes) + count
        for topic in itertools.cycle(topics_of(family)):
            if len(scenes) == total:
                break
            scene = word_scene(topic, voice)
            scenes.setdefault(scene.prompt, scene)
    shuffled = list(scenes.values())
    voice.rng.shuffle(shuffled)
    return shuffled


def fresh_scenes(count: int, seed: int = 12) -> list[Scene]:
    """Scenes of all families that are not in the shipped prompts of a run."""
    shares: dict[Family, int] = {"ordinary": count, "harm": count // 2, "upset": count // 2}
    shipped = {scene.prompt for scene in demo_scenes()}
    return [scene for scene in demo_scenes(seed, shares) if scene.prompt not in shipped][:count]


def prompt_file(name: str = "demo.jsonl") -> Path:
    """Where the prompts are shipped."""
    return resource("prompts") / "policy" / name


def lines() -> str:
    """The content of the prompt file."""
    return _rows([{"prompt": scene.prompt} for scene in demo_scenes()])


def held_out_lines() -> str:
    """The content of the file for evaluations; `kind` says what a prompt is: ordinary, harm or upset."""
    return _rows([{"prompt": scene.prompt, "kind": scene.family} for scene in fresh_scenes(_HELD_OUT)])


def _rows(rows: list[dict[str, str]]) -> str:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


if __name__ == "__main__":
    prompt_file().parent.mkdir(parents=True, exist_ok=True)
    prompt_file().write_text(lines(), encoding="utf-8")
    prompt_file("demo-held-out.jsonl").write_text(held_out_lines(), encoding="utf-8")
